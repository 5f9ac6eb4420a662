"""Who is woken for what is queued: nobody in vain, and nobody who could take it is left asleep."""

from typing import Any

from ostler.coordinator.operations import jobs, nodes
from ostler.coordinator.operations.takers import Asking, takers_of
from ostler.model.manifest import Requirements
from ostler.protocol import messages as m
from store_rig import Rig, capabilities


async def takers(rig: Rig, *askers: tuple[str, int, int], latency: Any = ()) -> list[str]:
    answer = await rig.read(takers_of, [Asking(*one) for one in askers], latency)
    assert len(answer.queued) == len(await rig.rows("SELECT DISTINCT shape_id FROM jobs WHERE state = 'queued' AND held = 0"))
    return [one[0] for one in askers if one[0] in answer.found]


async def test_nobody_where_nothing_is_queued(rig: Rig):
    await rig.join("n1")
    assert await takers(rig, ("n1", 4, 0)) == []
    (job_id,) = await rig.submit()
    await rig.write(jobs.hold_job, job_id)
    assert await takers(rig, ("n1", 4, 0)) == []


async def test_those_who_have_what_a_job_needs_in_their_order(rig: Rig):
    await rig.join("cpu")
    await rig.join("gpu", gpu_slots=1, vram=[24_000])
    await rig.join("small", gpu_slots=1, vram=[4_000])
    everybody = [("small", 2, 1), ("cpu", 2, 0), ("gpu", 0, 1)]
    await rig.submit(requirements=Requirements(gpu=True, vram_mb=16_000))
    assert await takers(rig, *everybody) == ["gpu"]
    await rig.submit()
    assert await takers(rig, *everybody) == ["small", "cpu", "gpu"]
    assert await takers(rig, ("gpu", 2, 0), ("cpu", 0, 0), ("nobody", 9, 9)) == ["gpu"]


async def test_without_a_free_slot_only_what_is_urgent(rig: Rig):
    await rig.join("n1")
    await rig.submit()
    assert await takers(rig, ("n1", 0, 0), latency={"interactive"}) == []
    await rig.submit(queue="interactive")
    assert await takers(rig, ("n1", 0, 0), latency={"interactive"}) == ["n1"]


async def test_nodes_that_take_no_work_are_left_alone(rig: Rig):
    for name in ("ready", "cordoned", "drained", "itself"):
        await rig.join(name)
    await rig.write(nodes.cordon_node, "cordoned")
    await rig.write(nodes.drain_node, "drained", m.DrainRequest())
    await rig.beat("itself", draining=True)
    await rig.submit()
    assert await takers(rig, *((name, 1, 0) for name in ("ready", "cordoned", "drained", "itself"))) == ["ready"]


async def test_what_a_node_has_now_counts_and_not_what_it_had(rig: Rig):
    await rig.join("n1")
    await rig.submit(requirements=Requirements(memory_mb=20_000))
    assert await takers(rig, ("n1", 1, 0)) == []
    await rig.beat("n1", capabilities=capabilities("n1", memory_mb=64_000))
    assert await takers(rig, ("n1", 1, 0)) == ["n1"]
