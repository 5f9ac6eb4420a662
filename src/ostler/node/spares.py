"""Workspaces that are nobody's: an attempt that left nothing in its own gives it back, and the next one has it by a rename.

Four folders and two log files are six new files on the disk, and six to be removed a day later; most short jobs leave all of them
empty. All methods belong to the disk's lane: they block for a few system calls, and are not called side by side.
"""

# As in `workspace`: on the path of every job.
# ruff: noqa: PTH102, PTH104, PTH208

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ENOTSUP
from pathlib import Path

from ostler.model.errors import InvalidSpec
from ostler.node.trees import remove_tree
from ostler.node.workspace import FOLDERS, SPARE, Workspace
from ostler.protocol.messages import LOG_STREAMS

_LOGS = tuple(f"{stream}.log" for stream in LOG_STREAMS)
_MINE = f"{SPARE}node-"
MOST = 64
SETTLED_S = 0.05  # much longer than a tick of the clock by which a file system dates changes

_Mark = tuple[int, ...]


@dataclass(slots=True)
class _Looks:
    """How a workspace was made, and how it looked since: root and folders, each by device, number, mode, owner and the date of the
    last change; and the names of their extended attributes, which an access list is one of."""

    made: tuple[_Mark, ...]
    attributes: tuple[list[str], ...]
    seen: tuple[_Mark, ...] = ()
    seen_at: float = 0.0
    trusted: tuple[_Mark, ...] = ()  # whenever it looks so, nothing is in it


@dataclass(slots=True)
class Spares:
    """Those below the workspaces' `root`; what an earlier daemon left there goes at the first `take`."""

    root: Path
    _free: list[str] = field(default_factory=list)
    _looks: dict[int, _Looks] = field(default_factory=dict)  # by the number of the root's inode, of those that may come back
    _count: int = 0
    _swept: bool = False

    def take(self, job_id: str, attempt: int) -> Workspace:
        """A workspace for this attempt, as `Workspace.create` makes one. Raises what that raises."""
        if not self._swept:
            self._sweep()
        if attempt == 1 and self._free and (lent := Workspace.lent(self.root, job_id, attempt)) is not None:
            with suppress(OSError):
                os.rename(self._free.pop(), lent.path)
                return lent
        made = Workspace.create(self.root, job_id, attempt)
        if attempt == 1 and made.path.name == job_id:
            self._note(str(made.path))
        return made

    def give_back(self, workspace: Workspace) -> bool:
        """Whether nothing was left in it: then it is a spare one, and its attempt has none any more."""
        path = str(workspace.path)
        try:
            if not self._is_bare(path) or len(self._free) >= MOST:
                self.let_go(workspace)
                return False
            self._count += 1
            spare = f"{self.root}/{_MINE}{self._count}"
            os.rename(path, spare)
        except OSError:
            return False
        self._free.append(spare)
        return True

    def let_go(self, workspace: Workspace) -> None:
        """It stays where it is."""
        with suppress(OSError):
            self._looks.pop(os.lstat(workspace.path).st_ino, None)

    def have_one(self) -> None:
        """Make one where there is none, so that the next attempt need not wait for it."""
        if self._free or not self._swept:
            return
        self._count += 1
        with suppress(OSError, InvalidSpec):
            path = f"{self.root}/{_MINE}{self._count}"
            os.mkdir(path, 0o700)
            for name in FOLDERS:
                os.mkdir(f"{path}/{name}", 0o700)
            self._note(path)
            self._free.append(path)

    def _note(self, path: str) -> None:
        marks = tuple(_marks(path))
        if len(self._looks) >= 4 * MOST:
            self._looks.clear()  # those that are out come back no more
        self._looks[marks[0][1]] = _Looks(tuple(mark[:-1] for mark in marks), tuple(_attributes(path)))

    def _is_bare(self, path: str) -> bool:
        """Whether it is as it was made, but for empty logs. Each change leaves a date, so what was found empty and has the same dates as
        then is empty, if those dates were older than a tick by then."""
        marks = tuple(_marks(path))
        looks = self._looks.get(marks[0][1])
        if looks is None or any(os.lstat(f"{path}/logs/{name}").st_size for name in _LOGS):
            return False
        if next(_attributes(path)) != looks.attributes[0]:  # it leaves no date that a move does not leave, too
            return False
        if marks == looks.trusted:
            return True
        now = time.monotonic()
        if marks != looks.seen:
            looks.seen, looks.seen_at = marks, now
        if tuple(mark[:-1] for mark in marks) != looks.made or tuple(_attributes(path)) != looks.attributes:
            return False
        if not _holds_logs_alone(path):
            return False
        if now - looks.seen_at > SETTLED_S:
            looks.trusted = marks
        return True

    def _sweep(self) -> None:
        self._swept = True
        for name in os.listdir(self.root):
            if name.startswith(_MINE):
                with suppress(OSError):
                    remove_tree(self.root / name)


def _marks(path: str) -> Iterator[_Mark]:
    """The root is dated by its content, as it changes whenever it is moved."""
    root = os.lstat(path)
    yield (root.st_dev, root.st_ino, root.st_mode, root.st_uid, root.st_gid, root.st_mtime_ns)
    for name in FOLDERS:
        one = os.lstat(f"{path}/{name}")
        yield (one.st_dev, one.st_ino, one.st_mode, one.st_uid, one.st_gid, one.st_ctime_ns)


def _attributes(path: str) -> Iterator[list[str]]:
    for place in (path, *(f"{path}/{name}" for name in FOLDERS)):
        try:
            yield os.listxattr(place, follow_symlinks=False)
        except OSError as exc:
            if exc.errno != ENOTSUP:
                raise
            yield []


def _holds_logs_alone(path: str) -> bool:
    if len(os.listdir(path)) != len(FOLDERS) or set(os.listdir(f"{path}/logs")) != set(_LOGS):
        return False
    return not any(os.listdir(f"{path}/{name}") for name in FOLDERS if name != "logs")
