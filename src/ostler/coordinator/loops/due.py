"""When the next thing of a kind is due: the store is asked where something was written since, and not each time that a loop turns."""

from collections.abc import Callable
from datetime import datetime, timedelta

from ostler.coordinator.store.store import Store
from ostler.coordinator.store.tx import Tx
from ostler.runtime.clock import Clock


class NextDue:
    """`ask` is an operation that answers in how many seconds it is, None for never."""

    def __init__(self, store: Store, ask: Callable[[Tx], float | None], *, clock: Clock) -> None:
        self._store = store
        self._ask = ask
        self._clock = clock
        self._known = -1  # the count of what was written when the store was asked
        self._at: datetime | None = None

    async def in_s(self) -> float | None:
        """Seconds from now; 0 or less is now."""
        written = self._store.written
        if self._store.shared or written != self._known:  # others write to a shared one
            due_s = await self._store.read(self._ask)
            self._at = None if due_s is None else self._clock.now() + timedelta(seconds=due_s)
            self._known = written
        return None if self._at is None else (self._at - self._clock.now()).total_seconds()
