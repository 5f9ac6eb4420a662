"""Where time comes from, so that tests can say what time it is."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic seconds for durations; never mixed."""

    def now(self) -> datetime:
        """Aware UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; goes on while the machine is suspended where the kernel offers it."""
        ...


class SystemClock:
    """The machine's clocks, without a call of Python in between. CLOCK_BOOTTIME counts suspension too: a lease runs out while a laptop
    sleeps."""

    now = staticmethod(partial(datetime.now, UTC))
    monotonic = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 1000.0

    def now(self) -> datetime:
        """Aware UTC."""
        return self._now

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Somebody sets the clock of the day."""
        self._now += timedelta(seconds=seconds)
