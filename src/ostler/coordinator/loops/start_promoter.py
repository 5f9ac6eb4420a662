"""StartPromoter: lets jobs go whose `not_before` has come."""

import logging

from ostler.coordinator.loops.due import NextDue
from ostler.coordinator.operations import duties
from ostler.coordinator.store.store import Store
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop


class StartPromoter(Loop):
    """Sleeps until the next job may begin, at most `interval_s`: an earlier one may be submitted meanwhile."""

    name = "start_promoter"

    def __init__(self, store: Store, *, clock: Clock, logger: logging.Logger, interval_s: float = 0.5) -> None:
        super().__init__(clock=clock, interval_s=interval_s, logger=logger)
        self._store = store
        self._next = NextDue(store, duties.next_start_s, clock=clock)

    async def turn(self) -> float | None:
        """Let go what may begin."""
        due_s = await self._next.in_s()
        if due_s is None or due_s > 0:
            return None if due_s is None else min(due_s, self.interval_s)
        count = await self._store.write(duties.start_due)
        self.logger.debug("starts_due", extra={"attrs": {"jobs": count}})
        return 0.0
