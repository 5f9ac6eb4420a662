"""The coordinator's loops on a real store, with a clock that moves when told to."""

import asyncio
from datetime import timedelta

import pytest

from ostler.coordinator.loops.expirer import Expirer
from ostler.coordinator.loops.lease_rescuer import LeaseRescuer
from ostler.coordinator.loops.node_watcher import NodeWatcher
from ostler.coordinator.loops.retry_promoter import RetryPromoter
from ostler.coordinator.operations import duties, nodes, reads
from ostler.coordinator.operations.leases import expire_attempts
from ostler.model.attempt import AttemptState
from ostler.model.failures import FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import RetryPolicy
from ostler.model.node import NodeState
from ostler.protocol import messages as m
from store_rig import LOGGER, Rig, held

LEASE, MARGIN, BEAT = timedelta(seconds=45), timedelta(seconds=5), timedelta(seconds=15)


@pytest.fixture
def rig(tmp_path):
    rig = Rig.open(tmp_path / "ostler.db")
    yield rig
    rig.close()


def rescuer(rig: Rig) -> LeaseRescuer:
    return LeaseRescuer(rig.store, lease=LEASE, margin=MARGIN, clock=rig.clock, logger=LOGGER)


def watcher(rig: Rig) -> NodeWatcher:
    return NodeWatcher(rig.store, heartbeat=BEAT, clock=rig.clock, logger=LOGGER)


async def turns(rig: Rig, loop, seconds: float, *, beat: tuple[str, ...] = (), kept=()) -> None:
    """Let time pass in the loop's own steps; these nodes go on with their heartbeats."""
    passed = 0.0
    while passed < seconds:
        rig.clock.advance(loop.interval_s)
        passed += loop.interval_s
        for node in beat:
            await rig.beat(node, held=kept)
        await loop.turn()


async def state(rig: Rig, job_id: str) -> JobState:
    return (await rig.read(reads.job_state, job_id)).state


async def node_state(rig: Rig, node_id: str = "n1") -> NodeState:
    return (await rig.read(reads.show_node, node_id)).state


async def test_a_silent_node_is_lost_after_a_whole_lease_and_not_before(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    loop = rescuer(rig)
    await loop.turn()
    await turns(rig, loop, 48)
    assert (await state(rig, job_id), await node_state(rig)) == (JobState.ACKED, NodeState.READY)
    await turns(rig, loop, 3)
    assert (await state(rig, job_id), await node_state(rig)) == (JobState.RETRY_WAIT, NodeState.LOST)
    job = await rig.job(job_id)
    assert job.failure is not None
    assert "silent for its whole lease of 45 s" in job.failure.message


async def test_renewals_of_one_node_keep_its_own_attempts_alone(rig: Rig):
    await rig.join("n1")
    await rig.join("n2")
    one, two = await rig.submit(2)
    (lease,) = await rig.begin("n1", slots=1)
    await rig.begin("n2", slots=1)
    loop = rescuer(rig)
    await turns(rig, loop, 120, beat=("n1",), kept=held([lease]))
    assert (await state(rig, one), await state(rig, two)) == (JobState.ACKED, JobState.RETRY_WAIT)


async def test_a_pull_renews_too(rig: Rig):
    await rig.join()
    (job_id,) = await rig.submit()
    some = await rig.begin()
    loop = rescuer(rig)
    for _ in range(12):
        await turns(rig, loop, 9)
        await rig.pull(slots=0, held=held(some))
    assert await state(rig, job_id) is JobState.ACKED


async def test_a_fresh_rescuer_judges_nobody_for_a_whole_lease(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    rig.clock.advance(3600)  # the coordinator was down for an hour
    rig.reopen()
    loop = rescuer(rig)
    await turns(rig, loop, 45)
    assert await state(rig, job_id) is JobState.ACKED
    await turns(rig, loop, 12)
    assert await state(rig, job_id) is JobState.RETRY_WAIT


async def test_the_rescuers_own_stall_is_held_against_nobody(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    loop = rescuer(rig)
    await turns(rig, loop, 30)
    rig.clock.advance(600)  # the process was stopped, or the machine slept
    await loop.turn()
    assert await state(rig, job_id) is JobState.ACKED
    await turns(rig, loop, 20)
    assert await state(rig, job_id) is JobState.RETRY_WAIT


async def test_an_attempt_that_its_node_forgot_is_asked_about_and_then_expired(rig: Rig):
    forgotten, kept = await rig.submit(2)
    await rig.join()
    begun = await rig.begin(slots=2)
    still = held(begun[1:])
    loop = rescuer(rig)
    assert [(one.kind, one.job_id) for one in await rig.beat(held=still)] == [(m.DirectiveKind.RECONCILE, forgotten)]
    await turns(rig, loop, 45, beat=("n1",), kept=still)
    assert await state(rig, forgotten) is JobState.ACKED
    await turns(rig, loop, 12, beat=("n1",), kept=still)
    assert (await state(rig, forgotten), await state(rig, kept)) == (JobState.RETRY_WAIT, JobState.ACKED)
    assert await node_state(rig) is NodeState.READY


async def test_an_attempt_that_is_named_again_has_a_whole_lease_again(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    begun = await rig.begin()
    loop = rescuer(rig)
    await turns(rig, loop, 40, beat=("n1",), kept=())
    await rig.beat(held=held(begun))
    await turns(rig, loop, 40, beat=("n1",), kept=())
    assert await state(rig, job_id) is JobState.ACKED
    await turns(rig, loop, 15, beat=("n1",), kept=())
    assert await state(rig, job_id) is JobState.RETRY_WAIT


async def test_an_offer_to_a_node_that_only_beats_goes_back(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.pull()
    await turns(rig, rescuer(rig), 60, beat=("n1",))
    job = await rig.job(job_id)
    assert (job.state, job.tries, job.attempts[0].state) == (JobState.QUEUED, 0, AttemptState.RETURNED)


async def test_reports_in_the_sources_form_renew_everything(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    await turns(rig, rescuer(rig), 120, beat=("n1",), kept=None)
    assert await state(rig, job_id) is JobState.ACKED


async def test_a_rescuer_killed_between_observing_and_acting_loses_nothing(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    loop = rescuer(rig)
    await turns(rig, loop, 46)
    (seen,) = await rig.read(duties.watch_nodes, ["n1"])
    rig.reopen()  # it died here; the next one starts to watch anew
    assert await state(rig, job_id) is JobState.ACKED
    assert (await rig.finish("n1", lease)).ok
    assert await rig.write(duties.lose_node, "n1", seen.renewals, "late") == []
    assert await state(rig, job_id) is JobState.DONE


async def test_expiry_and_result_race_to_one_outcome(rig: Rig):
    """Whichever commits first stands; the other changes nothing."""
    await rig.join()
    job_ids = await rig.submit(20, retries=0)
    begun = await rig.begin(slots=20)
    results = await asyncio.gather(
        *(rig.finish("n1", lease) for lease in begun[:10]),
        rig.write(expire_attempts, "n1"),
        *(rig.finish("n1", lease) for lease in begun[10:]),
    )
    ended = {one.job_id for one in results[10]}
    for lease, result in zip(begun, [*results[:10], *results[11:]], strict=True):
        assert result.ok is (lease.job_id not in ended)
        assert await state(rig, lease.job_id) is (JobState.FAILED if lease.job_id in ended else JobState.DONE)
    assert len(job_ids) == 20


async def test_unknown_comes_early_and_costs_nothing(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    some = await rig.begin()
    loop = watcher(rig)
    await turns(rig, loop, 30)
    assert await node_state(rig) is NodeState.READY
    await turns(rig, loop, 3)
    assert (await node_state(rig), await state(rig, job_id)) == (NodeState.UNKNOWN, JobState.ACKED)
    await rig.beat(held=held(some))
    assert await node_state(rig) is NodeState.READY
    await turns(rig, loop, 60, beat=("n1",), kept=held(some))
    assert await node_state(rig) is NodeState.READY


async def test_an_enrolled_node_that_never_came_is_unknown(rig: Rig):
    await rig.join()
    await turns(rig, watcher(rig), 36)
    assert await node_state(rig) is NodeState.UNKNOWN


async def test_draining_ends_when_the_last_attempt_does(rig: Rig):
    await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.write(nodes.drain_node, "n1", m.DrainRequest())
    loop = watcher(rig)
    await turns(rig, loop, 9, beat=("n1",), kept=held([lease]))
    assert await node_state(rig) is NodeState.DRAINING
    await rig.finish("n1", lease)
    await turns(rig, loop, 3, beat=("n1",))
    assert await node_state(rig) is NodeState.DRAINED


async def test_a_silent_draining_node_loses_its_attempts_and_drains(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.begin()
    await rig.write(nodes.drain_node, "n1", m.DrainRequest())
    await turns(rig, rescuer(rig), 60)
    assert (await state(rig, job_id), await node_state(rig)) == (JobState.RETRY_WAIT, NodeState.DRAINING)
    await watcher(rig).turn()
    assert await node_state(rig) is NodeState.DRAINED


async def test_retries_come_back_when_they_are_due(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    loop = RetryPromoter(rig.store, clock=rig.clock, logger=LOGGER)
    assert await loop.turn() is None
    await rig.fail("n1", lease)
    assert await loop.turn() == 0.5
    rig.clock.advance(1.2)
    async with rig.store.wakeups.subscribe(("queue",)) as event:
        assert await loop.turn() == 0.0
        await event.wait()
    assert await state(rig, job_id) is JobState.QUEUED
    assert (await rig.pull())[0].tries == 1


async def test_a_clock_that_was_ahead_keeps_nobody_waiting(rig: Rig):
    """Dated while the clock was an hour ahead; then somebody sets it right. A wait that its policy allows is left alone."""
    (job_id,) = await rig.submit()
    (patient,) = await rig.submit(retries=RetryPolicy(max=3, backoff_s=200.0))
    await rig.join()
    loop = RetryPromoter(rig.store, clock=rig.clock, logger=LOGGER)
    rig.clock.step(3600)
    for lease in await rig.begin():
        await rig.fail("n1", lease, FailureCode.LOST)
    rig.clock.step(-3600)
    await loop.turn()
    assert await state(rig, job_id) is JobState.QUEUED
    assert await state(rig, patient) is JobState.QUEUED, "an hour more than its 200 s is no wait of its policy either"
    for lease in await rig.begin():
        await rig.fail("n1", lease, FailureCode.LOST)
    rig.clock.advance(6)
    await loop.turn()
    assert await state(rig, patient) is JobState.RETRY_WAIT


async def test_the_promoter_sleeps_no_longer_than_needed(rig: Rig):
    await rig.submit(retries=None)
    await rig.join()
    (lease,) = await rig.begin()
    await rig.fail("n1", lease)
    due_s = await rig.read(duties.next_due_s)
    assert due_s is not None
    rig.clock.advance(due_s - 0.125)
    wait = await RetryPromoter(rig.store, clock=rig.clock, logger=LOGGER).turn()
    assert wait == pytest.approx(0.125, abs=1e-4)


async def test_the_expirer_ends_what_nobody_took(rig: Rig):
    (job_id,) = await rig.submit(ttl_s=10.0)
    loop = Expirer(rig.store, clock=rig.clock, logger=LOGGER)
    assert await loop.turn() == 1.0
    rig.clock.advance(9.75)
    assert await loop.turn() == pytest.approx(0.25)
    rig.clock.advance(0.25)
    assert await loop.turn() == 0.0
    assert await loop.turn() is None
    assert await state(rig, job_id) is JobState.EXPIRED


async def test_loops_run_by_themselves_until_cancelled(rig: Rig):
    loop = Expirer(rig.store, clock=rig.clock, logger=LOGGER, interval_s=0.001)
    (job_id,) = await rig.submit(ttl_s=10.0)
    task = asyncio.create_task(loop.run())
    async with rig.store.wakeups.subscribe(("job", job_id)) as event:
        rig.clock.advance(11)
        await event.wait()
    assert await state(rig, job_id) is JobState.EXPIRED
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
