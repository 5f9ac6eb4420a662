"""The end of a job by somebody's wish."""

from ostler.coordinator.operations.changes import Case, Changes, write
from ostler.coordinator.store.tx import Tx
from ostler.model import job as jobs
from ostler.model.attempt import AttemptEvent
from ostler.model.job import TERMINAL, JobEvent, JobState

PENDING = frozenset({JobState.QUEUED, JobState.RETRY_WAIT})


def cancel_case(tx: Tx, changes: Changes, case: Case, reason: str | None) -> None:
    """What cancelling does to one job. Raises InvalidTransition."""
    if case.job.state in PENDING:
        changes.apply(case, JobEvent.CANCEL, None, message=reason)
    elif case.job.state is JobState.LEASED:
        changes.apply(case, JobEvent.CANCEL, AttemptEvent.CANCEL, message=reason)
        _wake_node(tx, case)
    elif case.job.state not in TERMINAL:
        if case.cancel_at is None:
            write(
                tx,
                "UPDATE jobs SET cancel_at = ?, cancel_reason = ? WHERE seq = ? AND state = ? AND attempt = ?",
                [(tx.at, reason, case.seq, case.job.state.value, case.job.attempt)],
            )
            changes.note("request_cancel", case.seq, case.job.attempt, case.job.node_id, reason)
            tx.wake(("job", case.job.job_id))
        _wake_node(tx, case)
    elif case.job.state is not JobState.CANCELLED:
        jobs.advance(case.job, JobEvent.CANCEL, now=tx.now)  # tells the whole story of why not


def _wake_node(tx: Tx, case: Case) -> None:
    if case.job.node_id is not None:
        tx.wake(("node", case.job.node_id))
