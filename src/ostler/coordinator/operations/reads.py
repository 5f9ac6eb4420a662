"""What is asked of the store: jobs, nodes, logs, artifacts, and why a job waits. All run through `Store.read`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from ostler.coordinator.operations import logs, waits
from ostler.coordinator.operations.aging import Part
from ostler.coordinator.operations.explanations import explain_job
from ostler.coordinator.operations.listing import list_jobs
from ostler.coordinator.operations.removals import check_kept
from ostler.coordinator.operations.services import services_of, told_services
from ostler.coordinator.operations.views import (
    JOB_COLUMNS,
    JOB_FROM,
    NODE_COLUMNS,
    artifacts_of,
    attempts_of,
    check_limit,
    job_of,
    job_row,
    job_view,
    live_of,
    no_job,
    node_of,
    node_view,
    read_cursor,
    timeline_of,
    write_cursor,
)
from ostler.coordinator.store.schema import LIVE_SQL, NOT_OVER_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.attempt import TERMINAL as TERMINAL_ATTEMPT
from ostler.model.errors import NotFound
from ostler.model.job import TERMINAL, JobState
from ostler.model.manifest import Manifest
from ostler.protocol.codec import decode
from ostler.protocol.messages import (
    ArtifactEntry,
    ArtifactPage,
    JobView,
    NodePage,
    NodeView,
    PageQuery,
    ServiceView,
)

MAX_SERVICES = 2000  # that /metrics tells of

__all__ = [
    "Counts",
    "LogFacts",
    "blob_for_node",
    "blob_for_owner",
    "counts",
    "ended_jobs",
    "explain_job",
    "find_artifact",
    "job_state",
    "list_artifacts",
    "list_jobs",
    "list_nodes",
    "log_facts",
    "manifest_of",
    "read_log",
    "show_job",
    "show_node",
    "workspace_of",
]


@dataclass(frozen=True, slots=True)
class LogFacts:
    """One log stream of one attempt: `length` bytes stored so far; `finished` when no more come; `sha256` (hex) once known."""

    attempt: int
    length: int
    finished: bool
    sha256: str | None = None


class NodeRelease(NamedTuple):
    """What a node that is not retired runs and speaks; `release` is empty where it was not installed in one."""

    node_id: str
    version: str
    protocol: int
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers for /metrics: jobs that are not over by state, nodes by state, the live attempts of all nodes, which nodes run what, and
    what their services told."""

    jobs: dict[str, int]
    nodes: dict[str, int]
    live_attempts: int
    running: tuple[NodeRelease, ...] = ()
    services: tuple[ServiceView, ...] = ()


def show_job(tx: Tx, job_id: str, owner: str | None = None) -> JobView:
    """One job with attempts, timeline, artifacts of its latest finished attempt, what it depends on, who depends on it (of an
    owner's jobs alone, where one is named), and its manifest. NotFound.
    """
    row = job_row(tx, job_id)
    seq = row[0]
    spec = tx.row("SELECT body FROM specs WHERE job_seq = ?", (seq,))
    return replace(
        job_of(row),
        attempts=attempts_of(tx, seq),
        timeline=timeline_of(tx, seq, job_id),
        artifacts=artifacts_of(tx, seq, None),
        depends_on=waits.depends_on(tx, seq),
        dependents=waits.dependents(tx, seq, owner),
        manifest=None if spec is None else decode(spec[0], dict[str, object], what="manifest"),
    )


def job_state(tx: Tx, job_id: str) -> JobView:
    """One job without attempts, timeline, artifacts and manifest: one row, for waiters. NotFound."""
    return job_view(tx, job_id)


def manifest_of(tx: Tx, job_id: str) -> Manifest:
    """What was submitted. NotFound."""
    row = tx.row("SELECT s.body FROM jobs j JOIN specs s ON s.job_seq = j.seq WHERE j.job_id = ?", (job_id,))
    if row is None:
        raise no_job(tx, job_id)
    return decode(row[0], Manifest, what="manifest")


def ended_jobs(
    tx: Tx, job_ids: Sequence[str], limit: int, owner: str | None = None
) -> tuple[tuple[JobView, ...], tuple[str, ...]]:
    """At most `limit` of these jobs that are over, with their artifacts, and the ids of none that is the owner's."""
    mine, whose = ("", ()) if owner is None else (" AND owner = ?", (owner,))
    there = tx.rows(  # two columns of those that are not over: a caller asks for thousands of them again and again
        f"SELECT job_id, CASE WHEN state IN ({NOT_OVER_SQL}) THEN NULL ELSE seq END FROM jobs WHERE {tx.any_of('job_id')}{mine}",  # noqa: S608
        (tx.array(job_ids), *whose),
    )
    over = [seq for _, seq in there if seq is not None][:limit]
    known = {job_id for job_id, _ in there} if len(there) < len(job_ids) else None
    missing = () if known is None else tuple(one for one in job_ids if one not in known)
    if not over:
        return (), missing
    numbers = tx.array(over)
    rows = tx.rows(f"SELECT {JOB_COLUMNS} {JOB_FROM} WHERE {tx.any_of('j.seq')}", (numbers,))
    artifacts: dict[int, list[ArtifactEntry]] = {}
    for seq, path, kind, size, sha256 in tx.rows(
        f"""SELECT f.job_seq, f.path, f.type, f.size, f.sha256 FROM jobs j JOIN artifacts f ON f.job_seq = j.seq AND f.attempt = j.attempt
            WHERE {tx.any_of("j.seq")} ORDER BY f.job_seq, f.path""",  # noqa: S608 - a fragment of ours
        (numbers,),
    ):
        artifacts.setdefault(seq, []).append(ArtifactEntry(path=path, type=kind, size=size, sha256=sha256))
    return tuple(replace(job_of(row), artifacts=tuple(artifacts.get(row[0], ()))) for row in rows), missing


def list_nodes(tx: Tx, query: PageQuery, owner: str | None = None) -> NodePage:
    """One page of nodes by id, with the attempts that the caller may know of. Raises InvalidSpec for a bad cursor or limit."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (str,))
    rows = tx.rows(
        f"""SELECT {NODE_COLUMNS}, {tx.json_text("c.body", "release")}
            FROM nodes n LEFT JOIN capabilities c ON c.node_id = n.node_id
            WHERE n.node_id > ? ORDER BY n.node_id LIMIT ?""",  # noqa: S608 - fragments of ours
        (place[0] if place else "", query.limit + 1),
    )
    page = rows[: query.limit]
    live = live_of(tx, [row[0] for row in page], owner)
    total = tx.row("SELECT count(*) FROM nodes") if query.count else None
    return NodePage(
        items=tuple(node_of(row[:-1], attempts=live.get(row[0], ()), release=row[-1]) for row in page),
        next_cursor=write_cursor(page[-1][0]) if len(rows) > query.limit else None,
        total=total[0] if total else None,
    )


def show_node(tx: Tx, node_id: str, owner: str | None = None) -> NodeView:
    """One node with its capabilities, services and live attempts. NotFound."""
    return replace(node_view(tx, node_id, owner), services=services_of(tx, node_id))


def list_artifacts(tx: Tx, job_id: str, attempt: int | None = None) -> ArtifactPage:
    """The artifacts of the latest finished attempt, or of the one named. NotFound; Gone where retention took them."""
    seq = _seq(tx, job_id, attempt)
    check_kept(tx, seq, job_id, Part.ARTIFACTS)
    return ArtifactPage(items=artifacts_of(tx, seq, attempt))


def find_artifact(tx: Tx, job_id: str, path: str, attempt: int | None = None) -> ArtifactEntry:
    """One artifact by its path. NotFound, naming the paths there are; Gone where retention took it."""
    found = {one.path: one for one in list_artifacts(tx, job_id, attempt).items}
    if path not in found:
        there = f"it has {', '.join(sorted(found)[:10])}" if found else "it has none"
        raise NotFound(f"job {job_id} has no artifact {path!r}; {there}")
    return found[path]


def next_attempt(tx: Tx, job_id: str, attempt: int) -> int:
    """The attempt of a job that came after this one: numbers may be left out (`upkeep.eras`). The same one where there is none yet."""
    row = tx.row("SELECT min(attempt) FROM attempts WHERE job_seq = ? AND attempt > ?", (_seq(tx, job_id, None), attempt))
    return attempt if row is None or row[0] is None else int(row[0])


def log_facts(tx: Tx, job_id: str, stream: str, attempt: int | None = None) -> LogFacts:
    """The log of the latest attempt, or of the one named; length 0 and attempt 0 before the first.

    NotFound, InvalidSpec; Gone where retention took it.
    """
    logs.check_stream(stream)
    row = tx.row("SELECT seq, state, attempt FROM jobs WHERE job_id = ?", (job_id,))
    if row is None:
        raise no_job(tx, job_id)
    seq, state, latest = row
    if attempt is None:
        attempt = _latest_begun(tx, seq, latest)
        if not attempt:
            return LogFacts(attempt=0, length=0, finished=JobState(state) in TERMINAL)
    found = tx.row(
        """SELECT a.state, l.length, l.sha256 FROM attempts a
           LEFT JOIN logs l ON l.job_seq = a.job_seq AND l.attempt = a.attempt AND l.stream = ?
           WHERE a.job_seq = ? AND a.attempt = ?""",
        (stream, seq, attempt),
    )
    if found is None:
        raise NotFound(f"job {job_id} has no attempt {attempt}; its latest is {latest}")
    check_kept(tx, seq, job_id, Part.LOGS)
    over = found[0] in TERMINAL_ATTEMPT
    if found[1] is not None:
        return LogFacts(attempt=attempt, length=found[1], finished=True, sha256=found[2])
    return LogFacts(attempt=attempt, length=logs.stored_length(tx, seq, attempt, stream), finished=over)


def _latest_begun(tx: Tx, seq: int, latest: int) -> int:
    """The latest attempt that has (or will have) a log: leases that were handed back have none."""
    row = tx.row("SELECT max(attempt) FROM attempts WHERE job_seq = ? AND state <> 'returned' AND attempt <= ?", (seq, latest))
    return (row[0] if row else None) or 0


def read_log(  # noqa: PLR0917 - the place of bytes has this many parts
    tx: Tx, job_id: str, attempt: int, stream: str, offset: int, limit: int
) -> bytes:
    """At most `limit` bytes from `offset`; empty at the end."""
    logs.check_stream(stream)
    return logs.read_range(tx, _seq(tx, job_id, None), attempt, stream, offset, limit)


def _seq(tx: Tx, job_id: str, attempt: int | None) -> int:
    """The job's number; raises NotFound where there is no such job, or no such attempt of it."""
    row = tx.row("SELECT seq, attempt FROM jobs WHERE job_id = ?", (job_id,))
    if row is None:
        raise no_job(tx, job_id)
    if attempt is not None and not tx.row("SELECT 1 FROM attempts WHERE job_seq = ? AND attempt = ?", (row[0], attempt)):
        raise NotFound(f"job {job_id} has no attempt {attempt}; its latest is {row[1]}")
    seq: int = row[0]
    return seq


def blob_for_node(tx: Tx, node_id: str, sha256: str) -> bool:
    """True where an attempt that the node holds names this blob as an input."""
    return bool(
        tx.row(
            f"""SELECT 1 FROM attempts a JOIN inputs i ON i.sha256 = ? AND i.job_seq = a.job_seq
                WHERE a.node_id = ? AND a.state IN ({LIVE_SQL}) LIMIT 1""",  # noqa: S608 - our own constant
            (sha256, node_id),
        )
    )


def blob_for_owner(tx: Tx, owner: str, sha256: str) -> bool:
    """True where this principal uploaded the blob, or a job of theirs delivered it."""
    return bool(
        tx.row("SELECT 1 FROM uploads WHERE sha256 = ? AND owner = ?", (sha256, owner))
        or tx.row(
            "SELECT 1 FROM artifacts a JOIN jobs j ON j.seq = a.job_seq WHERE a.sha256 = ? AND j.owner = ? LIMIT 1",
            (sha256, owner),
        )
    )


def workspace_of(tx: Tx, job_id: str, attempt: int) -> str:
    """The sha256 of an attempt's uploaded workspace. NotFound; Gone where retention took it."""
    seq = _seq(tx, job_id, attempt)
    row = tx.row("SELECT workspace FROM attempts WHERE job_seq = ? AND attempt = ?", (seq, attempt))
    if row is None or row[0] is None:
        check_kept(tx, seq, job_id, Part.ARTIFACTS)
        raise NotFound(
            f"the workspace of attempt {attempt} of job {job_id} is not here", hint=f"ask for it: `ostler job debug {job_id}`"
        )
    found: str = row[0]
    return found


def counts(tx: Tx) -> Counts:
    """Numbers for /metrics. Jobs that are over are not counted: their number only grows, and so would the cost."""
    live = tx.row(f"SELECT count(*) FROM attempts WHERE state IN ({LIVE_SQL})")  # noqa: S608 - our own constant
    jobs = {}
    for state in frozenset(JobState) - TERMINAL:  # one by one: a count along the index takes half as long as one that groups
        row = tx.row("SELECT count(*) FROM jobs WHERE state = ?", (state.value,))
        if row is not None and row[0]:
            jobs[state.value] = row[0]
    running = tx.rows(
        f"""SELECT n.node_id, n.version, n.protocol, coalesce({tx.json_text("c.body", "release")}, '')
            FROM nodes n LEFT JOIN capabilities c ON c.node_id = n.node_id
            WHERE n.state <> 'retired' ORDER BY n.node_id"""  # noqa: S608 - a fragment of ours
    )
    return Counts(
        jobs=jobs,
        nodes=dict(tx.rows("SELECT state, count(*) FROM nodes GROUP BY state")),
        live_attempts=live[0] if live else 0,
        running=tuple(NodeRelease(*row) for row in running),
        services=told_services(tx, MAX_SERVICES),
    )
