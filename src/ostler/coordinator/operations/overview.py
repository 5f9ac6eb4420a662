"""The fleet at a glance: nodes, who has what queued and running, the newest failures. Its cost does not grow with what is queued."""

from collections import Counter

from ostler.coordinator.operations.claims import Placements, queued_shapes_sql
from ostler.coordinator.operations.listing import list_jobs
from ostler.coordinator.operations.views import NODE_COLUMNS, node_of
from ostler.coordinator.store.schema import LIVE_SQL, QUEUED_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobState
from ostler.model.node import NodeState
from ostler.protocol.messages import JobQuery, JobView, NodeLoad, Overview, QueueLoad

COUNTED = 10_000  # jobs of one shape; more are not counted one by one every other second
COUNTED_TOGETHER = 50_000  # those of all shapes: of many shapes so many less of each
MAX_NODES = 1000
FAILURES = 8


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
    most = min(COUNTED, max(100, COUNTED_TOGETHER // max(1, len(shapes))))
    for shape_id, shape in shapes.items():
        if owner is None or shape.owner == owner:
            row = tx.row(
                f"""SELECT count(*) FROM (SELECT 1 FROM jobs {tx.by_index("ix_jobs_claim")}
                    WHERE shape_id = ? AND {QUEUED_SQL} LIMIT ?) AS queued""",  # noqa: S608
                (shape_id, most),
            )
            queued = row[0] if row else 0
            load = found.setdefault((shape.owner or "", shape.queue), [0, 0, 0])
            load[0], load[1], load[2] = load[0] + queued, load[1] + running[shape_id], load[2] or int(queued >= most)
    return tuple(
        QueueLoad(owner=name or None, queue=queue, queued=queued, running=runs, more=bool(more))
        for (name, queue), (queued, runs, more) in sorted(found.items())
        if queued or runs
    )


def _failures(tx: Tx, owner: str | None) -> tuple[JobView, ...]:
    """The newest failures, last to first: of the jobs that were submitted last among those that failed."""
    page = list_jobs(tx, JobQuery(state=JobState.FAILED, owner=owner, limit=FAILURES))
    return tuple(sorted(page.items, key=lambda view: view.finished_at or view.submitted_at, reverse=True))
