"""Fair share: whose turn it is, by how much of the nodes each submitter was given so far.

Every submitter has a virtual time, which grows by the slots that their leases take; whoever is furthest behind goes first. Who comes
(back) with work starts where those stand who waited on, so nobody saves up turns by sleeping. It lives in memory: a coordinator
that forgets it begins anew with everybody level, which misplaces no job and loses none.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from ostler.coordinator.placement.shape import Shape
from ostler.model.resources import Resources

Owner = str | None

# No submitter is further ahead of another, in slots, where the two compete: what was taken of nodes that nobody else could use is
# not held against them for longer, and who could use none for a while does not get all of them in one go.
LEAD = 64.0
REMEMBERED = 10_000  # submitters without work


@dataclass(slots=True)
class FairShare:
    """The virtual times, in slots."""

    times: dict[Owner, float] = field(default_factory=dict)
    _waiting: frozenset[Owner] = frozenset()
    _now: float = 0.0  # the time of whoever was served last

    def admit(self, owners: Iterable[Owner]) -> None:
        """All who have work queued now. Who had none the last time starts level with those who had."""
        waiting = frozenset(owners)
        if waiting == self._waiting:
            return
        stayed = waiting & self._waiting
        level = min((self.times[owner] for owner in stayed), default=self._now)
        for owner in waiting - stayed:
            self.times[owner] = max(self.times.get(owner, 0.0), level)
        self._waiting = waiting
        if len(self.times) > len(waiting) + REMEMBERED:
            self.times = {owner: self.times[owner] for owner in waiting}

    def level(self, owners: Collection[Owner], slots: int) -> None:
        """These compete for a node with so many slots: none of them is further ahead of another than is fair."""
        if len(owners) > 1:
            most = min(self.of(owner) for owner in owners) + max(LEAD, 2.0 * slots)
            for owner in owners:
                self.times[owner] = min(self.of(owner), most)

    def of(self, owner: Owner) -> float:
        """How much was given, on the scale of those who compete."""
        return self.times.get(owner, 0.0)

    def charge(self, owner: Owner, cost: float) -> None:
        """One lease."""
        self._now = self.of(owner)
        self.times[owner] = self._now + cost


def cost_of(shape: Shape, capacity: Resources) -> float:
    """What an attempt takes of a node, in slots: the largest of its shares in what the node has. A job that asks for nothing takes one."""
    need = shape.demand
    slots = capacity.cpu_slots or capacity.gpu_slots or 1
    pairs = (
        (need.cpu_slots, capacity.cpu_slots), (need.gpu_slots, capacity.gpu_slots), (need.cpu_threads, capacity.cpu_threads),
        (need.memory_mb, capacity.memory_mb),
    )  # fmt: skip
    return slots * max([wanted / there for wanted, there in pairs if there > 0], default=1.0)
