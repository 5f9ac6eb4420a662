"""What people do with jobs: submit, cancel, retry, hold, release, debug. Each function is one transaction's worth for
`Store.write`.
"""

import secrets
import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta

from ostler.coordinator.operations import commands, dependencies, quotas
from ostler.coordinator.operations.cancels import PENDING, cancel_case
from ostler.coordinator.operations.changes import Case, Changes, load, shortened, write
from ostler.coordinator.operations.dependencies import Accepted, Name
from ostler.coordinator.operations.summons import summon_jobs
from ostler.coordinator.operations.uploads import check_named
from ostler.coordinator.operations.views import job_view, no_job
from ostler.coordinator.placement.rank import rank_of
from ostler.coordinator.placement.shape import shape_of, write_shape
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.schema import FOR_JOBS, UNTIL_TIME
from ostler.coordinator.store.times import micros, span
from ostler.coordinator.store.tx import Tx
from ostler.model.array import child_id
from ostler.model.errors import AlreadyExists, Conflict, InvalidTransition
from ostler.model.job import TERMINAL, JobEvent, JobState
from ostler.model.manifest import Manifest, Runner, retry_policy
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import JobView, SubmitResponse, Submitted

MAX_TITLE = 200

_INSERT = """
    INSERT INTO jobs (seq, job_id, state, shape_id, priority, queue, runner, title, labels, retry, retry_of, submitted_at,
                      attempt, tries, held, expires_at, owner, rank, not_before, waits{})
    VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?{})"""
_INSERT_JOB = _INSERT.format("", "")
_INSERT_CHILD = _INSERT.format(", group_id", ", ?")  # apart, so that other jobs do not pay for a parameter that they lack


@beside_others
def submit_jobs(
    tx: Tx, manifests: Accepted, owner: str | None = None, *, reach: str | None = None, group: str | None = None
) -> SubmitResponse:
    """Queue all of them or none, as jobs of `owner`, who may name the jobs of `reach` (None: anybody's) as what they depend on.

    An array stands here as its jobs, all of them and in order (`groups.expand`); `group` makes one group of all (and then there are
    no arrays). Raises AlreadyExists naming the id that is taken (in the store, or twice in the batch), InvalidSpec and TooLarge for
    dependencies, QuotaExceeded.
    """
    linked = [manifest for manifest, _ in manifests if manifest.depends_on or manifest.input.artifacts]
    if group is not None or linked or [manifest for manifest, _ in manifests if manifest.array_index is not None]:
        tx.alone()
    warnings = quotas.admit(tx, owner, len([1 for manifest, _ in manifests if manifest.runner is not Runner.SERVICE]))
    names, groups = _names(tx, manifests, group)
    if groups:
        tx.many("INSERT INTO groups (group_id, count, submitted_at) VALUES (?, ?, ?)", groups)
    first = _insert(tx, manifests, names, owner)
    over: dict[int, JobState] = {}
    if linked:
        links = dependencies.link(tx, manifests, names, first, reach)
        over = Changes(tx).settle(links.ended, free=links.free, since=first)
    queued = [
        Submitted(job_id=job_id, group_id=group_id, state=over.get(seq, JobState.QUEUED))
        for seq, (job_id, group_id) in enumerate(names, first)
    ]
    return SubmitResponse(items=tuple(queued), warnings=warnings)


def _names(tx: Tx, manifests: Accepted, group: str | None) -> tuple[list[Name], list[tuple[str, int, int]]]:
    """The name of each job, made where none was chosen, and the rows of the groups. Raises AlreadyExists."""
    made = iter(new_job_ids(tx.now, len(manifests)))
    names: list[Name] = []
    asked: list[str] = []
    groups: list[tuple[str, int, int]] = []
    if group is not None:
        groups.append((group, len(manifests), tx.at))
        asked.append(group)
    for manifest, _ in manifests:
        job_id, index = manifest.job_id, manifest.array_index
        if index is None:
            names.append((job_id or next(made), group))
        else:
            if index == 0:
                group_id = next(made) if job_id is None else job_id.removesuffix(child_id("", 0))
                groups.append((group_id, manifest.array_count or 1, tx.at))
                if job_id is not None:
                    asked.append(group_id)
            names.append((child_id(groups[-1][0], index), groups[-1][0]))
        if job_id is not None:
            asked.append(job_id)
    _check_free(tx, asked)
    return names, groups


def _insert(tx: Tx, manifests: Accepted, names: Sequence[Name], owner: str | None, *, retry_of: str | None = None) -> int:
    """Insert queued jobs under these names; the first one's number."""
    first = seq = tx.reserve(len(manifests))
    bodies: dict[int, str] = {}  # of their shapes
    rows, children, specs, events, labels, inputs = [], [], [], [], [], []
    ordered: list[tuple[int, Manifest, bool]] = []
    for (job_id, group_id), (manifest, spec) in zip(names, manifests, strict=True):
        shape_id, body = write_shape(shape_of(manifest, owner))
        bodies[shape_id] = body
        start = manifest.start if manifest.not_before is not None else None
        not_before = micros(start) if start is not None and start > tx.now else None
        waits = (UNTIL_TIME if not_before is not None else 0) | (FOR_JOBS if dependencies.waits(manifest) else 0)
        row = (
            seq, job_id, shape_id, manifest.priority, manifest.queue, manifest.runner.value, title_of(manifest),
            encode(manifest.labels).decode() if manifest.labels else "{}",
            None if manifest.retries is None else encode(retry_policy(manifest)).decode(),
            retry_of, tx.at,
            None if manifest.ttl_s is None else tx.at + span(timedelta(seconds=manifest.ttl_s)),
            owner, rank_of(manifest.priority, max(tx.at, not_before or 0)),  # it grows older once it may run
            not_before, waits,
        )  # fmt: skip
        if group_id is None:
            rows.append(row)
        else:
            children.append((*row, group_id))
        specs.append((seq, spec))
        events.append((tx.at, seq))
        labels += [(key, value, seq) for key, value in manifest.labels.items()]
        inputs += [(sha256, seq) for sha256 in {file.sha256 for file in manifest.input.files}]
        if manifest.runner is Runner.SERVICE:
            ordered.append((seq, manifest, waits != 0))
        seq += 1
    tx.many("INSERT INTO shapes (shape_id, body) VALUES (?, ?) ON CONFLICT (shape_id) DO NOTHING", list(bodies.items()))
    for statement, some in ((_INSERT_JOB, rows), (_INSERT_CHILD, children)):
        if some:
            tx.many(statement, some)
    tx.many("INSERT INTO specs (job_seq, body) VALUES (?, ?)", specs)
    tx.many("INSERT INTO events (at, kind, job_seq) VALUES (?, 'submit', ?)", events)
    if labels:
        tx.many("INSERT INTO labels (key, value, job_seq) VALUES (?, ?, ?)", labels)
    if inputs:
        check_named(tx, [sha256 for sha256, _ in inputs])
        tx.many("INSERT INTO inputs (sha256, job_seq) VALUES (?, ?)", inputs)
    if ordered:
        commands.note(tx, ordered)
    if len(ordered) < len(manifests):
        quotas.meter(tx, owner, seq - len(manifests), len(manifests))
        tx.wake(("queue",))
    tx.wake(("events",))
    return first


def _check_free(tx: Tx, asked: Sequence[str]) -> None:
    """Raises AlreadyExists where a chosen id is taken. Jobs and arrays share their names: commands take either."""
    if not asked:
        return
    if len(asked) == 1 and tx.row(_TAKEN, (asked[0], asked[0])) is None:  # nearly always; without a list a look costs a third
        return
    seen: set[str] = set()
    for job_id in asked:
        if job_id in seen:
            raise AlreadyExists(f"job id {job_id} stands twice in this call; nothing was submitted")
        seen.add(job_id)
    for what, column, table in (("job", "job_id", "jobs"), ("array", "group_id", "groups")):
        taken = tx.row(
            f"SELECT {column} FROM {table} WHERE {tx.any_of(column)} ORDER BY {column} LIMIT 1",  # noqa: S608 - names of ours
            (tx.array(asked),),
        )
        if taken is not None:
            raise AlreadyExists(
                f"{what} {taken[0]} exists already; nothing was submitted",
                hint=f"choose another job_id, leave it out, or see `ostler job show {taken[0]}`",
            )


_TAKEN = "SELECT 1 FROM jobs WHERE job_id = ? UNION ALL SELECT 1 FROM groups WHERE group_id = ?"

_PAIRS = [one + other for one in "0123456789abcdefghijklmnopqrstuv" for other in "0123456789abcdefghijklmnopqrstuv"]


def new_job_ids(now: datetime, count: int) -> list[str]:
    """Unique ids that sort by time: "j-" and 26 characters (48 bits of milliseconds, 80 random ones), rising within one call."""
    base = (micros(now) // 1000 << 80) | (int.from_bytes(secrets.token_bytes(10), "big") & ~0xFFFF_FFFF)
    # There is room to count up inside the random part, which reaches the last 32 bits: what stands before them is spelled once.
    shifted = base << 2  # 26 characters are 130 bits
    head = "j-" + "".join([_PAIRS[shifted >> at & 1023] for at in range(120, 40, -10)])
    low = shifted & (1 << 50) - 1
    return [head + "".join([_PAIRS[(low + (number << 2)) >> at & 1023] for at in range(40, -10, -10)]) for number in range(count)]


def title_of(manifest: Manifest) -> str:
    """What a list shows of a job: its command line or its task, cut where it is long."""
    if manifest.command is None:
        words = manifest.task or (manifest.code.name if manifest.code is not None else manifest.runner.value)
    else:
        words = manifest.command if not manifest.args else shlex.join((manifest.command, *manifest.args[:32]))
    words = words.replace("\n", " ")
    return words if len(words) <= MAX_TITLE else words[: MAX_TITLE - 1] + "…"


def cancel_job(tx: Tx, job_id: str, reason: str | None = None) -> JobView:
    """Cancel at once where nobody works on it, else ask its node to; a second call is no error. NotFound, InvalidTransition."""
    case = _case(tx, job_id)
    changes = Changes(tx)
    cancel_case(tx, changes, case, shortened(reason))
    changes.flush()
    return job_view(tx, job_id)


def retry_job(tx: Tx, job_id: str) -> JobView:
    """Try now what waits for a retry; submit anew, under a new id, what is over. Answers the job that will run.

    What is submitted anew belongs to no group: one that is over stays as it ended. So do jobs that depended on it.
    """
    case = _case(tx, job_id)
    if case.job.state is JobState.RETRY_WAIT:
        changes = Changes(tx)
        changes.apply(case, JobEvent.DUE, None, message="asked for")
        changes.flush()
        tx.wake(("queue",))
        return job_view(tx, job_id)
    if case.job.state not in TERMINAL:
        raise InvalidTransition(
            f"job {job_id} is {case.job.state.value}: it is not over, so there is nothing to retry",
            hint=f"see `ostler job show {job_id}`",
        )
    row = tx.row("SELECT s.body, j.owner FROM specs s JOIN jobs j ON j.seq = s.job_seq WHERE s.job_seq = ?", (case.seq,))
    spec, owner = row or ("{}", None)
    manifest = decode(spec, Manifest, what="manifest")
    quotas.admit(tx, owner, int(manifest.runner is not Runner.SERVICE))
    (anew,) = new_job_ids(tx.now, 1)
    seq = _insert(tx, [(manifest, spec)], [(anew, None)], owner, retry_of=job_id)
    if dependencies.waits(manifest):
        dependencies.link_anew(tx, case.seq, seq)
        Changes(tx).settle({}, free=[seq])
    return job_view(tx, anew)


def hold_job(tx: Tx, job_id: str) -> JobView:
    """Keep a pending job from being leased. NotFound, InvalidTransition."""
    return _set_held(tx, job_id, held=True)


def release_job(tx: Tx, job_id: str) -> JobView:
    """Let a held job be leased again. NotFound, InvalidTransition."""
    return _set_held(tx, job_id, held=False)


def _set_held(tx: Tx, job_id: str, *, held: bool) -> JobView:
    case = _case(tx, job_id)
    verb = "hold" if held else "release"
    if case.job.state not in PENDING:
        raise InvalidTransition(
            f"job {job_id} is {case.job.state.value}: only a pending job can be held or released",
            hint=f"see `ostler job show {job_id}`",
        )
    if case.held is not held:
        write(
            tx,
            "UPDATE jobs SET held = ? WHERE seq = ? AND state = ? AND attempt = ?",
            [(int(held), case.seq, case.job.state.value, case.job.attempt)],
        )
        changes = Changes(tx)
        changes.note(verb, case.seq, None, None)
        changes.flush()
        tx.wake(("job", job_id), *([] if held else [("queue",)]))
        if not held:
            summon_jobs(tx, [case.seq])
    return job_view(tx, job_id)


def request_debug(tx: Tx, job_id: str) -> JobView:
    """Ask the node of the latest attempt to pin its workspace and upload it. NotFound, Conflict (nothing was begun)."""
    case = _case(tx, job_id)
    row = tx.row(
        "SELECT attempt, node_id, debug_at FROM attempts WHERE job_seq = ? AND acked_at IS NOT NULL "
        "ORDER BY attempt DESC LIMIT 1",
        (case.seq,),
    )
    if row is None:
        raise Conflict(f"job {job_id} was never begun, so there is no workspace", hint=f"see `ostler job explain {job_id}`")
    attempt, node_id, debug_at = row
    if debug_at is None:
        write(tx, "UPDATE attempts SET debug_at = ? WHERE job_seq = ? AND attempt = ?", [(tx.at, case.seq, attempt)])
        changes = Changes(tx)
        changes.note("request_debug", case.seq, attempt, node_id)
        changes.flush()
    tx.wake(("job", job_id), ("node", node_id))
    return job_view(tx, job_id)


def _case(tx: Tx, job_id: str) -> Case:
    case = load(tx, [job_id]).get(job_id)
    if case is None:
        raise no_job(tx, job_id)
    return case
