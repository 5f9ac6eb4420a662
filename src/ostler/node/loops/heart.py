"""Heart: tells the coordinator at short intervals that this node lives and what it holds; applies what it is told."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostler import __version__
from ostler.model.capabilities import Capabilities, Load
from ostler.model.errors import Rejected
from ostler.model.rollout.report import Report
from ostler.model.service import Observation
from ostler.node.attempts import AttemptTable
from ostler.node.config import Heartbeat
from ostler.node.readiness import Readiness, Reason
from ostler.node.session import Dialect, Session
from ostler.protocol import messages as m
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

SAMPLE_S = 2.0  # a probe that hangs (a driver, a dead mount) must not stop the heart
SESSION_S = 60.0


@dataclass(slots=True)
class Vitals:
    """The last known load and health, and how an update stands; capabilities and services where they changed and are not told yet."""

    load: Load | None = None
    health: tuple[str, ...] = ()
    news: Capabilities | None = None
    services: tuple[Observation, ...] | None = None
    update: Report | None = None


class Heart(Loop):
    """Its calls have a connection of their own, and nothing that it needs waits for a disk or a job."""

    name = "heart"

    def __init__(
        self,
        session: Session,
        *,
        config: Heartbeat,
        table: AttemptTable,
        readiness: Readiness,
        vitals: Vitals,
        sample: Callable[[], Load],
        credit: Callable[[], int],
        apply: Callable[[Sequence[m.Directive]], None],
        renew: Callable[[tuple[m.Held, ...], float, float], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`sample` blocks for a few milliseconds and is called in a thread; `credit` is how many more attempts the node would
        take."""
        super().__init__(clock=clock, interval_s=config.interval_s, logger=logger)
        self._backoff = Backoff(min_s=config.backoff.min_s, max_s=config.backoff.max_s)
        self._session = session
        self._jitter = config.jitter_pct / 100
        self._table = table
        self._readiness = readiness
        self._vitals = vitals
        self._sample = sample
        self._credit = credit
        self._apply = apply
        self._renew = renew
        self._sampling: asyncio.Future[Load] | None = None
        self.beat_at: float | None = None

    async def turn(self) -> float | None:
        """One beat."""
        session = self._session
        self.interval_s = session.terms.heartbeat_s
        if not await session.opened(min(SESSION_S, self.interval_s)):
            return 0.0
        if session.dialect is not Dialect.SOURCE or self._vitals.load is None:
            await self._look()
        sent_at, held = self.clock.monotonic(), self._table.held()
        news, services = self._vitals.news, self._vitals.services
        try:
            answer = await session.link.heartbeat(self._request(held, news, services))
        except Rejected as exc:
            if session.is_open:  # such as a newer session of this node: whoever is right, registering tells
                self.logger.warning("heartbeat_refused", extra={"attrs": {"error": str(exc)}})
                session.close()
            return self._backoff.next_s()
        self.beat_at = self.clock.monotonic()
        if answer is not None:
            if self._vitals.news is news:
                self._vitals.news = None
            if self._vitals.services is services:
                self._vitals.services = None
            self._renew(held, sent_at, answer.lease_s or session.terms.lease_s)
            self._apply(answer.directives)
        return self.interval_s * (1 + random.uniform(-self._jitter, self._jitter))  # noqa: S311 - jitter, not a secret

    async def farewell(self) -> None:
        """Tell that this node takes no more work for now; best effort, once."""
        if self._session.is_open:
            async with asyncio.timeout(SAMPLE_S):
                await self._session.link.heartbeat(self._request(self._table.held(), None, None))

    def _request(
        self, held: tuple[m.Held, ...], news: Capabilities | None, services: tuple[Observation, ...] | None
    ) -> m.HeartbeatRequest:
        load = self._vitals.load
        return m.HeartbeatRequest(
            node_id=self._session.identity.node_id,
            load=load.load if load else 0.0,
            free_mb=load.free_mb if load else 0,
            gpu_free=load.gpu_free if load else 0,
            disk_free_mb=load.disk_free_mb if load else None,
            held=held,
            version=__version__,
            boot_epoch=self._session.identity.boot_epoch,
            draining=self._readiness.draining,
            quarantine=self._readiness.why(Reason.HEALTH) or self._readiness.why(Reason.KEEPER),
            health=self._vitals.health,
            slots=self._credit(),
            capabilities=news,
            services=services,
            update=self._vitals.update,
        )

    async def _look(self) -> None:
        """A fresh sample, or the old one where looking takes too long; never two looks at once."""
        if self._sampling is None:
            self._sampling = asyncio.get_running_loop().run_in_executor(None, self._sample)
        done, _ = await asyncio.wait({self._sampling}, timeout=SAMPLE_S)
        if done:
            sampling, self._sampling = self._sampling, None
            if sampling.exception() is None:
                self._vitals.load = sampling.result()
