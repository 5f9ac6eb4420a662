"""What the coordinator's own loops do to the store, a bounded piece at a time."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from ostler.coordinator.operations import sessions
from ostler.coordinator.operations.changes import Changes, load_distant, load_due, load_expired, waits_too_long, write
from ostler.coordinator.operations.leases import expire_attempts
from ostler.coordinator.operations.nodes import empty_node
from ostler.coordinator.operations.summons import summon_jobs
from ostler.coordinator.store.schema import LIVE_SQL, UNTIL_TIME
from ostler.coordinator.store.times import when_or_none
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobEvent
from ostler.model.node import TRANSITIONS, NodeEvent, NodeState
from ostler.protocol.messages import Held

DISTANT = timedelta(seconds=5)  # a wait with less left than this is not worth a doubt
BATCH = 500  # jobs in one transaction: others wait no longer than for that


@dataclass(frozen=True, slots=True)
class Watched:
    """A node as the loops watch it; `busy` while it has a live attempt."""

    node_id: str
    state: NodeState
    renewals: int
    busy: bool


@dataclass(frozen=True, slots=True)
class MissingAttempt:
    """A live attempt that its node's last report lacks; `note` is another number each time that it goes missing."""

    node_id: str
    held: Held
    note: int


def renewals_of_nodes(tx: Tx) -> dict[str, int]:
    """The renewal counter of each node that is not retired. For `Store.read`, each few seconds and of ten thousand: nothing more."""
    return dict(tx.rows("SELECT node_id, renewals FROM nodes WHERE state <> 'retired'"))


def watch_nodes(tx: Tx, node_ids: Collection[str]) -> list[Watched]:
    """Those of these nodes that are not retired. For `Store.read`."""
    named = (tx.array(node_ids),)
    mine = tx.any_of("node_id")
    busy = {row[0] for row in tx.rows(f"SELECT DISTINCT node_id FROM attempts WHERE {mine} AND state IN ({LIVE_SQL})", named)}  # noqa: S608
    rows = tx.rows(f"SELECT node_id, state, renewals FROM nodes WHERE {mine} AND state <> 'retired'", named)  # noqa: S608
    return [Watched(node_id, NodeState(state), renewals, node_id in busy) for node_id, state, renewals in rows]


def emptied_nodes(tx: Tx) -> list[str]:
    """The draining nodes that hold no attempt any more. For `Store.read`."""
    return [
        row[0]
        for row in tx.rows(
            f"""SELECT n.node_id FROM nodes n WHERE n.state = 'draining'
                AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.node_id = n.node_id AND a.state IN ({LIVE_SQL}))"""  # noqa: S608
        )
    ]


def watch_missing(tx: Tx) -> list[MissingAttempt]:
    """All live attempts that their nodes do not name any more. For `Store.read`."""
    rows = tx.rows(
        f"""SELECT a.node_id, j.job_id, a.attempt, a.missing FROM attempts a JOIN jobs j ON j.seq = a.job_seq
            WHERE a.state IN ({LIVE_SQL}) AND a.missing IS NOT NULL"""  # noqa: S608 - our own constant
    )
    return [MissingAttempt(node_id, Held(job_id, attempt), note) for node_id, job_id, attempt, note in rows]


def lose_node(tx: Tx, node_id: str, renewals: int, reason: str) -> list[Held]:
    """A node that did not renew since `renewals` was read is lost, its attempts with it; nothing where it did."""
    node = sessions.find(tx, node_id)
    if node is None or node.renewals != renewals:
        return []
    for event in (NodeEvent.MISS, NodeEvent.LOSE):  # one that drains stays draining: that is a person's wish
        if (node.state, event) in TRANSITIONS:
            node = sessions.advanced(tx, node, event, reason)
    return expire_attempts(tx, node_id, renewals=renewals, reason=reason)


def miss_node(tx: Tx, node_id: str, renewals: int, reason: str) -> bool:
    """A node that did not renew since `renewals` was read is unknown; whether it became so."""
    node = sessions.find(tx, node_id)
    if node is None or node.renewals != renewals or (node.state, NodeEvent.MISS) not in TRANSITIONS:
        return False
    sessions.advanced(tx, node, NodeEvent.MISS, reason)
    return True


def drain_ended(tx: Tx, node_id: str) -> bool:
    """A draining node without attempts is drained; whether it became so."""
    node = sessions.find(tx, node_id)
    return node is not None and empty_node(tx, node)


def next_due_s(tx: Tx) -> float | None:
    """Seconds until the next wait for a retry is over (0 or less: now); None where nobody waits. For `Store.read`."""
    row = tx.row(f"SELECT min(due_at) FROM jobs {tx.by_index('ix_jobs_due')} WHERE state = 'retry_wait'")  # noqa: S608
    due_at = when_or_none(row[0]) if row else None
    return None if due_at is None else (due_at - tx.now).total_seconds()


def promote_due(tx: Tx) -> int:
    """Queue jobs whose wait for a retry is over; how many."""
    changes, cases = Changes(tx), load_due(tx, limit=BATCH)
    for case in cases:
        changes.apply(case, JobEvent.DUE, None)
    changes.flush()
    if cases:
        tx.wake(("queue",))
    return len(cases)


def misdated(tx: Tx) -> bool:
    """Whether a job waits for longer than its policy lets it. For `Store.read`."""
    return any(waits_too_long(case, tx.now) for case in load_distant(tx, after=DISTANT, limit=BATCH))


def promote_misdated(tx: Tx) -> int:
    """Queue jobs that wait for longer than their policies let them, because a clock was ahead and is set right; how many."""
    changes, cases = Changes(tx), [case for case in load_distant(tx, after=DISTANT, limit=BATCH) if waits_too_long(case, tx.now)]
    for case in cases:
        changes.apply(case, JobEvent.DUE, None, message="the clock was set back while it waited")
    changes.flush()
    if cases:
        tx.wake(("queue",))
    return len(cases)


def next_start_s(tx: Tx) -> float | None:
    """Seconds until the next job's `not_before` (0 or less: now); None where nobody waits for one. For `Store.read`."""
    row = tx.row(f"SELECT min(not_before) FROM jobs {tx.by_index('ix_jobs_not_before')} WHERE waits >= 2")  # noqa: S608
    start_at = when_or_none(row[0]) if row else None
    return None if start_at is None else (start_at - tx.now).total_seconds()


def start_due(tx: Tx) -> int:
    """Let jobs go whose `not_before` has come, as far as that was what they waited for; how many."""
    rows = tx.rows(
        f"SELECT seq, job_id, waits FROM jobs {tx.by_index('ix_jobs_not_before')} "  # noqa: S608 - a fragment of ours
        "WHERE waits >= 2 AND not_before <= ? ORDER BY not_before, seq LIMIT ?",
        (tx.at, BATCH),
    )
    write(tx, "UPDATE jobs SET waits = waits - ? WHERE seq = ? AND waits = ?", [(UNTIL_TIME, row[0], row[2]) for row in rows])
    changes = Changes(tx)
    for seq, job_id, waits in rows:
        if waits == UNTIL_TIME:
            changes.note("ready", seq, None, None, "its time has come")
            tx.wake(("job", job_id), ("queue",))
    changes.flush()
    if rows:
        summon_jobs(tx, [row[0] for row in rows])
    return len(rows)


def next_expiry_s(tx: Tx) -> float | None:
    """Seconds until the next time-to-live of a pending job is over (0 or less: now), or None. For `Store.read`."""
    row = tx.row(
        f"SELECT min(expires_at) FROM jobs {tx.by_index('ix_jobs_expires')} "  # noqa: S608 - a fragment of ours
        "WHERE expires_at IS NOT NULL AND state IN ('queued', 'retry_wait')"
    )
    expires_at = when_or_none(row[0]) if row else None
    return None if expires_at is None else (expires_at - tx.now).total_seconds()


def expire_due(tx: Tx) -> int:
    """Expire pending jobs whose time-to-live is over; how many."""
    changes, cases = Changes(tx), load_expired(tx, limit=BATCH)
    for case in cases:
        changes.apply(case, JobEvent.EXPIRE, None, message="its time-to-live passed before any node took it")
    changes.flush()
    return len(cases)
