"""Who of those that ask could take anything that is queued: asked before thousands of idle nodes are woken for one job."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ostler.coordinator.operations.claims import Placements, queued_shapes_sql
from ostler.coordinator.store.tx import Tx


class Asking(NamedTuple):
    """A node's open poll: how many more jobs it takes now."""

    node_id: str
    slots: int
    gpu_slots: int


class Takers(NamedTuple):
    """The shapes of all jobs that could be leased now, and the nodes among those that ask who could run one of them."""

    queued: frozenset[int]
    found: set[str]


def takers_of(tx: Tx, askers: Sequence[Asking], latency: Collection[str] = ()) -> Takers:
    """Who of the askers could run one of the jobs that are queued now, if they had room. For `Store.read`.

    A node with no slot free takes jobs of the `latency` queues alone. What its live attempts leave of its memory is not looked at:
    that is the claim's to find out.
    """
    queued = frozenset(row[0] for row in tx.rows(queued_shapes_sql(tx)))
    if not queued or not askers:
        return Takers(queued, set())
    places = tx.memo(Placements)
    shapes = places.shapes_of(tx, queued)
    on_gpus = {shape_id for shape_id, shape in shapes.items() if shape.demand.gpu_slots}
    hasty = {shape_id for shape_id, shape in shapes.items() if shape.queue in latency} - on_gpus
    on_cpus = shapes.keys() - on_gpus
    rows = tx.rows(
        f"""SELECT node_id, offer, cpu_slots, gpu_slots FROM nodes
            WHERE {tx.any_of("node_id")} AND state NOT IN ('draining', 'drained', 'retired') AND draining = 0 AND cordoned IS NULL""",  # noqa: S608
        (tx.array(one.node_id for one in askers),),
    )
    there = {row[0]: row for row in rows}
    found = set()
    for one in askers:
        wanted = (on_cpus if one.slots > 0 else hasty) | (on_gpus if one.gpu_slots > 0 else set())
        if wanted and (row := there.get(one.node_id)) is not None:
            offer = places.offer_of(tx, one.node_id, row[1], (row[2], row[3]))
            if places.met_by(offer, row[1], {shape_id: shapes[shape_id] for shape_id in wanted}):
                found.add(one.node_id)
    return Takers(queued, found)
