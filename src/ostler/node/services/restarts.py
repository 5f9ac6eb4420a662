"""When a service that crashed is started anew: pure (S6). 10 s, doubled each time up to 5 minutes; afresh after 10 minutes of health."""

from dataclasses import dataclass, replace
from enum import Enum

FIRST_S = 10.0
MOST_S = 300.0
WELL_S = 600.0


class Condition(Enum):
    """What matters of a service here."""

    WELL = "well"  # it runs, and nothing is known to be wrong with it
    DOWN = "down"  # it is to run, and ended without having been told to
    SICK = "sick"  # it runs, is unhealthy, and the configuration wants it to be started anew then
    OTHER = "other"  # on its way, stopped by somebody, or not known


@dataclass(frozen=True, slots=True)
class Restarts:
    """`count` since a person last asked for something, `tries` since it was last well for long. The times are seconds of one clock: when
    the next one is due, when the last one was, since when it is well."""

    count: int = 0
    tries: int = 0
    due_at: float | None = None
    last_at: float | None = None
    well_at: float | None = None
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to start it anew now, and what is remembered."""

    restarts: Restarts
    now: bool = False


def delay_s(tries: int) -> float:
    """How long after the trouble was seen, where that happened so many times before."""
    return min(MOST_S, FIRST_S * 2.0 ** min(tries, 10))


def decide(before: Restarts, condition: Condition, *, wanted: bool, limit: int, now: float) -> Decision:
    """One look at a service. What is not `wanted` running is never started, and all is forgotten."""
    if not wanted:
        return Decision(Restarts())
    if condition is Condition.WELL:
        well_at = now if before.well_at is None else before.well_at
        if now - well_at >= WELL_S:
            return Decision(Restarts(count=before.count, last_at=before.last_at, well_at=well_at))
        return Decision(replace(before, due_at=None, well_at=well_at))
    if condition is Condition.OTHER:
        return Decision(replace(before, due_at=None, well_at=None))
    if before.tries >= limit:
        return Decision(replace(before, due_at=None, well_at=None, gave_up=True))
    if before.due_at is None:
        return Decision(replace(before, due_at=now + delay_s(before.tries), well_at=None))
    if now < before.due_at:
        return Decision(before)
    return Decision(Restarts(count=before.count + 1, tries=before.tries + 1, last_at=now), now=True)
