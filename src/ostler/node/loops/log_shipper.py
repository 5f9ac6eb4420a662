"""Log shipper: what running attempts write reaches the coordinator while they run; silent and very short ones cost nothing."""

import asyncio
import logging
from collections.abc import Callable

from ostler.model.attempt import AttemptState
from ostler.model.errors import Gone, NotFound, OffsetMismatch, Rejected, Unavailable
from ostler.node.attempts import AttemptTable, Live
from ostler.node.disk_lane import DiskLane
from ostler.node.log_tails import CHUNK, LogTail, ends, open_tails
from ostler.node.session import Session
from ostler.protocol.messages import INLINE_LOG_BYTES, LogEnd
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EVERY_S = 0.2
AT_ONCE = 4  # attempts whose logs are under way at the same time
REWINDS = 8  # a coordinator that keeps naming other offsets is not believed for ever


class LogShipper(Loop):
    """Looks every 0.2 s while something runs for longer than that. `rest` ships for the outbox what an outcome cannot carry."""

    name = "log_shipper"

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        disk: DiskLane,
        discard: Callable[[Live, str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        super().__init__(clock=clock, interval_s=30.0, logger=logger)
        self._session = session
        self._table = table
        self._disk = disk
        self._discard = discard
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._asleep = True

    def notice(self) -> None:
        """Something runs now."""
        if self._asleep:
            self._asleep = False
            self.wake()

    async def turn(self) -> float | None:
        """Ship what has grown."""
        running = [live for live in self._table.working() if live.state is AttemptState.RUNNING and live.workspace is not None]
        self._asleep = not running
        if not running or not self._session.is_open or not self._session.link.ships_logs:
            return EVERY_S if running else None
        now = self.clock.monotonic()
        lasting = [live for live in running if now - (live.started_at or now) >= EVERY_S and not live.logs_refused]
        for live in lasting:
            if not live.tails and live.workspace is not None:
                live.tails = open_tails(live.workspace.path)
        grown = await self._disk.do(_grown, lasting) if lasting else []
        if grown:
            await asyncio.gather(*(self._follow(live) for live in grown))
        return EVERY_S

    async def rest(self, live: Live) -> tuple[LogEnd, ...]:
        """Ship all that an outcome may not carry and answer the ends of the streams. Raises Unavailable."""
        if live.workspace is None:
            return ()
        if live.log_ends is not None:
            return live.log_ends
        async with self._lock(live):
            while True:
                found = await self._disk.do(ends, live.tails)
                if found is not None:
                    return found
                for tail in live.tails:
                    while await self._ship(live, tail, leave=INLINE_LOG_BYTES):
                        pass

    async def rewind(self, live: Live, stream: str | None, offset: int) -> None:
        """The coordinator has another length of a stream than was thought here."""
        async with self._lock(live):
            live.log_ends = None
            for tail in live.tails:
                if stream is None or tail.stream == stream:
                    await asyncio.to_thread(tail.rewind, offset)

    def _lock(self, live: Live) -> asyncio.Lock:
        if not live.tails and live.workspace is not None:
            live.tails = open_tails(live.workspace.path)
        if live.log_lock is None:
            live.log_lock = asyncio.Lock()
        return live.log_lock

    async def _follow(self, live: Live) -> None:
        async with self._gate, self._lock(live):
            if live.outcome is not None or live.forgotten:
                return
            try:
                for tail in live.tails:
                    while await self._ship(live, tail, leave=0):
                        pass
            except (Gone, NotFound) as exc:
                self._discard(live, f"{exc.code}: {exc}")
            except Rejected as exc:
                live.logs_refused = True
                attrs = {"attempt": live.attempt, "error": str(exc)}
                self.logger.warning("log_refused", extra={"job_id": live.job_id, "attrs": attrs})

    async def _ship(self, live: Live, tail: LogTail, *, leave: int) -> bool:
        """One chunk; whether there may be more. At most `leave` bytes are left for the outcome."""
        chunk = await self._disk.do(tail.read)
        if not chunk or (leave and len(chunk) < CHUNK and len(chunk) <= leave):
            return False
        for _ in range(REWINDS):
            try:
                await self._session.link.append_log(live.held, tail.stream, tail.offset, chunk)
            except OffsetMismatch as exc:
                await asyncio.to_thread(tail.rewind, exc.offset)
                chunk = await self._disk.do(tail.read)
                if not chunk:
                    return False
            else:
                tail.take(chunk)
                return len(chunk) == CHUNK
        raise Unavailable(f"the coordinator names ever other offsets of {tail.stream} of {live.job_id} attempt {live.attempt}")


def _grown(running: list[Live]) -> list[Live]:
    return [live for live in running if any(tail.size() > tail.offset for tail in live.tails)]
