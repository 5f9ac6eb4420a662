"""What retention reads and removes, a bounded piece at a time: no other writer waits longer than for one of them.

Decisions are made on reads; each removal repeats in its own statement what must still be so (the job is over and nobody waits for
it), so that whatever happened in between is safe. Files are not touched here: one that no row names any more is found by the
sweep of the artifact store, also after a crash in between.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ostler.coordinator.config import Retention
from ostler.coordinator.operations.aging import Aged, Part, Removal
from ostler.coordinator.operations.audit import old_seal
from ostler.coordinator.store.schema import NOT_OVER_SQL
from ostler.coordinator.store.times import span, when
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import Gone

PAGE = 500  # rows that one read answers
STRETCH = 5000  # and jobs that it looks at for them
FEW = 50  # jobs that one transaction removes
MANY = 500  # events, keys and uploads
CHUNKS = 32  # pieces of logs, 256 KiB each at most
WEBHOOK_PATIENCE = timedelta(days=7)  # how much longer events are kept for a receiver that does not answer

_NEEDED = f"""EXISTS (SELECT 1 FROM dependencies d JOIN jobs w ON w.seq = d.job_seq
                      WHERE d.on_seq = jobs.seq AND w.state IN ({NOT_OVER_SQL}))"""  # noqa: S608 - our own constant
_GUARD = f"jobs.state NOT IN ({NOT_OVER_SQL}) AND NOT {_NEEDED}"
_POOL = """LEFT JOIN attempts a ON a.job_seq = jobs.seq AND a.attempt = jobs.attempt
           LEFT JOIN nodes n ON n.node_id = a.node_id"""


def jobs_after(tx: Tx, seq: int) -> tuple[list[Aged], int | None]:
    """The next page of jobs in the order of their submission, and where to go on; None at the end. For `Store.read`.

    Those that no node ever had and that are not over have nothing to lose: they are passed over, so many at a time.
    """
    last, count = tx.row(
        "SELECT max(seq), count(*) FROM (SELECT seq FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?) AS few", (seq, STRETCH)
    ) or (None, 0)
    rows = tx.rows(
        f"""SELECT jobs.seq, jobs.job_id, CASE WHEN jobs.state IN ({NOT_OVER_SQL}) THEN NULL ELSE jobs.finished_at END, jobs.group_id,
                   n.pool, {_NEEDED},
                   (SELECT sum(c.size) FROM log_chunks c WHERE c.job_seq = jobs.seq),
                   (SELECT sum(f.size) FROM artifacts f WHERE f.job_seq = jobs.seq),
                   (SELECT count(*) FROM artifacts f WHERE f.job_seq = jobs.seq)
                     + (SELECT count(w.workspace) FROM attempts w WHERE w.job_seq = jobs.seq)
            FROM jobs {_POOL}
            WHERE jobs.seq > ? AND jobs.seq <= ? AND (jobs.attempt > 0 OR jobs.state NOT IN ({NOT_OVER_SQL}))
            ORDER BY jobs.seq LIMIT ?""",  # noqa: S608 - constants of ours
        (seq, last or seq, PAGE),
    )
    after = rows[-1][0] if len(rows) == PAGE else last if count == STRETCH else None
    settled = {group_id: _settled(tx, group_id) for group_id in {row[3] for row in rows if row[3] is not None}}
    return [
        Aged(
            seq=row[0], job_id=row[1], ended_at=row[2], settled_at=row[2] if row[3] is None else settled[row[3]], pool=row[4],
            needed=bool(row[5]), logs=row[6] or 0, artifacts=row[7] or 0, workspaces=row[8],
        )
        for row in rows
    ], after  # fmt: skip


def _settled(tx: Tx, group_id: str) -> int | None:
    """When the last job of an array was over; None while one is not."""
    jobs = f"jobs {tx.by_index('ix_jobs_group')}"
    if tx.row(f"SELECT 1 FROM {jobs} WHERE group_id = ? AND state IN ({NOT_OVER_SQL}) LIMIT 1", (group_id,)):  # noqa: S608
        return None
    row = tx.row(f"SELECT max(finished_at) FROM {jobs} WHERE group_id = ?", (group_id,))  # noqa: S608 - a fragment of ours
    return row[0] if row else None


def remove_logs(tx: Tx, removals: Sequence[Removal]) -> int:
    """Take the logs of a few jobs; how many pieces it took, which is CHUNKS where more are left: call it again then.

    From the first call on whoever asks for them is told that they are gone, so that nobody reads the half of them.
    """
    seqs = _note(tx, removals, Part.LOGS)
    found = tx.rows(
        f"SELECT chunk_id FROM log_chunks WHERE {tx.any_of('job_seq')} ORDER BY job_seq, attempt, stream, start LIMIT ?",  # noqa: S608
        (tx.array(seqs), CHUNKS),
    )
    tx.run(f"DELETE FROM log_chunks WHERE {tx.any_of('chunk_id')}", (tx.array(row[0] for row in found),))  # noqa: S608
    if len(found) < CHUNKS:
        tx.run(f"DELETE FROM logs WHERE {tx.any_of('job_seq')}", (tx.array(seqs),))  # noqa: S608 - a fragment of ours
    return len(found)


def remove_artifacts(tx: Tx, removals: Sequence[Removal]) -> int:
    """Take the names of what a few jobs delivered; how many rows. The bytes go when nothing else names them."""
    seqs = tx.array(_note(tx, removals, Part.ARTIFACTS))
    mine = tx.any_of("job_seq")
    tx.run(f"UPDATE attempts SET workspace = NULL, debug_at = NULL WHERE workspace IS NOT NULL AND {mine}", (seqs,))  # noqa: S608
    return tx.run(f"DELETE FROM artifacts WHERE {tx.any_of('job_seq')}", (seqs,))  # noqa: S608 - a fragment of ours


def _note(tx: Tx, removals: Sequence[Removal], part: Part) -> list[int]:
    """Those of the jobs that may still lose it; it is written down why they do."""
    allowed = {row[0] for row in tx.rows(f"SELECT seq FROM jobs WHERE {tx.any_of('seq')} AND {_GUARD}", (_seqs(tx, removals),))}  # noqa: S608
    going = [one for one in removals if one.seq in allowed]
    tx.many(
        "INSERT INTO removed (job_seq, part, at, why) VALUES (?, ?, ?, ?) ON CONFLICT (job_seq, part) DO NOTHING",
        [(one.seq, part.value, tx.at, one.why) for one in going],
    )
    return [one.seq for one in going]


def _seqs(tx: Tx, removals: Sequence[Removal]) -> object:
    return tx.array(one.seq for one in removals)


def remove_jobs(tx: Tx, removals: Sequence[Removal]) -> int:
    """Take a few jobs with all that stands about them, and arrays of which none is left; how many jobs."""
    seqs = _seqs(tx, removals)
    groups = {row[0] for row in tx.rows(f"SELECT group_id FROM jobs WHERE {tx.any_of('seq')} AND group_id IS NOT NULL", (seqs,))}  # noqa: S608
    last = tx.row(f"SELECT max(id) FROM events WHERE {tx.any_of('job_seq')}", (seqs,))  # noqa: S608 - a fragment of ours
    count = tx.run(f"DELETE FROM jobs WHERE {tx.any_of('seq')} AND {_GUARD}", (seqs,))  # noqa: S608 - fragments of ours
    _events_went(tx, last[0] if last else None)
    if groups:
        tx.run(
            f"""DELETE FROM groups WHERE {tx.any_of("group_id")}
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.group_id = groups.group_id)""",  # noqa: S608 - a fragment of ours
            (tx.array(groups),),
        )
    return count


@dataclass(frozen=True, slots=True)
class Events:
    """One page of events: those that are too old, how many they are, and where to go on (None: the rest is younger)."""

    ids: tuple[int, ...]
    after: int | None


def old_events(tx: Tx, policy: Retention, after: int) -> Events:
    """The next events that are older than their job's pool allows. For `Store.read`.

    What a webhook has still to be told of stays, but not for ever.
    """
    rows = tx.rows(
        f"""SELECT e.id, e.at, n.pool FROM events e LEFT JOIN jobs ON jobs.seq = e.job_seq {_POOL}
            WHERE e.id > ? ORDER BY e.id LIMIT ?"""  # noqa: S608 - constants of ours
        if policy.pools
        else "SELECT id, at, NULL FROM events WHERE id > ? ORDER BY id LIMIT ?",
        (after, MANY),
    )
    told = tx.row("SELECT min(cursor) FROM webhooks WHERE disabled_at IS NULL")
    until = told[0] if told else None
    found = []
    for event_id, at, pool in rows:
        age = span(policy.of(pool).events or policy.events)
        waits = until is not None and event_id > until and tx.at - at <= age + span(WEBHOOK_PATIENCE)
        if tx.at - at > age and not waits:
            found.append(event_id)
    young = rows and tx.at - rows[-1][1] <= span(policy.shortest("events"))
    return Events(tuple(found), None if len(rows) < MANY or young else rows[-1][0])


def remove_events(tx: Tx, ids: Iterable[int]) -> int:
    """Take events; how many there were."""
    some = list(ids)
    _events_went(tx, max(some, default=None))
    return tx.run(f"DELETE FROM events WHERE {tx.any_of('id')}", (tx.array(some),))  # noqa: S608 - a fragment of ours


def _events_went(tx: Tx, last: int | None) -> None:
    """Where ids may have gaps, a reader cannot tell from them what was removed."""
    if last is not None and tx.gaps:
        tx.run(
            "INSERT INTO counters (name, next) VALUES ('events_removed', ?) ON CONFLICT (name) DO UPDATE SET next = excluded.next "
            "WHERE counters.next < excluded.next",
            (last,),
        )


def old_keys(tx: Tx, policy: Retention) -> list[Row]:
    """Idempotency keys that are too old, oldest first. For `Store.read`."""
    return tx.rows(
        "SELECT principal, key, created_at FROM idempotency WHERE created_at < ? ORDER BY created_at LIMIT ?",
        (tx.at - span(policy.idempotency), MANY),
    )


def remove_keys(tx: Tx, rows: Sequence[Row]) -> int:
    """Take keys that were not used anew meanwhile; how many."""
    return tx.many("DELETE FROM idempotency WHERE principal = ? AND key = ? AND created_at = ?", rows)


def count_others(tx: Tx, policy: Retention) -> Counter[str]:
    """How many idempotency keys, rows of the audit log and retired nodes are too old. For `Store.read`."""
    keys = tx.row("SELECT count(*) FROM idempotency WHERE created_at < ?", (tx.at - span(policy.idempotency),))
    seal = old_seal(tx, span(policy.audit))
    rows = tx.row("SELECT count(*) FROM audit WHERE id <= ?", (seal[0],)) if seal is not None else None
    gone = tx.row(f"SELECT count(*) FROM nodes WHERE {_FORGOTTEN}", (tx.at - span(policy.nodes),))  # noqa: S608 - our own constant
    return Counter({"idempotency": keys[0] if keys else 0, "audit": rows[0] if rows else 0, "node": gone[0] if gone else 0})


_FORGOTTEN = "state = 'retired' AND changed_at < ? AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.node_id = nodes.node_id)"


def remove_nodes(tx: Tx, policy: Retention) -> int:
    """Take nodes that were retired long ago and that no job names as its last; how many. What still holds a token of one gets nothing for
    it, as for any node that is not known."""
    return tx.run(f"DELETE FROM nodes WHERE {_FORGOTTEN}", (tx.at - span(policy.nodes),))  # noqa: S608 - our own constant


def old_uploads(tx: Tx, policy: Retention, after: tuple[str, str]) -> tuple[list[Row], tuple[str, str] | None]:
    """Uploads that are too old and that no job names, and where to go on. For `Store.read`."""
    rows = tx.rows(
        f"SELECT sha256, owner, uploaded_at, {_NAMED} FROM uploads WHERE (sha256, owner) > (?, ?) ORDER BY sha256, owner LIMIT ?",  # noqa: S608
        (*after, MANY),
    )
    until = tx.at - span(policy.uploads)
    found = [row[:3] for row in rows if row[2] < until and not row[3]]
    return found, (rows[-1][0], rows[-1][1]) if len(rows) == MANY else None


_NAMED = "EXISTS (SELECT 1 FROM inputs i WHERE i.sha256 = uploads.sha256)"


def remove_uploads(tx: Tx, rows: Sequence[Row]) -> int:
    """Take uploads that were neither made again nor named meanwhile; how many."""
    return tx.many(
        f"DELETE FROM uploads WHERE sha256 = ? AND owner = ? AND uploaded_at = ? AND NOT {_NAMED}",  # noqa: S608 - our own constant
        rows,
    )


def unnamed(tx: Tx, digests: Iterable[str]) -> list[str]:
    """Those of some blobs that no row names. For `Store.read`.

    No row can name one of them later without its bytes being stored anew: a submission may name only what a row names already.
    """
    wanted = set(digests)
    array = tx.array(wanted)
    for table, column in (
        ("inputs", "sha256"), ("handed", "sha256"), ("artifacts", "sha256"), ("attempts", "workspace"), ("uploads", "sha256"),
        ("releases", "sha256"),
    ):  # fmt: skip
        some = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL AND {tx.any_of(column)}"  # noqa: S608
        wanted -= {row[0] for row in tx.rows(some, (array,))}
    return sorted(wanted)


def check_kept(tx: Tx, seq: int, job_id: str, part: Part) -> None:
    """Raises Gone where retention took this part of the job."""
    row = tx.row("SELECT at, why FROM removed WHERE job_seq = ? AND part = ?", (seq, part.value))
    if row is not None:
        raise Gone(
            f"the {part.value} of job {job_id} were removed at {when(row[0]):%Y-%m-%d %H:%M} UTC: {row[1]}",
            hint="the coordinator's `retention` says how long they are kept: `ostler retention`",
        )
