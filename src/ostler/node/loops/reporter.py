"""Reporter: stages and progress of attempts that live long enough to be watched, batched and throttled."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ostler.model.attempt import AttemptState
from ostler.model.errors import Rejected
from ostler.node.attempts import AttemptTable, Live
from ostler.node.session import Session
from ostler.protocol.messages import ProgressItem
from ostler.protocol.ports import Progress
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

STAGE_S = 0.15  # an attempt that is over sooner is never reported as running
PROGRESS_S = 1.0  # per attempt
MAX_NOTE = 500
MAX_BATCH = 200


@dataclass(slots=True)
class _News:
    """What is not told yet about one attempt."""

    live: Live
    stage: AttemptState | None = None
    progress: Progress | None = None
    told_at: float = float("-inf")

    def due_s(self, now: float) -> float | None:
        """Seconds until something must be told; None when there is nothing."""
        if self.stage is not None:
            return max(0.0, (self.live.started_at or now) + STAGE_S - now)
        if self.progress is not None:
            return max(0.0, self.told_at + PROGRESS_S - now)
        return None


class Reporter(Loop):
    """Nothing here is needed for the outcome: what cannot be told is told by the next report."""

    name = "reporter"

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        discard: Callable[[Live, str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        super().__init__(clock=clock, interval_s=30.0, logger=logger)
        self._session = session
        self._table = table
        self._discard = discard
        self._news: dict[int, _News] = {}
        self._asleep = True

    def stage(self, live: Live) -> None:
        """It has reached another stage."""
        self._of(live).stage = live.state
        self._rouse()

    def progress(self, live: Live, news: Progress) -> None:
        """It says how far it is."""
        pct = None if news.pct is None else round(min(max(news.pct, 0.0), 100.0), 3)
        note = None if news.note is None else news.note[:MAX_NOTE]
        self._of(live).progress = Progress(pct=pct, note=note)
        self._rouse()

    def drop(self, live: Live) -> None:
        """It is over."""
        self._news.pop(id(live), None)

    async def turn(self) -> float | None:
        """Tell what is due."""
        now = self.clock.monotonic()
        due = [one for one in self._news.values() if one.due_s(now) == 0.0][:MAX_BATCH]
        if due and self._session.is_open:
            await self._tell(due, now)
        waits = [wait for one in self._news.values() if (wait := one.due_s(self.clock.monotonic())) is not None]
        self._asleep = not waits
        return max(0.05, min(waits)) if waits else None

    async def _tell(self, due: list[_News], now: float) -> None:
        items = []
        for one in due:
            said = one.progress or Progress()
            items.append(
                ProgressItem(job_id=one.live.job_id, attempt=one.live.attempt, state=one.live.state, pct=said.pct, note=said.note)
            )
            one.stage = one.progress = None
            one.told_at = now
        try:
            results = await self._session.link.progress(items)
        except Rejected as exc:
            self.logger.warning("progress_refused", extra={"attrs": {"error": str(exc)}})
            return
        for one, result in zip(due, results, strict=False):
            if not result.ok and result.code == "stale_attempt":
                self._discard(one.live, f"{result.code}: {result.message}")

    def _of(self, live: Live) -> _News:
        news = self._news.get(id(live))
        if news is None:
            news = self._news[id(live)] = _News(live)
        return news

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self.wake()
