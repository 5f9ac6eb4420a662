"""The user that daemon, keeper and jobs run as: made once, and taken away without a trace where nobody else changed the accounts since."""

import contextlib
import grp
import hashlib
import pwd
import subprocess
from pathlib import Path

from ostler.fleet.host.places import Places, read_json, write_json
from ostler.fleet.host.refusals import Refused

NAME = "ostler"
HOME = "/var/lib/ostler"
_FILES = ("passwd", "shadow", "group", "gshadow")
_PATIENCE_S = 60.0


def identity() -> tuple[int, int] | None:
    """Its numbers (user, group); None where there is no such user."""
    try:
        found = pwd.getpwnam(NAME)
        return found.pw_uid, grp.getgrnam(NAME).gr_gid
    except KeyError:
        return None


def make(places: Places) -> bool:
    """Make the user, a system account that nobody logs in to; False where it is there. Raises Refused."""
    if identity() is not None:
        return False
    if read_json(_note(places)) is None:
        write_json(_note(places), {"before": _digests(places), "backups": _read(places)})
    _run(
        "useradd", "--system", "--user-group", "--no-log-init", "--no-create-home", f"--home-dir={HOME}",
        "--shell=/usr/sbin/nologin", "--comment=Ostler node", NAME,
    )  # fmt: skip
    return True


def remove(places: Places) -> bool:
    """Remove the user where `make` made it; False where it did not, or it is gone. Raises Refused."""
    note = read_json(_note(places))
    if note is None:
        return False
    gone = identity() is not None
    if gone:
        _run("userdel", NAME)
    if _digests(places) == note["before"]:  # then the tools' copies of the accounts before their last change are as before, too
        for name, content in note["backups"].items():
            _restore(places.root / "etc" / f"{name}-", content)
    return gone


def _note(places: Places) -> Path:
    return places.updates / "accounts.json"


def _digests(places: Places) -> dict[str, str]:
    found = {}
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            found[name] = hashlib.sha256((places.root / "etc" / name).read_bytes()).hexdigest()
    return found


def _read(places: Places) -> dict[str, str | None]:
    """The copies that the tools keep; the directory they are noted in is root's alone, as they are."""
    found: dict[str, str | None] = {}
    for name in _FILES:
        try:
            found[name] = (places.root / "etc" / f"{name}-").read_text(encoding="latin-1")
        except FileNotFoundError:
            found[name] = None
    return found


def _restore(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.exists():  # written in its place, so that owner and mode stay
        path.write_text(content, encoding="latin-1")


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused("unfit", f"{argv[0]}: {exc}") from None
    if done.returncode:
        raise Refused("unfit", f"{argv[0]}: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
