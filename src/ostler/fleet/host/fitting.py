"""Whether a release accepts the configuration that it would get, and the allowlist beside it: it is asked, and what it accepted is
remembered by its hash.

Its trial is asked already, about what is in force; so the switch, which must know, mostly asks nobody. What is remembered lies in
root's directory.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ostler.fleet.host.places import Places, read_json, write, write_json
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told

READ_S = 60.0
MAX_WHY = 300
REJECTED = 3  # the exit code of a mistake in a file
ENTRIES = (".yaml", ".yml")
MOST_OF_ENTRY = 1 << 20  # bytes; a node reads no such entry


def configured(places: Places) -> str | None:
    """The configuration that stays where none is told: the one that was put in force last, or the one that is there where none was."""
    found = next((one for one in (places.applied, places.config) if one.exists()), None)
    return None if found is None else found.read_text()


def allowlist(places: Places, config: str, files: Mapping[str, str]) -> dict[str, bytes]:
    """The entries of the allowlist that is installed beside the configuration, by file name, once `files` are there too; none where the
    configuration does not name it."""
    folder = places.allowlist
    if str(folder) not in config:
        return {}
    found = {one.name: _beginning(one) for one in places.entries()}
    found |= {name.partition("/")[2]: text.encode() for name, text in files.items() if name.startswith(f"{folder.name}/")}
    return {name: content for name, content in sorted(found.items()) if name.endswith(ENTRIES) and "/" not in name}


def _beginning(file: Path) -> bytes:
    """As much of it as shows that it is too large."""
    with file.open("rb") as opened:
        return opened.read(MOST_OF_ENTRY)


def remember(places: Places, release: str, config: str, entries: Mapping[str, bytes], needs: Iterable[str]) -> None:
    """The release has accepted both, while the paths that it `needs` were there."""
    note = places.reads(release)
    for folder in (places.updates, note.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(note, _read(config, entries) | {"needs": sorted(needs)})


def check(places: Places, release: str, told: Told) -> None:
    """Ask the release whether it accepts what it would be told, unless it is known to: a configuration that it reads and that names nothing
    that this host does not have, and allowlist entries without a mistake. Raises Refused."""
    config = configured(places) if told.config is None else told.config
    if config is None:
        return
    entries = allowlist(places, config, told.files)
    known, wanted = read_json(places.reads(release)) or {}, _read(config, entries)
    needs: Iterable[str] | None = known.get("needs")
    if any(known.get(name) != wanted[name] for name in ("config_sha256", "python")):
        needs = None
    if needs is None or not all(map(os.path.exists, needs)):
        needs = _check_config(places, release, config, told)
    elif known.get("allowlist_sha256") == wanted["allowlist_sha256"]:
        return
    if entries:
        _check_allowlist(places, release, entries)
    remember(places, release, config, entries, needs)


def _check_config(places: Places, release: str, config: str, told: Told) -> list[str]:
    """The paths that must be there for it, but for those that come with it."""
    write(places.trial, config.encode(), mode=0o600)
    try:
        done = _ask(places, release, "config", "check", "--json", str(places.trial))
    finally:
        places.trial.unlink(missing_ok=True)
    if done.returncode:
        said = done.stderr.replace(str(places.trial), places.config.name)
        raise _refused(release, "cannot read the configuration", said, done.returncode)
    coming = [str(places.allowlist), *(str(places.config.parent / name) for name in told.files)]
    lacks = [one for one in _told(done.stdout, "lacks") if not any(path in one for path in coming)]
    if lacks:
        said = "\n".join(f"  {one.replace(str(places.trial), places.config.name)}" for one in lacks)
        raise _refused(release, "would not start with the configuration", said, 0)
    return [one for one in _told(done.stdout, "needs") if one not in coming]


def _told(said: str, name: str) -> list[str]:
    """What the configuration names, and what of it this host does not have; releases of before do not tell."""
    try:
        return [str(one) for one in json.loads(said).get(name) or ()]
    except (ValueError, AttributeError):
        return []


def _check_allowlist(places: Places, release: str, entries: Mapping[str, bytes]) -> None:
    folder = places.trial.with_suffix(".d")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        for name, content in entries.items():
            (folder / name).write_bytes(content)
        done = _ask(places, release, "allowlist", "test", str(folder), "--", "true")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode == REJECTED and not done.stdout:  # a list without mistakes has a word about the command, whichever it is
        raise _refused(
            release, "does not accept the allowlist", done.stderr.replace(str(folder), str(places.allowlist)), REJECTED
        )


def _ask(places: Places, release: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The release's own command."""
    try:
        return subprocess.run(
            [str(places.release(release) / "bin/ostler"), *words], capture_output=True, text=True, errors="replace", timeout=READ_S,
            check=False, stdin=subprocess.DEVNULL, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused("unfit", f"release {release} cannot be asked about the configuration: {exc}") from None


def _refused(release: str, what: str, said: str, code: int) -> Refused:
    """The first mistake in a line, and all of them in lines: those that are indented below what a command says in general."""
    lines = [line for line in said.splitlines() if line.strip()]
    mistakes = [line.strip() for line in lines if line.startswith(" ")] or [line.removeprefix("error: ") for line in lines[:1]]
    first = mistakes[0] if mistakes else f"exit code {code}"
    short = first if len(first) <= MAX_WHY else f"{first[:MAX_WHY]}…"
    more = f", and {len(mistakes) - 1} more" if mistakes[1:] else ""
    details = "\n".join(mistakes) if more or short != first else ""
    return Refused("unfit", f"release {release} {what}: {short}{more}", details=details)


def _read(config: str, entries: Mapping[str, bytes]) -> dict[str, str]:
    """What is remembered: another Python on this host asks anew."""
    whole = hashlib.sha256()
    for name, content in entries.items():
        whole.update(os.fsencode(name) + f" {hashlib.sha256(content).hexdigest()}\n".encode())
    return {
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "allowlist_sha256": whole.hexdigest(),
        "python": sys.version,
    }
