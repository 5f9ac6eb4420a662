"""The choice: what of a node is free, and which of the jobs at the heads of their queues it gets."""

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ostler.coordinator.placement.fair import FairShare, Owner, cost_of
from ostler.coordinator.placement.shape import Shape
from ostler.model.resources import Offer, Resources


@dataclass(frozen=True, slots=True)
class Candidate:
    """One queued job: the lowest `rank` goes first (`placement.rank`), then the lowest `seq`; `attempt` and `tries` as they stand.

    `latency`: it is of a queue of that class, and begins before what was leased ahead.
    """

    seq: int
    job_id: str
    rank: int
    attempt: int
    tries: int
    latency: bool = False


@dataclass(frozen=True, slots=True)
class Credit:
    """How many more slots the node takes now, by its own word; `now` is how many jobs without a GPU would begin at once (None: all)."""

    cpu: int
    gpu: int
    now: int | None = None


# Of one shape: whether it is no latency queue's, rank and seq of its first job, its place in `queues`, that job and what follows.
_Head = tuple[bool, int, int, int, Candidate, Iterator[Candidate]]


class Room:
    """What is left of a node beside its live attempts.

    CPU slots are bounded by the node's credit alone, not by its capacity: a node asks for a few more jobs than it runs at once,
    so that the next one starts without a round trip, and hands back what it does not begin. Everything else is capacity minus
    demand.
    """

    def __init__(self, offer: Offer, live: Iterable[Shape], *, disk_free_mb: int | None = None) -> None:
        self.capacity = offer.capacity
        self._free = offer.capacity
        self._slots_vram = _slots(offer)
        self._wanted_vram: list[int] = []
        # The disk as last measured holds what running jobs have written already; their demand is not subtracted from it a second
        # time.
        self._disk_free_mb = disk_free_mb
        counts: dict[int, int] = {}
        shapes: dict[int, Shape] = {}
        for shape in live:  # mostly one and the same value, many times
            key = id(shape)
            counts[key] = counts.get(key, 0) + 1
            shapes[key] = shape
        for key, shape in shapes.items():
            self.take(shape, counts[key])

    def fits(self, shape: Shape) -> bool:
        """Whether one more attempt of this shape has room now."""
        need, free = shape.demand, self._free
        if self._disk_free_mb is not None and need.disk_mb > self._disk_free_mb:
            return False
        if (
            (need.cpu_threads and need.cpu_threads > free.cpu_threads)
            or (need.memory_mb and need.memory_mb > free.memory_mb)
            or (need.disk_mb and need.disk_mb > free.disk_mb)
        ):
            return False
        if not need.gpu_slots:
            return True
        if need.gpu_slots > free.gpu_slots:
            return False
        wanted = sorted([*self._wanted_vram, *[shape.requirements.vram_mb] * need.gpu_slots], reverse=True)
        # Largest to largest: if that fails, no other assignment of jobs to GPUs works.
        return all(want <= has for want, has in zip(wanted, self._slots_vram, strict=False)) and len(wanted) <= len(
            self._slots_vram
        )

    def take(self, shape: Shape, count: int = 1) -> None:
        """An attempt of this shape moves in, or so many."""
        self._free = self._free - (shape.demand if count == 1 else shape.demand.times(count))
        self._wanted_vram.extend([shape.requirements.vram_mb] * (shape.demand.gpu_slots * count))

    @property
    def free(self) -> Resources:
        """What is left; less than nothing where a node's capacity shrank under running jobs."""
        return self._free


def _slots(offer: Offer) -> list[int]:
    """The video memory behind each GPU slot, largest first; GPUs share the slots evenly."""
    gpus = len(offer.vram_mb)
    if not gpus:
        return []
    each = -(-offer.capacity.gpu_slots // gpus)
    return sorted((vram for vram in offer.vram_mb for _ in range(each)), reverse=True)


def choose(
    room: Room,
    credit: Credit,
    queues: Sequence[tuple[Shape, Iterable[Candidate]]],
    *,
    fair: FairShare | None = None,
    latency: Collection[str] = (),
    spread: bool = False,
    spare: Mapping[Owner, int] = MappingProxyType({}),
) -> list[Candidate]:
    """The jobs that the node gets now, in the order in which they should begin; `room` and `fair` are taken accordingly.

    Each queue holds the first jobs of one shape, in order. First goes the submitter who got least so far (`placement.fair`), and of
    each the jobs of `latency` queues before others, then by (rank, seq). Where a head has no room, none of its shape has; a
    smaller job behind it in another queue may go first.

    Of latency queues no more is chosen than begins at once (`credit.now`), and with `spread` (other nodes ask, too) only one: room for
    the next ones is kept until the node's next call, if no other node has taken them by then. `spare` bounds how many more a
    submitter may have; who is not in it is not bounded.
    """
    fair = FairShare() if fair is None else fair
    if len(queues) == 1:
        return _of_one(room, credit, *queues[0], fair=fair, latency=latency, spread=spread, spare=spare)
    fair.level({shape.owner for shape, _ in queues}, room.capacity.cpu_slots)
    lanes, purse, left = _Lanes(queues, latency, fair), _Purse(credit), dict(spare)
    chosen: list[Candidate] = []
    hasty = False  # whether one of a latency queue was chosen
    costs: dict[int, float] = {}
    while purse and lanes:
        owner, shape, job, index = lanes.head()
        if left.get(owner, 1) < 1:
            lanes.leave_owner()
        elif not purse.covers(shape, job) or not room.fits(shape):
            lanes.leave_shape()
        else:
            room.take(shape)
            purse.take(shape)
            if not (job.latency and spread and hasty):
                chosen.append(job)
                hasty = hasty or job.latency
                if index not in costs:
                    costs[index] = cost_of(shape, room.capacity)
                fair.charge(owner, costs[index])
                if owner in left:
                    left[owner] -= 1
            lanes.advance()
    return chosen


def _of_one(
    room: Room, credit: Credit, shape: Shape, jobs: Iterable[Candidate], *,
    fair: FairShare, latency: Collection[str], spread: bool, spare: Mapping[Owner, int],
) -> list[Candidate]:  # fmt: skip
    """Where only jobs of one shape wait nobody takes turns. Most claims are such, and it costs a third."""
    purse, left, hasty = _Purse(credit), spare.get(shape.owner), shape.queue in latency
    chosen: list[Candidate] = []
    for job in jobs:
        one = replace(job, latency=True) if hasty else job
        if not purse or (left is not None and len(chosen) >= left) or not purse.covers(shape, one) or not room.fits(shape):
            break
        room.take(shape)
        purse.take(shape)
        if not (hasty and spread and chosen):
            chosen.append(one)
            fair.charge(shape.owner, cost_of(shape, room.capacity))
    return chosen


class _Purse:
    """What is left of a node's credit."""

    def __init__(self, credit: Credit) -> None:
        self._cpu, self._gpu = credit.cpu, credit.gpu
        self._now = credit.cpu if credit.now is None else credit.now

    def __bool__(self) -> bool:
        return self._cpu > 0 or self._gpu > 0 or self._now > 0

    def covers(self, shape: Shape, job: Candidate) -> bool:
        """Whether it is enough for this one."""
        gpus = shape.demand.gpu_slots
        return gpus <= self._gpu if gpus else (self._now if job.latency else self._cpu) > 0

    def take(self, shape: Shape) -> None:
        """It is given to this one."""
        if gpus := shape.demand.gpu_slots:
            self._gpu -= gpus
        else:
            self._cpu, self._now = max(0, self._cpu - 1), max(0, self._now - 1)


class _Lanes:
    """The heads of the queues, in the order in which it is their turn: a heap of each submitter's, and one of the submitters."""

    def __init__(self, queues: Sequence[tuple[Shape, Iterable[Candidate]]], latency: Collection[str], fair: FairShare) -> None:
        self._queues, self._fair = queues, fair
        lanes: dict[Owner, list[_Head]] = {}
        for index, (shape, jobs) in enumerate(queues):
            hasty = shape.queue in latency
            rest = (replace(job, latency=True) for job in jobs) if hasty else iter(jobs)
            if (first := next(rest, None)) is not None:
                lanes.setdefault(shape.owner, []).append((not hasty, first.rank, first.seq, index, first, rest))
        for lane in lanes.values():
            heapq.heapify(lane)
        self._lanes = lanes
        self._turns = [(fair.of(owner), *lane[0][:3], owner) for owner, lane in lanes.items()]
        heapq.heapify(self._turns)

    def __bool__(self) -> bool:
        return bool(self._turns)

    def head(self) -> tuple[Owner, Shape, Candidate, int]:
        """Whose turn it is, with what, and the place of that queue."""
        owner = self._turns[0][-1]
        _, _, _, index, job, _ = self._lanes[owner][0]
        return owner, self._queues[index][0], job, index

    def advance(self) -> None:
        """The head is dealt with; the next of its queue comes up."""
        lane = self._lanes[self._turns[0][-1]]
        later, _, _, index, _, rest = lane[0]
        if (following := next(rest, None)) is None:
            self.leave_shape()
        else:
            heapq.heapreplace(lane, (later, following.rank, following.seq, index, following, rest))
            self._settle(lane)

    def leave_shape(self) -> None:
        """All of the head's queue are out for this turn."""
        lane = self._lanes[self._turns[0][-1]]
        heapq.heappop(lane)
        self._settle(lane)

    def leave_owner(self) -> None:
        """All of the head's submitter are out for this turn."""
        heapq.heappop(self._turns)

    def _settle(self, lane: list[_Head]) -> None:
        owner = self._turns[0][-1]
        if lane:
            heapq.heapreplace(self._turns, (self._fair.of(owner), *lane[0][:3], owner))
        else:
            heapq.heappop(self._turns)
