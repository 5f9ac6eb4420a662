"""Where delivered bytes live: the port that every artifact store fulfils, and its directory adapter.

Content is named by its sha256, so equal bytes stand once and a name can never come to mean something else.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ostler.coordinator.keys import read_secret
from ostler.model.errors import InvalidSpec, NotFound, StoreBusy

BLOCK = 2**20
MAX_PIECES = 512  # in one write; Linux takes 1024
DISK_THREADS = 4
SHELVES = 256  # contents stand on shelves, by the first byte of their names
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are durable: their sha256 in hex and their size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A content on its shelf: when it was stored (last, where it came more often), in seconds since 1970."""

    sha256: str
    size: int
    stored_at: float


class Staging(Protocol):
    """Bytes on their way in. Nobody sees them before `commit`; `discard` after it, or twice, does nothing."""

    @property
    def size(self) -> int:
        """How many bytes were written so far."""
        ...

    async def write(self, data: bytes) -> None:
        """Adds bytes; raises StoreBusy where the disk is full."""
        ...

    async def seal(self, expected: str | None = None) -> Stored:
        """Makes them durable, still without a name. Raises InvalidSpec, and keeps nothing, for another sha256 than `expected`."""
        ...

    async def commit(self) -> Stored:
        """Gives the bytes their name, durably; seals them before where that was not done."""
        ...

    async def discard(self) -> None:
        """Forgets them."""
        ...


class Artifacts(Protocol):
    """What an artifact store offers; raises StoreBusy where it cannot serve now, NotFound for content that it does not have."""

    async def open(self) -> None:
        """Makes it ready; what an earlier process left half written is removed."""
        ...

    async def close(self) -> None:
        """Ends what it began."""
        ...

    async def stage(self) -> Staging:
        """Begins a new content."""
        ...

    async def size(self, sha256: str) -> int | None:
        """How many bytes it has, or None where there is no such content."""
        ...

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in blocks."""
        ...

    async def shelf(self, number: int) -> list[Kept]:
        """All contents on one of the SHELVES."""
        ...

    async def delete(self, sha256: str, *, before: float | None = None) -> bool:
        """Removes a content; True where there was one. Who reads it already reads on.

        With `before` only where it was not stored anew since then: whoever does so meanwhile keeps it.
        """
        ...


MARK = "installation"
LEFT_S = 86_400.0  # a staging file that nobody has written to for so long is nobody's


def mark_of(root: Path) -> str:
    """What tells this directory from any other one: a file with a random name, made by whoever comes first."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return read_secret(root / MARK, lambda: secrets.token_hex(16).encode()).decode()


class DirectoryArtifacts:
    """Artifacts in a directory: `objects/ab/cdef…` and, while they arrive, `staging/`. One process owns it, or several are `shared`."""

    def __init__(self, root: Path, *, logger: logging.Logger, shared: bool = False) -> None:
        self._objects = root / "objects"
        self._staging = root / "staging"
        self._logger, self._shared = logger, shared
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="artifacts")
        self.naming = threading.Lock()  # between the look at a file's age and its removal nobody gives it a new one

    async def open(self) -> None:
        """Makes the directories; what an earlier process left half written is removed."""
        await self.run(self._open)

    def _open(self) -> None:
        self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._staging.mkdir(mode=0o700, exist_ok=True)
        until = time.time() - LEFT_S if self._shared else math.inf
        left = [path for path in self._staging.iterdir() if path.stat().st_mtime < until]
        for path in left:
            path.unlink(missing_ok=True)
        if left:
            self._logger.info("staging_cleared", extra={"attrs": {"files": len(left)}})

    async def close(self) -> None:
        """Waits for disk work that is under way."""
        await asyncio.to_thread(self._disk.shutdown)

    async def run(self, work: Callable[[], T]) -> T:
        """Disk work in a thread of its own pool; what the operating system says becomes an error of the tree."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, work)
        except OSError as exc:
            raise self._busy(exc) from exc

    def _busy(self, exc: OSError) -> StoreBusy:
        self._logger.error("artifact_store_failed", extra={"attrs": {"error": str(exc)}})
        if exc.errno in _FULL:
            return StoreBusy(
                "the coordinator's artifact store is full",
                retry_after=60,
                hint="free space below the data directory's artifacts/",
            )
        return StoreBusy(f"the coordinator's artifact store failed: {os.strerror(exc.errno or 0)}", retry_after=30)

    async def stage(self) -> "DirectoryStaging":
        """A new staging file."""
        path = self._staging / secrets.token_hex(16)
        fd = await self.run(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return DirectoryStaging(self, path, fd)

    def place(self, sha256: str) -> Path:
        """Where a content stands; raises NotFound for what cannot be a name, so that no path is ever made from it."""
        if not _SHA256.fullmatch(sha256):
            raise NotFound(f"there is no content {sha256[:80]!r}: a sha256 has 64 lower-case hex digits")
        return self._objects / sha256[:2] / sha256[2:]

    async def size(self, sha256: str) -> int | None:
        """How many bytes it has, or None."""
        path = self.place(sha256)

        def look() -> int | None:
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

        return await self.run(look)

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in blocks of at most 1 MiB."""
        path = self.place(sha256)

        def take() -> int | None:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None

        fd = await self.run(take)
        if fd is None:
            raise NotFound(f"there is no content {sha256}")
        try:
            offset = start
            while end is None or offset < end:
                want = BLOCK if end is None else min(BLOCK, end - offset)
                block = await self.run(lambda at=offset, n=want: os.pread(fd, n, at))  # type: ignore[misc]
                if not block:
                    return
                offset += len(block)
                yield block
        finally:
            os.close(fd)

    async def shelf(self, number: int) -> list[Kept]:
        """All contents on one of the SHELVES."""
        directory = self._objects / f"{number:02x}"

        def look() -> list[Kept]:
            found = []
            with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        found.append(Kept(directory.name + entry.name, facts.st_size, facts.st_mtime))
            return [one for one in found if _SHA256.fullmatch(one.sha256)]

        return await self.run(look)

    async def delete(self, sha256: str, *, before: float | None = None) -> bool:
        """Removes a content; True where there was one (that was not stored since `before`)."""
        path = self.place(sha256)

        def remove() -> bool:
            try:
                with self.naming:
                    if before is not None and path.stat().st_mtime >= before:
                        return False
                    path.unlink()
            except FileNotFoundError:
                return False
            _sync_directory(path.parent)
            return True

        return await self.run(remove)


class DirectoryStaging:
    """One staging file. While one block is hashed and written in a thread, the next one arrives: two blocks of memory at most."""

    def __init__(self, store: DirectoryArtifacts, path: Path, fd: int) -> None:
        self.size = 0
        self._store = store
        self._path = path
        self._fd = fd
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._under_way: asyncio.Task[None] | None = None
        self._sealed: Stored | None = None
        self._over = False

    async def write(self, data: bytes) -> None:
        """Adds bytes; the disk's errors surface here or at the commit."""
        self.size += len(data)
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting >= BLOCK:
            await self._hand_over()

    async def _hand_over(self) -> None:
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        await self._begin(lambda: self._put(pieces))

    async def _begin(self, work: Callable[[], None]) -> None:
        await self._settle()
        self._under_way = asyncio.ensure_future(self._store.run(work))

    async def _settle(self) -> None:
        if self._under_way is None:
            return
        # `wait`, not `await`: a cancelled request must not lose sight of a thread that still uses the file.
        await asyncio.wait({self._under_way})
        task, self._under_way = self._under_way, None
        task.result()

    def _put(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
        while pieces:
            written = os.writev(self._fd, pieces[:MAX_PIECES])
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if written:
                pieces[0] = pieces[0][written:]

    async def seal(self, expected: str | None = None) -> Stored:
        """Synced and closed, so that a form with many files holds neither their blocks nor their descriptors."""
        try:
            if self._pieces:
                await self._hand_over()
            await self._settle()
            found = self._digest.hexdigest()
            _check_digest(found, expected)
            await self._begin(self._sync)
            await self._settle()
        except BaseException:
            await self.discard()
            raise
        self._sealed = Stored(found, self.size)
        return self._sealed

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def commit(self) -> Stored:
        """The name, then the synced directory; the staging file is gone whatever happens."""
        sealed = self._sealed or await self.seal()
        try:
            await self._begin(lambda: self._name(self._store.place(sealed.sha256)))
            await self._settle()
            return sealed
        finally:
            await self.discard()

    def _name(self, place: Path) -> None:
        if not place.parent.exists():
            place.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(place.parent.parent)
        # Also where equal content stands already: the rename gives it a new age, so that a sweeper by age spares it.
        with self._store.naming:
            os.utime(self._path)
            self._path.rename(place)
        _sync_directory(place.parent)

    async def discard(self) -> None:
        """Removes the staging file, once what is under way in a thread has ended; a cancelled request finishes this too."""
        if not self._over:
            self._over = True
            await asyncio.shield(self._discard())

    async def _discard(self) -> None:
        with contextlib.suppress(StoreBusy):
            await self._settle()
        self._pieces = []
        await self._store.run(self._remove)

    def _remove(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)


def _check_digest(found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise InvalidSpec(
            f"the bytes have the sha256 {found}, not {expected}",
            hint="they were damaged on the way, or are others: send them again",
        )


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
