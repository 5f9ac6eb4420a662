"""How long an attempt may go on without a renewed lease: pure decisions on the node's own monotonic clock.

Counted from when the call was *sent* that renewed it, so that the node's count never runs behind the coordinator's.
"""

from dataclasses import dataclass
from enum import Enum

RIDE_OUT_S = 3600.0
"""How long an attempt goes on without contact, at the most, while the coordinator's port refuses connections.

A silent network may hide a coordinator that is alive and gives the attempt to another node after one lease, so the node ends it
earlier than that. A refused connection is different: whoever refuses is not running, judges nobody, and will have to watch for a
whole lease after it starts before it may. So a refusal counts as a renewal.
"""


class Standing(Enum):
    """Where a lease stands."""

    RENEWED = "renewed"
    UNRENEWED = "unrenewed"  # the lease is over, and nobody runs who could give the attempt away
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Lease:
    """`sent_at`: when the call was sent that renewed it last (monotonic seconds); `lease_s`: how long that lasts."""

    sent_at: float
    lease_s: float

    @property
    def margin_s(self) -> float:
        """How much earlier than the coordinator the node calls it over."""
        return min(max(2.0, 0.15 * self.lease_s), self.lease_s / 2, 600.0)


def standing(lease: Lease, now: float, refused_at: float = float("-inf")) -> Standing:
    """What to think of an attempt with this lease; `refused_at` is when a connection was last asked for and then refused."""
    silent_s = now - lease.sent_at
    if silent_s < lease.lease_s - lease.margin_s:
        return Standing.RENEWED
    if now - refused_at >= lease.lease_s - lease.margin_s or silent_s >= max(lease.lease_s, RIDE_OUT_S):
        return Standing.GIVEN_UP
    return Standing.UNRENEWED


def worth_asking(lease: Lease, now: float) -> bool:
    """Whether it is time to look if the coordinator's port refuses connections: half of the lease has passed in silence."""
    return now - lease.sent_at >= lease.lease_s / 2


def worth_renewing(sent_at: float, now: float, lease_s: float) -> bool:
    """Whether a lease that has just come is worth a beat of its own: it counts from when the poll was sent that brought it, and that
    may have been open for long. The next beat could come when the attempt was given up already."""
    return now - sent_at >= lease_s / 4
