"""What is to go: a pure function of what a job has, when it ended, and the policy; and the oldest first where a size is the limit."""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from ostler.coordinator.config import Retention
from ostler.coordinator.store.times import span
from ostler.model.enumeration import Word
from ostler.runtime.durations import format_duration

MB = 2**20
MAX_OLDEST = 10_000  # jobs that one pass takes for the sake of one size limit; the next one goes on


class Part(Word):
    """What can go of a job that is over."""

    JOB = "job"  # all of it
    LOGS = "logs"
    ARTIFACTS = "artifacts"  # and the workspaces that were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """A job as retention sees it: times in microseconds, sizes in bytes.

    `ended_at` is None while it is not over; `settled_at` is the end of the whole array that it is one of, else its own. `needed` where
    a job that is not over waits, or waited, for it.
    """

    seq: int
    job_id: str
    ended_at: int | None
    settled_at: int | None
    pool: str | None
    needed: bool
    logs: int
    artifacts: int
    workspaces: int = 0


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that goes, how many bytes of it, and why."""

    seq: int
    job_id: str
    part: Part
    size: int
    why: str
    pool: str | None = None


def due(job: Aged, policy: Retention, now: int) -> list[Removal]:
    """What is too old of one job at `now` (microseconds). A job goes with everything else of it, and its logs before it."""
    if job.ended_at is None or job.needed:
        return []
    limits = policy.of(job.pool)
    found = []
    goes = job.settled_at is not None and _older(job.settled_at, limits.jobs, now)
    for part, size, age in ((Part.LOGS, job.logs, limits.logs), (Part.ARTIFACTS, job.artifacts, limits.artifacts)):
        some = size or (part is Part.ARTIFACTS and job.workspaces)
        if some and _older(job.ended_at, age, now):
            found.append(Removal(job.seq, job.job_id, part, size, _old(age)))
        elif some and goes:
            found.append(Removal(job.seq, job.job_id, part, size, _old(limits.jobs)))
    if goes:
        found.append(Removal(job.seq, job.job_id, Part.JOB, 0, _old(limits.jobs)))
    return found


def _older(at: int, age: timedelta | None, now: int) -> bool:
    return age is not None and now - at > span(age)


def _old(age: timedelta | None) -> str:
    return f"older than {format_duration(age or timedelta(0))}"


Scope = tuple[Part, str | None]  # logs or artifacts, of one pool or (None) of all


def size_limits(policy: Retention) -> dict[Scope, int]:
    """The limits on sizes, in bytes."""
    found: dict[Scope, int | None] = {(Part.LOGS, None): policy.logs_mb, (Part.ARTIFACTS, None): policy.artifacts_mb}
    for name, one in policy.pools.items():
        found[Part.LOGS, name] = one.logs_mb
        found[Part.ARTIFACTS, name] = one.artifacts_mb
    return {scope: limit * MB for scope, limit in found.items() if limit is not None}


@dataclass(slots=True)
class Oldest:
    """The jobs that ended first, just enough of them to free `excess` bytes; memory for no more than those."""

    excess: int
    why: str
    held: int = 0
    _heap: list[tuple[int, int, Removal]] = field(default_factory=list)  # the one that ended last on top

    def offer(self, job: Aged, part: Part, size: int) -> None:
        """One more job that has some."""
        if self.excess <= 0 or not size or job.ended_at is None or job.needed:
            return
        heapq.heappush(self._heap, (-job.ended_at, -job.seq, Removal(job.seq, job.job_id, part, size, self.why, job.pool)))
        self.held += size
        while len(self._heap) > MAX_OLDEST or self.held - self._heap[0][2].size >= self.excess:
            self.held -= heapq.heappop(self._heap)[2].size

    def removals(self) -> list[Removal]:
        """Those, first to last."""
        return [one for _, _, one in sorted(self._heap, reverse=True)]


class Survey:
    """One walk over all jobs: what is too old, what space the rest takes, and the oldest of it where that is too much.

    How much is too much is known only at the end of a walk, so the limits are judged by the one before (`used`): the first after a
    start only measures.
    """

    def __init__(self, policy: Retention, now: int, used: Counter[Scope] | None = None) -> None:
        self.used: Counter[Scope] = Counter()
        self._policy, self._now = policy, now
        self._oldest = {
            scope: Oldest((used or Counter())[scope] - limit, _too_much(scope, limit))
            for scope, limit in size_limits(policy).items()
        }

    def see(self, jobs: Iterable[Aged]) -> list[Removal]:
        """What of these jobs is too old."""
        found = []
        for job in jobs:
            removals = due(job, self._policy, self._now)
            found += removals
            gone = {one.part for one in removals}
            for part, size in ((Part.LOGS, job.logs), (Part.ARTIFACTS, job.artifacts)):
                if part in gone or not size:
                    continue
                for scope in _scopes(part, job.pool):
                    self.used[scope] += size
                    if scope in self._oldest:
                        self._oldest[scope].offer(job, part, size)
        return found

    def oldest(self) -> list[Removal]:
        """What is to go for the sake of sizes, once all jobs were seen; each part of a job once."""
        found: dict[tuple[int, Part], Removal] = {}
        for one in self._oldest.values():
            for removal in one.removals():
                found.setdefault((removal.seq, removal.part), removal)
        return list(found.values())

    def without(self, removals: Iterable[Removal]) -> Counter[Scope]:
        """What is used once these are gone."""
        left = self.used.copy()
        for one in removals:
            for scope in _scopes(one.part, one.pool):
                left[scope] -= one.size
        return left

    def excessive(self) -> bool:
        """Whether what was seen is more than a limit allows."""
        return any(self.used[scope] > limit for scope, limit in size_limits(self._policy).items())


def _scopes(part: Part, pool: str | None) -> set[Scope]:
    return {(part, None), (part, pool)}


def _too_much(scope: Scope, limit: int) -> str:
    whose = f" of the pool {scope[1]}" if scope[1] is not None else ""
    return f"the {scope[0].value}{whose} were more than {limit // MB} MB"
