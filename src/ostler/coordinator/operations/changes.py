"""How jobs and attempts change: load a batch with one query, decide with the model's `advance`, write back guarded, note events.

A `Case` is one job with its latest attempt while a transaction decides about it. Every write repeats what was read (`state`,
`attempt`), so that a change by someone else is found out and undoes the operation instead of being overwritten.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from ostler.coordinator.operations import waits
from ostler.coordinator.operations.summons import summon_jobs
from ostler.coordinator.store.beside import Changed
from ostler.coordinator.store.schema import LIVE_SQL, NOT_OVER_SQL
from ostler.coordinator.store.times import micros, span, when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.model import attempt as attempts
from ostler.model import job as jobs
from ostler.model import retry
from ostler.model.attempt import Attempt, AttemptEvent, AttemptState
from ostler.model.dependencies import Fallout
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import Job, JobEvent, JobState
from ostler.model.manifest import Manifest, RetryPolicy, retry_policy
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import Outcome

MAX_WORDS = 500
DEFAULT_RETRY = retry_policy(Manifest())
_JOB_STATES = {state.value: state for state in JobState}
_ATTEMPT_STATES = {state.value: state for state in AttemptState}

_COLUMNS = """
    SELECT j.seq, j.job_id, j.state, j.attempt, j.tries, j.node_id, j.due_at, j.finished_at, j.failure_code, j.failure_message,
           j.retry, j.cancel_at, j.held, j.shape_id, j.group_id,
           a.node_id, a.boot_epoch, a.state, a.acked_at, a.failure_code, a.failure_message, a.missing"""


@dataclass(slots=True)
class Case:
    """One job and its latest attempt (None before the first lease), as read and as decided so far."""

    seq: int
    job: Job
    attempt: Attempt | None
    retry: str | None
    cancel_at: int | None
    held: bool
    shape_id: int
    group_id: str | None
    boot_epoch: str = ""
    acked_at: int | None = None
    missing: int | None = None
    read_job: JobState = JobState.QUEUED
    read_attempt: AttemptState = AttemptState.LEASED
    outcome: Outcome | None = None

    @property
    def live(self) -> bool:
        """Whether its latest attempt is not over."""
        return self.attempt is not None and self.attempt.state in attempts.LIVE

    @property
    def unheard(self) -> bool:
        """Whether it was acknowledged by the pull that was to bring it, and its node has not named it yet: it may not have arrived.

        `missing` holds that pull's number then, less than nothing.
        """
        return (
            self.missing is not None
            and self.missing < 0
            and self.attempt is not None
            and self.attempt.state is AttemptState.ACKED
        )

    def is_held_by(self, node_id: str, attempt: int) -> bool:
        """Whether that attempt is this job's live one and the node's own."""
        return self.attempt is not None and self.live and self.attempt.attempt == attempt and self.attempt.node_id == node_id


class Living(NamedTuple):
    """One live attempt as placement sees it."""

    shape_id: int
    runs: bool


def load(tx: Tx, job_ids: Iterable[str]) -> dict[str, Case]:
    """The jobs with these ids, each with its latest attempt; those that do not exist are left out."""
    sql = (
        f"{_COLUMNS} FROM jobs j LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt "
        f"WHERE {tx.any_of('j.job_id')}"
    )
    return {row[1]: _case(row) for row in tx.rows(sql, (tx.array(set(job_ids)),))}


def load_numbers(tx: Tx, seqs: Iterable[int]) -> list[Case]:
    """The jobs with these numbers, first to last."""
    sql = (
        f"{_COLUMNS} FROM jobs j LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt "
        f"WHERE {tx.any_of('j.seq')} ORDER BY j.seq"
    )
    return [_case(row) for row in tx.rows(sql, (tx.array(seqs),))]


def load_live(tx: Tx, node_id: str) -> list[Case]:
    """All jobs whose live attempt is on this node."""
    sql = (
        f"{_COLUMNS} FROM attempts a JOIN jobs j ON j.seq = a.job_seq AND j.attempt = a.attempt "
        f"WHERE a.node_id = ? AND a.state IN ({LIVE_SQL})"
    )
    return [_case(row) for row in tx.rows(sql, (node_id,))]


def load_to_cancel(tx: Tx, node_id: str) -> list[Case]:
    """Those of them whose end was asked for."""
    sql = (
        f"{_COLUMNS} FROM attempts a JOIN jobs j ON j.seq = a.job_seq AND j.attempt = a.attempt "
        f"WHERE a.node_id = ? AND a.state IN ({LIVE_SQL}) AND j.cancel_at IS NOT NULL"
    )
    return [_case(row) for row in tx.rows(sql, (node_id,))]


def living(tx: Tx, node_id: str) -> list[Living]:
    """What placement asks of all live attempts of this node: a fraction of the cost of loading them."""
    sql = (
        "SELECT j.shape_id, a.state IN ('running', 'uploading') FROM attempts a "  # noqa: S608 - our own constant
        "JOIN jobs j ON j.seq = a.job_seq AND j.attempt = a.attempt "
        f"WHERE a.node_id = ? AND a.state IN ({LIVE_SQL})"
    )
    return [Living(shape_id, bool(runs)) for shape_id, runs in tx.rows(sql, (node_id,))]


def load_group(tx: Tx, group_id: str, *, after: int, limit: int) -> list[Case]:
    """The next jobs of a group, from number `after` on, that are not over, first to last."""
    sql = f"""{_COLUMNS} FROM jobs j LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt
        WHERE j.seq IN (SELECT seq FROM jobs {tx.by_index("ix_jobs_group")}
                        WHERE group_id = ? AND state IN ({NOT_OVER_SQL}) AND seq > ? ORDER BY seq LIMIT ?) ORDER BY j.seq"""  # noqa: S608
    return [_case(row) for row in tx.rows(sql, (group_id, after, limit))]


def load_due(tx: Tx, *, limit: int) -> list[Case]:
    """Jobs whose wait for a retry is over, longest first."""
    sql = (
        f"{_COLUMNS} FROM jobs j {tx.by_index('ix_jobs_due')} "
        "LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt "
        "WHERE j.state = 'retry_wait' AND j.due_at <= ? ORDER BY j.due_at, j.seq LIMIT ?"
    )
    return [_case(row) for row in tx.rows(sql, (tx.at, limit))]


def load_distant(tx: Tx, *, after: timedelta, limit: int) -> list[Case]:
    """Jobs whose wait for a retry goes on for longer than `after`, longest first."""
    sql = (
        f"{_COLUMNS} FROM jobs j {tx.by_index('ix_jobs_due')} "
        "LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt "
        "WHERE j.state = 'retry_wait' AND j.due_at > ? ORDER BY j.due_at DESC, j.seq LIMIT ?"
    )
    return [_case(row) for row in tx.rows(sql, (tx.at + span(after), limit))]


def load_expired(tx: Tx, *, limit: int) -> list[Case]:
    """Pending jobs whose time-to-live is over, longest first."""
    sql = (
        f"{_COLUMNS} FROM jobs j {tx.by_index('ix_jobs_expires')} "
        "LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt "
        "WHERE j.expires_at IS NOT NULL AND j.state IN ('queued', 'retry_wait') AND j.expires_at <= ? "
        "ORDER BY j.expires_at, j.seq LIMIT ?"
    )
    return [_case(row) for row in tx.rows(sql, (tx.at, limit))]


def _case(row: Row) -> Case:
    (
        seq, job_id, state, number, tries, node_id, due_at, finished_at, code, message, policy, cancel_at, held, shape_id,
        group_id, attempt_node, boot_epoch, attempt_state, acked_at, attempt_code, attempt_message, missing,
    ) = row  # fmt: skip
    job = Job(
        job_id=job_id, state=_JOB_STATES[state], attempt=number, tries=tries, node_id=node_id,
        due_at=when_or_none(due_at), finished_at=when_or_none(finished_at), failure=failure_of(code, message),
    )  # fmt: skip
    case = Case(seq, job, None, policy, cancel_at, bool(held), shape_id, group_id, read_job=job.state)
    if attempt_state is not None:
        case.attempt = Attempt(
            job_id=job_id, attempt=number, node_id=attempt_node, state=_ATTEMPT_STATES[attempt_state],
            failure=failure_of(attempt_code, attempt_message),
        )  # fmt: skip
        case.read_attempt = case.attempt.state
        case.boot_epoch, case.acked_at, case.missing = boot_epoch, acked_at, missing
    return case


def failure_of(code: str | None, message: str | None) -> Failure | None:
    """Two columns as a failure."""
    return None if code is None else Failure(FailureCode(code), message or "")


def shortened(text: str | None) -> str | None:
    """What a caller says in its own words, as long as a timeline shows it."""
    return None if text is None else text[:MAX_WORDS]


class Changes:
    """The changes of one transaction: decided one by one, written together by `flush`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._touched: dict[int, Case] = {}
        self._groups: set[str] = set()  # those that a job ended in
        self._queued: list[int] = []  # those that may be leased now, and could not before
        self._events: list[tuple[int, str, int | None, int | None, str | None, str | None]] = []

    def apply(
        self, case: Case, job_event: JobEvent | None, attempt_event: AttemptEvent | None, *,
        failure: Failure | None = None, due_in: timedelta | None = None, message: str | None = None,
    ) -> None:  # fmt: skip
        """Advance a job, its attempt, or both; raises InvalidTransition and changes nothing where there is no such edge.

        `failure` goes to both; `due_in` is the wait before a retry. One event is noted, in the job's words where it changes.
        """
        tx, number = self._tx, case.job.attempt or None
        node_id = case.attempt.node_id if case.attempt is not None and attempt_event is not None else None
        attempt = case.attempt
        if attempt_event is not None and attempt is not None:
            attempt = attempts.advance(attempt, attempt_event, now=tx.now, failure=failure)
        if job_event is not None:
            due_at = tx.now + due_in if due_in is not None else None
            case.job = jobs.advance(case.job, job_event, now=tx.now, failure=failure, due_at=due_at)
        if attempt_event is AttemptEvent.ACK:
            case.acked_at = tx.at
        elif attempt_event is AttemptEvent.RETURN:
            case.acked_at = None
        case.attempt = attempt
        self._touched[case.seq] = case
        if case.job.state is JobState.QUEUED:
            self._queued.append(case.seq)
        if case.job.state in jobs.TERMINAL:
            tx.wake(("over", case.job.job_id))
            if case.group_id is not None:
                self._groups.add(case.group_id)
        kind = job_event.value if job_event is not None else attempt_event.value if attempt_event is not None else ""
        self.note(kind, case.seq, number, node_id, message)
        tx.wake(("job", case.job.job_id))

    def note(self, kind: str, seq: int | None, attempt: int | None, node_id: str | None, message: str | None = None) -> None:
        """One line for a timeline."""
        self._events.append((self._tx.at, kind, seq, attempt, node_id, message))

    def flush(self) -> None:
        """Write everything, and what it means to jobs that wait for those that ended.

        Raises Changed where a row is no longer as it was read, which undoes the operation.
        """
        ended = {
            seq: case.job.state
            for seq, case in self._touched.items()
            if case.job.state in jobs.TERMINAL and case.job.state is not case.read_job
        }
        self._write()
        if ended:
            self.settle(ended)

    def settle(self, ended: Mapping[int, JobState], *, free: Collection[int] = (), since: int = 0) -> dict[int, JobState]:
        """Tell those who wait for these jobs, which are over; answers whose end that was, in turn.

        `free` are further jobs that may have nobody left to wait for; of a submission only those from number `since` on are told.
        """
        tx = self._tx
        further: dict[int, JobState] = {}
        while ended or free:
            found = waits.fallout_of(tx, ended, since=since)
            if not (found.cancelled or found.nearer or free):  # nearly always: nobody waits
                break
            tx.alone()  # another end, at the same time, may be nearer too: neither would find the other
            if found.cancelled or found.held:
                self._fall(found)
            freed = waits.free(tx, found.nearer | set(free))
            lacking = waits.hand_over(tx, [one.seq for one in freed]) if freed else {}
            for case in load_numbers(tx, lacking) if lacking else ():
                self.apply(case, JobEvent.FAIL, None, failure=Failure(FailureCode.INPUT, lacking[case.seq]))
            for one in freed:
                if not one.waits and one.seq not in lacking:
                    self.note("ready", one.seq, None, None, "what it waited for is over")
                    tx.wake(("job", one.job_id), ("queue",))
                    self._queued.append(one.seq)
            self._write()
            further |= dict.fromkeys(found.cancelled, JobState.CANCELLED) | dict.fromkeys(lacking, JobState.FAILED)
            ended, free = dict.fromkeys(lacking, JobState.FAILED), ()
        return further

    def _fall(self, found: Fallout) -> None:
        """Cancel and hold those for whom the success that they wait for cannot come any more."""
        tx, why = self._tx, waits.reasons(self._tx, found.cancelled | found.held)
        for case in load_numbers(tx, found.cancelled):
            self.apply(case, JobEvent.CANCEL, None, message=why[case.seq])
        for case in load_numbers(tx, found.held):
            if not case.held:
                self.note("hold", case.seq, None, None, why[case.seq])
                tx.wake(("job", case.job.job_id))
        tx.many("UPDATE jobs SET held = 1 WHERE seq = ?", [(seq,) for seq in found.held])
        self._write()

    def _write(self) -> None:
        tx = self._tx
        stages: list[Sequence[object]] = []
        moves: list[Sequence[object]] = []
        attempt_stages, ends = [], []
        for case in self._touched.values():
            job, attempt = case.job, case.attempt
            if job.state is not case.read_job:
                # Setting a column rewrites every index that holds it, whether it changes or not: the hot changes leave node and
                # wait alone.
                moves_away = (
                    job.node_id is None or job.state in {JobState.QUEUED, JobState.RETRY_WAIT} or case.read_job in _WAITING
                )
                (moves if moves_away else stages).append(_job_row(case, whole=moves_away))
            if attempt is not None and attempt.state is not case.read_attempt:
                if attempt.state in attempts.TERMINAL:
                    ends.append(_end_row(case, attempt))
                else:
                    attempt_stages.append(
                        (attempt.state.value, case.acked_at, case.seq, attempt.attempt, case.read_attempt.value)
                    )
        write(tx, _STAGE, stages)
        write(tx, _MOVE, moves)
        write(tx, _ATTEMPT_STAGE, attempt_stages)
        write(tx, _ATTEMPT_END, ends)
        for case in self._touched.values():
            case.read_job = case.job.state
            if case.attempt is not None:
                case.read_attempt = case.attempt.state
        self._touched.clear()
        if self._queued:
            summon_jobs(tx, self._queued)
            self._queued = []
        if self._groups:
            tx.at_commit(_tell_ended_groups, self._groups)
            self._groups = set()
        if self._events:
            tx.many(_EVENT, self._events)
            tx.wake(("events",))
            self._events = []


_WAITING = frozenset({JobState.QUEUED, JobState.RETRY_WAIT})
_STAGE = (
    "UPDATE jobs SET state = ?, tries = ?, finished_at = ?, failure_code = ?, failure_message = ? "
    "WHERE seq = ? AND state = ? AND attempt = ?"
)
# Whatever moves a job ends its wait, too: one that still waits only comes to its end.
_MOVE = (
    "UPDATE jobs SET state = ?, tries = ?, finished_at = ?, failure_code = ?, failure_message = ?, node_id = ?, due_at = ?, waits = 0 "
    "WHERE seq = ? AND state = ? AND attempt = ?"
)
_ATTEMPT_STAGE = "UPDATE attempts SET state = ?, acked_at = ? WHERE job_seq = ? AND attempt = ? AND state = ?"
_ATTEMPT_END = (
    "UPDATE attempts SET state = ?, acked_at = ?, finished_at = ?, failure_code = ?, failure_message = ?, exit_code = ?, "
    "signal = ?, usage = ?, sandbox = ? WHERE job_seq = ? AND attempt = ? AND state = ?"
)
_EVENT = "INSERT INTO events (at, kind, job_seq, attempt, node_id, message) VALUES (?, ?, ?, ?, ?, ?)"


def _tell_ended_groups(tx: Tx, some: list[set[str]]) -> None:
    """Whoever waits for a group is woken once, at its end: a wake-up per job would have the whole group counted each time.

    Of two transactions that end the last two jobs each sees the other's job as it was; so one looks after the other's commit.
    """
    for group_id in sorted(set().union(*some)):
        tx.one_by_one(f"group {group_id}")
        if tx.row(_open_sql(tx), (group_id,)) is None:
            tx.wake(("group", group_id))


def _open_sql(tx: Tx) -> str:
    return f"SELECT 1 FROM jobs {tx.by_index('ix_jobs_group')} WHERE group_id = ? AND state IN ({NOT_OVER_SQL}) LIMIT 1"  # noqa: S608


def _job_row(case: Case, *, whole: bool) -> tuple[object, ...]:
    job, failure = case.job, case.job.failure
    row: tuple[object, ...] = (
        job.state.value,
        job.tries,
        micros(job.finished_at) if job.finished_at else None,
        failure.code.value if failure else None,
        failure.message if failure else None,
    )
    if whole:
        row += (job.node_id, micros(job.due_at) if job.due_at else None)
    return (*row, case.seq, case.read_job.value, job.attempt)


def _end_row(case: Case, attempt: Attempt) -> tuple[object, ...]:
    failure, outcome = attempt.failure, case.outcome
    return (
        attempt.state.value,
        case.acked_at,
        micros(attempt.finished_at) if attempt.finished_at else None,
        failure.code.value if failure else None,
        failure.message if failure else None,
        outcome.exit_code if outcome else None,
        outcome.signal if outcome else None,
        encode(outcome.usage).decode() if outcome else None,
        outcome.sandbox if outcome else None,
        case.seq,
        attempt.attempt,
        case.read_attempt.value,
    )


def write(tx: Tx, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """Guarded statements: each row of parameters must change exactly one row."""
    if rows and (changed := tx.many(sql, rows)) != len(rows):
        raise Changed(f"{len(rows) - changed} of {len(rows)} rows were changed by someone else meanwhile", hint="try again")


def after_failure(case: Case, code: FailureCode) -> tuple[JobEvent, timedelta | None]:
    """What becomes of a job whose attempt failed with this code: a wait before the next one, or the end."""
    if case.cancel_at is not None:
        return JobEvent.CANCEL, None
    wait = retry.decide(_policy(case), code=code, tries=case.job.tries, jitter=random.uniform(-1, 1))  # noqa: S311 - jitter, not a secret
    return (JobEvent.FAIL, None) if wait is None else (JobEvent.RETRY, wait)


def waits_too_long(case: Case, now: datetime) -> bool:
    """Whether a wait for a retry has more left than it had at its beginning: whoever dated it had a clock that was ahead."""
    return case.job.due_at is not None and case.job.due_at - now > retry.longest(_policy(case), tries=case.job.tries)


def _policy(case: Case) -> RetryPolicy:
    return decode(case.retry, RetryPolicy, what="retry policy") if case.retry else DEFAULT_RETRY
