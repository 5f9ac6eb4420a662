"""Outbox: every outcome reaches the coordinator, however often that must be tried; nothing is forgotten here before it has it."""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from ostler.model.errors import Gone, InvalidSpec, NotFound, OffsetMismatch, Rejected, StaleAttempt, TooLarge, Unavailable
from ostler.model.failures import Failure, FailureCode
from ostler.node import outputs
from ostler.node.attempts import Live
from ostler.node.journal import Journal
from ostler.node.links.link import Attachment
from ostler.node.loops.log_shipper import LogShipper
from ostler.node.session import Session
from ostler.protocol.messages import ItemResult, LogEnd, Outcome
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

UPLOADS = 2  # deliveries with artifacts at the same time
SMALL_UPLOADS = 8  # the same for those of at most SMALL bytes, which wait for the coordinator's disk and not for the way there
SMALL = 2**18
LOGS = 4  # attempts whose last logs are shipped at the same time
MAX_BATCH = 256
GATHERED = 64  # so many are not kept back for others
MAX_BATCH_BYTES = 4 * 2**20
LOG_TRIES = 6  # after so many disagreements about its log an outcome goes without
REFUSED_TRIES = 2
_OVER = frozenset({"stale_attempt", "gone", "invalid_transition", "conflict"})


@dataclass(slots=True)
class _Parcel:
    """The state of one delivery."""

    live: Live
    backoff: Backoff
    retry_at: float = 0.0
    log_disputes: int = 0
    refusals: int = 0
    under_way: bool = False


_Batch = list[tuple[_Parcel, Outcome]]


class Outbox(Loop):
    """Small outcomes go in batches, one batch at a time; large ones beside them. Backoff is per attempt for large ones."""

    name = "outbox"

    def __init__(
        self,
        session: Session,
        *,
        apart_s: Callable[[], float],
        journal: Journal,
        shipper: LogShipper,
        delivered: Callable[[Live], None],
        discard: Callable[[Live, str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`apart_s`: how far apart deliveries go now. `delivered` and `discard` forget the attempt: the coordinator has its outcome, or
        does not want it."""
        super().__init__(clock=clock, interval_s=60.0, logger=logger)
        self._session = session
        self._apart_s = apart_s
        self._journal = journal
        self._shipper = shipper
        self._delivered = delivered
        self._discard = discard
        self._parcels: dict[int, _Parcel] = {}
        self._uploads: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(UPLOADS)
        self._small_gate = asyncio.Semaphore(SMALL_UPLOADS)
        self._log_gate = asyncio.Semaphore(LOGS)
        self._sent_at = float("-inf")
        self._gathering = False

    def add(self, live: Live) -> None:
        """An outcome waits."""
        if id(live) not in self._parcels:
            self._parcels[id(live)] = _Parcel(live, Backoff(min_s=0.5, max_s=60.0))
            if not self._gathering or len(self._parcels) >= GATHERED or live.latency:
                self.wake()

    def retry_now(self) -> None:
        """The coordinator answers again."""
        for parcel in self._parcels.values():
            parcel.retry_at = 0.0
            parcel.backoff.reset()
        self.wake()

    def drop(self, live: Live) -> None:
        """Nobody wants it any more."""
        self._parcels.pop(id(live), None)

    def __len__(self) -> int:
        return len(self._parcels)

    async def close(self) -> None:
        """End uploads; the next daemon makes them again."""
        for task in self._uploads:
            task.cancel()
        await asyncio.gather(*self._uploads, return_exceptions=True)

    async def turn(self) -> float | None:
        """Deliver what is due."""
        if not self._parcels:
            self._gathering = False
            return None
        if not await self._session.opened(self.interval_s):
            return 0.0
        now = self.clock.monotonic()
        early_s = self._early_s(now)
        self._gathering = early_s > 0
        if self._gathering:
            return early_s
        batch: _Batch = []
        size = 0
        for parcel in list(self._parcels.values()):
            if parcel.under_way or parcel.retry_at > now:
                continue
            if self._is_large(parcel.live):
                self._spawn(parcel, self._bring)
                continue
            if parcel.live.log_ends is None and parcel.live.workspace is not None and parcel.log_disputes < LOG_TRIES:
                self._spawn(parcel, self._end_logs)
                continue
            outcome = _with_logs(parcel.live, parcel.live.log_ends or ())
            size += sum(len(end.tail) for end in outcome.logs) + sum(one.size for one in outcome.artifacts)
            batch.append((parcel, outcome))
            if len(batch) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                break
        if batch:
            self._sent_at = now
            await self._deliver(await self._with_contents(batch))
        waits = [parcel.retry_at for parcel in self._parcels.values() if not parcel.under_way]
        return max(0.0, min(waits) - self.clock.monotonic()) if waits else None

    def _early_s(self, now: float) -> float:
        """For how long more outcomes gather: under load a call for each costs more than the job, and nothing waits for a slot that an
        outcome holds."""
        if len(self._parcels) >= GATHERED or any(parcel.live.latency for parcel in self._parcels.values()):
            return 0.0
        return self._sent_at + self._apart_s() - now

    # --- small ones ---

    async def _with_contents(self, batch: _Batch) -> _Batch:
        """With the bytes of small artifacts. One whose files are no longer as they were goes by itself, after another look at them."""
        files = [list(parcel.live.outputs) if outcome.artifacts and not outcome.contents else [] for parcel, outcome in batch]
        if not any(files):
            return batch
        read = await asyncio.to_thread(lambda: [outputs.read(some) for some in files])
        whole: _Batch = []
        for (parcel, outcome), contents in zip(batch, read, strict=True):
            if contents is None:
                parcel.live.outputs = ()
                self._spawn(parcel, self._bring)
            else:
                whole.append((parcel, structs.replace(outcome, contents=contents) if contents else outcome))
        return whole

    async def _deliver(self, batch: Sequence[tuple[_Parcel, Outcome]]) -> None:
        try:
            results = await self._session.link.deliver([outcome for _, outcome in batch])
        except (InvalidSpec, TooLarge) as exc:
            if len(batch) == 1:
                await self._refused(batch[0][0], exc)
                return
            for one in batch:  # find the one that spoils the batch
                await self._deliver([one])
            return
        for (parcel, _), result in zip(batch, results, strict=False):
            await self._answered(parcel, result)

    # --- large ones ---

    def _is_large(self, live: Live) -> bool:
        outcome, alone = live.outcome, self._session.link.takes_files_alone
        if outcome is None or outcome.cancelled:
            return False
        if outcome.artifacts and sum(one.size for one in outcome.artifacts) <= self._session.terms.inline_bytes:
            return not live.outputs and not outcome.contents  # an earlier daemon's findings: they are looked for again
        if outcome.failure is not None:  # whoever takes files alone has no form for a failure with files
            return bool(outcome.artifacts) and not alone
        return bool(outcome.artifacts) or alone

    def _spawn(self, parcel: _Parcel, work: Callable[[_Parcel], Awaitable[None]]) -> None:
        parcel.under_way = True
        task = asyncio.get_running_loop().create_task(self._watch(parcel, work), name="upload")
        self._uploads.add(task)
        task.add_done_callback(self._uploads.discard)

    async def _watch(self, parcel: _Parcel, work: Callable[[_Parcel], Awaitable[None]]) -> None:
        """What becomes of a delivery's work, or of a part of it."""
        live = parcel.live
        try:
            await work(parcel)
        except Unavailable as exc:
            self._later(parcel, str(exc))
        except (StaleAttempt, Gone, NotFound) as exc:
            self._forget(parcel, f"{exc.code}: {exc}")
        except OffsetMismatch as exc:
            await self._dispute(parcel, None, exc.offset)
        except Rejected as exc:
            await self._refused(parcel, exc)
        except OSError as exc:
            live.outputs = ()  # look again at what is there
            self._later(parcel, str(exc))
        except Exception as exc:
            self.logger.exception("delivery_crashed", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt}})
            self._later(parcel, repr(exc))
        finally:
            parcel.under_way = False
            self.wake()

    async def _end_logs(self, parcel: _Parcel) -> None:
        """Ship what of the logs an outcome may not carry; then it can go with the others."""
        if not self._session.link.ships_logs:
            parcel.live.log_ends = ()
            return
        async with self._log_gate:
            try:
                parcel.live.log_ends = await self._shipper.rest(parcel.live)
            except (InvalidSpec, TooLarge) as exc:  # a job does not fail for a log that the coordinator will not have
                parcel.live.log_ends = ()
                self._tell(parcel.live, "log_refused", str(exc))

    async def _bring(self, parcel: _Parcel) -> None:
        live, link = parcel.live, self._session.link
        if live.log_ends is None and parcel.log_disputes < LOG_TRIES:
            await self._end_logs(parcel)
        small = live.outcome is not None and sum(one.size for one in live.outcome.artifacts) <= SMALL
        async with self._small_gate if small else self._gate:
            if live.outcome is None or live.forgotten:
                return
            outcome = _with_logs(live, (live.log_ends or ()) if link.ships_logs else ())
            root = live.workspace.path if live.workspace is not None else None
            with tempfile.TemporaryDirectory() if outcome.contents else nullcontext() as folder:
                if folder is not None:  # to a coordinator that takes no contents in an outcome
                    files: list[Attachment] | Failure = await asyncio.to_thread(_write, outcome, Path(folder))
                    outcome = structs.replace(outcome, contents={})
                else:
                    files = await self._files(live, outcome)
                if isinstance(files, Failure):
                    await self._amend(parcel, files)
                    return
                await self._answered(parcel, await link.deliver_files(outcome, files, root))

    async def _files(self, live: Live, outcome: Outcome) -> list[Attachment] | Failure:
        """Where the artifacts lie. An earlier daemon's findings are looked up again: they must still be the same bytes."""
        if not outcome.artifacts:
            return []
        if not live.outputs:
            if live.workspace is None:
                return Failure(FailureCode.LOST, "the workspace with the artifacts is gone")
            there = {one.path for one in outcome.artifacts}
            found = await outputs.collect([one for one in live.manifest.artifacts if one.path in there], live.workspace.path)
            if isinstance(found, Failure):
                return found
            live.outputs = found
        files = {one.path: one for one in live.outputs}
        attachments = []
        for entry in outcome.artifacts:
            one = files.get(entry.path)
            if one is None or one.sha256 != entry.sha256:
                return Failure(FailureCode.LOST, f"the artifact {entry.path!r} was damaged on the node before it was delivered")
            if one.file is not None:
                attachments.append(Attachment(entry, one.file))
        return attachments

    # --- answers ---

    async def _answered(self, parcel: _Parcel, result: ItemResult) -> None:
        live = parcel.live
        if id(live) not in self._parcels:
            return  # it was forgotten while it was on its way
        if result.ok:
            self._parcels.pop(id(live), None)
            self._delivered(live)
        elif result.code in _OVER or (result.code == "not_found" and not (live.outcome and live.outcome.artifacts)):
            self._forget(parcel, f"{result.code}: {result.message}")
        elif result.code == "offset_mismatch":
            await self._dispute(parcel, result.stream, result.offset or 0)
        elif result.code in {"invalid_spec", "too_large"}:
            kind = TooLarge if result.code == "too_large" else InvalidSpec
            await self._refused(parcel, kind(result.message or result.code))
        else:
            self._later(parcel, f"{result.code}: {result.message}")

    async def _dispute(self, parcel: _Parcel, stream: str | None, offset: int) -> None:
        """The coordinator has another length of a log: send it from there."""
        parcel.log_disputes += 1
        if parcel.log_disputes >= LOG_TRIES:
            self._tell(parcel.live, "log_given_up", f"{stream} at {offset}")
        await self._shipper.rewind(parcel.live, stream, offset)
        if parcel.log_disputes > 1:
            self._later(parcel, "the lengths of the log differ")

    async def _refused(self, parcel: _Parcel, exc: Rejected) -> None:
        """It will never take this one. The job must not hang for ever: the refusal itself becomes the outcome."""
        parcel.refusals += 1
        if parcel.refusals < REFUSED_TRIES:
            self._later(parcel, str(exc))
            return
        if parcel.refusals > REFUSED_TRIES:
            self._tell(parcel.live, "outcome_refused", str(exc))
            self._later(parcel, str(exc))
            return
        code = FailureCode.OUTPUT if isinstance(exc, TooLarge) else FailureCode.INTERNAL
        await self._amend(parcel, Failure(code, f"the coordinator refused the outcome: {exc}"))

    async def _amend(self, parcel: _Parcel, failure: Failure) -> None:
        live = parcel.live
        self._tell(live, "outcome_amended", failure.message)
        if live.outcome is not None:
            # Nothing but the failure: whatever was refused must not be refused again.
            live.outcome = Outcome(job_id=live.job_id, attempt=live.attempt, failure=failure)
            await self._journal.amend(live.outcome)

    def _later(self, parcel: _Parcel, why: str) -> None:
        wait_s = parcel.backoff.next_s()
        parcel.retry_at = self.clock.monotonic() + wait_s
        live = parcel.live
        attrs = {"attempt": live.attempt, "error": why, "retry_s": round(wait_s, 1)}
        self.logger.warning("delivery_failed", extra={"job_id": live.job_id, "attrs": attrs})

    def _forget(self, parcel: _Parcel, why: str) -> None:
        self._parcels.pop(id(parcel.live), None)
        self._discard(parcel.live, why)

    def _tell(self, live: Live, event: str, why: str) -> None:
        self.logger.error(event, extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt, "error": why}})


def _write(outcome: Outcome, folder: Path) -> list[Attachment]:
    files = []
    for number, entry in enumerate(outcome.artifacts):
        (folder / str(number)).write_bytes(outcome.contents[entry.path])
        files.append(Attachment(entry, folder / str(number)))
    return files


def _with_logs(live: Live, logs: tuple[LogEnd, ...]) -> Outcome:
    outcome = live.outcome
    if outcome is None:
        raise ValueError(f"{live.job_id} attempt {live.attempt} has no outcome")
    return structs.replace(outcome, logs=logs) if logs else outcome
