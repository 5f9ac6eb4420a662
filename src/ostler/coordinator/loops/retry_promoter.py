"""RetryPromoter: queues jobs whose backoff is over."""

import logging
import math

from ostler.coordinator.loops.due import NextDue
from ostler.coordinator.operations import duties
from ostler.coordinator.store.store import Store
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

DOUBT_S = 5.0


class RetryPromoter(Loop):
    """Sleeps until the next wait is over, at most `interval_s`: a shorter wait may begin meanwhile.

    Each 5 s it looks for waits that are longer than they can be: they were dated by a clock that was ahead, of this machine before it
    was set right, or of another coordinator.
    """

    name = "retry_promoter"

    def __init__(self, store: Store, *, clock: Clock, logger: logging.Logger, interval_s: float = 0.5) -> None:
        super().__init__(clock=clock, interval_s=interval_s, logger=logger)
        self._store = store
        self._next = NextDue(store, duties.next_due_s, clock=clock)
        self._doubted_at = -math.inf

    async def turn(self) -> float | None:
        """Promote what is due."""
        if (now := self.clock.monotonic()) - self._doubted_at >= DOUBT_S:
            self._doubted_at = now
            if await self._store.read(duties.misdated):
                count = await self._store.write(duties.promote_misdated)
                self.logger.warning("clock_was_set_back", extra={"attrs": {"jobs": count}})
        due_s = await self._next.in_s()
        if due_s is None or due_s > 0:
            return None if due_s is None else min(due_s, self.interval_s)
        count = await self._store.write(duties.promote_due)
        self.logger.debug("retries_due", extra={"attrs": {"jobs": count}})
        return 0.0
