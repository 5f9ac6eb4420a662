"""Calls that bear an idempotency key."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.operations.idempotency import Mark, answered
from ostler.model.errors import NoCapacity, Rejected

A = TypeVar("A")


async def replayed(call: Call, mark: Mark, shape: type[A], act: Callable[[], Awaitable[tuple[A, bool]]]) -> Answer:
    """What `act` answers, or what the same call was answered before: that was good when it was made, and may be so no longer."""
    try:
        made, again = await act()
    except (Rejected, NoCapacity):
        before = await call.read(answered, mark, shape)
        if before is None:
            raise
        made, again = before, True
    return Answer(made, headers={"Idempotent-Replayed": "true"} if again else {})
