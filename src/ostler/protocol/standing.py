"""What is wrong with a node, worst first: one word, why, and what mends it. Whoever shows nodes says the same."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from ostler.model.node import NodeState
from ostler.protocol.messages import NodeView, Outside, mend_outside

LOW_DISK_MB = 2048
LATE = timedelta(seconds=90)  # a node that is ready is heard of more often than that
LATE_OUTSIDE = timedelta(minutes=15)  # and one that speaks no protocol of the coordinator's more often than that


class Severity(IntEnum):
    """How much a person should mind."""

    GOOD = 0
    GONE = 1  # retired: nobody minds any more
    WISHED = 2  # a person's own wish
    WARN = 3
    BAD = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """How a node stands: `word` for a column, `why` as a sentence and `mend` as what to do; both None where all is well."""

    severity: Severity
    word: str
    why: str | None = None
    mend: str | None = None

    @property
    def story(self) -> str | None:
        """Both in one cell."""
        return f"{self.why}: {self.mend}" if self.why and self.mend else self.why


def standing(node: NodeView, *, release: str | None = None, now: datetime | None = None) -> Standing:
    """The worst of what is wrong with a node; `release` is the coordinator's."""
    name, reason = node.node_id, node.reason or "no reason given"
    if node.outside is not None and node.state is not NodeState.RETIRED:
        return _outside(node, node.outside, now or datetime.now(UTC))
    match node.state:
        case NodeState.RETIRED:
            return Standing(Severity.GONE, "retired", node.reason)
        case NodeState.LOST:
            mend = f"start its daemon, or `ostler node retire {name}` if it is gone"
            return Standing(Severity.BAD, "lost", "silent for a whole lease, its jobs are tried elsewhere", mend)
        case NodeState.UNKNOWN:
            why = f"{node.reason or 'silent'}, it keeps its jobs until its lease is over"
            return Standing(Severity.BAD, "unknown", why, "look at its network and its daemon")
    if node.quarantine is not None and node.draining:
        return Standing(Severity.BAD, "quarantined", node.quarantine, "mend the machine, it takes work again by itself")
    if node.state in {NodeState.DRAINING, NodeState.DRAINED}:
        return Standing(Severity.WISHED, node.state.value, reason, f"`ostler node resume {name}`")
    if node.draining:
        return Standing(Severity.WISHED, "draining", "drained on the machine", "`ostler node resume` there")
    if node.cordoned:
        return Standing(Severity.WISHED, "cordoned", node.cordon_reason or "no reason given", f"`ostler node uncordon {name}`")
    return _warning(node, release, now or datetime.now(UTC)) or Standing(Severity.GOOD, node.state.value)


def _outside(node: NodeView, side: Outside, now: datetime) -> Standing:
    """One that has no jobs is heard of so seldom that it counts as lost for the coordinator; it is not."""
    why = f"speaks protocol {node.protocol}, {side.value} than the coordinator's: what it runs goes on, it gets nothing new"
    if node.last_seen_at is None or now - node.last_seen_at > LATE_OUTSIDE:
        why = f"silent, and when last heard of it spoke protocol {node.protocol}, {side.value} than the coordinator's"
    return Standing(Severity.BAD, "outside", why, mend_outside(side, node.node_id))


def _warning(node: NodeView, release: str | None, now: datetime) -> Standing | None:
    """What does not keep it from working yet."""
    if node.last_seen_at is None:
        return Standing(Severity.WARN, node.state.value, "enrolled and not heard of since", "look at its network and its daemon")
    if now - node.last_seen_at > LATE:
        why = f"not heard of for {(now - node.last_seen_at).total_seconds():.0f} s"
        return Standing(Severity.WARN, node.state.value, why, "look at its network, and at the clocks of both")
    if release is not None and _release(node.version) < _release(release):
        why = f"runs {node.version}, the coordinator {release}"
        return Standing(Severity.WARN, node.state.value, why, f"`pip install ostler=={release}` there and restart")
    if node.disk_free_mb is not None and node.disk_free_mb < LOW_DISK_MB:
        return Standing(Severity.WARN, node.state.value, f"{node.disk_free_mb} MB of disk are left", "make room there")
    if node.health:
        return Standing(Severity.WARN, node.state.value, "; ".join(node.health))
    return None


def _release(version: str) -> tuple[int, ...]:
    """A version's leading numbers; what stands behind them (`rc1`, `+local`) is not compared."""
    return tuple(int(part) for part in re.match(r"[0-9]*(?:\.[0-9]{1,9})*", version[:40])[0].split(".") if part)  # type: ignore[index]
