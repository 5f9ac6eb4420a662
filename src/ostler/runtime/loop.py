"""The shape of every periodic loop: turn, note that it turned, wait for an event or the interval; a failing turn never ends it."""

import asyncio
import logging
from abc import ABC, abstractmethod

from ostler.model.errors import OstlerError
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock


class Loop(ABC):
    """One loop, one file: `turn` observes, decides with a pure function and acts.

    `turn` answers how many seconds to wait until the next turn (None: `interval_s`); `wake` ends the wait at once. `turned_at` is the
    monotonic time of the last turn that came to an end, so that health can tell a loop that has not turned.
    """

    name: str = "loop"

    def __init__(self, *, clock: Clock, interval_s: float, logger: logging.Logger) -> None:
        self.clock = clock
        self.interval_s = interval_s
        self.logger = logger
        self.turned_at = clock.monotonic()
        self.failure: str | None = None
        self.on_duty = True  # False while another process does it
        self._wake = asyncio.Event()
        self._backoff = Backoff(min_s=min(1.0, interval_s), max_s=max(30.0, interval_s))

    @abstractmethod
    async def turn(self) -> float | None:
        """One pass; the seconds to wait, or None for the interval."""

    def wake(self) -> None:
        """Turn now."""
        self._wake.set()

    def begin(self) -> None:  # noqa: B027 - most loops remember nothing
        """Called when it begins to run, perhaps anew: what was observed before counts no more."""

    async def run(self) -> None:
        """Turn until cancelled."""
        self.begin()
        self.turned_at = self.clock.monotonic()
        while True:
            self._wake.clear()
            try:
                wait_s = await self.turn()
            except OstlerError as exc:
                self.failure, wait_s = str(exc), self._backoff.next_s()
                attrs = {"loop": self.name, "error": str(exc), "retry_s": round(wait_s, 1)}
                if exc.hint:
                    attrs["hint"] = exc.hint
                self.logger.warning("loop_failed", extra={"attrs": attrs})
            except Exception as exc:
                self.failure, wait_s = repr(exc), self._backoff.next_s()
                self.logger.exception("loop_crashed", extra={"attrs": {"loop": self.name, "retry_s": round(wait_s, 1)}})
            else:
                self.failure = None
                self._backoff.reset()
            self.turned_at = self.clock.monotonic()
            # Not `wait_for`: before Python 3.12 that loses a cancellation which comes together with a wake, and the loop never ends.
            timer = asyncio.get_running_loop().call_later(self.interval_s if wait_s is None else wait_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
