"""Why a pending job waits: per requirement how many nodes fail it, who fits and is busy, and one sentence for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from ostler.coordinator.placement.choose import Room
from ostler.coordinator.placement.shape import Shape
from ostler.model.node import NodeState
from ostler.model.resources import Offer, pool_of, unmet
from ostler.model.words import many
from ostler.protocol.messages import Blocker

MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One node as placement sees it: what it offers, what lives there (the shapes of its attempts), and whether it takes work."""

    offer: Offer
    state: NodeState
    number: int = 0  # the offer's: it grows whenever the offer changes
    live: tuple[Shape, ...] = ()
    draining: bool = False
    cordoned: bool = False
    quarantined: bool = False
    outside: bool = False  # it speaks no protocol that is spoken here
    disk_free_mb: int | None = None

    def takes(self, shape: Shape) -> bool:
        """Whether it gets new work of this shape at all. A command to a service it gets whenever it is there."""
        if shape.service is not None:
            return self.state not in {NodeState.UNKNOWN, NodeState.LOST} and not self.outside
        well = self.state in {NodeState.READY, NodeState.JOINING} and not self.outside
        return well and not self.draining and not self.cordoned

    @property
    def word(self) -> str:
        """Why it gets no new work, in a few words."""
        if self.outside:
            return "outside the protocol window"
        if self.state not in {NodeState.READY, NodeState.JOINING}:
            return self.state.value
        if self.quarantined:
            return "quarantined"
        if self.draining:
            return NodeState.DRAINING.value
        return "cordoned" if self.cordoned else self.state.value

    def free_for(self, shape: Shape) -> bool:
        """Whether one more attempt of this shape would begin now."""
        room = Room(self.offer, self.live, disk_free_mb=self.disk_free_mb)
        return room.fits(shape) and (shape.demand.cpu_slots <= 0 or room.free.cpu_slots >= shape.demand.cpu_slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """What was found; `fitting` nodes could ever run the job, `free` ones could now."""

    summary: str
    total: int
    fitting: int
    free: int
    blockers: tuple[Blocker, ...]


def explain(shape: Shape, nodes: Sequence[Standing], *, ahead: int, ahead_capped: bool = False, others: int = 0) -> Reasons:
    """Why a queued job of this shape has not been leased. `ahead` jobs of the same submitter go first, `ahead_capped` when there
    are more than were counted; so many `others` wait for the same nodes.
    """
    before = _ahead(ahead, ahead_capped, others)
    failed: dict[str, list[str]] = {}
    fitting: list[Standing] = []
    for node in nodes:
        reasons = unmet(shape.asks, node.offer)
        if not reasons:
            fitting.append(node)
        for requirement, reason in reasons:
            failed.setdefault(requirement, []).append(f"{node.offer.node_id} {reason}")
    blockers = tuple(
        Blocker(requirement=name, nodes=len(reasons), examples=tuple(reasons[:MAX_EXAMPLES]))
        for name, reasons in sorted(failed.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    ready = [node for node in fitting if node.takes(shape)]
    free = [node for node in ready if node.free_for(shape)]
    if not nodes:
        summary = "no node has joined yet: `ostler token create --join`"
    elif not fitting:
        summary = _nobody_fits(shape, len(nodes), failed)
    elif not ready:
        summary = f"{many(len(fitting), 'node')} could run it, but {_whereabouts(fitting)}"
    elif not free:
        summary = f"{many(len(ready), 'node')} could run it and {_be(len(ready))} busy; {before}"
    elif ahead or others:
        summary = f"{before}; {many(len(free), 'node')} with room could run it"
    else:
        summary = f"it is next: {free[0].offer.node_id} can run it and gets it with its next pull"
    return Reasons(summary=summary, total=len(nodes), fitting=len(fitting), free=len(free), blockers=blockers)


def _nobody_fits(shape: Shape, total: int, failed: dict[str, list[str]]) -> str:
    everywhere = [name for name, reasons in failed.items() if len(reasons) == total]
    if everywhere:
        parts = [
            f"{_lacking(name, shape)}: {total} of {many(total, 'node')} {'fails' if total == 1 else 'fail'} `{name}`"
            for name in everywhere
        ]
        return "; ".join(parts)
    counts = ", ".join(f"`{name}` fails on {len(reasons)} of {total}" for name, reasons in sorted(failed.items()))
    return f"no node meets all requirements together: {counts}"


def _lacking(requirement: str, shape: Shape) -> str:
    need = shape.requirements
    match requirement:
        case "gpu":
            return "no node has a GPU" if need.gpu_count == 1 else f"no node has {need.gpu_count} GPUs"
        case "vram_mb":
            return f"no node has enough GPUs with {need.vram_mb} MB of video memory"
        case "cpu_threads":
            return f"no node has {need.cpu_threads} threads"
        case "memory_mb":
            return f"no node has {need.memory_mb} MB of memory"
        case "disk_mb":
            return f"no node has {need.disk_mb} MB of free disk"
        case "tags":
            return f"no node has the tags {', '.join(need.tags)}" if len(need.tags) > 1 else f"no node has the tag {need.tags[0]}"
        case "node":
            return f"no node is called {need.node}"
        case "pool":
            hint = "" if need.pool else "; name another with requirements.pool"
            return f"no node is in the pool {pool_of(need)}{hint}"
        case "service":
            return f"no node declares the service {shape.service}"
        case "runner":
            return f"no node offers the {shape.runner.value} runner"
        case "sandbox":
            return f"no node has a sandbox of level {shape.sandbox or 'none'} or stronger"
        case "slots":
            return "no node takes jobs without a GPU"
    return f"no node meets `{requirement}`"


def _whereabouts(nodes: Sequence[Standing]) -> str:
    words: dict[str, int] = {}
    for node in nodes:
        words[node.word] = words.get(node.word, 0) + 1
    return ", ".join(f"{count} {_be(count)} {word}" for word, count in sorted(words.items()))


def _ahead(count: int, capped: bool, others: int) -> str:
    whose = " of the same submitter" if others else ""
    more = "at least " if capped else ""
    ahead = f"{more}{count} job{'s' if count > 1 else ''}{whose} {_be(count)} ahead" if count else f"no job{whose} is ahead"
    share = f"; {others} other submitter{'s share' if others > 1 else ' shares'} the nodes" if others else ""
    return ahead + share


def _be(count: int) -> str:
    return "are" if count > 1 else "is"
