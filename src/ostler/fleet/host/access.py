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
    """Give these back to root, with the modes that an installation gives; answers the paths."""
    mended = [*map(Path, wrong(places))]
    for path in mended:
        if path.is_file():
            traces.expect(path)
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(0o755 if path.is_dir() else 0o644)
    return [*map(str, mended)]


def _paths(places: Places) -> list[Path]:
    """Nothing but that: what else stands there may be a secret of its owner's, which nobody else is to read, and a directory that was
    there before is its owner's."""
    folder, traces = places.config.parent, Traces(places)
    written = [places.root / name for name in (*traces.made, *traces.before)]
    ours = {one for one in written if folder in (one, *one.parents)}
    return sorted(one for one in {places.config, *ours, *places.entries()} if one.exists())


def _why(path: Path) -> str | None:
    found, user = path.stat(), accounts.identity()
    mode = stat.S_IMODE(found.st_mode)
    needed = 0o5 if path.is_dir() else 0o4
    if found.st_uid != os.geteuid():
        return f"belongs to {belongings.name_of(found.st_uid)}, not to root"
    if mode & _OTHERS:
        return f"may be written by others than root (its mode is {mode:04o})"
    of_user = mode >> 3 if user is not None and found.st_gid == user[1] else mode
    if of_user & needed != needed:
        return f"cannot be read by the user {accounts.NAME} (its mode is {mode:04o})"
    return None
