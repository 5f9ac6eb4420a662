"""Deliveries: how attempts ended, their logs' ends and artifacts. Idempotent; what is over never changes."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ostler.coordinator.operations import contents, logs, quotas, sessions
from ostler.coordinator.operations.changes import Case, Changes, after_failure, load
from ostler.coordinator.operations.sessions import stale
from ostler.coordinator.operations.uploads import declared_artifacts
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.tx import Tx
from ostler.model.attempt import BEGUN, AttemptEvent, AttemptState
from ostler.model.errors import InvalidSpec, InvalidTransition, NotFound, OffsetMismatch
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobEvent
from ostler.model.manifest import Artifact
from ostler.protocol.messages import LOG_STREAMS, ItemResult, Outcome

MAX_MESSAGE = 4000
MB = 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an outcome means: events for the job and its attempt, the failure that both keep, and the wait before a retry."""

    job_event: JobEvent
    attempt_event: AttemptEvent
    failure: Failure | None = None
    due_in: timedelta | None = None


def verdict(case: Case, outcome: Outcome) -> Verdict:
    """What an outcome means for this job.

    A result is a result, also where a cancel was asked for meanwhile: the node finished before it heard. A failure of what was to
    be cancelled is the cancel's doing. What a node ended without being asked (it drains, its time is up) is tried again
    elsewhere.
    """
    if outcome.cancelled:
        if case.cancel_at is not None:
            return Verdict(JobEvent.CANCEL, AttemptEvent.CANCEL)
        failure = Failure(FailureCode.LOST, "the node ended it without being asked to (draining, or out of time)")
        job_event, due_in = after_failure(case, failure.code)
        return Verdict(job_event, AttemptEvent.CANCEL, failure, due_in)
    if outcome.failure is not None:
        failure = Failure(outcome.failure.code, outcome.failure.message[:MAX_MESSAGE])
        job_event, due_in = after_failure(case, failure.code)
        return Verdict(job_event, AttemptEvent.FAIL, failure, due_in)
    return Verdict(JobEvent.FINISH, AttemptEvent.FINISH)


@beside_others
def finish_attempts(
    tx: Tx, node_id: str, outcomes: Sequence[Outcome], *, boot_epoch: str | None = None, stored: Container[str] | None = None
) -> list[ItemResult]:
    """Take the outcomes of attempts: idempotent, and what is over never changes.

    `stored` holds the sha256 of the blobs that the caller has made durable; None means that it vouches for every artifact named.
    What an outcome brings in its `contents` is stored here; the caller has seen that size and sha256 are as announced.
    Codes of refused items: `stale_attempt`; `offset_mismatch` (with stream and the offset to rewind to) where a log is not whole;
    `not_found` where an artifact's blob is not stored; `invalid_spec` for contents that the manifest does not declare, or declares
    smaller; `invalid_transition` where the attempt was never acknowledged.
    """
    sessions.current(tx, node_id, boot_epoch)
    cases = load(tx, [outcome.job_id for outcome in outcomes])
    logged = _with_logs(tx, [case.seq for case in cases.values()])
    declared = declared_artifacts(tx, [cases[one.job_id].seq for one in outcomes if one.contents and one.job_id in cases])
    delivery = _Delivery(tx, node_id, declared)
    results = []
    for outcome in outcomes:
        case = cases.get(outcome.job_id)
        if case is None or not case.is_held_by(node_id, outcome.attempt):
            results.append(_again(tx, node_id, case, outcome))
        else:
            results.append(delivery.take(case, outcome, stored, some_logs=case.seq in logged))
    delivery.write()
    if delivery.taken:
        tx.wake(("node", node_id))  # slots became free
    return results


def _with_logs(tx: Tx, seqs: Iterable[int]) -> set[int]:
    """Which of these jobs have log bytes stored: most have none, and are spared the look at each stream."""
    some = "EXISTS (SELECT 1 FROM log_chunks c WHERE c.job_seq = jobs.seq)"
    return {row[0] for row in tx.rows(f"SELECT seq FROM jobs WHERE {tx.any_of('seq')} AND {some}", (tx.array(seqs),))}  # noqa: S608


def _again(tx: Tx, node_id: str, case: Case | None, outcome: Outcome) -> ItemResult:
    """An outcome of an attempt that is over: the same one again is ok (its answer was lost), any other is stale."""
    row = None
    if case is not None and case.outcome is not None and case.job.attempt == outcome.attempt and case.attempt is not None:
        # Twice in one batch: the first is decided but not written yet.
        row = (case.attempt.state.value, case.attempt.failure.code.value if case.attempt.failure else None)
    elif case is not None:
        row = tx.row(
            "SELECT state, failure_code FROM attempts WHERE job_seq = ? AND attempt = ? AND node_id = ?",
            (case.seq, outcome.attempt, node_id),
        )
    if outcome.cancelled:
        same = row is not None and row[0] == AttemptState.CANCELLED
    elif outcome.failure is not None:
        same = row == (AttemptState.FAILED.value, outcome.failure.code.value)
    else:
        same = row is not None and row[0] == AttemptState.DONE
    return ItemResult(job_id=outcome.job_id, attempt=outcome.attempt) if same else stale(outcome.job_id, outcome.attempt, node_id)


class _Delivery:
    """The accepted outcomes of one call, written together."""

    def __init__(self, tx: Tx, node_id: str, declared: Mapping[int, Mapping[str, Artifact]]) -> None:
        self._tx = tx
        self._node_id = node_id
        self._declared = declared
        self._changes = Changes(tx)
        self._ended: list[Case] = []
        self._chunks: list[logs.ChunkRow] = []
        self._ends: list[tuple[int, int, str, int, str]] = []
        self._artifacts: list[tuple[int, int, str, str, int, str]] = []
        self._contents: dict[str, bytes] = {}
        self.taken = 0

    def take(self, case: Case, outcome: Outcome, stored: Container[str] | None, *, some_logs: bool) -> ItemResult:
        """Accept one outcome whole, or refuse it whole."""
        if case.attempt is None or case.attempt.state not in BEGUN:
            return _refused(
                outcome, InvalidTransition.code, f"attempt {outcome.attempt} of job {outcome.job_id} was never acknowledged"
            )
        brought = outcome.contents
        absent = (
            []
            if stored is None
            else [one.path for one in outcome.artifacts if one.path not in brought and one.sha256 not in stored]
        )
        if absent:
            return _refused(outcome, NotFound.code, f"the bytes of {', '.join(absent[:3])} were not delivered")
        if brought and (why := _unwanted(brought, self._declared.get(case.seq, {}))):
            return _refused(outcome, InvalidSpec.code, why)
        rests = []
        for end in outcome.logs:
            if end.stream not in LOG_STREAMS:
                return _refused(outcome, "invalid_spec", f"{end.stream!r} is none of {', '.join(LOG_STREAMS)}")
            rest = logs.check_end(self._tx, case, end, some_stored=some_logs)
            if isinstance(rest, logs.Missing):
                if rest.damaged:
                    logs.discard(self._tx, case.seq, outcome.attempt, rest.stream)
                return ItemResult(
                    job_id=outcome.job_id, attempt=outcome.attempt, ok=False, code=OffsetMismatch.code,
                    message=rest.message, stream=rest.stream, offset=rest.offset,
                )  # fmt: skip
            rests.append(rest)
        self._apply(case, outcome, rests, some_logs=some_logs)
        return ItemResult(job_id=outcome.job_id, attempt=outcome.attempt)

    def _apply(self, case: Case, outcome: Outcome, rests: Sequence[logs.Rest], *, some_logs: bool) -> None:
        decided = verdict(case, outcome)
        failure = decided.failure
        message = None if failure is None else f"{failure.code.value}: {failure.message}"[:MAX_MESSAGE]
        case.outcome = outcome
        self._ended.append(case)
        self._changes.apply(
            case, decided.job_event, decided.attempt_event, failure=failure, due_in=decided.due_in, message=message
        )  # fmt: skip
        for rest in {rest.end.stream: rest for rest in rests}.values():
            if rest.end.length and not rest.known:
                self._chunks += logs.chunk_rows(case.seq, outcome.attempt, rest.end.stream, rest.stored, rest.data)
                self._ends.append((case.seq, outcome.attempt, rest.end.stream, rest.end.length, rest.end.sha256))
        for path, one in {one.path: one for one in outcome.artifacts}.items():
            kind = self._declared[case.seq][path].type if path in outcome.contents else one.type
            self._artifacts.append((case.seq, outcome.attempt, path, kind, one.size, one.sha256))
            if path in outcome.contents:
                self._contents[one.sha256] = outcome.contents[path]
        if some_logs:
            logs.forget_hashes(self._tx, case.seq, outcome.attempt)
        self._tx.wake(("log", outcome.job_id, outcome.attempt))
        self.taken += 1

    def write(self) -> None:
        """Write everything that was accepted."""
        if self._contents:
            contents.keep(self._tx, self._contents)
        if self._artifacts:  # before the end is told: others may have waited for them
            self._tx.many(
                "INSERT INTO artifacts (job_seq, attempt, path, type, size, sha256) VALUES (?, ?, ?, ?, ?, ?)", self._artifacts
            )
        self._changes.flush()
        if self._ended:
            quotas.bill(self._tx, self._node_id, self._ended)
        logs.store_chunks(self._tx, self._chunks)
        if self._ends:
            logs.store_ends(self._tx, self._ends)


def _unwanted(brought: Mapping[str, bytes], declared: Mapping[str, Artifact]) -> str | None:
    """Why these bytes are not taken."""
    for path, data in brought.items():
        if path not in declared:
            return f"{path!r} is not declared by the manifest's `artifacts`"
        if len(data) > declared[path].max_mb * MB:
            return f"the artifact {path} is larger than the {declared[path].max_mb} MB that the manifest allows"
    return None


def _refused(outcome: Outcome, code: str, message: str) -> ItemResult:
    return ItemResult(job_id=outcome.job_id, attempt=outcome.attempt, ok=False, code=code, message=message)


@beside_others
def set_workspace(tx: Tx, node_id: str, job_id: str, attempt: int, sha256: str) -> None:
    """Note the blob of a workspace that was asked for by debug; raises NotFound where it was not asked for."""
    changed = tx.run(
        """UPDATE attempts SET workspace = ? WHERE attempt = ? AND node_id = ? AND debug_at IS NOT NULL
           AND job_seq = (SELECT seq FROM jobs WHERE job_id = ?)""",
        (sha256, attempt, node_id, job_id),
    )
    if not changed:
        raise NotFound(
            f"the workspace of attempt {attempt} of job {job_id} was not asked for", hint=f"`ostler job debug {job_id}`"
        )
    tx.run(
        "INSERT INTO events (at, kind, job_seq, attempt, node_id) SELECT ?, 'workspace', seq, ?, ? FROM jobs WHERE job_id = ?",
        (tx.at, attempt, node_id, job_id),
    )
    tx.wake(("job", job_id), ("events",))
