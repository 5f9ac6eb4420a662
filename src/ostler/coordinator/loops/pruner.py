"""Pruner: removes what has been kept long enough, or is too much, by the coordinator's `retention`."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta

from ostler.coordinator.artifacts.store import SHELVES, Artifacts
from ostler.coordinator.config import Retention
from ostler.coordinator.operations import audit, contents
from ostler.coordinator.operations import removals as ops
from ostler.coordinator.operations.aging import Aged, Part, Removal, Scope, Survey, size_limits
from ostler.coordinator.operations.readers import Readers
from ostler.coordinator.store.store import Store
from ostler.coordinator.store.times import micros, span
from ostler.coordinator.store.tx import Row
from ostler.protocol.audit import Sign
from ostler.protocol.messages import PlannedRemoval, RetentionPass, RetentionPlan
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

GRACE = timedelta(hours=1)  # a file this young may belong to an upload whose row is not written yet
REST = 2  # after each piece of work a rest so many times as long, so that a pass over a million jobs disturbs nobody
AGAIN_S = 1.0

Observe = Callable[[str, int, int], None]  # kind, how many, bytes


class Pruner(Loop):
    """One walk over the jobs in the order of their submission, then events, keys and uploads, then the files that nothing names.

    A row that names a file goes first, in a transaction; the file goes when a sweep finds that nothing names it. So a crash between
    the two leaves a file too many for a while, and never one too few.
    """

    name = "pruner"

    def __init__(
        self, store: Store, artifacts: Artifacts, readers: Readers, *, policy: Retention, clock: Clock, logger: logging.Logger,
        observe: Observe, sign: Sign, rest: float = REST,
    ) -> None:  # fmt: skip
        super().__init__(clock=clock, interval_s=policy.every.total_seconds(), logger=logger)
        self.last: RetentionPass | None = None
        self._store, self._artifacts, self._readers = store, artifacts, readers
        self._policy, self._observe, self._rest = policy, observe, rest
        self._sign = sign
        self._used: Counter[Scope] | None = None
        self._turning = asyncio.Lock()

    async def turn(self) -> float | None:
        """One pass; the next one soon where sizes are still above their limits and this pass could do something about it."""
        again = await self._pass()
        return AGAIN_S if again else None

    async def prune(self) -> RetentionPass:
        """A pass now, for a person who asks; answers what it did."""
        while await self._pass():
            pass
        assert self.last is not None  # noqa: S101 - a pass sets it
        return self.last

    async def _pass(self) -> bool:
        async with self._turning:
            began, self._removed, self._freed = time.monotonic(), Counter[str](), Counter[str]()
            first, rest = self._used is None, self._rest
            survey = Survey(self._policy, micros(self.clock.now()), self._used)
            async for page in self._jobs(rest):
                await self._remove(survey.see(page))
            oldest = survey.oldest()
            await self._remove(oldest)
            self._used = survey.without(oldest)
            await self._rows()
            blobs = await self._contents(rest) + await self._sweep(rest)
            self.last = RetentionPass(
                at=self.clock.now(), took_s=round(time.monotonic() - began, 3), removed=dict(self._removed),
                freed=dict(self._freed),
                used={"logs": self._used[Part.LOGS, None], "artifacts": self._used[Part.ARTIFACTS, None], "blobs": blobs},
            )  # fmt: skip
            if self._removed:
                self.logger.info("pruned", extra={"attrs": {"removed": self.last.removed, "freed": self.last.freed}})
            return survey.excessive() and (first or bool(oldest))

    async def plan(self, limit: int) -> RetentionPlan:
        """What a pass would do now; the first `limit` removals one by one. Changes nothing."""
        used = self._used
        if used is None and size_limits(self._policy):
            measured = Survey(self._policy, micros(self.clock.now()))
            async for page in self._jobs(0):
                measured.see(page)
            used = measured.used
        survey = Survey(self._policy, micros(self.clock.now()), used)
        counts, sizes, first = Counter[str](), Counter[str](), list[Removal]()

        def count(some: Sequence[Removal]) -> None:
            for one in some:
                counts[one.part.value] += 1
                sizes[one.part.value] += one.size
            first.extend(some[: limit - len(first)])

        async for page in self._jobs(0):
            count(survey.see(page))
        oldest = survey.oldest()
        count(oldest)
        left = survey.without(oldest)
        async for ids in self._old_events():
            counts["event"] += len(ids)
        async for uploads in self._old_uploads():
            counts["upload"] += len(uploads)
        counts += await self._store.read(ops.count_others, self._policy)
        return RetentionPlan(
            counts=dict(counts), sizes=dict(sizes),
            items=tuple(PlannedRemoval(job_id=one.job_id, part=one.part.value, size=one.size, why=one.why) for one in first),
            used={part.value: left[part, None] for part in (Part.LOGS, Part.ARTIFACTS)},
        )  # fmt: skip

    async def _jobs(self, rest: float) -> AsyncIterator[list[Aged]]:
        after: int | None = 0
        while after is not None:
            began = time.monotonic()
            page, after = await self._store.read(ops.jobs_after, after)
            yield page  # and what becomes of it is part of the work
            await asyncio.sleep(rest * (time.monotonic() - began))

    async def _remove(self, removals: Sequence[Removal]) -> None:
        """Logs before their jobs, a few jobs in a transaction; what somebody reads waits for the next pass."""
        for begin in range(0, len(removals), ops.FEW):
            some = removals[begin : begin + ops.FEW]
            with self._readers.removing({one.job_id for one in some}) as free:
                logs, artifacts, jobs = (
                    [one for one in some if one.part is part and one.job_id in free]
                    for part in (Part.LOGS, Part.ARTIFACTS, Part.JOB)
                )
                while logs and await self._store.write_lazily(ops.remove_logs, logs) == ops.CHUNKS:
                    pass
                self._note("logs", len(logs), sum(one.size for one in logs))
                if artifacts:
                    count = await self._store.write_lazily(ops.remove_artifacts, artifacts)
                    self._note("artifacts", count, sum(one.size for one in artifacts))
                if jobs:
                    self._note("job", await self._store.write_lazily(ops.remove_jobs, jobs))

    async def _old_events(self) -> AsyncIterator[tuple[int, ...]]:
        after: int | None = 0
        while after is not None:
            page = await self._store.read(ops.old_events, self._policy, after)
            after = page.after
            if page.ids:
                yield page.ids

    async def _old_uploads(self) -> AsyncIterator[list[Row]]:
        after: tuple[str, str] | None = ("", "")
        while after is not None:
            uploads, after = await self._store.read(ops.old_uploads, self._policy, after)
            if uploads:
                yield uploads

    async def _rows(self) -> None:
        """Events, idempotency keys, uploads, retired nodes, and of the audit log what is sealed."""
        async for ids in self._old_events():
            self._note("event", await self._store.write_lazily(ops.remove_events, ids))
        while keys := await self._store.read(ops.old_keys, self._policy):
            self._note("idempotency", await self._store.write_lazily(ops.remove_keys, keys))
        async for uploads in self._old_uploads():
            self._note("upload", await self._store.write_lazily(ops.remove_uploads, uploads))
        self._note("node", await self._store.write_lazily(ops.remove_nodes, self._policy))

        seal = await self._store.read(audit.old_seal, span(self._policy.audit))
        if seal is not None:
            await self._store.write(audit.cut_off, *seal, self._sign)
        while count := await self._store.write_lazily(audit.remove_rows, ops.MANY):
            self._note("audit", count)

    async def _contents(self, rest: float) -> int:
        """The same for what stands in the database."""
        total, before = 0, micros(self.clock.now() - GRACE)
        after: str | None = ""
        while after is not None:
            began = time.monotonic()
            rows, after = await self._store.read(contents.page, after)
            total += sum(size for _, _, size in rows)
            old = [row for row in rows if row[1] < before]
            free = await self._store.read(ops.unnamed, [row[0] for row in old])
            if free:
                gone = await self._store.write_lazily(contents.remove, old)
                size = sum(row[2] for row in gone)
                total -= size
                self._note("blob", len(gone), size)
            await asyncio.sleep(rest * (time.monotonic() - began))
        return total

    async def _sweep(self, rest: float) -> int:
        """Delete the files that no row names; how many bytes the others take."""
        total, before = 0, (self.clock.now() - GRACE).timestamp()
        for number in range(SHELVES):
            began = time.monotonic()
            kept = await self._artifacts.shelf(number)
            total += sum(one.size for one in kept)
            old = {one.sha256: one.size for one in kept if one.stored_at < before}
            for sha256 in await self._store.read(ops.unnamed, old) if old else ():
                if await self._artifacts.delete(sha256, before=before):
                    total -= old[sha256]
                    self._note("blob", 1, old[sha256])
            await asyncio.sleep(rest * (time.monotonic() - began))
        return total

    def _note(self, kind: str, count: int, size: int = 0) -> None:
        if count:
            self._removed[kind] += count
            self._freed[kind] += size
            self._observe(kind, count, size)
