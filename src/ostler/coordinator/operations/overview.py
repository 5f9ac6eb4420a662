"""The fleet at a glance: nodes, who has what queued and running, the newest failures. Its cost does not grow with what is queued."""

from collections import Counter

from ostler.coordinator.operations.claims import Placements, queued_shapes_sql
from ostler.coordinator.operations.views import JOB_COLUMNS, JOB_FROM, NODE_COLUMNS, job_of, node_of
from ostler.coordinator.store.schema import LIVE_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.node import NodeState
from ostler.protocol.messages import JobView, NodeLoad, Overview, QueueLoad

COUNTED = 10_000  # jobs of one shape; more are not counted one by one every other second
MAX_NODES = 1000
FAILURES = 8
LOOKED_AT = 1000  # newest jobs of a submitter, for those that failed


def overview(tx: Tx, owner: str | None = None) -> Overview:
    """All of it, or what a submitter may know of. For `Store.read`."""
    whose, params = ("", ()) if owner is None else ("AND j.owner = ?", (owner,))
    running: Counter[int] = Counter()
    held: Counter[str] = Counter()
    for node_id, shape_id, count in tx.rows(
        f"""SELECT a.node_id, j.shape_id, count(*) FROM attempts a JOIN jobs j ON j.seq = a.job_seq
            WHERE a.state IN ({LIVE_SQL}) {whose} GROUP BY a.node_id, j.shape_id""",  # noqa: S608 - fragments of ours
        params,
    ):
        running[shape_id] += count
        held[node_id] += count
    nodes = tx.rows(
        f"SELECT {NODE_COLUMNS} FROM nodes n WHERE n.state <> ? ORDER BY n.node_id LIMIT ?",  # noqa: S608 - our own constant
        (NodeState.RETIRED.value, MAX_NODES),
    )
    return Overview(
        at=tx.now,
        nodes=tuple(NodeLoad(node=node_of(row), jobs=held[row[0]]) for row in nodes),
        queues=_queues(tx, running, owner),
        failures=_failures(tx, owner),
    )


def _queues(tx: Tx, running: Counter[int], owner: str | None) -> tuple[QueueLoad, ...]:
    shapes = tx.memo(Placements).shapes_of(tx, {row[0] for row in tx.rows(queued_shapes_sql(tx))} | running.keys())
    found: dict[tuple[str, str], list[int]] = {}
    for shape_id, shape in shapes.items():
        if owner is None or shape.owner == owner:
            row = tx.row(
                f"""SELECT count(*) FROM (SELECT 1 FROM jobs {tx.by_index("ix_jobs_claim")}
                    WHERE shape_id = ? AND state = 'queued' AND held = 0 AND waits = 0 LIMIT ?) AS queued""",  # noqa: S608
                (shape_id, COUNTED),
            )
            queued = row[0] if row else 0
            load = found.setdefault((shape.owner or "", shape.queue), [0, 0, 0])
            load[0], load[1], load[2] = load[0] + queued, load[1] + running[shape_id], load[2] or int(queued >= COUNTED)
    return tuple(
        QueueLoad(owner=name or None, queue=queue, queued=queued, running=runs, more=bool(more))
        for (name, queue), (queued, runs, more) in sorted(found.items())
        if queued or runs
    )


def _failures(tx: Tx, owner: str | None) -> tuple[JobView, ...]:
    """The newest failures, last to first."""
    if owner is None:
        # One walk along the index of states per queue and no sort over all failures there ever were.
        rows = [
            row
            for (queue,) in tx.rows(_QUEUES)
            for row in tx.rows(
                f"""SELECT {JOB_COLUMNS} {JOB_FROM} WHERE j.state = 'failed' AND j.queue = ? ORDER BY j.seq DESC LIMIT ?""",
                (queue, FAILURES),
            )
        ]
    else:
        mine = f"SELECT seq, state FROM jobs {tx.by_index('ix_jobs_owner')} WHERE owner = ? ORDER BY seq DESC LIMIT ?"  # noqa: S608
        rows = tx.rows(
            f"""SELECT {JOB_COLUMNS} {JOB_FROM}
                WHERE j.seq IN (SELECT seq FROM ({mine}) AS mine WHERE state = 'failed' ORDER BY seq DESC LIMIT ?)""",  # noqa: S608
            (owner, LOOKED_AT, FAILURES),
        )
    views = sorted(map(job_of, rows), key=lambda view: view.finished_at or view.submitted_at, reverse=True)
    return tuple(views[:FAILURES])


_QUEUES = """
    WITH RECURSIVE named(queue) AS (
        SELECT min(queue) FROM jobs WHERE state = 'failed'
        UNION ALL
        SELECT (SELECT min(queue) FROM jobs WHERE state = 'failed' AND queue > named.queue) FROM named WHERE queue IS NOT NULL
    ) SELECT queue FROM named WHERE queue IS NOT NULL LIMIT 100"""
