"""The life of a rollout that the coordinator carries out: states, events, and the only legal changes between them."""

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition


class RolloutState(Word):
    """Where a rollout stands. The last three are ends; hosts that were under way are brought to an end then, too."""

    PLANNED = "planned"
    RUNNING = "running"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


class RolloutEvent(Word):
    """What can happen to a rollout."""

    RESUME = "resume"
    PAUSE = "pause"
    ABORT = "abort"
    FINISH = "finish"
    FAIL = "fail"


_S, _E = RolloutState, RolloutEvent

TRANSITIONS: dict[tuple[RolloutState, RolloutEvent], RolloutState] = {
    (_S.PLANNED, _E.RESUME): _S.RUNNING,  # somebody has seen the plan and agrees
    (_S.PLANNED, _E.ABORT): _S.ABORTED,
    (_S.RUNNING, _E.PAUSE): _S.HELD,  # no host begins; those under way go on
    (_S.RUNNING, _E.ABORT): _S.ABORTED,
    (_S.RUNNING, _E.FINISH): _S.DONE,
    (_S.RUNNING, _E.FAIL): _S.FAILED,  # a host is not where it should be, or was not begun for that reason
    (_S.HELD, _E.RESUME): _S.RUNNING,
    (_S.HELD, _E.ABORT): _S.ABORTED,
    (_S.HELD, _E.FINISH): _S.DONE,  # all hosts had begun
    (_S.HELD, _E.FAIL): _S.FAILED,
}

TERMINAL = frozenset(RolloutState) - {state for state, _ in TRANSITIONS}


def advance(rollout_id: str, state: RolloutState, event: RolloutEvent) -> RolloutState:
    """The only way to change a rollout's state; raises InvalidTransition where the table has no edge."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise InvalidTransition(
            f"rollout {rollout_id} is {state}: {event} is not possible", hint=f"see `ostler rollout show {rollout_id}`"
        )
    return after
