"""Acker: accepts offers (journal first, then the coordinator), hands back what cannot run, and starts what may."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from ostler.model.errors import StoreBusy
from ostler.node.attempts import AttemptTable, Live, Slots
from ostler.node.credit import AckPlan, Pace, enough, plan_acks, start_ahead, startable
from ostler.node.executor import Executor
from ostler.node.journal import Entry, Journal
from ostler.node.readiness import Readiness, Reason
from ostler.node.session import Session
from ostler.protocol.messages import AckItem, ItemResult
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

SESSION_S = 60.0
FURNISHED_PER_SLOT = 4  # workspaces made for attempts that wait for a slot
WAITING_S = 0.5  # with offers that wait for a slot it looks again so often


class Acker(Loop):
    """Woken by offers and by freed slots. One ack is under way at a time, so that a slow one gathers a batch for the next."""

    name = "acker"

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        journal: Journal,
        executor: Executor,
        limits: Callable[[], Slots],
        prefetch: Callable[[], int],
        pace: Pace,
        readiness: Readiness,
        discard: Callable[[Live, str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`discard` is given what the coordinator takes away, and why."""
        super().__init__(clock=clock, interval_s=60.0, logger=logger)
        self._session = session
        self._table = table
        self._journal = journal
        self._executor = executor
        self._limits = limits
        self._prefetch = prefetch
        self._pace = pace
        self._readiness = readiness
        self._discard = discard

    async def turn(self) -> float | None:
        """Start what may start, then settle the offers."""
        self.start_waiting()
        if not self._offers():
            return None
        if not await self._session.opened(SESSION_S):
            return 0.0
        offers = self._offers()  # looked at now: a session that opens takes away what is over for the coordinator
        plan = plan_acks(
            self._limits(),
            self._table.open(),
            offers,
            pace_s=self._pace.median_s,
            prefetch=self._prefetch(),
            now=self.clock.monotonic(),
            refusal=self._readiness.refusal,
            ending=self._readiness.why(Reason.STOPPING),
        )
        if not plan.accept and not plan.decline:
            return WAITING_S
        await self._settle(plan)
        return 0.0 if self._table.has_offers else None

    def _offers(self) -> list[Live]:
        """Those that await a word."""
        return [live for live in self._table.offered() if not live.ordered]

    def begin_ordered(self) -> None:
        """What the poll that brought it acknowledged needs no further word: it begins once it is written down.

        What must be known is that this machine may have begun it: to the next daemon, so the row is there before the start. A power cut
        may take it, as it takes the attempt, which the coordinator then knows to be lost.
        """
        ordered = [live for live in self._table.offered() if live.ordered and not live.noted]
        if not ordered:
            return
        for live in ordered:
            live.noted = True
        alone = len(self._table) == len(ordered)  # then a disk that hangs holds up the leases of nothing else
        for live in ordered[: max(0, self._limits().cpu - len(self._table.working()))]:
            self._executor.furnish(live, here=alone)
        written = self._journal.accept(map(_entry, ordered), durable=False, here=alone)
        if written.done():
            self._written(ordered, written)
        else:
            written.add_done_callback(lambda done: self._written(ordered, done))

    def wake_for_offers(self) -> None:
        """Turn, where there is anything to acknowledge."""
        if self._offers():
            self.wake()

    def _written(self, ordered: Sequence[Live], done: asyncio.Future[None]) -> None:
        if done.cancelled():
            return
        if done.exception() is not None:  # an ack will tell, or hand them back
            for live in ordered:
                live.ordered = False
            self.wake()
            return
        for live in ordered:
            if not _is_settled(live):
                self._table.accept(live)
        self.start_waiting()

    def start_waiting(self) -> None:
        """Give free slots to accepted attempts, first come first served."""
        waiting = self._table.waiting()
        if not waiting:
            return
        limits, executor = self._limits(), self._executor
        for live in startable(limits, self._table.working(), waiting):
            executor.start(live, limits.cpu)
        waiting = [live for live in waiting if live.work is None]
        if not waiting:
            return
        for live in waiting[: FURNISHED_PER_SLOT * limits.cpu]:
            executor.furnish(live)
        working = self._table.working()
        ahead = start_ahead(limits, self._pace.median_s, self._prefetch())
        for live in startable(limits, working, waiting, ahead=ahead, may_wait=executor.may_wait):
            executor.start(live, limits.cpu)
        if any(live.work is None and live.latency and not executor.may_wait(live) for live in waiting):
            for live in reversed(working):  # each goes before the others that are accepted
                executor.withdraw(live)

    def freed(self) -> None:
        """A slot is free: the next one begins, and more is accepted where little lies here."""
        self.start_waiting()
        if self._table.has_offers and not enough(self._limits(), self._table, self._pace.median_s, self._prefetch()):
            self.wake()

    async def _settle(self, plan: AckPlan) -> None:
        accept, decline = plan.accept, plan.decline
        if accept:
            try:
                await self._journal.accept(map(_entry, accept))
            except StoreBusy as exc:
                decline = [*decline, *((live, str(exc)) for live in accept)]
                accept = []
        items = [AckItem(job_id=live.job_id, attempt=live.attempt) for live in accept]
        items += [AckItem(job_id=live.job_id, attempt=live.attempt, decline=why) for live, why in decline]
        results = {(one.job_id, one.attempt): one for one in await self._session.link.ack(items)}
        for live in accept:
            self._accepted(live, results.get((live.job_id, live.attempt)))
        for live, why in decline:
            self.logger.info("declined", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt, "why": why}})
            self._discard(live, why)
        self.start_waiting()

    def _accepted(self, live: Live, result: ItemResult | None) -> None:
        if _is_settled(live):
            return
        if result is None or not result.ok:
            self._discard(live, "the ack was not answered" if result is None else f"{result.code}: {result.message}")
            return
        self._table.accept(live)
        if live.refusal is not None:
            self._executor.refuse(live, live.refusal)


def _is_settled(live: Live) -> bool:
    """Whether it was cancelled or taken away while its acceptance was under way."""
    return live.outcome is not None or live.forgotten or live.work is not None


def _entry(live: Live) -> Entry:
    return Entry(live.job_id, live.attempt, live.spec, live.tries, inputs=live.inputs)
