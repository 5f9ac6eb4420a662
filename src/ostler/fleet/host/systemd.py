"""The host's systemd, through systemctl and journalctl: argument lists in, plain values out."""

import subprocess
from collections.abc import Sequence

from ostler.fleet.host.refusals import Refused

PATIENCE_S = 120.0
_SAID = 600


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit, by name; empty texts for a unit that there is not."""
    said = _run(["systemctl", "show", "--property", ",".join(properties), "--", unit])
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in properties}


def show_all(units: Sequence[str], *properties: str) -> dict[str, dict[str, str]]:
    """The same of several units, by their names. Raises Refused."""
    blocks = _run(["systemctl", "show", "--property", ",".join(properties), "--", *units]).strip("\n").split("\n\n")
    found = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return {unit: {name: one.get(name, "") for name in properties} for unit, one in zip(units, found, strict=False)}


def act(verb: str, *units: str) -> None:
    """start, stop, restart, enable … ; raises Refused (unit) with what systemd said and the unit's last words."""
    try:
        _run(["systemctl", verb, *(["--", *units] if units else [])])
    except Refused as exc:
        words = "\n".join(journal(unit) for unit in units)
        first = exc.message.partition("\n")[0]
        raise Refused("unit", f"systemctl {verb} {' '.join(units)}: {first}", details=words) from None


def read_anew(*units: str) -> None:
    """Have systemd read the files of units, where it has not read these as they are now: it always reads all of them, and runs all its
    generators, which takes it an eighth of a second of CPU. Raises Refused."""
    said = _run(["systemctl", "show", "--property", "LoadState,NeedDaemonReload", "--", *units])
    if said.count("LoadState=loaded") < len(units) or "NeedDaemonReload=yes" in said:
        act("daemon-reload")


def journal(unit: str, lines: int = 30) -> str:
    """The last lines that a unit wrote."""
    try:
        return _run(
            ["journalctl", "--no-pager", "--quiet", "--output", "short-iso", "--lines", str(lines), "--unit", unit]
        ).rstrip()
    except Refused as exc:
        return f"(no journal: {exc.message})"


def _run(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise Refused("unit", f"no answer in {PATIENCE_S:g} s") from None
    except OSError as exc:
        raise Refused("unit", f"{argv[0]}: {exc.strerror}") from None
    if done.returncode:
        raise Refused("unit", done.stderr.strip()[-_SAID:] or f"exit code {done.returncode}")
    return done.stdout
