"""The life of a job: states, events, and the one function that changes them."""

from dataclasses import dataclass
from datetime import datetime

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition
from ostler.model.failures import Failure


class JobState(Word):
    """Where a job stands. The words from `leased` to `uploading` are those of its live attempt."""

    QUEUED = "queued"
    LEASED = "leased"
    ACKED = "acked"
    PREPARING = "preparing"
    RUNNING = "running"
    UPLOADING = "uploading"
    RETRY_WAIT = "retry_wait"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobEvent(Word):
    """What can happen to a job."""

    LEASE = "lease"
    RETURN = "return"
    ACK = "ack"
    PREPARE = "prepare"
    START = "start"
    UPLOAD = "upload"
    FINISH = "finish"
    FAIL = "fail"
    RETRY = "retry"
    DUE = "due"
    CANCEL = "cancel"
    EXPIRE = "expire"


_S, _E = JobState, JobEvent

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (_S.QUEUED, _E.LEASE): _S.LEASED,  # a node's pull won the job
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,  # nobody holds it: at once
    (_S.QUEUED, _E.EXPIRE): _S.EXPIRED,  # its ttl passed before any node took it
    (_S.QUEUED, _E.FAIL): _S.FAILED,  # what another job was to hand on to it cannot be had
    (_S.LEASED, _E.RETURN): _S.QUEUED,  # handed back, or offered and not held: costs no retry
    (_S.LEASED, _E.ACK): _S.ACKED,  # the node wrote it down and takes it
    (_S.LEASED, _E.CANCEL): _S.CANCELLED,  # not begun: the ack will find a stale attempt
    (_S.ACKED, _E.RETURN): _S.QUEUED,  # acknowledged by the pull that was to bring it, and it never arrived: costs no retry
    (_S.ACKED, _E.PREPARE): _S.PREPARING,  # workspace and inputs are being made
    (_S.ACKED, _E.START): _S.RUNNING,  # nothing to prepare, or reported together
    (_S.ACKED, _E.UPLOAD): _S.UPLOADING,  # reports may be coalesced
    (_S.PREPARING, _E.START): _S.RUNNING,  # the process lives
    (_S.PREPARING, _E.UPLOAD): _S.UPLOADING,  # the report of its start was coalesced
    (_S.RUNNING, _E.UPLOAD): _S.UPLOADING,  # the process ended, results are on their way
    (_S.RETRY_WAIT, _E.DUE): _S.QUEUED,  # the backoff elapsed
    (_S.RETRY_WAIT, _E.CANCEL): _S.CANCELLED,  # nobody holds it: at once
    (_S.RETRY_WAIT, _E.EXPIRE): _S.EXPIRED,  # its ttl passed while it waited
    **{
        edge: to
        for held in (_S.ACKED, _S.PREPARING, _S.RUNNING, _S.UPLOADING)
        for edge, to in {
            (held, _E.FINISH): _S.DONE,  # the node delivered a result
            (held, _E.FAIL): _S.FAILED,  # failed, and no retry is left or makes sense
            (held, _E.RETRY): _S.RETRY_WAIT,  # failed, and will be tried again
            (held, _E.CANCEL): _S.CANCELLED,  # the node confirmed that the processes are gone, or was lost
        }.items()
    },
}

TERMINAL = frozenset(JobState) - {state for state, _ in TRANSITIONS}
LIVE = frozenset({_S.LEASED, _S.ACKED, _S.PREPARING, _S.RUNNING, _S.UPLOADING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The facts of a job that its state machine needs.

    `attempt` is the number of the latest lease (0 before the first) and the fencing token of every write; `tries` counts the
    attempts that were begun, so a lease that was only handed back costs nothing.
    """

    job_id: str
    state: JobState = JobState.QUEUED
    attempt: int = 0
    tries: int = 0
    node_id: str | None = None
    due_at: datetime | None = None
    finished_at: datetime | None = None
    failure: Failure | None = None


def advance(
    job: Job,
    event: JobEvent,
    *,
    now: datetime,
    node_id: str | None = None,
    failure: Failure | None = None,
    due_at: datetime | None = None,
) -> Job:
    """The only way to change a job's state; raises InvalidTransition where the table has no edge.

    `node_id` is read on `lease`, `failure` on `fail`, `retry` and `cancel`, `due_at` on `retry`.
    """
    state = TRANSITIONS.get((job.state, event))
    if state is None:
        ended = f" since {job.finished_at.isoformat(timespec='seconds')}" if job.finished_at else ""
        raise InvalidTransition(
            f"job {job.job_id} (attempt {job.attempt}) is {job.state}{ended}: {event} is not possible",
            hint=f"see `ostler job show {job.job_id}`",
        )
    attempt, tries, due, finished, failed = job.attempt, job.tries, job.due_at, job.finished_at, job.failure
    node = job.node_id
    if event is JobEvent.LEASE:
        attempt, node, due = attempt + 1, node_id, None
    elif event is JobEvent.ACK:
        tries += 1
    elif event is JobEvent.RETURN:
        node, tries = None, tries - (job.state is JobState.ACKED)
    elif event is JobEvent.RETRY:
        failed, due, node = failure, due_at, None
    elif event is JobEvent.DUE:
        due = None
    elif state in TERMINAL:
        finished, failed, due = now, failure, None
    # Spelled out because it is hot: `dataclasses.replace` costs three times as much.
    return Job(
        job_id=job.job_id,
        state=state,
        attempt=attempt,
        tries=tries,
        node_id=node,
        due_at=due,
        finished_at=finished,
        failure=failed,
    )
