"""The choice: what of a node is free, and which of the jobs at the heads of their queues it gets."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ostler.coordinator.placement.shape import Shape
from ostler.model.resources import Offer, Resources


@dataclass(frozen=True, slots=True)
class Candidate:
    """One queued job: the lowest `rank` goes first (`placement.rank`), then the lowest `seq`; `attempt` and `tries` as they stand."""

    seq: int
    job_id: str
    rank: int
    attempt: int
    tries: int


@dataclass(frozen=True, slots=True)
class Credit:
    """How many more slots the node takes now, by its own word."""

    cpu: int
    gpu: int


class Room:
    """What is left of a node beside its live attempts.

    CPU slots are bounded by the node's credit alone, not by its capacity: a node asks for a few more jobs than it runs at once,
    so that the next one starts without a round trip, and hands back what it does not begin. Everything else is capacity minus
    demand.
    """

    def __init__(self, offer: Offer, live: Iterable[Shape], *, disk_free_mb: int | None = None) -> None:
        self._free = offer.capacity
        self._slots_vram = _slots(offer)
        self._wanted_vram: list[int] = []
        # The disk as last measured holds what running jobs have written already; their demand is not subtracted from it a second
        # time.
        self._disk_free_mb = disk_free_mb
        for shape in live:
            self.take(shape)

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

    def take(self, shape: Shape) -> None:
        """One attempt of this shape moves in."""
        self._free = self._free - shape.demand
        self._wanted_vram.extend([shape.requirements.vram_mb] * shape.demand.gpu_slots)

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


def choose(room: Room, credit: Credit, queues: Sequence[tuple[Shape, Sequence[Candidate]]]) -> list[Candidate]:
    """Greedily the jobs that the node gets now, by (rank, seq); `room` is taken accordingly.

    Each queue holds the first jobs of one shape, in order. Where its head has no room, none of its shape has; a smaller job
    behind it in another queue may go first.
    """
    cpu, gpu = credit.cpu, credit.gpu
    chosen: list[Candidate] = []
    heap = [(jobs[0].rank, jobs[0].seq, index, 0) for index, (_, jobs) in enumerate(queues) if jobs]
    heapq.heapify(heap)
    while heap and (cpu > 0 or gpu > 0):
        _, _, index, place = heapq.heappop(heap)
        shape, jobs = queues[index]
        gpus = shape.demand.gpu_slots
        if (gpus > gpu if gpus else cpu < 1) or not room.fits(shape):
            continue  # the whole shape is out for this turn
        room.take(shape)
        chosen.append(jobs[place])
        gpu, cpu = (gpu - gpus, cpu) if gpus else (gpu, cpu - 1)
        if place + 1 < len(jobs):
            following = jobs[place + 1]
            heapq.heappush(heap, (following.rank, following.seq, index, place + 1))
    return chosen
