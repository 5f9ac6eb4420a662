"""AuditSealer: has the refused calls told that got no row, and seals what the audit log holds so far where that is its duty."""

import logging
from collections.abc import Awaitable, Callable

from ostler.coordinator.operations import audit
from ostler.coordinator.store.store import Store
from ostler.protocol.audit import Sign
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EACH_S = 10.0


class AuditSealer(Loop):
    """Seals in batches, beside the calls that write the log; what is younger than a turn has no seal yet."""

    name = "audit_sealer"

    def __init__(
        self, store: Store, sign: Sign, tell_left_out: Callable[[], Awaitable[None]], *, clock: Clock, logger: logging.Logger
    ) -> None:  # fmt: skip
        super().__init__(clock=clock, interval_s=EACH_S, logger=logger)
        self._store = store
        self._sign = sign
        self._tell_left_out = tell_left_out

    async def turn(self) -> float | None:
        """One batch; the next one at once where this one was full."""
        await self._tell_left_out()
        if not self.on_duty:
            return None
        return 0.0 if await self._store.write_lazily(audit.seal, self._sign) == audit.BATCH else None
