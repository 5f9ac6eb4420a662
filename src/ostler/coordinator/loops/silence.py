"""How long a value has not changed, counting only the time in which somebody watched."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Silence(Generic[K]):
    """Remembers values from one observation to the next, on the observer's own monotonic clock.

    A step between two observations counts at most `max_step_s`: a process that was stopped, or a machine that slept, has seen
    nobody's renewals meanwhile and must not hold that against them. A new observer has seen nothing at all, so a restart judges
    nobody at once.
    """

    def __init__(self, *, max_step_s: float) -> None:
        self._max_step_s = max_step_s
        self._last: float | None = None
        self._known: dict[K, tuple[int, float]] = {}

    def observe(self, values: Mapping[K, int], now: float, *, at_least: float = 0.0) -> dict[K, float]:
        """For each key the watched seconds since its value last changed, where they are `at_least` so many; a key that is new or
        changed has 0."""
        step = 0.0 if self._last is None else min(max(0.0, now - self._last), self._max_step_s)
        self._last = now
        before, self._known = self._known, {}
        for key, value in values.items():
            known = before.get(key)
            self._known[key] = (value, known[1] + step if known is not None and known[0] == value else 0.0)
        return {key: silent for key, (_, silent) in self._known.items() if silent >= at_least}
