"""Files that a release is made of: regular ones alone, so that what is signed is what stands there, and not what a link leads to."""

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from ostler.model.errors import InvalidSpec


def regular_bytes(path: Path) -> bytes:
    """A file's content; raises InvalidSpec where it is a symbolic link, a pipe, a device, or not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if path.is_symlink():
            raise InvalidSpec(f"{path} is a symbolic link; a release is made of regular files alone") from None
        raise InvalidSpec(f"{path} cannot be read: {exc.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidSpec(f"{path} is not a regular file; a release is made of such alone")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def copy_tree(source: Path, target: Path, *, without: Iterable[str]) -> None:
    """A folder's files, without those folders and endings; raises InvalidSpec on a symbolic link."""
    target.mkdir(parents=True)
    for one in sorted(source.iterdir()):
        if one.name in without or one.suffix in without:
            continue
        if one.is_dir() and not one.is_symlink():
            copy_tree(one, target / one.name, without=without)
        else:
            (target / one.name).write_bytes(regular_bytes(one))
            shutil.copymode(one, target / one.name)
