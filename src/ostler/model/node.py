"""The life of a node: one machine that runs the node daemon."""

from dataclasses import dataclass, replace
from datetime import datetime

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition


class NodeState(Word):
    """Where a node stands. Only a ready one gets new work."""

    JOINING = "joining"
    READY = "ready"
    UNKNOWN = "unknown"
    LOST = "lost"
    DRAINING = "draining"
    DRAINED = "drained"
    RETIRED = "retired"


class NodeEvent(Word):
    """What can happen to a node."""

    BEAT = "beat"
    REGISTER = "register"
    MISS = "miss"
    LOSE = "lose"
    DRAIN = "drain"
    EMPTY = "empty"
    RESUME = "resume"
    RETIRE = "retire"


_S, _E = NodeState, NodeEvent

TRANSITIONS: dict[tuple[NodeState, NodeEvent], NodeState] = {
    (_S.JOINING, _E.BEAT): _S.READY,  # first sign of life after enrolment
    (_S.READY, _E.BEAT): _S.READY,
    (_S.READY, _E.MISS): _S.UNKNOWN,  # silent for two intervals: its attempts are not judged yet
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.UNKNOWN, _E.BEAT): _S.READY,  # it was only a bad line
    (_S.UNKNOWN, _E.LOSE): _S.LOST,  # silent for a whole lease: its attempts are given to others
    (_S.UNKNOWN, _E.DRAIN): _S.DRAINING,  # the wish holds when it is back
    (_S.LOST, _E.BEAT): _S.READY,
    (_S.LOST, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.BEAT): _S.DRAINING,  # a person's wish outlives a restart
    (_S.DRAINING, _E.EMPTY): _S.DRAINED,  # it holds no attempt any more
    (_S.DRAINING, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.RESUME): _S.READY,
    (_S.DRAINED, _E.BEAT): _S.DRAINED,
    (_S.DRAINED, _E.DRAIN): _S.DRAINED,
    (_S.DRAINED, _E.RESUME): _S.READY,
    (_S.READY, _E.RESUME): _S.READY,
    **{(state, _E.REGISTER): _S.JOINING for state in (_S.JOINING, _S.READY, _S.UNKNOWN, _S.LOST)},  # a new boot epoch
    **{(state, _E.REGISTER): state for state in (_S.DRAINING, _S.DRAINED)},  # drained stays drained
    **{(state, _E.RETIRE): _S.RETIRED for state in NodeState if state is not _S.RETIRED},
    (_S.JOINING, _E.MISS): _S.UNKNOWN,  # enrolled and never heard of
    (_S.JOINING, _E.DRAIN): _S.DRAINING,
}

TERMINAL = frozenset(NodeState) - {state for state, _ in TRANSITIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The facts of a node that its state machine needs; `reason` says why it is drained, lost or retired."""

    node_id: str
    state: NodeState = NodeState.JOINING
    changed_at: datetime | None = None
    reason: str | None = None


def advance(node: Node, event: NodeEvent, *, now: datetime, reason: str | None = None) -> Node:
    """The only way to change a node's state; raises InvalidTransition where the table has no edge."""
    state = TRANSITIONS.get((node.state, event))
    if state is None:
        raise InvalidTransition(
            f"node {node.node_id} is {node.state}: {event} is not possible", hint=f"see `ostler node show {node.node_id}`"
        )
    if state is node.state:
        return node
    return replace(node, state=state, changed_at=now, reason=reason)
