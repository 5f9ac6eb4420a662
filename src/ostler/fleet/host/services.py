"""The services that a node's configuration declares, on its host: what polkit permits the node's user, and links to programs.

The configuration is read by the release that is in force: this program has nothing that reads YAML.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostler.fleet.host import binaries
from ostler.fleet.host.places import NODE_UNIT, Places, sync, write
from ostler.fleet.host.traces import Traces

VERBS = ("start", "stop", "restart")
ACTION = "org.freedesktop.systemd1.manage-units"
READ_S = 60.0
ASK_S = 10.0
TRIES = 5  # polkit reads its rules when it notices that they changed
HEAD = "// Written by Ostler from the services of /etc/ostler/node.yaml: installs and updates write it anew.\n"
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.service", re.ASCII)
_OWN = "ostler-"


@dataclass(slots=True)
class Outcome:
    """What was changed, what will not work, and the units that are permitted now."""

    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    units: tuple[str, ...] = ()


def rule(user: str, units: Iterable[str]) -> str:
    """The polkit rule: this user may start, stop and restart these units, and that is all. From version 126 on polkit tells in which unit
    somebody is: then it must be the daemon's, since jobs are the same user. Raises ValueError for what is no plain name of a unit, or is
    one of the node's own."""
    names = sorted(set(units))
    for name in (*names, f"{user}.service"):
        if not _UNIT.fullmatch(name) or (name.startswith(_OWN) and name in names):
            raise ValueError(f"{name!r} is nothing that a rule may name")
    return HEAD + (
        "polkit.addRule(function(action, subject) {\n"
        f"    var units = {json.dumps(names)};\n"
        f"    var verbs = {json.dumps(VERBS)};\n"
        f"    if (subject.system_unit && subject.system_unit != {json.dumps(NODE_UNIT)}) return polkit.Result.NOT_HANDLED;\n"
        f"    if (action.id == {json.dumps(ACTION)} && subject.user == {json.dumps(user)} &&\n"
        '        units.indexOf(action.lookup("unit")) >= 0 && verbs.indexOf(action.lookup("verb")) >= 0) {\n'
        "        return polkit.Result.YES;\n"
        "    }\n"
        "});\n"
    )


def apply(places: Places, traces: Traces, home: Path, *, user: str) -> Outcome:
    """What the configuration in force declares, as the release at `home` reads it: the rule, and links to programs. A configuration
    that it cannot read permits nothing. Each step is whole, and may be done again."""
    outcome = Outcome()
    declared = _read(places, home, outcome)
    outcome.units = tuple(str(one["unit"]) for one in declared)
    try:
        text = rule(user, outcome.units)
    except ValueError as exc:
        outcome.warnings.append(str(exc))
        outcome.units, declared = (), []
    if outcome.units:
        traces.directory(places.permits.parent, mode=0o755)
        write(places.permitted, text.encode(), mode=0o600)
        if traces.file(places.permits, text.encode()):
            outcome.changed.append(places.permits.name)
    else:
        places.permitted.unlink(missing_ok=True)
    if not outcome.units and _is_ours(places.permits):
        places.permits.unlink()
        sync(places.permits.parent)
        outcome.changed.append(places.permits.name)
    for one in declared:
        if one.get("expected"):
            found = binaries.link(binaries.Binary.of(one), places, traces)
            outcome.changed += [str(one["expected"])] if found.link_to else []
            outcome.warnings += [found.warning] if found.warning else []
    return outcome


def refused(pid: int, uid: int, units: Iterable[str]) -> list[str]:
    """What polkit does not permit the process although its rule says so, as a sentence: `pid` is the daemon's."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            began = file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ["polkit was not asked about services: the daemon has no process"]
    for unit in units:
        for verb in VERBS:
            if (why := _ask(f"{pid},{began},{uid}", unit, verb)) is not None:
                return [f"commands to {unit} will be refused: {why}"]
    return []


def _ask(process: str, unit: str, verb: str) -> str | None:
    argv = ["pkcheck", "--action-id", ACTION, "--process", process, "--detail", "unit", unit, "--detail", "verb", verb]
    for again in range(TRIES):
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False)
        except FileNotFoundError:
            return "polkit is not installed on this host (apt-get install polkitd, then install again)"
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"polkit cannot be asked: {exc}"
        if done.returncode == 0:
            return None
        time.sleep(0.2 * 2**again)
    return f"polkit does not permit {verb}: {done.stderr.strip()[-200:] or f'exit code {done.returncode}'}"


def _read(places: Places, home: Path, outcome: Outcome) -> list[dict[str, Any]]:
    """The declared services. Where the word stands nowhere in the configuration, nobody needs to be asked."""
    try:
        if "services" not in places.config.read_text(errors="replace"):
            return []
        done = subprocess.run(
            [str(home / "bin/python"), "-I", "-m", "ostler.assembly.declared", str(places.config)], capture_output=True, text=True,
            errors="replace", timeout=READ_S, check=False, stdin=subprocess.DEVNULL, cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )  # fmt: skip
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired, ValueError) as exc:
        outcome.warnings.append(f"which services are declared could not be read: {exc}")
        return []
    if not isinstance(found, list):
        outcome.warnings.append(f"no service is permitted, since the release does not read them: {done.stderr.strip()[-200:]}")
        return []
    return [one for one in found if isinstance(one, dict) and one.get("unit")]


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())
