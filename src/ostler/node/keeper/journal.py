"""The keeper's memory over its own death: an append-only file of what was started, ended and forgotten.

One line each: {"start": {…}}, {"end": {record}}, {"forget": key}. Nothing is synced to disk: it must survive the
keeper, not the machine, and after a reboot there is nothing left to kill. One appended line costs 4 µs, a file per
attempt 50.
"""

import os

from ostler.node.keeper import wire

_COMPACT_BYTES = 4 * 1024 * 1024
_IDLE_BYTES = 64 * 1024


class Journal:
    """The file, opened for appending. What it held at the start is in `entries` until the owner drops it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        self._worth = 0  # its size when it was last written anew
        self._waiting: list[str] = []
        self.entries = self._read()

    def _read(self) -> list[dict[str, object]]:
        """Parse all lines; a torn last line (the keeper died in the write) is cut off."""
        text = os.pread(self._descriptor, self._size, 0)
        whole = text.rfind(b"\n") + 1
        if whole != len(text):
            os.ftruncate(self._descriptor, whole)
            self._size = whole
        entries = []
        for line in text[:whole].splitlines():
            try:
                entry = wire.decode(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def append(self, line: str) -> None:
        """Write one line now; raises OSError, and then nothing of it is in the file."""
        if self._waiting:
            line = "".join(self._waiting) + line
        data = line.encode()
        try:
            _write_whole(self._descriptor, data)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        self._waiting.clear()

    def later(self, line: str) -> None:
        """Write one line at the next `flush`, together with others."""
        self._waiting.append(line)

    def flush(self) -> bool:
        """Write what waits; False when the disk would not take it, then it waits on."""
        if not self._waiting:
            return True
        try:
            self.append("")
        except OSError:
            return False
        return True

    def empty(self) -> None:
        """Start afresh once nothing in it matters any more; cheap enough to be asked for often."""
        if self._size > _IDLE_BYTES:
            os.ftruncate(self._descriptor, 0)
            self._size = self._worth = 0
            self._waiting.clear()

    @property
    def bloated(self) -> bool:
        """True when it is worth being written anew."""
        return self._size > max(_COMPACT_BYTES, 2 * self._worth)

    def rewrite(self, lines: list[str]) -> None:
        """Replace the file by these lines at once; on a failure the old one stays."""
        fresh = self._path + ".new"
        data = "".join(lines).encode()
        descriptor = os.open(fresh, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_whole(descriptor, data)
            os.rename(fresh, self._path)
        except OSError:
            os.close(descriptor)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = self._worth = len(data)
        self._waiting.clear()


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write all, or raise OSError: a disk that fills up takes a part and says nothing."""
    if os.write(descriptor, data) != len(data):
        raise OSError(28, os.strerror(28))


def replace_file(path: str, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one; raises OSError."""
    fresh = path + ".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    try:
        _write_whole(descriptor, text.encode())
    finally:
        os.close(descriptor)
    os.rename(fresh, path)
