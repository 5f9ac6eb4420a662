"""Workspaces that are nobody's: an attempt that left nothing in its own gives it back, and the next one has it by a rename.

Four folders and two log files are six new files on the disk, and six to be removed a day later; most short jobs leave all of them
empty. Whatever somebody does to one of them leaves a date (ctime, which nobody can set), so one with the dates that it had is as it
was. All methods belong to the disk's lane: they block for a few system calls, and are not called side by side.
"""

# As in `workspace`: on the path of every job.
# ruff: noqa: PTH102, PTH104, PTH208

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ENOTSUP, ENOTTY
from fcntl import ioctl
from pathlib import Path

from ostler.model.errors import InvalidSpec
from ostler.node.trees import remove_tree
from ostler.node.workspace import FOLDERS, NODES_SPARE, Workspace
from ostler.protocol.messages import LOG_STREAMS

_LOGS = tuple(f"{stream}.log" for stream in LOG_STREAMS)
_INSIDE = (*FOLDERS, *(f"logs/{name}" for name in _LOGS))
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS of <linux/fs.h>
MOST = 64
SETTLED_S = 0.05  # much longer than a tick of the clock by which a file system dates changes

_Mark = tuple[int, ...]


@dataclass(slots=True)
class _Looks:
    """How a workspace looked when it was made, and its root when it was last taken. One that was made less than SETTLED_S before it was
    taken may have been changed within the same tick, and is looked into once more."""

    inside: tuple[_Mark, ...]
    more: tuple[object, ...]
    root: _Mark = ()
    settled: bool = False


@dataclass(slots=True)
class Spares:
    """Those below the workspaces' `root`; what an earlier daemon left there goes at the first `take`."""

    root: Path
    _free: list[tuple[str, _Looks]] = field(default_factory=list)
    _taken: dict[int, _Looks] = field(default_factory=dict)  # by the number of the root's inode
    _count: int = 0
    _swept: bool = False

    def take(self, job_id: str, attempt: int) -> Workspace:
        """A workspace for this attempt, as `Workspace.create` makes one. Raises what that raises."""
        if not self._swept:
            self._sweep()
        if attempt == 1 and self._free and (lent := Workspace.lent(self.root, job_id, attempt)) is not None:
            spare, looks = self._free.pop()
            try:
                os.rename(spare, lent.place)
                self._note(lent.place, looks)
            except OSError:
                pass
            else:
                return lent
        made = Workspace.create(self.root, job_id, attempt)
        if attempt == 1 and made.place == f"{self.root}/{job_id}":
            with suppress(OSError):
                self._note(made.place, _made(made.place))
        return made

    def give_back(self, workspace: Workspace) -> bool:
        """Whether nothing was left in it: then it is a spare one, and its attempt has none any more."""
        path = workspace.place
        try:
            root = _mark(path)
            looks = self._taken.pop(root[1], None)
            if looks is None or root != looks.root or tuple(_marks(path)) != looks.inside or len(self._free) >= MOST:
                return False
            if not looks.settled and (tuple(_more(path)) != looks.more or not _holds_logs_alone(path)):
                return False
            self._count += 1
            spare = f"{self.root}/{NODES_SPARE}{self._count}"
            os.rename(path, spare)
        except OSError:
            return False
        self._free.append((spare, looks))
        return True

    def have_one(self) -> None:
        """Make one where there is none, so that the next attempt need not wait for it."""
        if self._free or not self._swept:
            return
        self._count += 1
        with suppress(OSError, InvalidSpec):
            path = f"{self.root}/{NODES_SPARE}{self._count}"
            os.mkdir(path, 0o700)
            for name in FOLDERS:
                os.mkdir(f"{path}/{name}", 0o700)
            self._free.append((path, _made(path)))

    def _note(self, path: str, looks: _Looks) -> None:
        looks.root = _mark(path)
        looks.settled = looks.settled or time.time_ns() - max([mark[-1] for mark in looks.inside]) > SETTLED_S * 1e9
        if len(self._taken) >= 4 * MOST:
            self._taken.clear()  # those that are out come back no more
        self._taken[looks.root[1]] = looks

    def _sweep(self) -> None:
        self._swept = True
        for name in os.listdir(self.root):
            if name.startswith(NODES_SPARE):
                with suppress(OSError):
                    remove_tree(self.root / name)


def _made(path: str) -> _Looks:
    """The looks of one that was just made, with its logs: who opens them changes nothing then."""
    for name in _LOGS:
        os.close(os.open(f"{path}/logs/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return _Looks(tuple(_marks(path)), tuple(_more(path)))


def _mark(path: str) -> _Mark:
    one = os.lstat(path)
    return (
        one.st_dev,
        one.st_ino,
        one.st_mode,
        one.st_uid,
        one.st_gid,
        one.st_nlink,
        one.st_size,
        one.st_mtime_ns,
        one.st_ctime_ns,
    )


def _marks(path: str) -> Iterator[_Mark]:
    return (_mark(f"{path}/{name}") for name in _INSIDE)


def _more(path: str) -> Iterator[object]:
    """What a mark does not tell: the names of extended attributes, of which an access list is one, and the flags of the inode."""
    for place in (path, *(f"{path}/{name}" for name in _INSIDE)):
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield _unless_strange(os.listxattr, handle)
            yield _unless_strange(ioctl, handle, _GET_FLAGS, bytes(8))
        finally:
            os.close(handle)


def _unless_strange(ask: Callable[..., object], *words: object) -> object:
    """The answer; None where the file system knows nothing of it."""
    try:
        return ask(*words)
    except OSError as exc:
        if exc.errno not in (ENOTSUP, ENOTTY):
            raise
        return None


def _holds_logs_alone(path: str) -> bool:
    if len(os.listdir(path)) != len(FOLDERS) or set(os.listdir(f"{path}/logs")) != set(_LOGS):
        return False
    return not any(os.listdir(f"{path}/{name}") for name in FOLDERS if name != "logs")
