"""The rank: one number that orders a queue by priority and by how long its jobs wait, and that never changes.

A point of priority is worth as much as `AGEING` of waiting. All jobs grow older at the same rate, so whoever goes first now goes
first later too, and the queue's index needs no upkeep: a job goes before all that were submitted `priority * AGEING` after it,
however high the stream of more important ones behind it.
"""

from datetime import timedelta

AGEING = timedelta(minutes=1)
_AGEING_US = int(AGEING.total_seconds() * 1_000_000)


def rank_of(priority: int, submitted_at: int) -> int:
    """The rank of a job submitted at a time in microseconds; the lowest goes first."""
    return submitted_at - priority * _AGEING_US
