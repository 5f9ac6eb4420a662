"""CertificateWatcher: certificates that were renewed come into force without a restart; a broken file changes nothing and is told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from ssl import SSLContext

from ostler.coordinator.config import TlsConfig
from ostler.coordinator.tls.context import ServerTls, load, stamp
from ostler.model.errors import InvalidSpec
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

INTERVAL_S = 5.0
SETTLE_S = 0.5  # certificate and key are two files, and the one may be written a moment before the other
SOON = timedelta(days=14)
REMIND_S = 86400.0


class CertificateWatcher(Loop):
    """`use` puts a context into force; who serves connections sets it."""

    name = "certificate_watcher"

    def __init__(self, tls: TlsConfig, now: ServerTls, *, clock: Clock, logger: logging.Logger) -> None:
        super().__init__(clock=clock, interval_s=INTERVAL_S, logger=logger)
        self.use: Callable[[SSLContext], Awaitable[None]] | None = None
        self._tls = tls
        self._facts = now.facts
        self._in_force = self._seen = stamp(tls)
        self._reminded_at: float | None = None

    async def turn(self) -> float | None:
        """Look at the files; raises InvalidSpec where they cannot be used, or where what is in force is over."""
        found = await asyncio.to_thread(stamp, self._tls)
        if found != self._seen:
            self._seen = found
            return SETTLE_S
        if found != self._in_force:
            await self._take(await asyncio.to_thread(load, self._tls, self.clock.now()))
            self._in_force = found
        self._look_at_the_end()
        return None

    async def _take(self, fresh: ServerTls) -> None:
        if self.use is not None:
            await self.use(fresh.context)
        self._facts, self._reminded_at = fresh.facts, None
        facts = {"sha256": fresh.facts.sha256, "expires": fresh.facts.not_after.isoformat()}
        self.logger.info("certificate_renewed", extra={"attrs": facts})

    def _look_at_the_end(self) -> None:
        now, ends = self.clock.now(), self._facts.not_after
        if ends <= now:
            raise InvalidSpec(f"the certificate {self._tls.cert} expired on {ends:%Y-%m-%d %H:%M} UTC")
        due = self._reminded_at is None or self.clock.monotonic() - self._reminded_at >= REMIND_S
        if ends - now <= SOON and due:
            self._reminded_at = self.clock.monotonic()
            attrs = {"file": str(self._tls.cert), "expires": ends.isoformat()}
            self.logger.warning("certificate_ends_soon", extra={"attrs": attrs})
