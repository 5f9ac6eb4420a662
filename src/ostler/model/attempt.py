"""The life of an attempt: one execution of a job on one node under a lease; immutable once it is over."""

from dataclasses import dataclass
from datetime import datetime

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition
from ostler.model.failures import Failure


class AttemptState(Word):
    """Where an attempt stands."""

    LEASED = "leased"
    ACKED = "acked"
    PREPARING = "preparing"
    RUNNING = "running"
    UPLOADING = "uploading"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETURNED = "returned"


class AttemptEvent(Word):
    """What can happen to an attempt."""

    ACK = "ack"
    PREPARE = "prepare"
    START = "start"
    UPLOAD = "upload"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    RETURN = "return"


_S, _E = AttemptState, AttemptEvent

TRANSITIONS: dict[tuple[AttemptState, AttemptEvent], AttemptState] = {
    (_S.LEASED, _E.ACK): _S.ACKED,  # the node accepted; its work may start
    (_S.LEASED, _E.RETURN): _S.RETURNED,  # handed back unbegun, or never arrived at the node
    (_S.LEASED, _E.CANCEL): _S.CANCELLED,  # its job was cancelled before it began
    (_S.ACKED, _E.RETURN): _S.RETURNED,  # acknowledged by the pull that was to bring it, and it never arrived
    (_S.ACKED, _E.PREPARE): _S.PREPARING,  # workspace and inputs are being made
    (_S.ACKED, _E.START): _S.RUNNING,  # reported together
    (_S.ACKED, _E.UPLOAD): _S.UPLOADING,  # reported together
    (_S.PREPARING, _E.START): _S.RUNNING,  # the process lives
    (_S.PREPARING, _E.UPLOAD): _S.UPLOADING,  # reported together
    (_S.RUNNING, _E.UPLOAD): _S.UPLOADING,  # the process ended
    **{
        edge: to
        for held in (_S.ACKED, _S.PREPARING, _S.RUNNING, _S.UPLOADING)
        for edge, to in {
            (held, _E.FINISH): _S.DONE,  # its result is stored
            (held, _E.FAIL): _S.FAILED,  # it failed, or its lease ran out (E_LOST)
            (held, _E.CANCEL): _S.CANCELLED,  # its processes are gone on request
        }.items()
    },
}

TERMINAL = frozenset(AttemptState) - {state for state, _ in TRANSITIONS}
LIVE = frozenset(AttemptState) - TERMINAL
BEGUN = LIVE - {AttemptState.LEASED}

# The words of the source's section 11, which `state.json` and its readers use.
SOURCE_WORDS: dict[AttemptState, str] = {
    _S.LEASED: "PULLING",
    _S.ACKED: "ACKED",
    _S.PREPARING: "PREP",
    _S.RUNNING: "RUNNING",
    _S.UPLOADING: "UPLOADING",
    _S.DONE: "DONE",
    _S.FAILED: "FAILED",
    _S.CANCELLED: "FAILED",
    _S.RETURNED: "IDLE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an attempt used, measured over its whole process tree. Seconds, MB (2**20 bytes) and bytes."""

    prepare_s: float = 0.0
    wall_s: float = 0.0
    upload_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    peak_memory_mb: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The facts of an attempt that its state machine needs."""

    job_id: str
    attempt: int
    node_id: str
    state: AttemptState = AttemptState.LEASED
    finished_at: datetime | None = None
    failure: Failure | None = None


def advance(attempt: Attempt, event: AttemptEvent, *, now: datetime, failure: Failure | None = None) -> Attempt:
    """The only way to change an attempt's state; raises InvalidTransition where the table has no edge."""
    state = TRANSITIONS.get((attempt.state, event))
    if state is None:
        raise InvalidTransition(
            f"attempt {attempt.attempt} of job {attempt.job_id} on {attempt.node_id} is {attempt.state}: {event} is not possible",
            hint=f"see `ostler job show {attempt.job_id}`",
        )
    over = state in TERMINAL
    # Spelled out because it is hot: `dataclasses.replace` costs three times as much.
    return Attempt(
        job_id=attempt.job_id, attempt=attempt.attempt, node_id=attempt.node_id, state=state,
        finished_at=now if over else attempt.finished_at, failure=failure if over else attempt.failure,
    )  # fmt: skip
