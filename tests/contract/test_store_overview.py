"""The store contract: the fleet at a glance, whole or as far as a submitter may see."""

from datetime import timedelta

from ostler.coordinator.operations import jobs, nodes
from ostler.coordinator.operations import overview as overviews
from ostler.coordinator.operations.overview import overview
from ostler.model.failures import FailureCode
from ostler.model.manifest import Requirements
from ostler.protocol import messages as m
from store_rig import Rig, manifest


async def submit(rig: Rig, owner: str, count: int = 1, **changes) -> list[str]:
    answer = await rig.write(jobs.submit_jobs, [manifest(**changes)] * count, owner)
    return [one.job_id for one in answer.items]


def loads(found: m.Overview) -> list[tuple[str | None, str, int, int]]:
    return [(one.owner, one.queue, one.running, one.queued) for one in found.queues]


async def test_it_counts_by_submitter_and_queue(rig: Rig, monkeypatch):
    assert await rig.read(overview) == m.Overview(at=rig.clock.now())
    await submit(rig, "a", 3)
    await submit(rig, "a", 2, requirements=Requirements(memory_mb=1))
    await submit(rig, "a", 4, queue="slow")
    await submit(rig, "b", 2)
    await rig.join()
    await rig.join("gone")
    await rig.write(nodes.retire_node, "gone")
    some = await rig.begin(slots=4)
    assert len(some) == 4
    found = await rig.read(overview)
    assert loads(found) == [("a", "default", 2, 3), ("a", "slow", 0, 4), ("b", "default", 2, 0)]
    assert [(one.node.node_id, one.jobs) for one in found.nodes] == [("n1", 4)]
    mine = await rig.read(overview, "b")
    assert loads(mine) == [("b", "default", 2, 0)]
    assert [(one.node.node_id, one.jobs) for one in mine.nodes] == [("n1", 2)]
    monkeypatch.setattr(overviews, "COUNTED", 4)  # ten thousand jobs would only make the test slow
    assert [one.more for one in (await rig.read(overview)).queues] == [False, True, False]


async def test_the_newest_failures_last_to_first(rig: Rig):
    await rig.join()
    failed = {}
    for owner, queue in (("a", "default"), ("b", "slow"), ("a", "slow")) * 4:
        (job_id,) = await submit(rig, owner, queue=queue)
        (lease,) = await rig.begin(slots=1)
        rig.clock.advance(1)
        await rig.fail("n1", lease, FailureCode.DENY)
        failed[job_id] = owner
    newest = [one.job_id for one in (await rig.read(overview)).failures]
    assert newest == list(failed)[::-1][:8]
    own = (await rig.read(overview, "b")).failures
    assert [one.job_id for one in own] == [job_id for job_id in list(failed)[::-1] if failed[job_id] == "b"]
    assert all(one.failure and one.failure.code is FailureCode.DENY for one in own)
    assert own[0].finished_at == rig.clock.now() - timedelta(seconds=1)
