"""Who waits for which job: what an end means to them, what of its artifacts they get, and how that is shown.

`Changes.flush` asks for each end, in the transaction that makes it so; most jobs have nobody who waits, which is one look-up.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ostler.coordinator.store.schema import FOR_JOBS, NOT_OVER_SQL
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.dependencies import Edge, Fallout, Otherwise, Until, fallout
from ostler.model.job import JobState
from ostler.model.manifest import InputFile
from ostler.protocol.messages import DependencyView

MAX_SHOWN = 100
_WAITS = f"(j.waits & {FOR_JOBS}) = {FOR_JOBS}"
_ENDS = {JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled", JobState.EXPIRED: "expired"}


@dataclass(frozen=True, slots=True)
class Freed:
    """A job that waits for no other any more; `waits` are the bits that are left."""

    seq: int
    job_id: str
    waits: int


def fallout_of(tx: Tx, ended: Mapping[int, JobState], *, since: int = 0) -> Fallout:
    """What these ends mean to the jobs that wait for them (of a submission, to those from number `since` on)."""
    edges = _edges(tx, ended, since)
    if not edges:
        return Fallout()
    lost = {on for on, state in ended.items() if state is not JobState.DONE}
    if any(edge.on in lost and edge.until is Until.SUCCESS and edge.otherwise is Otherwise.CANCEL for edge in edges):
        edges += _edges(tx, _doomed(tx, lost, since), since)
    return fallout(edges, ended)


def _edges(tx: Tx, on: Iterable[int], since: int) -> list[Edge]:
    rows = tx.rows(
        "SELECT d.on_seq, d.job_seq, d.until, d.otherwise FROM dependencies d JOIN jobs j ON j.seq = d.job_seq "  # noqa: S608
        f"WHERE {tx.any_of('d.on_seq')} AND d.job_seq >= ? AND {_WAITS}",
        (tx.array(on), since),
    )
    return [Edge(on_seq, job_seq, Until(until), Otherwise(otherwise)) for on_seq, job_seq, until, otherwise in rows]


def _doomed(tx: Tx, lost: Collection[int], since: int) -> list[int]:
    """All that will be cancelled with these: one walk, however long the chains are."""
    falls = f"d.until = 'success' AND d.otherwise = 'cancel' AND {_WAITS}"
    rows = tx.rows(
        f"""WITH RECURSIVE doomed(seq) AS (
                SELECT d.job_seq FROM dependencies d JOIN jobs j ON j.seq = d.job_seq
                WHERE {tx.any_of("d.on_seq")} AND d.job_seq >= ? AND {falls}
                UNION
                SELECT d.job_seq FROM doomed JOIN dependencies d ON d.on_seq = doomed.seq JOIN jobs j ON j.seq = d.job_seq
                WHERE {falls}
            ) SELECT seq FROM doomed""",  # noqa: S608 - fragments of ours
        (tx.array(lost), since),
    )
    return [row[0] for row in rows]


def reasons(tx: Tx, because: Mapping[int, int]) -> dict[int, str]:
    """For each job, in words, what the other one's end takes from it. One that is not over yet is cancelled with it."""
    rows = tx.rows(f"SELECT seq, job_id, state FROM jobs WHERE {tx.any_of('seq')}", (tx.array(set(because.values())),))  # noqa: S608
    ends = {seq: f"{job_id}, which {_ENDS.get(JobState(state), _ENDS[JobState.CANCELLED])}" for seq, job_id, state in rows}
    return {job: f"it depends on the success of {ends[on]}" for job, on in because.items()}


def free(tx: Tx, candidates: Collection[int]) -> list[Freed]:
    """Those of the candidates that waited for other jobs, and whose last one is over; their wait is ended."""
    if not candidates:
        return []
    # Backwards: jobs end roughly in the order in which they were submitted, so the first look mostly finds one that is open.
    last = "SELECT d.on_seq FROM dependencies d JOIN jobs o ON o.seq = d.on_seq WHERE d.job_seq = j.seq"
    still = f"{last} AND o.state IN ({NOT_OVER_SQL}) ORDER BY d.on_seq DESC LIMIT 1"
    rows = tx.rows(
        f"SELECT j.seq, j.job_id, j.waits FROM jobs j WHERE {tx.any_of('j.seq')} AND {_WAITS} AND ({still}) IS NULL",  # noqa: S608
        (tx.array(candidates),),
    )
    tx.many("UPDATE jobs SET waits = waits - ? WHERE seq = ?", [(FOR_JOBS, row[0]) for row in rows])
    return [Freed(seq, job_id, waits - FOR_JOBS) for seq, job_id, waits in rows]


def hand_over(tx: Tx, seqs: Collection[int]) -> dict[int, str]:
    """Resolve the artifacts that these jobs get from others, now that their wait is over; why not, for those that cannot get one."""
    rows = tx.rows(
        f"""SELECT h.job_seq, h.name, h.path, o.job_id, o.state, a.sha256, a.size FROM handed h
            LEFT JOIN jobs o ON o.seq = h.on_seq
            LEFT JOIN artifacts a ON a.job_seq = h.on_seq AND a.attempt = o.attempt AND a.path = h.path
            WHERE {tx.any_of("h.job_seq")} ORDER BY h.job_seq, h.name""",  # noqa: S608 - a fragment of ours
        (tx.array(seqs),),
    )
    missing: dict[int, str] = {}
    found: list[tuple[int, str, str, int]] = []
    for job_seq, name, path, job_id, state, sha256, size in rows:
        if why := _lacks(path, job_id, state, sha256):
            missing.setdefault(job_seq, why)
        else:
            found.append((job_seq, name, sha256, size))
    kept = [one for one in found if one[0] not in missing]
    if kept:
        tx.many(
            "UPDATE handed SET sha256 = ?, size = ? WHERE job_seq = ? AND name = ?",
            [(sha256, size, job_seq, name) for job_seq, name, sha256, size in kept],
        )
        tx.many(
            "INSERT INTO inputs (sha256, job_seq) VALUES (?, ?) ON CONFLICT (sha256, job_seq) DO NOTHING",
            [(sha256, job_seq) for job_seq, _, sha256, _ in kept],
        )
    return missing


def handed_to(tx: Tx, seqs: Iterable[int]) -> dict[int, tuple[InputFile, ...]]:
    """What these jobs get of others."""
    found: dict[int, tuple[InputFile, ...]] = {}
    for job_seq, name, sha256, size in tx.rows(
        f"SELECT job_seq, name, sha256, size FROM handed WHERE {tx.any_of('job_seq')} AND sha256 IS NOT NULL ORDER BY job_seq, name",  # noqa: S608
        (tx.array(seqs),),
    ):
        found[job_seq] = (*found.get(job_seq, ()), InputFile(name=name, sha256=sha256, size=size))
    return found


def _lacks(path: str, job_id: str | None, state: str | None, sha256: str | None) -> str | None:
    if job_id is None:
        return f"the job whose artifact {path!r} was to be its input was deleted"
    if state != JobState.DONE:
        return f"job {job_id}, whose artifact {path!r} is its input, {_ENDS.get(JobState(state or ''), 'is not over')}"
    return None if sha256 is not None else f"job {job_id} delivered no artifact {path!r}, which is its input"


# --- how it is shown ---------------------------------------------------------------------------------------------------------

_VIEW = "SELECT o.job_id, o.state, d.until, d.otherwise FROM dependencies d"
# Those that are not over first: they are what somebody looks for.
_ORDER = f"ORDER BY CASE WHEN o.state IN ({NOT_OVER_SQL}) THEN 0 ELSE 1 END, o.seq LIMIT ?"


def depends_on(tx: Tx, seq: int) -> tuple[DependencyView, ...]:
    """What a job waits for, or waited for; at most the first hundred."""
    return _views(tx.rows(f"{_VIEW} JOIN jobs o ON o.seq = d.on_seq WHERE d.job_seq = ? {_ORDER}", (seq, MAX_SHOWN)))


def dependents(tx: Tx, seq: int, owner: str | None = None) -> tuple[DependencyView, ...]:
    """Who waits for a job, or waited for it (of an owner's jobs alone, where one is named); at most the first hundred."""
    whose, params = ("", (seq, MAX_SHOWN)) if owner is None else ("AND o.owner = ?", (seq, owner, MAX_SHOWN))
    return _views(tx.rows(f"{_VIEW} JOIN jobs o ON o.seq = d.job_seq WHERE d.on_seq = ? {whose} {_ORDER}", params))


def _views(rows: Iterable[Row]) -> tuple[DependencyView, ...]:
    return tuple(
        DependencyView(job_id=job_id, state=JobState(state), until=Until(until), otherwise=Otherwise(otherwise))
        for job_id, state, until, otherwise in rows
    )


def waits_for(tx: Tx, seq: int, not_before: datetime | None) -> str:
    """What a waiting job waits for, as the end of a sentence."""
    where = f"FROM dependencies d JOIN jobs o ON o.seq = d.on_seq WHERE d.job_seq = ? AND o.state IN ({NOT_OVER_SQL})"
    row = tx.row(f"SELECT count(*) {where}", (seq,))
    count, parts = row[0] if row else 0, []
    if count:
        some = tx.rows(f"SELECT o.job_id, o.state, o.held {where} ORDER BY o.seq LIMIT 3", (seq,))
        named = ", ".join(f"{job_id} ({'held' if held else state})" for job_id, state, held in some)
        parts.append(f"for {count} {'job' if count == 1 else 'jobs'}{': ' if count <= len(some) else ', such as '}{named}")
    if not_before is not None and not_before > tx.now:
        parts.append(f"until {not_before:%Y-%m-%d %H:%M:%S} UTC, as its manifest says")
    return " and ".join(parts) or "to be told that what it waited for is over"
