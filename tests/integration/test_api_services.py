"""Services over the API: commands reach a node that waits with no credit, are given once, not too often, and by whom it is allowed."""

import asyncio
import contextlib
import hashlib
from dataclasses import replace

import pytest

from cli_rig import ostler
from integration.api_rig import ADMIN, Node, capabilities, coordinator
from ostler.coordinator.config import LimitsConfig
from ostler.model.access import Role
from ostler.model.errors import Conflict, Forbidden, InvalidSpec, NoCapacity, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.service import Health, Observation, ServiceState
from ostler.protocol import codec, routes
from ostler.protocol import messages as m


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def host(rig, node_id: str, *services: str, tags: tuple[str, ...] = (), slots: int = 1) -> Node:
    """A node that declares services, and is ready."""
    node = rig.node(node_id)
    has = replace(capabilities(node_id), runners=("cli", "service"), services=services or ("miner",), tags=tags)
    await node.register(await rig.join_token(), capabilities=has, cpu_slots=slots)
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node_id, held=(), boot_epoch=node.epoch))
    return node


async def give(person, verb: str, service: str = "miner", *, key: str | None = None, **asked) -> m.ServiceResponse:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await person.call(routes.COMMAND_SERVICE, m.ServiceRequest(**asked), headers=headers, name=service, verb=verb)


async def parked(rig, node: Node, *, wait_s: float = 30.0, number: int = 1) -> "asyncio.Task[list[m.Assignment]]":
    """A long poll that asks for no work."""
    polling = asyncio.create_task(node.pull(slots=0, wait_s=wait_s, number=number))
    await rig.open_calls(routes.PULL)
    return polling


@pytest.mark.parametrize("on", ["any", "all", "h1", ["tag=a", "pool=default"], None])
async def test_a_poll_without_credit_is_answered_with_the_command_at_once_and_acknowledged(rig, on):
    node = await host(rig, "h1", tags=("a",))
    polling = await parked(rig, node)
    made = await give(rig.people, "stop", on=tuple(on) if isinstance(on, list) else on)
    (lease,) = await asyncio.wait_for(polling, 10)
    assert (lease.job_id, lease.acked) == (made.deliveries[0].job_id, True)
    assert codec.decode(lease.spec.encode(), dict)["args"] == ["stop"]
    await node.finish(m.Outcome(job_id=lease.job_id, attempt=lease.attempt))
    assert (await rig.show(lease.job_id)).state is JobState.DONE


async def test_a_plain_manifest_is_the_same(rig):
    node = await host(rig, "h1")
    polling = await parked(rig, node)
    job_id = await rig.submit(runner="service", command="miner", args=["stop"], requirements={"node": "h1"})
    assert [(one.job_id, one.acked) for one in await asyncio.wait_for(polling, 10)] == [(job_id, True)]


async def test_a_drained_node_that_waits_is_answered_too(rig):
    node = await host(rig, "h1")
    await rig.people.call(routes.DRAIN_NODE, m.DrainRequest(), node_id="h1")
    assert (await node.pull_raw(slots=0, number=1)).directives
    polling = await parked(rig, node, number=2)
    made = await give(rig.people, "stop", on="h1")
    assert [one.job_id for one in await asyncio.wait_for(polling, 10)] == [made.deliveries[0].job_id]


async def test_all_nodes_that_wait_are_answered(rig):
    nodes = [await host(rig, f"h{number}") for number in range(12)]
    polls = [asyncio.create_task(node.pull(slots=0, wait_s=30.0, number=1)) for node in nodes]
    await rig.open_calls(routes.PULL, len(nodes))
    made = await give(rig.people, "restart", on="all")
    assert [one.node_id for one in made.deliveries] == sorted(node.node_id for node in nodes)
    got = await asyncio.wait_for(asyncio.gather(*polls), 20)
    assert sorted(lease.job_id for some in got for lease in some) == sorted(one.job_id for one in made.deliveries)
    view = await rig.people.call(routes.SHOW_GROUP, group_id=made.group_id)
    assert sum(view.counts.values()) == 12


async def test_with_a_key_it_is_given_once(rig):
    await host(rig, "h1")
    first = await give(rig.people, "restart", on="h1", key="k")
    assert await give(rig.people, "restart", on="h1", key="k") == first
    with pytest.raises(Conflict, match="stands for another submission"):
        await give(rig.people, "stop", on="h1", key="k")
    await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id="h1")
    assert await give(rig.people, "restart", on="h1", key="k") == first  # what was good when it was given
    listed = await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(count=True))
    assert listed.total == 1


async def test_not_too_often(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(commands_per_s=0.5, failures_per_s=1e6)) as rig:
        await host(rig, "h1", "miner", "web")
        for _ in range(2):
            await give(rig.people, "restart", on="h1")
        answer = await rig.http.post("/services/miner/restart", headers=rig.bearer(), json={"on": "h1"})
        assert (answer.status_code, answer.json()["code"]) == (429, "no_capacity")
        assert 0 < int(answer.headers["Retry-After"]) <= 2
        with pytest.raises(NoCapacity, match="miner"):
            await rig.submit(runner="service", command="miner", args=["stop"], requirements={"node": "h1"})
        await give(rig.people, "restart", "web", on="h1")  # another service, and another person
        async with rig.person(Role.OPERATOR, "olga") as olga:
            await give(olga, "restart", on="h1")
        assert 'ostler_refused_calls_total{reason="commands"} 2.0' in (await rig.http.get(rig.url + "/metrics")).text


async def test_who_may(rig):
    node = await host(rig, "h1")
    for role in Role:
        async with rig.person(role) as person:
            assert [one.name for one in (await person.call(routes.LIST_SERVICES)).items] == ["miner"]
            assert len((await person.call(routes.SHOW_SERVICE, name="miner")).items) == 1
            if role in {Role.OPERATOR, Role.ADMIN}:
                await give(person, "status", on="h1")
            else:
                with pytest.raises(Forbidden):
                    await give(person, "status", on="h1")
    log = (await rig.people.call(routes.LIST_AUDIT)).items
    (row,) = [one for one in log if (one.status, one.role, one.target) == (201, "admin", "miner/status")]
    assert row.action == "command_service"
    with pytest.raises(Forbidden):
        await node.call(routes.COMMAND_SERVICE, m.ServiceRequest(), name="miner", verb="stop")


async def test_who_may_no_longer_command_cannot_give_an_old_command_anew(rig):
    await host(rig, "h1")
    async with rig.person(Role.OPERATOR, "olga") as olga:
        job_id = (await give(olga, "stop", on="h1")).deliveries[0].job_id
        await olga.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=job_id)
        newest = await give(olga, "start", on="h1")
    async with rig.person(Role.SUBMITTER, "olga") as olga:
        with pytest.raises(Forbidden, match="may not use the runner service"):
            await olga.call(routes.RETRY_JOB, job_id=job_id)
    anew = await rig.people.call(routes.RETRY_JOB, job_id=job_id)
    assert (await rig.show(newest.deliveries[0].job_id)).state is JobState.CANCELLED  # a command given anew is the newest wish
    assert anew.expires_at is not None


MISTAKES = [
    ({"on": []}, 422, "1 to 32 words"),
    ({"on": ["rack=1", "pool="]}, 422, "rack"),
    ({"on": "a b"}, 422, "does not name a node"),
    ({"on": ["any", "all"]}, 422, "do not go together"),
    ({"on": ["h1", "tag=x"]}, 422, "is one node already"),
    ({"on": 7}, 422, "on"),
    ({"on": "all", "ttl_s": 0}, 422, "ttl_s"),
    ({"on": "all", "ttl_s": -1e300}, 422, "ttl_s"),
    ({"on": "all", "retries": 101}, 422, "retries"),
    ({"on": "all", "timeout_s": 1e12}, 422, "timeout_s"),
    ({"on": "h2"}, 404, "there is no node h2"),
    ({"on": "pool=else"}, 404, "none of the nodes"),
]


async def test_mistakes_are_told(rig):
    await host(rig, "h1")
    for body, status, words in MISTAKES:
        answer = await rig.http.post("/services/miner/stop", headers=rig.bearer(), json=body)
        assert (answer.status_code, words in answer.text) == (status, True), (body, answer.text)


async def test_what_is_not_there(rig):
    await host(rig, "h1", "miner", "web")
    with pytest.raises(NotFound, match="no node declares a service minor") as unknown:
        await give(rig.people, "stop", "minor", on="all")
    assert unknown.value.hint == "there are: miner, web"
    with pytest.raises(NotFound, match="no node declares a service minor"):
        await rig.people.call(routes.SHOW_SERVICE, name="minor")
    answer = await rig.http.post("/services/miner/reload", headers=rig.bearer(), json={"on": "all"})
    assert (answer.status_code, "reload" in answer.text) == (404, True)
    await host(rig, "h2")
    with pytest.raises(InvalidSpec, match=r"2 nodes declare the service miner \(h1, h2\)") as open_which:
        await give(rig.people, "stop")
    assert "any, all" in open_which.value.hint


async def test_what_a_node_sees_is_shown_and_measured_and_told(rig):
    node = await host(rig, "h1", "miner", "web")
    seen = Observation(
        name="miner",
        state=ServiceState.RUNNING,
        health=Health.HEALTHY,
        unit="xmrig.service",
        restarts=3,
        metrics={"hashrate": 812.5},
    )

    async def beat(*services: Observation) -> None:
        await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id="h1", held=(), boot_epoch=node.epoch, services=services))

    await beat(seen, replace(seen, name='evil"\n', unit="x" * 5000))
    (miner, web) = (await rig.people.call(routes.SHOW_NODE, node_id="h1")).services
    assert (miner.state, miner.health, miner.metrics, web.state) == ("running", "healthy", {"hashrate": 812.5}, None)
    text = (await rig.http.get(rig.url + "/metrics")).text
    for line in (
        'ostler_service_state{node="h1",service="miner",state="running"} 1.0',
        'ostler_service_health{health="healthy",node="h1",service="miner"} 1.0',
        'ostler_service_restarts{node="h1",service="miner"} 3.0',
        'ostler_service_metric{name="hashrate",node="h1",service="miner"} 812.5',
    ):
        assert line in text
    assert "evil" not in text
    await beat(replace(seen, state=ServiceState.CRASHED, health=Health.UNKNOWN, message="exit code 1"))
    events = (await rig.people.call(routes.EVENTS, query=m.EventQuery(kind="service"))).items
    assert [(one.node_id, one.message) for one in events] == [
        ("h1", "miner: running and healthy"),
        ("h1", "miner: running and healthy, now crashed (exit code 1)"),
    ]
    assert 'state="running"} 1.0' not in (await rig.http.get(rig.url + "/metrics")).text


async def test_a_node_tells_of_itself_alone(rig):
    one = await host(rig, "h1")
    await host(rig, "h2")
    crashed = Observation(name="miner", state=ServiceState.CRASHED)
    with pytest.raises(NotFound):
        await one.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id="h2", held=(), services=(crashed,)))
    assert [seen.state for seen in (await rig.people.call(routes.LIST_SERVICES)).items] == [None, None]


# --- the command line --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def obeying(*nodes: Node, fails: str | None = None):
    """Nodes that carry out what they are told, and say what they saw afterwards."""

    async def obey(node: Node) -> None:
        number = 0
        while True:
            number += 1
            for lease in await node.pull(slots=0, wait_s=30.0, number=number):
                verb = codec.decode(lease.spec.encode(), dict)["args"][0]
                state = ServiceState.STOPPED if verb == "stop" else ServiceState.RUNNING
                said = codec.encode(Observation(name="miner", state=state)) + b"\n"
                log = m.LogEnd(stream="stdout", length=len(said), sha256=hashlib.sha256(said).hexdigest(), tail=said)
                failure = Failure(FailureCode.SERVICE, "its unit says no") if node.node_id == fails else None
                await node.finish(m.Outcome(job_id=lease.job_id, attempt=lease.attempt, logs=(log,), failure=failure))

    tasks = [asyncio.create_task(obey(node)) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def cli(rig, monkeypatch):
    monkeypatch.setenv("OSTLER_URL", rig.url)
    monkeypatch.setenv("OSTLER_TOKEN", ADMIN)

    async def run(*args):
        return await asyncio.to_thread(ostler, "service", *args)

    return run


async def test_the_command_line_waits_and_tells_what_became_of_it(rig, cli):
    nodes = [await host(rig, f"h{number}", tags=("rig",) if number else ()) for number in range(3)]
    async with obeying(*nodes, fails="h2"):
        good = await cli("stop", "miner", "--on", "h0")
        assert good.returncode == 0, good.stderr
        assert good.stdout.splitlines()[0].split() == ["NODE", "OUTCOME", "TOOK", "STATE", "HEALTH", "WHY"]
        assert [line.split()[::3] for line in good.stdout.splitlines()][1:] == [["h0", "stopped"]]
        some = await cli("start", "miner", "--on", "tag=rig,pool=default", "--json")
        assert some.returncode == 1, some.stderr
        assert [(one["node_id"], one["outcome"], one["state"], one["why"]) for one in some.json["deliveries"]] == [
            ("h1", "done", "running", ""), ("h2", "failed", "running", "E_SERVICE: its unit says no"),
        ]  # fmt: skip
        anyone = await cli("status", "miner", "--on", "any", "--on", "pool=default", "--json")
        assert len(anyone.json["deliveries"]) == 1
        unclear = await cli("restart", "miner")
        assert (unclear.returncode, "3 nodes declare the service miner" in unclear.stderr) == (3, True)
        assert "hint: write any, all" in unclear.stderr
        everybody = await cli("status", "miner", "--json")
        assert len(everybody.json["deliveries"]) == 3


async def test_the_command_line_tells_of_those_who_get_nothing(rig, cli):
    await host(rig, "h1")
    await host(rig, "h2", "web")
    nobody = await cli("stop", "minor", "--on", "all")
    assert (nobody.returncode, nobody.stderr) == (3, "error: no node declares a service minor\nhint: there are: miner, web\n")
    given = await cli("stop", "miner", "--on", "pool=default", "--ttl", "1s")
    assert given.returncode == 1
    assert "left out: h2 (does not declare it)" in given.stderr
    assert "expired" in given.stdout
    assert "time-to-live" in given.stdout
    at_once = await cli("stop", "miner", "--no-wait")
    assert (at_once.returncode, at_once.stdout.splitlines()[1].split()[0]) == (0, "h1")
    assert (await cli("stop", "miner", "--ttl", "soon")).returncode == 2


async def test_the_command_line_lists_what_nodes_saw(rig, cli):
    node = await host(rig, "h1", "miner", "web")
    seen = Observation(name="miner", state=ServiceState.RUNNING, health=Health.HEALTHY, metrics={"hashrate": 812.5, "shares": 3})
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id="h1", held=(), boot_epoch=node.epoch, services=(seen,)))
    table = await cli("list")
    assert [line.split()[:4] for line in table.stdout.splitlines()][1:] == [
        ["miner", "h1", "running", "healthy"],
        ["web", "h1", "-", "unknown"],
    ]
    assert "hashrate 812.5, shares 3" in table.stdout
    assert [one["name"] for one in (await cli("list", "web", "--node", "h1", "--json")).json["items"]] == ["web"]
    assert (await cli("list", "minor")).returncode == 3
    shown = await asyncio.to_thread(ostler, "node", "show", "h1")
    assert "hashrate 812.5" in shown.stdout
