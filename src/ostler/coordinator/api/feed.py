"""The feed: followers of events who stand at the same place share one read, and the bytes that were made of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ostler.coordinator.api.sse import event
from ostler.coordinator.operations import events as ops
from ostler.coordinator.store.store import Store

GATHER_S = 0.03  # how long a read waits for others who want the same, and for further commits
GATHER_EACH_S = 0.0002  # and longer the more there are: what all are told a second stays bounded


@dataclass(frozen=True, slots=True)
class Told:
    """A window of events, and each one as it goes over the wire."""

    window: ops.Window
    texts: tuple[bytes, ...]


class Feed:
    """Reads windows of events.

    A read is shared by those who asked before it began, never by those who ask while it is under way: a commit that woke them may
    have come after its snapshot.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gathering: dict[tuple[int, int | None, bool], asyncio.Task[Told]] = {}
        self._followers = 0

    @contextmanager
    def follower(self) -> Iterator[None]:
        """Counts one who stays."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    async def after(self, cursor: int, job_seq: int | None, *, at_once: bool) -> Told:
        """What stands behind a cursor; `at_once` for one who is behind and need not wait for others. Raises Gone."""
        key = (cursor, job_seq, at_once)
        task = self._gathering.get(key)
        if task is None:
            task = self._gathering[key] = asyncio.create_task(self._read(key))
        return await asyncio.shield(task)  # one who goes away does not end it for the others

    async def _read(self, key: tuple[int, int | None, bool]) -> Told:
        cursor, job_seq, at_once = key
        await asyncio.sleep(0 if at_once else GATHER_S + GATHER_EACH_S * self._followers)
        del self._gathering[key]
        window = await self._store.read(ops.window, cursor, job_seq)
        return Told(window, tuple(event(one.kind, one.event, one.event.cursor) for one in window.found))
