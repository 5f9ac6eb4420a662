"""The store contract: commands to services reach whom they are for, whatever else runs there; the newest wish counts; late ones expire."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from ostler.coordinator.operations import duties, jobs, nodes, quotas, reads
from ostler.coordinator.operations import services as ops
from ostler.coordinator.operations.leases import lease_commands
from ostler.coordinator.operations.services import Order
from ostler.model.errors import Conflict, InvalidSpec, NodeRetired, NotFound
from ostler.model.failures import FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Requirements, Runner
from ostler.model.quota import Quota
from ostler.model.service import Health, Observation, ServiceState, Verb
from ostler.model.target import read_target
from ostler.protocol import messages as m
from store_rig import Rig, held, manifest

RUNNERS = ("cli", "python", "service")
SERVICES = ("miner", "web")


async def join(rig: Rig, node_id: str = "n1", *, services=SERVICES, **how) -> None:
    await rig.join(node_id, runners=RUNNERS, services=services, **how)
    await rig.beat(node_id)


async def give(rig: Rig, verb: str, *on: str, service: str = "miner", owner: str | None = None, **changes) -> m.ServiceResponse:
    order = Order(service=service, verb=Verb(verb), target=read_target(on) if on else None, ttl_s=300, timeout_s=60)
    return await rig.write(ops.command_service, replace(order, **changes), owner)


async def command(rig: Rig, verb: str, node: str | None = "n1", *, service: str = "miner", **changes) -> str:
    """One as a plain manifest."""
    need = Requirements(node=node, **changes.pop("need", {}))
    (job_id,) = await rig.submit(runner=Runner.SERVICE, command=service, args=(verb,), requirements=need, **changes)
    return job_id


async def states(rig: Rig, *job_ids: str) -> list[str]:
    return [(await rig.job(job_id)).state.value for job_id in job_ids]


# --- who gets it -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["full", "cordoned", "draining", "drained", "drains itself"])
async def test_a_node_gets_commands_whatever_else_it_would_get(rig: Rig, kept):
    await join(rig, slots=1)
    work = await rig.submit(3)
    running = await rig.begin(slots=1) if kept in {"full", "draining"} else []
    if kept == "cordoned":
        await rig.write(nodes.cordon_node, "n1")
    elif kept.startswith("drain") and kept != "drains itself":
        await rig.write(nodes.drain_node, "n1", m.DrainRequest())
    elif kept == "drains itself":
        await rig.beat(draining=True, quarantine="its disk is gone")
    stop, status = await command(rig, "stop"), await command(rig, "status")
    got = await rig.pull(slots=0, held=held(running))
    assert [one.job_id for one in got] == [stop, status]
    await rig.ack("n1", got)
    assert [one.ok for one in [await rig.finish("n1", lease) for lease in got]] == [True, True]
    assert await states(rig, stop, status) == ["done", "done"]
    if kept == "full":  # they took no slot: another job has as much room as before
        assert len(await rig.pull(slots=1, held=held(running))) == 1
    elif kept != "drains itself":
        assert await rig.pull(slots=4, held=held(running)) == []
    assert len(work) == 3


async def test_commands_go_first_and_at_most_sixteen_at_once(rig: Rig):
    await join(rig, services=[f"s{number}" for number in range(20)])
    work = await rig.submit(2, priority=1000)
    ordered = [await command(rig, "restart", service=f"s{number}") for number in range(20)]
    got = await rig.pull(slots=4)
    assert [one.job_id for one in got] == [*ordered[:16], *work]
    assert [one.job_id for one in await rig.pull(slots=0, held=held(got))] == ordered[16:]


async def test_they_are_acknowledged_by_the_pull_that_brings_them_beside_what_it_begins(rig: Rig):
    await join(rig, slots=1)
    await rig.submit(3)
    stop = await command(rig, "stop")
    got = await rig.pull(slots=3, begins=1, number=1)
    assert [(one.job_id == stop, one.acked) for one in got] == [(True, True), (False, True), (False, False), (False, False)]
    again = await command(rig, "start")
    (lease,) = await rig.pull(slots=0, begins=0, number=2, held=held(got))
    assert (lease.job_id, lease.acked) == (again, True)
    assert (await rig.job(again)).state is JobState.ACKED


async def test_only_who_declares_it_and_speaks_the_protocol(rig: Rig):
    await join(rig, "n1", services=("web",))
    await join(rig, "n2")
    stop = await command(rig, "stop", None)
    assert await rig.pull("n1") == []
    assert await rig.pull("n2", protocol=None) == []
    assert await rig.pull("n2", filters={"runners": ["cli"]}) == []
    assert [one.job_id for one in await rig.pull("n2", filters={"queues": ["other"]})] == [stop]


async def test_two_nodes_race_for_one_that_is_for_any(rig: Rig):
    for node_id in ("n1", "n2"):
        await join(rig, node_id)
    made = await give(rig, "restart", "any")
    assert (made.group_id, [one.node_id for one in made.deliveries]) == (None, [None])
    got = await asyncio.gather(rig.pull("n1", slots=0), rig.pull("n2", slots=0))
    assert sorted(len(some) for some in got) == [0, 1]


async def test_one_delivery_for_each_node_and_who_is_left_out(rig: Rig):
    for node_id in ("n1", "n2", "n3", "n4", "n5"):
        await join(rig, node_id, services=("web",) if node_id == "n5" else SERVICES)
    await rig.write(nodes.retire_node, "n3")
    await rig.write(duties.lose_node, "n4", (await rig.rows("SELECT renewals FROM nodes WHERE node_id = 'n4'"))[0][0], "silent")
    await rig.write(nodes.drain_node, "n2", m.DrainRequest())
    made = await give(rig, "stop", "all")
    assert [one.node_id for one in made.deliveries] == ["n1", "n2"]
    assert [(one.node_id, one.reason) for one in made.left_out] == [("n4", "is lost"), ("n3", "was retired")]
    assert {(await rig.job(one.job_id)).group_id for one in made.deliveries} == {made.group_id}
    for one in made.deliveries:
        assert [lease.job_id for lease in await rig.pull(one.node_id, slots=0)] == [one.job_id]


async def test_selectors(rig: Rig):
    await join(rig, "n1", tags=("a", "b"))
    await join(rig, "n2", tags=("a",))
    await join(rig, "n3", tags=("a", "b"), services=())
    await rig.write(nodes.move_node, "n2", "edge")
    assert [one.node_id for one in (await give(rig, "stop", "tag=a")).deliveries] == ["n1", "n2"]
    assert [one.node_id for one in (await give(rig, "stop", "pool=edge", "tag=a")).deliveries] == ["n2"]
    both = await give(rig, "stop", "tag=a", "tag=b")
    assert [one.node_id for one in both.deliveries] == ["n1"]
    assert [(one.node_id, one.reason) for one in both.left_out] == [("n3", "does not declare it")]
    (one,) = (await give(rig, "restart", "any", "pool=edge")).deliveries
    assert await rig.pull("n1", slots=0) != []
    assert one.job_id in [lease.job_id for lease in await rig.pull("n2", slots=0)]


async def test_any_is_any_in_whichever_pool(rig: Rig):
    await join(rig, "n1")
    await rig.write(nodes.move_node, "n1", "edge")
    (one,) = (await give(rig, "restart", "any")).deliveries
    assert [lease.job_id for lease in await rig.pull("n1", slots=0)] == [one.job_id]


async def test_where_nobody_is_named(rig: Rig):
    await join(rig, "n1")
    (one,) = (await give(rig, "stop")).deliveries
    assert one.node_id == "n1"
    await join(rig, "n2")
    assert len((await give(rig, "status")).deliveries) == 2
    with pytest.raises(InvalidSpec, match=r"2 nodes declare the service miner \(n1, n2\)"):
        await give(rig, "stop")


async def test_what_cannot_be_delivered_is_refused(rig: Rig):
    with pytest.raises(NotFound, match="no node declares a service miner") as none:
        await give(rig, "stop", "all")
    assert "configuration of a node" in none.value.hint
    await join(rig, "n1")
    await join(rig, "n2", services=("web",))
    for on, service, error, words in (
        (["all"], "mineer", NotFound, "no node declares a service mineer"),
        (["n9"], "miner", NotFound, "there is no node n9"),
        (["n2"], "miner", NotFound, "node n2 declares no service miner"),
        (["pool=else"], "miner", NotFound, "none of the nodes that are selected declares"),
    ):
        with pytest.raises(error, match=words) as refused:
            await give(rig, "stop", *on, service=service)
        assert refused.value.hint
    await rig.write(duties.lose_node, "n1", (await rig.rows("SELECT renewals FROM nodes WHERE node_id = 'n1'"))[0][0], "silent")
    for on in ("any", "all", "n1"):
        with pytest.raises(Conflict, match="nobody is there to stop miner: n1 is lost"):
            await give(rig, "stop", on)
    await rig.write(nodes.retire_node, "n1")
    with pytest.raises(NodeRetired):
        await give(rig, "stop", "n1")
    assert await rig.rows("SELECT 1 FROM jobs") == []


async def test_quotas_neither_count_nor_hold_back_commands(rig: Rig):
    await join(rig, slots=4)
    await rig.write(quotas.set_quota, "ann", Quota(queued=1, running=1, cpu_us=1))
    await rig.write(jobs.submit_jobs, [manifest()], "ann")
    running = await rig.begin(slots=4)
    assert len(running) == 1
    made = [await give(rig, verb, "n1", service=service, owner="ann") for verb in ("status", "status") for service in SERVICES]
    got = await rig.pull(slots=0, held=held(running))
    assert len(got) == len(made) == 4
    await rig.ack("n1", got)
    rig.clock.advance(10)
    for lease in got:
        await rig.finish("n1", lease)
    standing = await rig.read(quotas.show_quota, "ann")
    assert (standing.queued, standing.running, standing.spent.cpu_us) == (0, 1, 10_000_000)  # the job alone


# --- the newest wish counts --------------------------------------------------------------------------------------------------


async def test_a_newer_command_stands_for_those_that_have_not_begun(rig: Rig):
    await join(rig)
    await join(rig, "n2")
    first, asked = await command(rig, "stop"), await command(rig, "status")
    other, elsewhere = await command(rig, "stop", service="web"), await command(rig, "stop", "n2")
    second = await command(rig, "start")
    assert await states(rig, first, asked, other, elsewhere, second) == ["cancelled", "queued", "queued", "queued", "queued"]
    assert f"a newer command stands for it: start miner ({second})" in [one.message for one in (await rig.job(first)).timeline]
    last = await command(rig, "status")
    assert await states(rig, second, last) == ["queued", "queued"]
    assert {one.job_id for one in await rig.pull(slots=0)} == {asked, other, second, last}


async def test_one_that_was_offered_is_taken_back_and_one_that_began_goes_on_but_is_not_tried_again(rig: Rig):
    await join(rig)
    offered = await command(rig, "stop")
    (lease,) = await rig.pull(slots=0)
    began = await command(rig, "start")
    assert await states(rig, offered, began) == ["cancelled", "queued"]
    assert not (await rig.ack("n1", [lease]))[0].ok
    (lease,) = await rig.begin(slots=0)
    newest = await command(rig, "stop")
    assert (await rig.job(began)).state is JobState.ACKED
    await rig.fail("n1", lease, FailureCode.LOST)
    assert await states(rig, began, newest) == ["failed", "queued"]


async def test_any_stands_beside_any_of_the_same_choice(rig: Rig):
    await join(rig, "n1", tags=("a",))
    first, tagged, named = [
        await command(rig, "stop", None), await command(rig, "stop", None, need={"tags": ("a",)}), await command(rig, "stop", "n1")
    ]  # fmt: skip
    second = await command(rig, "start", None)
    assert await states(rig, first, tagged, named, second) == ["cancelled", "queued", "queued", "queued"]


async def test_within_one_call_the_last_counts(rig: Rig):
    await join(rig)
    two = [
        manifest(runner=Runner.SERVICE, command="miner", args=(verb,), requirements=Requirements(node="n1"))
        for verb in ("stop", "start")
    ]
    made = await rig.write(jobs.submit_jobs, two)
    assert await states(rig, *[one.job_id for one in made.items]) == ["cancelled", "queued"]


async def test_one_that_comes_back_finds_the_newer_one_and_is_not_carried_out(rig: Rig):
    """It was acknowledged by a pull whose answer never arrived, so it had perhaps begun when the newer one was given."""
    await join(rig)
    older = await command(rig, "stop")
    assert [one.acked for one in await rig.pull(slots=0, number=1)] == [True]
    newer = await command(rig, "start")
    assert (await rig.job(older)).state is JobState.ACKED
    assert [one.job_id for one in await rig.pull(slots=0, number=2)] == [newer]
    assert await states(rig, older, newer) == ["cancelled", "acked"]


async def test_what_is_planned_for_later_takes_no_place_before_its_time(rig: Rig):
    await join(rig)
    in_an_hour = {"not_before": (rig.clock.now().replace(microsecond=0)).isoformat()[:-6] + "Z"}
    rig.clock.advance(-3600)
    planned = await command(rig, "stop", **in_an_hour)
    now = await command(rig, "start")
    assert await states(rig, planned, now) == ["queued", "queued"]
    assert [one.job_id for one in await rig.pull(slots=0)] == [now]
    rig.clock.advance(3600)
    await rig.write(duties.start_due)
    assert (await rig.job(planned)).expires_at is not None
    assert planned in [one.job_id for one in await rig.pull(slots=0)]


# --- late ones ---------------------------------------------------------------------------------------------------------------


async def test_late_ones_expire_and_are_not_given_out_meanwhile(rig: Rig):
    await join(rig)
    by_default, soon, long = [
        await command(rig, "stop"), await command(rig, "status", ttl_s=10), await command(rig, "status", ttl_s=3600)
    ]  # fmt: skip
    rig.clock.advance(299)
    assert await rig.write(duties.expire_due) == 1
    rig.clock.advance(1)
    assert [one.job_id for one in await rig.pull(slots=0)] == [long]  # nobody had swept yet
    assert await rig.write(duties.expire_due) == 1
    assert await states(rig, by_default, soon) == ["expired", "expired"]


async def test_one_that_is_lost_is_tried_again_within_its_time(rig: Rig):
    await join(rig)
    stop = await command(rig, "stop")
    (lease,) = await rig.begin(slots=0)
    await rig.fail("n1", lease)
    rig.clock.advance(5)
    assert await rig.write(duties.promote_due) == 1
    (again,) = await rig.begin(slots=0)
    assert (again.job_id, again.tries) == (stop, 1)
    await rig.fail("n1", again)
    rig.clock.advance(600)
    await rig.write(duties.expire_due)
    assert (await rig.job(stop)).state is JobState.EXPIRED


# --- who is woken ------------------------------------------------------------------------------------------------------------


async def test_whom_it_is_for_is_woken_and_nobody_else(rig: Rig):
    for node_id in ("n1", "n2", "n3"):
        await join(rig, node_id, services=("web",) if node_id == "n3" else SERVICES)
    async with AsyncExitStack() as stack:
        topics = [("node", "n1"), ("node", "n2"), ("node", "n3"), ("queue",)]
        events = [await stack.enter_async_context(rig.store.wakeups.subscribe(topic)) for topic in topics]

        def woken() -> list[bool]:
            found = [event.is_set() for event in events]
            for event in events:
                event.clear()
            return found

        await command(rig, "stop", "n1")
        assert woken() == [True, False, False, False]
        (lease,) = await rig.begin(slots=0)
        restart = await command(rig, "restart", None)
        assert woken() == [True, True, False, False]
        await rig.write(jobs.hold_job, restart)
        await rig.write(jobs.release_job, restart)
        assert woken()[:3] == [True, True, False]
        await rig.fail("n1", lease)
        rig.clock.advance(5)
        woken()
        await rig.write(duties.promote_due)
        assert woken()[:3] == [True, False, False]


async def test_it_is_claimed_in_the_transaction_that_gives_it(rig: Rig):
    await join(rig)
    request = m.PullRequest(node_id="n1", slots=0, protocol=1, number=1)
    operations = {("queue",): lambda tx, asked: None, ("node", "n1"): lambda tx, asked: lease_commands(tx, asked) or None}
    standing = rig.store.stand_for(operations, request)
    stop = await command(rig, "stop")
    (lease,) = await asyncio.wait_for(standing.future, 10)
    assert (lease.job_id, lease.acked) == (stop, True)
    rig.store.withdraw(standing)


# --- what is seen ------------------------------------------------------------------------------------------------------------


async def test_what_a_node_declares_and_sees(rig: Rig):
    await join(rig, services=("web", "miner", "bad name", "../x"))
    page = await rig.read(ops.list_services, m.ServiceQuery())
    assert [(one.name, one.node_id, one.state, one.told_at) for one in page.items] == [
        ("miner", "n1", None, None),
        ("web", "n1", None, None),
    ]
    seen = Observation(
        name="miner", state=ServiceState.RUNNING, health=Health.HEALTHY, unit="xmrig.service", since="2026-01-01T00:00:00+00:00",
        pid=7, metrics={"hashrate": 1.5, "no good": 1.0, "nan": float("nan")}, message="x" * 9999,
    )  # fmt: skip
    await rig.beat(
        services=(seen, replace(seen, name="stranger"), Observation(name="web", state=ServiceState.CRASHED, since="soon"))
    )
    miner, web = (await rig.read(ops.list_services, m.ServiceQuery(node="n1"))).items
    with pytest.raises(NotFound, match="no node n9"):
        await rig.read(ops.list_services, m.ServiceQuery(node="n9"))
    assert (miner.state, miner.health, miner.pid, miner.metrics) == ("running", "healthy", 7, {"hashrate": 1.5})
    assert (len(miner.message), miner.since.year, miner.told_at) == (500, 2026, rig.clock.now())
    assert (web.state, web.health, web.since) == ("crashed", "unknown", None)
    events = await rig.rows("SELECT node_id, message FROM events WHERE kind = 'service' ORDER BY id")
    assert [(node_id, words[:26]) for node_id, words in events] == [("n1", "miner: running and healthy"), ("n1", "web: crashed")]
    await rig.beat(services=(replace(seen, pid=8, message=""), Observation(name="web", state=ServiceState.RUNNING)))
    assert (await rig.rows("SELECT message FROM events WHERE kind = 'service' ORDER BY id"))[2:] == [
        ("web: crashed, now running",)
    ]
    assert (await rig.read(reads.show_node, "n1")).services == (await rig.read(ops.list_services, m.ServiceQuery())).items


async def test_news_grows_stale_with_the_node(rig: Rig):
    await join(rig)
    await rig.beat(services=(Observation(name="miner", state=ServiceState.RUNNING, health=Health.HEALTHY),))

    async def health() -> str:
        return (await rig.read(ops.list_services, m.ServiceQuery(), "miner")).items[0].health.value

    rig.clock.advance(299)
    await rig.beat()  # it says nothing of services, so nothing has changed
    rig.clock.advance(299)
    assert await health() == "healthy"
    rig.clock.advance(2)
    assert await health() == "stale"
    await rig.beat()
    assert await health() == "healthy"


async def test_what_is_not_declared_any_more_is_forgotten(rig: Rig):
    await join(rig)
    await rig.beat(services=(Observation(name="web", state=ServiceState.RUNNING),))
    await rig.register("n1", "boot:2", runners=RUNNERS, services=("web", "new"))
    page = await rig.read(ops.list_services, m.ServiceQuery())
    assert [(one.name, one.state) for one in page.items] == [("new", None), ("web", "running")]
    with pytest.raises(NotFound, match="no node declares a service miner") as unknown:
        await rig.read(ops.list_services, m.ServiceQuery(), "miner")
    assert unknown.value.hint == "there are: new, web"
    await rig.write(nodes.retire_node, "n1")
    assert (await rig.read(ops.list_services, m.ServiceQuery())).items == ()


async def test_pages(rig: Rig):
    for node_id in ("n1", "n2", "n3"):
        await join(rig, node_id)
    found, cursor = [], None
    while True:
        page = await rig.read(ops.list_services, m.ServiceQuery(limit=2, cursor=cursor))
        found += [(one.name, one.node_id) for one in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [(name, node_id) for name in SERVICES for node_id in ("n1", "n2", "n3")]
    assert len((await rig.read(ops.list_services, m.ServiceQuery(), "web")).items) == 3


async def test_why_one_waits(rig: Rig):
    await join(rig, slots=1)
    await rig.submit(1)
    await rig.begin(slots=1)
    stop = await command(rig, "stop")
    said = await rig.read(reads.explain_job, stop)
    assert (said.nodes_fitting, said.nodes_free, said.ahead) == (1, 1, 0)
    nobody = await command(rig, "stop", "n1", service="gone")
    assert (await rig.read(reads.explain_job, nobody)).summary.startswith("no node declares the service gone")
