"""Inputs kept by their sha256, so that a second job on this node does not fetch them again.

A file gets in only when its content has been checked against the hash that names it, and is flushed to the disk before it gets
its name, so that a crash cannot leave a truncated one. Out of it go copies (shared blocks where the file system can), never
links: a job may write to its inputs.
"""

import fcntl
import os
import threading
from contextlib import suppress
from errno import EBADF, EINVAL, EIO, ENOSYS, ENOTTY, EOPNOTSUPP, EXDEV
from pathlib import Path

from ostler.model.manifest import SHA256

_FICLONE = 0x40049409
_BLOCK = 1 << 20
_COPY = 1 << 30
_CANNOT = {EXDEV, EINVAL, EOPNOTSUPP, ENOSYS, ENOTTY, EBADF}


class InputCache:
    """A folder of files named by their hash, at most `max_bytes` in all; what was used least recently goes first.

    All methods block, and may be called from several threads. `hits` and `misses` count `copy_out`.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._known: dict[str, int] | None = None  # hash -> size, least recently used first
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        """How much it holds."""
        with self._lock:
            return sum(self._index().values())

    def copy_out(self, sha256: str, target: int) -> int | None:
        """Copy the file into the open descriptor `target` (empty, at its start); its size, or None where it is not held.

        Raises OSError when `target` cannot be written (a full disk).
        """
        with self._lock:
            try:
                known = self._index()
                source = os.open(self._root / sha256, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) if sha256 in known else None
            except OSError:
                source = None
            if source is None:
                (self._known or {}).pop(sha256, None)
                self.misses += 1
                return None
            size = known[sha256] = known.pop(sha256)
            self.hits += 1
        try:  # once open it can be read, even when another thread evicts it meanwhile
            if os.fstat(source).st_size != size:
                self._drop(sha256)
                return None
            with suppress(OSError):
                os.utime(source)  # the order of use outlives the daemon
            copy_file(source, target)
        finally:
            os.close(source)
        return size

    def put(self, sha256: str, source: int) -> bool:
        """Keep a copy of the open file `source`, whose content has this hash; whether it is held now.

        A cache that cannot be written to is no reason for a job to fail: that is False, not an OSError.
        """
        if not SHA256.fullmatch(sha256):
            return False
        fresh = self._root / f".fresh-{os.urandom(8).hex()}"
        try:
            size = os.fstat(source).st_size
            if size > self._max_bytes:
                return False
            with self._lock:
                if sha256 in self._index():
                    return True
                self._evict(self._max_bytes - size)
            self._write(fresh, source, size)
            fresh.rename(self._root / sha256)
            with self._lock:
                self._index()[sha256] = size
                self._evict(self._max_bytes)
        except OSError:
            with suppress(OSError):
                fresh.unlink()
            return False
        return True

    def _write(self, fresh: Path, source: int, size: int) -> None:
        target = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_file(source, target)
            os.fsync(target)
            if os.fstat(target).st_size != size:
                raise OSError(EIO, "the copy is shorter than its source")
        finally:
            os.close(target)

    def _drop(self, sha256: str) -> None:
        with self._lock:
            self._index().pop(sha256, None)
            with suppress(OSError):
                (self._root / sha256).unlink()

    def _index(self) -> dict[str, int]:
        if self._known is None:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = []
            for file in self._root.iterdir():
                status = file.lstat()
                if SHA256.fullmatch(file.name):
                    files.append((status.st_mtime_ns, file.name, status.st_size))
                elif file.name.startswith(".fresh-"):
                    file.unlink(missing_ok=True)  # begun by an earlier life of the node
            self._known = {name: size for _, name, size in sorted(files)}
        return self._known

    def _evict(self, most: int) -> None:
        known = self._index()
        total = sum(known.values())
        for sha256 in list(known):
            if total <= most:
                break
            (self._root / sha256).unlink(missing_ok=True)
            total -= known.pop(sha256)


def copy_file(source: int, target: int) -> None:
    """Copy all of one open file into another empty one: shared blocks if possible, else in the kernel, else by hand."""
    with suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return
    offset = 0
    try:
        while copied := os.copy_file_range(source, target, _COPY, offset, offset):
            offset += copied
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
    else:
        if offset == os.fstat(source).st_size:
            return
    while block := os.pread(source, _BLOCK, offset):
        left = memoryview(block)
        while left:
            written = os.pwrite(target, left, offset)
            offset += written
            left = left[written:]
