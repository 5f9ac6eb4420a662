"""What fails again and again, in few lines of the log: that it began, how often since, and that it is over."""

import logging
from collections.abc import Callable
from typing import Any

EVERY_S = 30.0


class Outage:
    """Of one kind, for one thread: `failed` and `over` are told each time. A line says `begun` at once and then at most every 30 s, with
    how often since; one says `ended`. What comes and goes without end makes no more lines than that."""

    def __init__(self, begun: str, ended: str, *, monotonic: Callable[[], float], logger: logging.Logger) -> None:
        self._begun, self._ended = begun, ended
        self._monotonic, self._logger = monotonic, logger
        self._since: float | None = None
        self._said_at: float | None = None
        self._failures = self._unsaid = 0
        self._told = False

    def failed(self, **attrs: Any) -> None:
        """Once more."""
        now = self._monotonic()
        if self._since is None:
            self._since = now
        self._failures += 1
        self._unsaid += 1
        if self._said_at is not None and now - self._said_at < EVERY_S:
            return
        if self._unsaid > 1:
            attrs["times"] = self._unsaid
        self._logger.warning(self._begun, extra={"attrs": attrs})
        self._said_at, self._unsaid, self._told = now, 0, True

    def over(self) -> None:
        """It works, as it mostly does."""
        if self._since is None:
            return
        if self._told:
            attrs = {"times": self._failures, "after_s": round(self._monotonic() - self._since, 1)}
            self._logger.info(self._ended, extra={"attrs": attrs})
        self._since, self._failures, self._told = None, 0, False
