"""Puller: one long poll open at any time, with credit for as many attempts as the node would take now."""

import asyncio
import logging
from collections.abc import Callable

from ostler.node.attempts import AttemptTable, Slots
from ostler.node.credit import Pace, acceptable, asking, credit, should_replace, taken
from ostler.node.links.link import Pulled
from ostler.node.readiness import Readiness
from ostler.node.session import Dialect, Session
from ostler.protocol import messages as m
from ostler.protocol.session_key import SessionKey
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

SOURCE_IDLE_S = 2.0  # a coordinator without long polls is asked so often
SESSION_S = 60.0
QUICK_S = 0.05
AFTER_ACK_S = 0.003  # what was just leased is acknowledged first; the next poll need not race it for this process


class Puller(Loop):
    """`reconsider` is called by whoever changed what the node would take."""

    name = "puller"

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        limits: Callable[[], Slots],
        prefetch: Callable[[], int],
        pace: Pace,
        readiness: Readiness,
        take: Callable[[Pulled, float, str | None, SessionKey | None], None],
        renew: Callable[[tuple[m.Held, ...], float, float], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`take` is given what a pull brought, when it was sent, its name (None where another one was sent since), and the session's key
        that it named; `renew` what that pull renewed."""
        super().__init__(clock=clock, interval_s=SESSION_S, logger=logger)
        self._backoff = Backoff(min_s=0.2, max_s=10.0)
        self._session = session
        self._table = table
        self._limits = limits
        self._prefetch = prefetch
        self._pace = pace
        self._readiness = readiness
        self._take = take
        self._renew = renew
        self._asked: Slots | None = None
        self._newest: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._answered = asyncio.Event()
        self._sent = 0
        self._quick = False  # the last answer was an empty one, at once

    def reconsider(self) -> None:
        """Replace the open poll where its credit is no longer right."""
        asked = self._asked
        if asked is None:
            self.wake()
        elif asked.cpu and (asked.gpu or not self._limits().gpu) and not self._readiness.draining:
            return  # the usual case, at each end of an attempt: it takes whatever comes
        elif self._session.dialect is not Dialect.SOURCE and should_replace(asked, self._credit()):
            self._newest = self._call()

    async def turn(self) -> float | None:
        """One poll, or as many as replace each other."""
        session = self._session
        if not await session.opened(SESSION_S):
            return 0.0
        if session.dialect is Dialect.SOURCE:
            return await self._ask_plainly()
        self._newest = self._call()
        while not self._newest.done():
            self._answered.clear()
            await self._answered.wait()
        self._asked = None
        self._newest.result()
        return AFTER_ACK_S if self._table.has_offers else 0.0

    async def close(self) -> None:
        """Leave no poll open."""
        self._drop()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _drop(self) -> None:
        for call in self._calls:
            call.cancel()

    def _credit(self) -> Slots:
        if self._readiness.draining:
            return Slots(0, 0)
        limits, pace_s, prefetch = self._limits(), self._pace.median_s, self._prefetch()
        lives = self._table.open()
        return asking(credit(limits, lives, pace_s, prefetch), self._table.queued(), limits, pace_s, prefetch)

    def _begins(self) -> int:
        """How many of what a poll brings are accepted by it."""
        if self._readiness.refusal is not None:
            return 0
        return acceptable(self._limits(), taken(self._table.open()), self._pace.median_s, self._prefetch())

    def _call(self) -> "asyncio.Task[None]":
        asked = self._asked = self._credit()  # at once: who reconsiders before it is sent need not send another
        call = asyncio.get_running_loop().create_task(self._poll(asked), name="pull")
        self._calls.add(call)
        call.add_done_callback(self._end_call)
        return call

    def _end_call(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        self._answered.set()
        if not call.cancelled():
            call.exception()  # that of a replaced poll is nobody's trouble

    async def _poll(self, asked: Slots) -> None:
        """An older poll that was replaced is answered at once, and may still have brought something."""
        self._sent += 1
        number = self._sent
        held, sent_at = self._table.held(), self.clock.monotonic()
        session = self._session
        wait_s, key = session.terms.pull_wait_s, session.identity.session
        request = m.PullRequest(
            node_id=session.identity.node_id,
            slots=asked.cpu,
            gpu_slots=asked.gpu,
            wait_s=wait_s,
            held=held,
            protocol=m.PROTOCOL,
            boot_epoch=session.identity.boot_epoch,
            together=True,
            begins=self._begins(),
            number=number,
            session_key=None if key is None else key.keyid,
        )
        pulled = await session.link.pull(request)
        self._renew(held, sent_at, session.terms.lease_s)
        name = m.pull_name(session.identity.boot_epoch, number) if number == self._sent else None
        self._take(pulled, sent_at, name, key)
        quick, again = not pulled.signed and self.clock.monotonic() - sent_at < QUICK_S, self._quick
        self._quick = quick
        if quick and (again or not pulled.directives):  # a directive now and then is no reason to keep work waiting
            await asyncio.sleep(QUICK_S)  # an empty answer at once: replaced, told the same again, or a coordinator in trouble

    async def _ask_plainly(self) -> float:
        """A coordinator that hands out one job at once or none: it is asked when a slot is free."""
        now = credit(self._limits(), self._table.open(), None, 0)
        if self._readiness.draining or (now.cpu == 0 and now.gpu == 0):
            return SESSION_S  # woken when a slot becomes free
        sent_at = self.clock.monotonic()
        request = m.PullRequest(node_id=self._session.identity.node_id)
        pulled = await self._session.link.pull(request)
        self._take(pulled, sent_at, None, None)
        return 0.0 if pulled.plain else SOURCE_IDLE_S
