"""The protocol window: what a node is told that speaks none of the protocols which this release does."""

from ostler import __version__
from ostler.model.errors import UpgradeRequired
from ostler.protocol import messages as m


def check(protocol: int, node_id: str = "NODE") -> None:
    """Raises UpgradeRequired for one outside."""
    if m.outside(protocol) is not None:
        raise refusal(protocol, node_id)


def refusal(protocol: int, node_id: str, *, challenge: str | None = None, lease_s: float | None = None) -> UpgradeRequired:
    """What it speaks, what is spoken here, and what to run; see UpgradeRequired for the other two."""
    spoken = f"the protocol {m.PROTOCOL}" if m.PROTOCOL_MIN == m.PROTOCOL else f"the protocols {m.PROTOCOL_MIN} to {m.PROTOCOL}"
    return UpgradeRequired(
        f"this coordinator ({__version__}) speaks {spoken}, the node {protocol}; it gets no new work, and what it runs goes on",
        challenge=challenge,
        lease_s=lease_s,
        hint=m.mend_outside(m.outside(protocol), node_id) + f" (on the machine itself: pip install ostler=={__version__})",
    )
