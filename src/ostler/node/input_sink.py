"""Where the bytes of one input go: a file, its hash and its limits, with all disk work in threads."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from ostler.model.failures import Failure, FailureCode
from ostler.node.workspace import disk_failure

MB = 1 << 20
_FLUSH = 1 << 20
P = ParamSpec("P")
T = TypeVar("T")


class InputRefused(Exception):
    """An input cannot be had; carries the failure of the attempt."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refuse(message: str) -> InputRefused:
    """The failure E_INPUT with this message."""
    return InputRefused(Failure(FailureCode.INPUT, message))


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread; when cancelled, wait for it to end first, so that nothing writes to a closed file."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain that nobody did
        raise


class Budget:
    """How many bytes all inputs of an attempt may still take."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit

    def take(self, count: int, name: str) -> None:
        """Raises InputRefused when that is too much; a negative count gives back."""
        self.left -= count
        if self.left < 0:
            raise refuse(
                f"the inputs are larger than the {self.limit // MB} MB in all that this node allows; it ended at {name!r}"
            )


class Sink:
    """Collects one input in a file. Memory is one buffer; errors of the disk come out as InputRefused (E_DISK)."""

    def __init__(self, path: Path, *, name: str, max_bytes: int, budget: Budget, keep_free: int = 0) -> None:
        self.path = path
        self.name = name
        self.max_bytes = max_bytes
        self.size = 0
        self._budget = budget
        self._keep_free = keep_free
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._handle: int | None = None
        self._hash = hashlib.sha256()

    def expect(self, total: int) -> None:
        """Refuse at once what is announced to be too large. Raises InputRefused."""
        if total > self.max_bytes:
            raise self._too_large(f"{total} bytes")

    async def write(self, chunk: bytes) -> None:
        """Append. Raises InputRefused beyond the limit."""
        self._take(len(chunk))
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        if self._buffered >= _FLUSH:
            await in_thread(self._flush)

    def write_now(self, content: bytes) -> None:
        """Append and flush, blocking: for use within a thread."""
        self._take(len(content))
        self._buffer.append(content)
        self._buffered += len(content)
        self._flush()

    def copy_now(self, copy: Callable[[int], int | None]) -> bool:
        """Let `copy` fill the empty file, blocking; whether it had anything to copy."""
        try:
            size = copy(self._open())
        except OSError as exc:
            raise InputRefused(disk_failure(exc, f"writing the input {self.name!r}")) from exc
        if size is None:
            return False
        self._take(size)
        return True

    async def restart(self) -> None:
        """Forget all bytes so far."""
        self._budget.take(-self.size, self.name)
        self.size = 0
        self._buffer, self._buffered = [], 0
        self._hash = hashlib.sha256()
        await in_thread(self._truncate)

    async def finish(self) -> str:
        """Write what is left; the sha256 of all that was written."""
        if self._buffer or self._handle is None:
            await in_thread(self._flush)
        return self.digest()

    def digest(self) -> str:
        """The sha256 of all that was flushed."""
        return self._hash.hexdigest()

    @property
    def handle(self) -> int:
        """The open file, at an undefined position."""
        return self._open()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _take(self, count: int) -> None:
        if self.size + count > self.max_bytes:
            raise self._too_large(f"more than {self.max_bytes} bytes")
        self._budget.take(count, self.name)
        self.size += count

    def _too_large(self, what: str) -> InputRefused:
        return refuse(f"the input {self.name!r} is too large: {what}, and at most {self.max_bytes} bytes are allowed")

    def _open(self) -> int:
        if self._handle is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(self.path, flags, 0o600)
        return self._handle

    def _flush(self) -> None:
        buffer, self._buffer, self._buffered = self._buffer, [], 0
        try:
            handle = self._open()
            if self._keep_free:
                disk = os.fstatvfs(handle)
                if disk.f_bavail * disk.f_frsize < self._keep_free:
                    message = f"less than {self._keep_free // MB} MB of disk would be left while {self.name!r} is fetched"
                    raise InputRefused(Failure(FailureCode.DISK, message))
            for chunk in buffer:
                self._hash.update(chunk)
                left = memoryview(chunk)
                while left:
                    left = left[os.write(handle, left) :]
        except OSError as exc:
            raise InputRefused(disk_failure(exc, f"writing the input {self.name!r}")) from exc

    def _truncate(self) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
