"""The life of a group: a parent record over child jobs that were expanded when they were submitted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition
from ostler.model.job import TERMINAL as JOB_TERMINAL
from ostler.model.job import JobState


class GroupState(Word):
    """Where a group stands; derived from its children, never counted by hand."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class GroupEvent(Word):
    """What can happen to a group."""

    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


TRANSITIONS: dict[tuple[GroupState, GroupEvent], GroupState] = {
    (GroupState.OPEN, GroupEvent.FINISH): GroupState.DONE,  # every child is done
    (GroupState.OPEN, GroupEvent.FAIL): GroupState.FAILED,  # every child is over and at least one failed or expired
    (GroupState.OPEN, GroupEvent.CANCEL): GroupState.CANCELLED,  # every child is over, none failed, one was cancelled
}

TERMINAL = frozenset(GroupState) - {state for state, _ in TRANSITIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The facts of a group that its state machine needs."""

    group_id: str
    state: GroupState = GroupState.OPEN
    finished_at: datetime | None = None


def verdict(children: Mapping[JobState, int]) -> GroupEvent | None:
    """What the children's states say of their group: the event that is due, or None while one is not over."""
    present = {state for state, count in children.items() if count}
    if not present or present - JOB_TERMINAL:
        return None
    if present & {JobState.FAILED, JobState.EXPIRED}:
        return GroupEvent.FAIL
    return GroupEvent.CANCEL if JobState.CANCELLED in present else GroupEvent.FINISH


def advance(group: Group, event: GroupEvent, *, now: datetime) -> Group:
    """The only way to change a group's state; raises InvalidTransition where the table has no edge."""
    state = TRANSITIONS.get((group.state, event))
    if state is None:
        raise InvalidTransition(
            f"group {group.group_id} is {group.state}: {event} is not possible", hint=f"see `ostler job show {group.group_id}`"
        )
    return replace(group, state=state, finished_at=now)
