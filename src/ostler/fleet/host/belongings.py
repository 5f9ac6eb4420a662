"""What the node's user must be able to write: it belongs to that user, or it is empty and may come to."""

import pwd
from pathlib import Path

from ostler.fleet.host import accounts
from ostler.fleet.host.places import Places
from ostler.fleet.host.traces import contents

_OWN = ("node", "jobs", "update")


def foreign(places: Places) -> dict[str, str]:
    """A path that is somebody else's, with what it is and what to do; nothing where all is well. Changes nothing."""
    state, user = places.state, accounts.identity()
    if not state.is_dir() or not contents(state):
        return {}
    own = [state / name for name in _OWN]
    for path in (state, *own, *_files(own[0])):
        owner = path.stat().st_uid if path.exists() else None
        if owner is not None and (user is None or owner != user[0]):
            return {str(path): _why(state, owner, has_user=user is not None)}
    return {}


def may_take_over(path: Path) -> bool:
    """Whether it is a directory that nobody has put anything into."""
    return path.is_dir() and not contents(path)


def _files(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.iterdir()) if one.is_file()] if folder.is_dir() else []


def _why(state: Path, owner: int, *, has_user: bool) -> str:
    made = "" if has_user else f"useradd --system {accounts.NAME} && "
    return (
        f"it belongs to {name_of(owner)}, and the node runs as the user {accounts.NAME}; on the host, as root: "
        f"`mv {state} {state}.before`, or, where an earlier node's state is to be kept, `{made}chown -R {accounts.NAME}: {state}`"
    )


def name_of(uid: int) -> str:
    """A user's name; a word for one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}, who has no name here"
