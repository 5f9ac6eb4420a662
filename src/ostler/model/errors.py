"""The error tree: a class says who must change what.

OstlerError
├─ Rejected           the caller must change something; never retried
│  ├─ InvalidSpec 422
│  ├─ Unauthenticated 401
│  ├─ Forbidden 403
│  ├─ QuotaExceeded 403
│  │  └─ NodeRetired
│  ├─ NotFound 404
│  ├─ Outdated 412        `If-Match` names another state than the present one
│  ├─ Gone 410            what is over or was deleted: a stale attempt's log, old events
│  ├─ TooLarge 413
│  ├─ UpgradeRequired 426
│  └─ Conflict 409
│     ├─ InvalidTransition
│     ├─ StaleAttempt
│     ├─ OffsetMismatch
│     ├─ AlreadyExists
│     ├─ OperationInFlight
│     └─ Unsealable
└─ Unavailable        the same call may succeed later; clients back off
   ├─ CoordinatorUnreachable
   ├─ MachineUnreachable
   ├─ KeeperUnreachable
   ├─ StoreBusy 503
   └─ NoCapacity 429
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in something a person wrote.

    `path` is the field's path (`input.urls[0].name`), `message` says what is wrong and what to write instead,
    `file` and `line` (1-based) say where it stands when it came from a file.
    """

    path: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class OstlerError(Exception):
    """Root of all errors that Ostler raises on purpose.

    `code` is stable and machine-readable; `hint` says what to do next, often a command, and stands below the message in a traceback.
    """

    code = "error"
    status = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")


class Rejected(OstlerError):
    """The caller must change something; never retried."""

    code = "rejected"
    status = 400


class InvalidSpec(Rejected):
    """What was written is wrong; `problems` names every mistake at once."""

    code = "invalid_spec"
    status = 422

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {problem}" for problem in self.problems)])


class Unauthenticated(Rejected):
    """No credential, or one that is not (or no longer) good. `challenge`: sign this one to prove a node's key."""

    code = "unauthenticated"
    status = 401

    def __init__(self, message: str, *, challenge: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.challenge = challenge


class Forbidden(Rejected):
    """The credential is good; it does not reach this."""

    code = "forbidden"
    status = 403


class NodeRetired(Forbidden):
    """The node was retired: its key and its tokens open nothing, for good."""

    code = "node_retired"


class QuotaExceeded(Rejected):
    """A limit on what the caller may have or use is reached; the message has the figures."""

    code = "quota_exceeded"
    status = 403


class NotFound(Rejected):
    """No such thing, or none that this credential may know of."""

    code = "not_found"
    status = 404


class Gone(Rejected):
    """What is over: a write about an attempt that ended (409 means an offset conflict there), or events that were deleted."""

    code = "gone"
    status = 410


class Outdated(Rejected):
    """The thing has changed since the caller looked at it (`If-Match`): look again, and decide anew."""

    code = "outdated"
    status = 412


class TooLarge(Rejected):
    """More bytes than the route or the manifest allows."""

    code = "too_large"
    status = 413


class UpgradeRequired(Rejected):
    """A release, schema or node outside the window; the hint names the command to run.

    `challenge`: who signs it in another registration proves to be that node. `lease_s`: so this one did, and what it named is
    renewed for so many seconds.
    """

    code = "upgrade_required"
    status = 426

    def __init__(
        self, message: str, *, challenge: str | None = None, lease_s: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.challenge = challenge
        self.lease_s = lease_s


class Conflict(Rejected):
    """The call does not fit the present state."""

    code = "conflict"
    status = 409


class InvalidTransition(Conflict):
    """No such edge in the state machine; the message tells the whole story."""

    code = "invalid_transition"


class StaleAttempt(Conflict):
    """A write about an attempt that is no longer the caller's; nothing was changed."""

    code = "stale_attempt"


class OffsetMismatch(Conflict):
    """Bytes at another offset than the one stored; `offset` is where to rewind to."""

    code = "offset_mismatch"

    def __init__(self, message: str, *, offset: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class AlreadyExists(Conflict):
    """The id is taken."""

    code = "already_exists"


class OperationInFlight(Conflict):
    """Another operation on the same thing is not finished."""

    code = "operation_in_flight"


class Unsealable(Conflict):
    """A value in the store that the coordinator's key does not open: sealed under another key, for something else, or damaged."""

    code = "unsealable"


class Unavailable(OstlerError):
    """The same call may succeed later; clients back off. `retry_after` in seconds where the server named one."""

    code = "unavailable"
    status = 503

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class CoordinatorUnreachable(Unavailable):
    """No connection, or none in time."""

    code = "coordinator_unreachable"


class MachineUnreachable(Unavailable):
    """A host that does not answer."""

    code = "machine_unreachable"


class KeeperUnreachable(Unavailable):
    """The node's keeper does not answer on its socket."""

    code = "keeper_unreachable"


class StoreBusy(Unavailable):
    """The database took too long; try again."""

    code = "store_busy"


class NoCapacity(Unavailable):
    """A limit is reached; `retry_after` says when to come back."""

    code = "no_capacity"
    status = 429
