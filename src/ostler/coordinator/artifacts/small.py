"""An artifact store that finds small contents elsewhere: they came inside an outcome, and stand in the database with it."""

from collections.abc import AsyncIterator, Awaitable, Callable

from ostler.coordinator.artifacts.store import Artifacts, Kept, Staging
from ostler.model.errors import NotFound

Find = Callable[[str], Awaitable[bytes | None]]


class WithSmall:
    """Artifacts of `large`, and those that `find` has. New ones are `large`'s."""

    def __init__(self, large: Artifacts, find: Find) -> None:
        self._large = large
        self._find = find

    async def open(self) -> None:
        """As Artifacts has it."""
        await self._large.open()

    async def close(self) -> None:
        """As Artifacts has it."""
        await self._large.close()

    async def stage(self) -> Staging:
        """As Artifacts has it."""
        return await self._large.stage()

    async def shelf(self, number: int) -> list[Kept]:
        """Files alone."""
        return await self._large.shelf(number)

    async def delete(self, sha256: str, *, before: float | None = None) -> bool:
        """Files alone: what stands in the database goes with a transaction (`operations.contents`)."""
        return await self._large.delete(sha256, before=before)

    async def size(self, sha256: str) -> int | None:
        """As Artifacts has it."""
        size = await self._large.size(sha256)
        if size is None and (data := await self._find(sha256)) is not None:
            return len(data)
        return size

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """As Artifacts has it."""
        blocks = self._large.read(sha256, start, end)
        try:
            first = await anext(blocks, b"")
        except NotFound:
            data = await self._find(sha256)
            if data is None:
                raise
            yield data[start:end]
            return
        yield first
        async for block in blocks:
            yield block
