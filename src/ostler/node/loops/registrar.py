"""Registrar: opens a session when there is none, for as long as it takes."""

import logging

from ostler.model.errors import NodeRetired, UpgradeRequired
from ostler.node.config import BackoffBounds
from ostler.node.session import Session
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

IDLE_S = 300.0  # with an open session it only shows that it lives
BARRED_S = 60.0  # an outdated or retired node asks again after so long, later more seldom: the coordinator may be replaced, too
MOST_BARRED_S = 300.0
RENEWALS = 3  # in a lease, while registrations are what renews it


class Registrar(Loop):
    """Woken by whoever finds the session closed. Its backoff is the heartbeat's: 5 to 120 s by default."""

    name = "registrar"

    def __init__(self, session: Session, *, backoff: BackoffBounds, clock: Clock, logger: logging.Logger) -> None:
        super().__init__(clock=clock, interval_s=IDLE_S, logger=logger)
        self._backoff = Backoff(min_s=backoff.min_s, max_s=backoff.max_s)
        self._barred = Backoff(min_s=BARRED_S, max_s=MOST_BARRED_S)
        self._session = session
        session.wake_registrar = self.wake

    async def turn(self) -> float | None:
        """Register when that is due."""
        if self._session.is_open:
            return None
        try:
            await self._session.register()
        except (UpgradeRequired, NodeRetired) as exc:
            if isinstance(exc, UpgradeRequired) and exc.lease_s is not None and self._session.holds:
                return min(BARRED_S, exc.lease_s / RENEWALS)
            return self._barred.next_s()
        self._barred.reset()
        return None
