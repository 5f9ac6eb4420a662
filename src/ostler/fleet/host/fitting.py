"""Whether a release reads the configuration that it would get: it is asked, and what it read is remembered by its hash.

Its trial is asked already, about the configuration in force; so the switch, which must know, mostly asks nobody. What is remembered lies in
root's directory.
"""

import hashlib
import subprocess
import sys

from ostler.fleet.host.places import Places, read_json, write, write_json
from ostler.fleet.host.refusals import Refused

READ_S = 60.0


def configured(places: Places) -> str | None:
    """The configuration that stays where none is told: the one that was put in force last, or the one that is there where none was."""
    found = next((one for one in (places.applied, places.config) if one.exists()), None)
    return None if found is None else found.read_text()


def remember(places: Places, release: str, config: str) -> None:
    """The release has read it."""
    note = places.reads(release)
    for folder in (places.updates, note.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(note, _read(config))


def check(places: Places, release: str, config: str) -> None:
    """Ask the release whether it can read the configuration, unless it is known to. Raises Refused."""
    if read_json(places.reads(release)) == _read(config):
        return
    program = places.release(release) / "bin/ostler"
    write(places.trial, config.encode(), mode=0o600)
    try:
        done = subprocess.run(
            [str(program), "config", "check", str(places.trial)], capture_output=True, text=True, errors="replace", timeout=READ_S,
            check=False, stdin=subprocess.DEVNULL, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused("unfit", f"release {release} cannot be asked about the configuration: {exc}") from None
    finally:
        places.trial.unlink(missing_ok=True)
    if done.returncode:
        said = done.stderr.replace(str(places.trial), places.config.name).replace("error: ", "")
        why = "; ".join(line.strip() for line in said.splitlines() if line.strip())[-600:]
        raise Refused("unfit", f"release {release} cannot read the configuration: {why or f'exit code {done.returncode}'}")
    remember(places, release, config)


def _read(config: str) -> dict[str, str]:
    """What is remembered: another Python on this host asks anew."""
    return {"config_sha256": hashlib.sha256(config.encode()).hexdigest(), "python": sys.version}
