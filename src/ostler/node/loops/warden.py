"""Warden: watches leases that nobody renews, and ends attempts that went on without one for too long."""

import asyncio
import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from ostler.model.attempt import AttemptState
from ostler.node.attempts import AttemptTable
from ostler.node.executor import Executor
from ostler.node.leases import Lease, Standing, standing, worth_asking
from ostler.node.session import Dialect, Session
from ostler.protocol.messages import Held
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EVERY_S = 1.0
CONNECT_S = 2.0
PATIENCE_S = 10.0  # a daemon that was started late asks the coordinator before it ends what it adopted
NOTED_SHARE = 0.25  # of a lease: so much earlier than needed the next daemon may give up, for one small write in that time


async def nobody_listens(url: str) -> bool:
    """Whether each address of this URL refuses connections; silence is no refusal, and neither is an answer."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            addresses = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in addresses:
                with socket.socket(family, kind, protocol) as one:
                    one.setblocking(False)
                    try:
                        await loop.sock_connect(one, address)
                    except ConnectionRefusedError:
                        continue
                    return False
    except (OSError, TimeoutError):
        return False
    return bool(addresses)


class Warden(Loop):
    """An attempt whose end is known is not ended again: its outcome waits for the coordinator, however long."""

    name = "warden"

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        executor: Executor,
        note: Callable[[Lease], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`note` keeps a renewal for the next daemon, which goes on counting from it."""
        super().__init__(clock=clock, interval_s=EVERY_S, logger=logger)
        self._note = note
        self._noted = Lease(float("-inf"), 0.0)
        self._judges_at = clock.monotonic() + PATIENCE_S
        self._session = session
        self._table = table
        self._executor = executor
        self._refused_at = float("-inf")

    def renew(self, held: tuple[Held, ...], sent_at: float, lease_s: float) -> None:
        """A call that named these attempts and was sent at this time was answered."""
        if held and sent_at - self._noted.sent_at >= NOTED_SHARE * lease_s:
            self._noted = Lease(sent_at, lease_s)
            self._note(self._noted)
        for one in held:
            live = self._table.get(one.job_id, one.attempt)
            if live is None or live.lease.sent_at > sent_at:
                continue
            live.lease = Lease(sent_at, lease_s)
            if live.unrenewed:
                live.unrenewed = False
                self.logger.info("lease_renewed", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt}})

    async def turn(self) -> float | None:
        """Look at all leases."""
        if self._session.dialect is Dialect.SOURCE:
            return None  # leases are not known there
        now = self.clock.monotonic()
        lives = self._table.open()
        begun = [live for live in lives if live.state is not AttemptState.LEASED]
        if any(worth_asking(live.lease, now) for live in begun) and await nobody_listens(self._session.address.base_url):
            self._refused_at = now
        for live in lives:
            if live.state is AttemptState.LEASED:
                continue  # an offer that is not accepted in time is handed back, or taken back
            found = standing(live.lease, now, self._refused_at)
            attrs = {"attempt": live.attempt, "silent_s": round(now - live.lease.sent_at)}
            if found is not Standing.RENEWED and not live.unrenewed:
                live.unrenewed = True
                self.logger.warning("lease_unrenewed", extra={"job_id": live.job_id, "attrs": attrs})
            if found is Standing.GIVEN_UP and live.lost is None and now >= self._judges_at:
                self.logger.error("given_up", extra={"job_id": live.job_id, "attrs": attrs})
                self._executor.lose(live, f"the coordinator was out of reach for {attrs['silent_s']} s; the attempt was given up")
        return None
