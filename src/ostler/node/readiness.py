"""Whether this node takes work: it does unless somebody or something gives a reason not to."""

import logging
from collections.abc import Callable
from enum import StrEnum


class Reason(StrEnum):
    """Who or what keeps the node from taking work."""

    OPERATOR = "operator"  # `ostler node drain` on this machine
    COORDINATOR = "coordinator"  # a drain directive
    HEALTH = "health"  # a disk or GPU failed
    SELF_CHECK = "self_check"  # it cannot run a job
    KEEPER = "keeper"  # there is nobody who would start one
    STOPPING = "stopping"  # the daemon is about to end


class Readiness:
    """The reasons in force, each with a sentence. They come and go alone: a mended disk does not undo a person's wish."""

    def __init__(self, *, logger: logging.Logger) -> None:
        self._logger = logger
        self._reasons: dict[Reason, str] = {}
        self.changed: Callable[[], None] = lambda: None

    def hold(self, reason: Reason, why: str) -> None:
        """Take no new work because of this."""
        if self._reasons.get(reason) == why:
            return
        fresh = reason not in self._reasons
        self._reasons[reason] = why
        if fresh:
            self._logger.warning("draining", extra={"attrs": {"reason": reason.value, "why": why}})
            self.changed()

    def release(self, reason: Reason) -> None:
        """This is no reason any more."""
        if self._reasons.pop(reason, None) is not None:
            self._logger.info("drain_ended", extra={"attrs": {"reason": reason.value, "left": list(self._reasons)}})
            self.changed()

    def is_held(self, reason: Reason) -> bool:
        """Whether this reason is in force."""
        return reason in self._reasons

    def why(self, reason: Reason) -> str | None:
        """The sentence of this reason; None where it is not in force."""
        return self._reasons.get(reason)

    @property
    def draining(self) -> bool:
        """Whether the node takes no new work."""
        return bool(self._reasons)

    @property
    def refusal(self) -> str | None:
        """Why not, as one sentence; None when it does."""
        return "; ".join(self._reasons.values()) or None
