"""Why a job is where it is, in one sentence and in numbers."""

from collections.abc import Collection

from ostler.coordinator.operations import waits
from ostler.coordinator.operations.claims import Placements, ahead_of, rivals
from ostler.coordinator.operations.quotas import held_back
from ostler.coordinator.operations.views import job_of, job_row
from ostler.coordinator.placement.explain import Standing, explain
from ostler.coordinator.placement.shape import Shape
from ostler.coordinator.store.schema import LIVE_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobState
from ostler.model.node import NodeState
from ostler.protocol.messages import Explanation, JobView, outside

MAX_AHEAD = 1000


def explain_job(tx: Tx, job_id: str, latency: Collection[str] = ()) -> Explanation:
    """Why a job is where it is; `latency` names the queues of that class. NotFound."""
    row = job_row(tx, job_id)
    job, seq = job_of(row), row[0]
    if job.state is not JobState.QUEUED or job.held or job.waiting:
        return Explanation(job_id=job_id, state=job.state, summary=_story(tx, job, seq))
    places = tx.memo(Placements)
    found = tx.row("SELECT shape_id, rank FROM jobs WHERE seq = ?", (seq,))
    shape_id, rank = found or (0, 0)
    shape = places.shapes_of(tx, [shape_id])[shape_id]
    nodes, ahead, others = _standings(tx, places), 0, 0
    if shape.service is None:  # a command waits for nobody
        if (why := held_back(tx, shape.owner)) is not None:
            return Explanation(job_id=job_id, state=job.state, summary=why)
        ahead = ahead_of(tx, shape, rank=rank, seq=seq, limit=MAX_AHEAD, latency=latency)
        others = rivals(tx, shape, [(node.offer, node.number) for node in nodes])
    reasons = explain(shape, nodes, ahead=ahead, ahead_capped=ahead >= MAX_AHEAD, others=others)
    return Explanation(
        job_id=job_id, state=job.state, summary=reasons.summary, nodes_total=reasons.total, nodes_fitting=reasons.fitting,
        nodes_free=reasons.free, ahead=ahead, others=others, blockers=reasons.blockers,
    )  # fmt: skip


def _standings(tx: Tx, places: Placements) -> list[Standing]:
    """All nodes that are not retired, as placement sees them."""
    live: dict[str, list[int]] = {}
    for node_id, shape_id in tx.rows(
        f"""SELECT a.node_id, j.shape_id FROM attempts a JOIN jobs j ON j.seq = a.job_seq
            WHERE a.state IN ({LIVE_SQL})"""  # noqa: S608 - our own constant
    ):
        live.setdefault(node_id, []).append(shape_id)
    shapes = places.shapes_of(tx, {shape_id for some in live.values() for shape_id in some})
    rows = tx.rows(
        """SELECT node_id, state, offer, cpu_slots, gpu_slots, draining, disk_free_mb, cordoned, quarantine, protocol FROM nodes
           WHERE state <> 'retired' ORDER BY node_id"""
    )
    return [
        Standing(
            offer=places.offer_of(tx, node_id, number, (cpu_slots, gpu_slots)),
            number=number,
            state=NodeState(state),
            live=_shapes(live.get(node_id, []), shapes),
            draining=bool(draining),
            cordoned=cordoned is not None,
            quarantined=bool(draining) and quarantine is not None,
            outside=outside(protocol) is not None,
            disk_free_mb=disk_free_mb,
        )
        for node_id, state, number, cpu_slots, gpu_slots, draining, disk_free_mb, cordoned, quarantine, protocol in rows
    ]


def _shapes(shape_ids: list[int], shapes: dict[int, Shape]) -> tuple[Shape, ...]:
    return tuple(shapes[shape_id] for shape_id in shape_ids)


def _story(tx: Tx, job: JobView, seq: int) -> str:
    """One sentence about a job that is not waiting for a node."""
    why = f" ({job.failure.code.value}: {job.failure.message})" if job.failure else ""
    if job.held and job.state in {JobState.QUEUED, JobState.RETRY_WAIT}:
        return f"it is held by a person: `ostler job release {job.job_id}`"
    if job.waiting:
        return f"it waits {waits.waits_for(tx, seq, job.not_before)}"
    match job.state:
        case JobState.RETRY_WAIT:
            due = job.due_at.isoformat(timespec="seconds") if job.due_at else "soon"
            return f"it failed{why} and is tried again at {due}: `ostler job retry {job.job_id}` tries now"
        case JobState.LEASED:
            return f"it was offered to {job.node_id}, which has not accepted it yet"
        case JobState.ACKED | JobState.PREPARING | JobState.RUNNING | JobState.UPLOADING:
            wish = "; its cancel was asked for" if job.cancel_requested else ""
            return f"it is {job.state.value} on {job.node_id} (attempt {job.attempt}){wish}"
        case JobState.FAILED:
            tries = f"{job.tries} {'try' if job.tries == 1 else 'tries'}"
            return f"it failed{why} after {tries}; `ostler job retry {job.job_id}` submits it anew"
        case JobState.EXPIRED:
            return "its time-to-live passed before any node took it"
        case JobState.DONE:
            return f"it ended well; see `ostler job show {job.job_id}`"
    return f"it is over; `ostler job retry {job.job_id}` submits it anew"
