"""Who may change what the daemon goes by: root alone. And the node's user must be able to read it."""

import os
import stat
from pathlib import Path

from ostler.fleet.host import accounts, belongings
from ostler.fleet.host.places import Places
from ostler.fleet.host.traces import Traces

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def wrong(places: Places) -> dict[str, str]:
    """Why somebody could change the configuration or what an installation put beside it, the allowlist above all, or why the node cannot
    read it: a sentence by path. Changes nothing."""
    return {str(path): why for path in _paths(places) if (why := _why(path)) is not None}


def mend(places: Places, traces: Traces) -> list[str]:
    """Give these back to root, with the modes that an installation gives, a directory before what is in it; answers the paths."""
    mended = []
    for path in map(Path, wrong(places)):
        if path.is_file():
            traces.expect(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if _is_judged(found):
                os.fchown(descriptor, os.geteuid(), os.getegid())
                os.fchmod(descriptor, 0o755 if stat.S_ISDIR(found.st_mode) else 0o644)
                mended.append(str(path))
        finally:
            os.close(descriptor)
    return mended


def _paths(places: Places) -> list[Path]:
    """Nothing but that: what else stands there may be a secret of its owner's, which nobody else is to read, and a directory that was
    there before is its owner's."""
    folder, traces = places.config.parent, Traces(places)
    written = [places.root / name for name in (*traces.made, *traces.before)]
    ours = {one for one in written if folder in (one, *one.parents)}
    return sorted(one for one in {places.config, *ours, *places.entries()} if os.path.lexists(one))


def _is_judged(found: os.stat_result) -> bool:
    """Not what is of another place, too: whoever could write here may have made a link to what nobody else is to read."""
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)


def _why(path: Path) -> str | None:
    found, user = path.lstat(), accounts.identity()
    if not _is_judged(found):
        return None
    mode = stat.S_IMODE(found.st_mode)
    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    if found.st_uid != os.geteuid():
        return f"belongs to {belongings.name_of(found.st_uid)}, not to root"
    if mode & _OTHERS:
        return f"may be written by others than root (its mode is {mode:04o})"
    of_user = mode >> 3 if user is not None and found.st_gid == user[1] else mode
    if of_user & needed != needed:
        return f"cannot be read by the user {accounts.NAME} (its mode is {mode:04o})"
    return None
