"""Expirer: ends pending jobs whose time-to-live is over."""

import logging

from ostler.coordinator.loops.due import NextDue
from ostler.coordinator.operations import duties
from ostler.coordinator.store.store import Store
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop


class Expirer(Loop):
    """Sleeps until the next time-to-live is over, at most `interval_s`."""

    name = "expirer"

    def __init__(self, store: Store, *, clock: Clock, logger: logging.Logger, interval_s: float = 1.0) -> None:
        super().__init__(clock=clock, interval_s=interval_s, logger=logger)
        self._store = store
        self._next = NextDue(store, duties.next_expiry_s, clock=clock)

    async def turn(self) -> float | None:
        """Expire what is due."""
        due_s = await self._next.in_s()
        if due_s is None or due_s > 0:
            return None if due_s is None else min(due_s, self.interval_s)
        count = await self._store.write(duties.expire_due)
        self.logger.info("jobs_expired", extra={"attrs": {"jobs": count}})
        return 0.0
