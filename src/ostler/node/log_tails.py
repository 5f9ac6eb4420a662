"""What of an attempt's output the coordinator has: per stream an offset and the hash of all bytes before it."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostler.protocol.messages import INLINE_LOG_BYTES, LOG_STREAMS, LogEnd

CHUNK = 256 * 1024
_BLOCK = 1 << 20


@dataclass(slots=True, eq=False)
class LogTail:
    """One stream's file. All methods block for a read that the page cache answers; `offset` counts bytes that were taken."""

    stream: str
    path: Path
    offset: int = 0
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def size(self) -> int:
        """Bytes written so far; 0 where there is no file."""
        try:
            return os.stat(self.path).st_size  # noqa: PTH116 - on the path of every job
        except FileNotFoundError:
            return 0

    def read(self, limit: int = CHUNK) -> bytes:
        """The next bytes, at most `limit`; they are not counted as taken yet."""
        return self._read(self.offset, limit)

    def take(self, chunk: bytes) -> None:
        """The coordinator has these bytes."""
        self._hash.update(chunk)
        self.offset += len(chunk)

    def rewind(self, offset: int) -> None:
        """The coordinator has exactly `offset` bytes, whatever was thought here; hashes them anew."""
        self._hash = hashlib.sha256()
        self.offset = 0
        while self.offset < offset:
            block = self._read(self.offset, min(_BLOCK, offset - self.offset))
            if not block:  # it claims more than was ever written here; the end will tell the true length
                break
            self.take(block)

    def end(self) -> LogEnd | None:
        """The stream's end with the rest of it, None for one without a byte. Only when at most INLINE_LOG_BYTES are left."""
        rest = self.read(INLINE_LOG_BYTES)
        length = self.offset + len(rest)
        if not length:
            return None
        whole = self._hash.copy()
        whole.update(rest)
        return LogEnd(stream=self.stream, length=length, sha256=whole.hexdigest(), offset=self.offset, tail=rest)

    def _read(self, offset: int, limit: int) -> bytes:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(handle, limit, offset)
        finally:
            os.close(handle)


def has_logs(root: Path) -> bool:
    """Whether anything was written; most short jobs are silent."""
    for stream in LOG_STREAMS:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{root}/logs/{stream}.log").st_size:  # noqa: PTH116 - on the path of every job
                return True
    return False


def open_tails(root: Path) -> tuple[LogTail, ...]:
    """The streams of the workspace `root`, from their beginning."""
    return tuple(LogTail(stream, root / "logs" / f"{stream}.log") for stream in LOG_STREAMS)


def ends(tails: Iterable[LogTail]) -> tuple[LogEnd, ...] | None:
    """The ends of all streams; None while one of them has more to ship than an outcome may carry."""
    found = []
    for tail in tails:
        if (size := tail.size()) - tail.offset > INLINE_LOG_BYTES:
            return None
        if size and (end := tail.end()) is not None:
            found.append(end)
    return tuple(found)
