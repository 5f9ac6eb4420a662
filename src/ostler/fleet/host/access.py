"""Who may change what the daemon goes by: root alone. And the node's user must be able to read it."""

import os
import stat
from pathlib import Path

from ostler.fleet.host import accounts, belongings
from ostler.fleet.host.places import Places, write
from ostler.fleet.host.traces import Traces

STRANGE = "and no installation wrote it"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def wrong(places: Places) -> dict[str, str]:
    """Why somebody could change the configuration or what an installation put beside it, the allowlist above all, or why the node cannot
    read it: a sentence by path, which ends with `STRANGE` where it is for whoever knows the file to say whether it is to be believed.
    Changes nothing."""
    ours, folders = _ours(places), {places.config.parent, places.allowlist}
    found = {}
    for path in sorted({*folders, *ours, *places.entries()}):
        if os.path.lexists(path):
            found[str(path)] = _in_others_hands(path, "" if path in ours | folders else f", {STRANGE}")
            if path not in folders or path in ours:  # a directory that was there before is its owner's
                found[str(path)] = found[str(path)] or _unread(path)
    return {path: why for path, why in found.items() if why is not None}


def mend(places: Places, traces: Traces) -> list[str]:
    """Give these back to root, with the modes that an installation gives, a directory before what is in it; answers the paths. Files are
    written anew: somebody may have the one that is there open. What no installation wrote and others could write stays as it is."""
    mended = []
    for path in (Path(one) for one, why in wrong(places).items() if not why.endswith(STRANGE)):
        traces.expect(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                os.fchown(descriptor, os.geteuid(), os.getegid())
                os.fchmod(descriptor, 0o755)
            elif _is_judged(found):
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    write(path, file.read(), mode=0o644)
            else:
                continue
            mended.append(str(path))
        finally:
            os.close(descriptor)
    return mended


def _ours(places: Places) -> set[Path]:
    """The configuration, and what an installation wrote beside it. What else stands there may be a secret of its owner's, which nobody else
    is to read."""
    folder, traces = places.config.parent, Traces(places)
    written = [places.root / name for name in (*traces.made, *traces.before)]
    return {places.config, *(one for one in written if folder in (one, *one.parents))}


def _is_judged(found: os.stat_result) -> bool:
    """Not what is of another place, too: whoever could write here may have made a link to what nobody else is to read."""
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)


def _in_others_hands(path: Path, more: str) -> str | None:
    found = path.lstat()
    if not _is_judged(found):
        return None
    if found.st_uid != os.geteuid():
        return f"belongs to {belongings.name_of(found.st_uid)}, not to root{more}"
    if found.st_mode & _OTHERS:
        return f"may be written by others than root (its mode is {stat.S_IMODE(found.st_mode):04o}){more}"
    return None


def _unread(path: Path) -> str | None:
    found, user = path.lstat(), accounts.identity()
    mode = stat.S_IMODE(found.st_mode)
    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    of_user = mode >> 3 if user is not None and found.st_gid == user[1] else mode
    if _is_judged(found) and of_user & needed != needed:
        return f"cannot be read by the user {accounts.NAME} (its mode is {mode:04o})"
    return None
