"""Deleting and measuring directory trees that a job made: no link is followed, memory and descriptors stay bounded.

A job may leave a hundred thousand folders in each other (deeper than any path), folders without any permission, and links to
everywhere. So both work through directory descriptors, never through long paths.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from errno import EACCES, EEXIST, ELOOP, ENOTDIR, ENOTEMPTY, EXDEV
from pathlib import Path

MAX_DEPTH = 128
MAX_LINKED = 65536
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes of disk taken (blocks, not lengths: a sparse file is cheap) and the number of entries.

    `complete` is False when some folder could not be looked into, or lies deeper than MAX_DEPTH: a job that hides its data.
    """

    bytes: int
    entries: int
    complete: bool


def remove_tree(path: Path, *, keep: Callable[[str], bool] | None = None) -> None:
    """Delete a folder and all below it; entries of `path` itself whose name `keep` accepts stay, and then so does the folder.

    No process may still be writing there. Nothing there is no error. A mount below is left alone. Raises the last OSError
    when something could not be deleted, after everything else was.
    """
    try:
        top = _open_folder(str(path))
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno not in {ELOOP, ENOTDIR}:
            raise
        path.unlink(missing_ok=True)
        return
    try:
        kept = _Removal(top, keep).run()
    finally:
        os.close(top)
    if not kept:
        path.rmdir()


class _Removal:
    """Empties one folder. Folders further down that are not empty are moved up into it, so that no depth is ever descended.

    Each is tried with rmdir first. That also finds mounts: the kernel says that they are busy, before it says that they are not
    empty, and what is mounted there stays alive.
    """

    def __init__(self, top: int, keep: Callable[[str], bool] | None) -> None:
        self._top = top
        self._keep = keep
        self._device = os.fstat(top).st_dev
        self._prefix = f".removing-{os.urandom(8).hex()}-"
        self._count = 0
        self._failure: OSError | None = None

    def run(self) -> bool:
        """Whether something was kept."""
        while True:  # a pass finds the folders that the pass before has moved up
            changed, kept = False, False
            self._failure = None
            with os.scandir(self._top) as entries:
                for entry in entries:
                    if self._keep is not None and self._keep(entry.name):
                        kept = True
                    elif self._one(entry, self._top):
                        changed = True
            if not changed:
                break
        if self._failure is not None:
            raise self._failure
        return kept

    def _one(self, entry: os.DirEntry[str], folder: int) -> bool:
        """Delete one entry, or move it up; whether that changed something."""
        try:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=folder)
                return True
            try:
                os.rmdir(entry.name, dir_fd=folder)
            except OSError as exc:
                if exc.errno not in {ENOTEMPTY, EEXIST}:
                    raise
            else:
                return True
            if folder == self._top:
                return self._empty(entry.name)
            self._move_up(entry.name, folder)
        except FileNotFoundError:
            return False
        except OSError as exc:
            self._failure = exc
            return False
        return True

    def _move_up(self, name: str, folder: int) -> None:
        self._count += 1
        target = f"{self._prefix}{self._count}"
        try:
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=self._top)
        except PermissionError:  # the folder's own `..` changes, so it must be writable itself
            _permit(name, folder)
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=self._top)

    def _empty(self, name: str) -> bool:
        folder = _open_folder(name, self._top)
        try:
            if os.fstat(folder).st_dev != self._device:
                raise OSError(EXDEV, "is another file system", name)
            changed = False
            with os.scandir(folder) as entries:
                for entry in entries:
                    changed = self._one(entry, folder) or changed
        finally:
            os.close(folder)
        return changed


def measure_tree(path: Path) -> DiskUse:
    """What a tree takes on disk; a file with several links counts once. Entries that vanish meanwhile are not counted.

    Never raises OSError: what cannot be looked at makes the answer incomplete.
    """
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return DiskUse(0, 0, complete=True)
    except OSError:
        return DiskUse(0, 0, complete=False)
    return _Measure(top).run()


class _Measure:
    """Walks a tree with one open folder per level."""

    def __init__(self, top: int) -> None:
        status = os.fstat(top)
        self._device = status.st_dev
        self._bytes = status.st_blocks * 512
        self._entries = 0
        self._complete = True
        self._linked: set[int] = set()
        self._levels = [(top, os.scandir(top))]

    def run(self) -> DiskUse:
        try:
            while self._levels:
                if (entry := self._next()) is None:
                    self._leave()
                    continue
                try:
                    self._one(entry, self._levels[-1][0])
                except FileNotFoundError:
                    continue
                except OSError:
                    self._complete = False
        finally:
            while self._levels:
                self._leave()
        return DiskUse(self._bytes, self._entries, self._complete)

    def _next(self) -> os.DirEntry[str] | None:
        try:
            return next(self._levels[-1][1], None)
        except OSError:
            self._complete = False
            return None

    def _one(self, entry: os.DirEntry[str], folder: int) -> None:
        status = entry.stat(follow_symlinks=False)
        if status.st_dev != self._device:
            return
        self._entries += 1
        is_folder = stat.S_ISDIR(status.st_mode)
        if status.st_nlink > 1 and not is_folder:
            if status.st_ino in self._linked:
                return
            if len(self._linked) < MAX_LINKED:  # beyond that a file may count twice: too much rather than too little
                self._linked.add(status.st_ino)
        self._bytes += status.st_blocks * 512
        if is_folder and len(self._levels) < MAX_DEPTH:
            inner = os.open(entry.name, _FOLDER, dir_fd=folder)
            self._levels.append((inner, os.scandir(inner)))
        elif is_folder:
            self._complete = False

    def _leave(self) -> None:
        folder, inside = self._levels.pop()
        inside.close()
        os.close(folder)


def _open_folder(name: str, within: int | None = None) -> int:
    """Open a folder for emptying it; one without permissions gets them first (a job's `chmod 000` must not last)."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=within)
    except OSError as exc:
        if exc.errno != EACCES:
            raise
        _permit(name, within)
        return os.open(name, _FOLDER, dir_fd=within)
    if os.fstat(folder).st_mode & 0o700 != 0o700:
        os.fchmod(folder, 0o700)
    return folder


def _permit(name: str, within: int | None) -> None:
    """chmod 700 that follows no link: Linux has none, but a descriptor that only names the folder leads to it by /proc."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=within)
    try:
        Path(f"/proc/self/fd/{handle}").chmod(0o700)
    finally:
        os.close(handle)
