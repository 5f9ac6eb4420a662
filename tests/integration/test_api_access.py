"""Who may call what: tokens of every kind at every route, sessions of nodes, and how registration proves a key."""

import asyncio
import base64
import re
from datetime import timedelta

import pytest

from cli_rig import ostler
from integration.api_rig import ADMIN, coordinator, url_of
from ostler.coordinator.api.credentials import Credentials
from ostler.coordinator.keys import Keys, open_keys
from ostler.model import errors
from ostler.model.access import Role
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES, Audience, Body
from ostler.runtime.clock import ManualClock, SystemClock


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def request(rig, route, token):
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    content = b"{}" if route.body is not Body.NONE else None
    return await rig.http.request(route.method, rig.url + url_of(route), headers=headers, content=content)


async def test_every_route_refuses_whom_it_is_not_for(rig):
    node = await rig.enrolled()
    tokens = {"api": ADMIN, "node": node.token, "join": await rig.join_token()}
    wanted = {
        Audience.PUBLIC: {"api", "node", "join", None}, Audience.ENROL: {"join", None}, Audience.NODE: {"node"},
        Audience.CLIENT: {"api"}, Audience.MEMBER: {"api", "node"},
    }  # fmt: skip
    for route in ROUTES:
        for kind in ("api", "node", "join", None):
            answer = await request(rig, route, tokens.get(kind))
            if kind in wanted[route.audience]:
                refused = {403, 500} if route.audience is Audience.ENROL else {401, 403, 500}
                assert answer.status_code not in refused, (route.name, kind, answer.text)
            else:
                assert answer.status_code == (401 if kind is None else 403), (route.name, kind, answer.text)
            if answer.status_code == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["ostler-version"]
            assert answer.headers["ostler-protocol"] == str(m.PROTOCOL)
            assert answer.headers["ostler-request-id"]


WRONG = "ostler_api_admin_" + "b" * 32
BAD = ["x", WRONG, "ostler_api_", "ostler_node_e30.AAAA", "ostler_node_.", "ostler_node_", "ostler_join_x_y",
       "ostler_node_" + "A" * 900, "A" * 5000]  # fmt: skip


async def test_wrong_tokens_open_nothing(rig):
    closed = [route for route in ROUTES if route.audience not in {Audience.PUBLIC, Audience.ENROL}]
    for token in BAD:
        for route in closed if token == WRONG else closed[::5]:
            answer = await request(rig, route, token)
            assert answer.status_code in {401, 403}, (route.name, token, answer.text)
    for header in (b"Basic abc", b"Bearer", b"Bearer \xff\xfe", b"bearer"):
        answer = await rig.http.get("/jobs", headers=[(b"authorization", header)])
        assert answer.status_code == 401
    answer = await rig.http.get("/jobs", headers=[("Authorization", f"Bearer {ADMIN}"), ("Authorization", "Bearer x")])
    assert answer.status_code == 401
    assert (await rig.http.get("/jobs", headers={"Authorization": f"bEaReR   {ADMIN}"})).status_code == 200


async def test_a_forged_node_token_opens_nothing(rig):
    node = await rig.enrolled()
    payload, _, mac = node.token.removeprefix("ostler_node_").partition(".")
    said = codec.decode(base64.urlsafe_b64decode(payload + "=="), dict)
    said["node_id"] = "another"
    other = base64.urlsafe_b64encode(codec.encode(said)).rstrip(b"=").decode()
    foreign = Credentials(Keys.of(b"1" * 32, b"2" * 32), clock=SystemClock(), token_ttl=timedelta(hours=1))
    for token in (f"ostler_node_{other}.{mac}", node.token[:-1] + "_", foreign.node_token(node.node_id, node.epoch, m.PROTOCOL)):
        answer = await rig.http.post("/jobs/pull", json={"node_id": node.node_id}, headers=rig.bearer(token))
        assert answer.status_code == 401, answer.text


async def test_a_node_token_ends(tmp_path):
    clock = ManualClock()
    keys = open_keys(tmp_path / "keys")
    credentials = Credentials(keys, clock=clock, token_ttl=timedelta(hours=1))
    token = credentials.node_token("n", "e", m.PROTOCOL)
    clock.advance(1700)
    assert not credentials.wants_refresh(credentials.read_node_token(token))
    clock.advance(200)
    assert credentials.wants_refresh(credentials.read_node_token(token))
    clock.advance(1700)
    with pytest.raises(errors.Unauthenticated, match="expired"):
        credentials.read_node_token(token)
    again = Credentials(open_keys(tmp_path / "keys"), clock=clock, token_ttl=timedelta(hours=1))
    assert again.read_node_token(again.node_token("n", "e", m.PROTOCOL)).node_id == "n", "a restart reads the same keys"


async def test_a_token_is_refreshed_by_heartbeats_in_its_second_half(tmp_path):
    async with coordinator(tmp_path / "c", token_ttl=timedelta(microseconds=1)) as rig:
        node = await rig.enrolled()
        with pytest.raises(errors.Unauthenticated, match="expired"):
            await node.pull()
    clock = ManualClock(SystemClock().now() - timedelta(minutes=40))
    async with coordinator(tmp_path / "c") as rig:
        older = Credentials(open_keys(tmp_path / "c" / "keys"), clock=clock, token_ttl=timedelta(hours=1))
        node.rig, node.token = rig, older.node_token(node.node_id, node.epoch, m.PROTOCOL)
        answer = await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=()))
        [fresh] = [one.token for one in answer.directives if one.kind is m.DirectiveKind.REFRESH_TOKEN]
        node.token = fresh
        answer = await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=()))
        assert answer.directives == ()


async def test_revoking_works_at_once(rig):
    made = await rig.people.call(routes.CREATE_TOKEN, m.TokenRequest(kind=m.TokenKind.API, role=Role.ADMIN))
    for _ in range(3):
        assert (await rig.http.get("/jobs", headers=rig.bearer(made.token))).status_code == 200
    view = await rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id)
    assert view.revoked_at is not None
    assert (await rig.http.get("/jobs", headers=rig.bearer(made.token))).status_code == 401
    listed = await rig.people.call(routes.LIST_TOKENS)
    assert all(one.token is None for one in listed.items)
    admin = re.search(r"admin\w+", " ".join(one.token_id for one in listed.items)).group()
    with pytest.raises(errors.Conflict, match="last good token of an admin"):
        await rig.people.call(routes.REVOKE_TOKEN, token_id=admin)
    assert (await rig.http.get("/jobs", headers=rig.bearer())).status_code == 200


async def test_a_check_that_was_under_way_does_not_outlive_a_revocation(rig):
    """Many checks and one revocation at the same time: whatever their order, afterwards the token is dead."""
    for _ in range(5):
        made = await rig.people.call(routes.CREATE_TOKEN, m.TokenRequest(kind=m.TokenKind.API, role=Role.ADMIN))
        calls = [rig.http.get("/jobs", headers=rig.bearer(made.token)) for _ in range(8)]
        await asyncio.gather(*calls, rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id))
        assert (await rig.http.get("/jobs", headers=rig.bearer(made.token))).status_code == 401


# --- registration ------------------------------------------------------------------------------------------------------------


async def challenge(node):
    with pytest.raises(errors.Unauthenticated) as caught:
        await node.register()
    return caught.value.challenge


def signed(node, text, key=None, epoch=None):
    return {
        "challenge": text,
        "signature": (key or node.key).sign(m.register_message(text, node.node_id, epoch or node.epoch)),
    }


async def test_a_node_joins_once_and_proves_its_key_afterwards(rig):
    node = rig.node()
    token = await rig.join_token()
    first = await node.register(token)
    assert (first.node_id, first.lease_s, first.heartbeat_s) == (node.node_id, 45.0, 15.0)
    old = node.token
    node.epoch = "boot:next"
    answer = await node.register(**signed(node, await challenge(node)))
    assert answer.coordinator_key == first.coordinator_key
    await node.pull()
    node.token = old
    with pytest.raises(errors.Unauthenticated, match="newer session"):
        await node.pull()
    other = rig.node()
    with pytest.raises(errors.Unauthenticated, match="used up"):
        await other.register(token)


async def test_a_challenge_is_good_once_for_two_minutes_and_only_here(rig, tmp_path):
    node = await rig.enrolled()
    text = await challenge(node)
    request = signed(node, text)
    await node.register(**request)
    with pytest.raises(errors.Unauthenticated):
        await node.register(**request)
    foreign = Credentials(Keys.of(b"1" * 32, b"2" * 32), clock=SystemClock(), token_ttl=timedelta(hours=1)).challenge()
    for bad in (foreign, "", "a.b.c", "..", text[:-1] + "_", "é.1.x"):
        with pytest.raises(errors.Unauthenticated) as caught:
            await node.register(**signed(node, bad))
        assert caught.value.challenge
    clock = ManualClock()
    credentials = Credentials(open_keys(tmp_path / "k"), clock=clock, token_ttl=timedelta(hours=1))
    text = credentials.challenge()
    clock.advance(119)
    assert credentials.challenge_is_good(text)
    clock.advance(3)
    assert not credentials.challenge_is_good(text)


async def test_a_signature_must_fit_key_node_and_epoch(rig):
    node, other = await rig.enrolled(), await rig.enrolled()
    for wrong in (
        signed(node, await challenge(node), key=other.key),
        signed(node, await challenge(node), epoch="boot:another"),
        {**signed(node, await challenge(node)), "public_key": other.key.public_key().public_bytes_raw()},
        {"challenge": await challenge(node), "signature": b"short"},
        {"challenge": await challenge(node), "signature": None},
    ):
        with pytest.raises(errors.Unauthenticated):
            await node.register(**wrong)
    stranger = rig.node()
    with pytest.raises(errors.Unauthenticated, match="no node"):
        await stranger.register(**signed(stranger, await challenge(stranger)))


async def test_another_key_cannot_take_a_nodes_name(rig):
    node = await rig.enrolled()
    thief = rig.node(node.node_id)
    with pytest.raises(errors.AlreadyExists):
        await thief.register(await rig.join_token())
    body = {
        "node_id": node.node_id,
        "version": "1",
        "cpu": {"cores": 1, "arch": "x"},
        "memory_mb": 1,
        "disk_free_mb": 1,
        "runners": [],
    }
    answer = await rig.http.post("/nodes/register", json=body, headers=rig.bearer(await rig.join_token()))
    assert answer.status_code == 409, answer.text
    await node.pull()


async def test_a_node_without_a_key_cannot_register_without_a_token(rig):
    body = {
        "node_id": "plain",
        "version": "1",
        "cpu": {"cores": 1, "arch": "x"},
        "memory_mb": 1,
        "disk_free_mb": 1,
        "runners": ["cli"],
    }
    answer = await rig.http.post("/nodes/register", json=body, headers=rig.bearer(await rig.join_token()))
    assert answer.status_code == 200, answer.text
    assert (await rig.http.post("/nodes/register", json=body)).status_code == 401
    assert (await rig.http.post("/nodes/register", json=body, headers=rig.bearer("ostler_join_x_y"))).status_code == 401
    node = rig.node("plain")
    with pytest.raises(errors.Unauthenticated):
        await node.register(**signed(node, await challenge(node)))


@pytest.mark.parametrize("protocol", [0, m.PROTOCOL + 1, -5])
async def test_a_node_outside_the_window_is_told_the_command(rig, protocol):
    """Also where the rest of its message is of a shape that this release does not know, and before anybody asks who it is."""
    answer = await rig.http.post("/nodes/register", json={"protocol": protocol, "node": {"id": "x"}})
    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")
    assert "pip install" in answer.json()["hint"]


async def test_registration_mistakes_are_all_named(rig):
    node = rig.node("bad name!")
    with pytest.raises(errors.InvalidSpec) as caught:
        await node.register(await rig.join_token(), boot_epoch="", public_key=b"short", cpu_slots=-1)
    assert {one.path for one in caught.value.problems} == {"node_id", "boot_epoch", "public_key", "cpu_slots"}


async def test_a_node_reaches_itself_alone(rig):
    node, other = await rig.enrolled(), await rig.enrolled()
    for route, message in (
        (routes.HEARTBEAT, m.HeartbeatRequest(node_id=other.node_id)),
        (routes.PULL, m.PullRequest(node_id=other.node_id, protocol=1)),
    ):
        with pytest.raises(errors.NotFound):
            await node.call(route, message)
    for route in (routes.DRAIN_NODE, routes.RESUME_NODE):
        with pytest.raises(errors.NotFound):
            await node.call(route, node_id=other.node_id)
    assert (await node.call(routes.DRAIN_NODE, m.DrainRequest(reason="mine"), node_id=node.node_id)).reason == "mine"
    await node.call(routes.RESUME_NODE, node_id=node.node_id)
    epoch = m.HeartbeatRequest(node_id=node.node_id, boot_epoch="boot:another")
    with pytest.raises(errors.StaleAttempt):
        await node.call(routes.HEARTBEAT, epoch)


@pytest.mark.parametrize("version", ["", "9" * 201, "1\n2"])
async def test_a_heartbeat_gives_no_version_that_a_registration_could_not(rig, version):
    node = await rig.enrolled()
    with pytest.raises(errors.InvalidSpec, match="version: must be 1 to 200 printable characters"):
        await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=(), version=version))
    assert (await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)).version == "0.1.0"


async def test_what_ails_a_node_is_kept_as_long_as_a_list_shows_it(rig):
    node = await rig.enrolled()
    await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id, held=(), health=("x" * 10_000, "hot")))
    assert (await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)).health == ("x" * 500, "hot")


async def test_a_retired_node_is_refused_at_every_door_at_once(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        join = await rig.join_token(uses=5)
        node = rig.node("sold")
        await node.register(join)
        held = await node.take()
        poll = asyncio.create_task(node.pull(wait_s=30, held=(held,)))
        await rig.open_calls(routes.PULL)
        view = await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(reason="sold"), node_id="sold")
        assert (view.state.value, view.reason) == ("retired", "sold")
        with pytest.raises(errors.NodeRetired, match="was retired"):
            await poll
        await refused_everywhere(rig, node)
        job = await rig.show(held.job_id)
        assert job.state.value in {"retry_wait", "queued"}  # the wait before its next try may be over by now
        assert job.attempts[0].failure.code.value == "E_LOST"
        with pytest.raises(errors.NodeRetired):
            await node.register(join)  # a join token that is good does not bring its key back
        for route in (routes.CORDON_NODE, routes.UNCORDON_NODE, routes.MOVE_NODE):
            message = (
                m.PoolRequest(pool="x")
                if route is routes.MOVE_NODE
                else None
                if route is routes.UNCORDON_NODE
                else m.ReasonRequest()
            )
            with pytest.raises(errors.NodeRetired):
                await rig.people.call(route, message, node_id="sold")
    async with coordinator(tmp_path / "c") as rig:
        node.rig = rig
        await refused_everywhere(rig, node)
        with pytest.raises(errors.NodeRetired):
            await node.register(**signed(node, await challenge(node)))
        other = rig.node("sold")
        await other.register(join)
        assert [one.job_id for one in await other.pull(wait_s=30)] == [held.job_id]
        with pytest.raises(errors.Unauthenticated):
            await node.pull()


async def refused_everywhere(rig, node):
    for route in ROUTES:
        if route.audience in {Audience.NODE, Audience.MEMBER}:
            answer = await request(rig, route, node.token)
            assert (answer.status_code, answer.json()["code"]) == (403, "node_retired"), route.name


async def test_people_decide_about_nodes_and_nodes_do_not(rig):
    node = await rig.enrolled("n1")
    for route, message in (
        (routes.CORDON_NODE, m.ReasonRequest(reason="odd noises")), (routes.MOVE_NODE, m.PoolRequest(pool="lab")),
        (routes.RETIRE_NODE, m.ReasonRequest()),
    ):  # fmt: skip
        with pytest.raises(errors.Forbidden):
            await node.call(route, message, node_id="n1")
        for role in (Role.VIEWER, Role.SUBMITTER):
            async with rig.person(role) as person:
                with pytest.raises(errors.Forbidden):
                    await person.call(route, message, node_id="n1")
    async with rig.person(Role.OPERATOR) as operator:
        await operator.call(routes.CORDON_NODE, m.ReasonRequest(reason="odd noises"), node_id="n1")
        view = await operator.call(routes.MOVE_NODE, m.PoolRequest(pool="lab"), node_id="n1")
        assert (view.cordoned, view.cordon_reason, view.pool) == (True, "odd noises", "lab")
        poll = asyncio.create_task(node.pull(wait_s=30))
        await rig.open_calls(routes.PULL)
        job_id = await rig.submit(requirements={"pool": "lab"})
        assert not (await operator.call(routes.UNCORDON_NODE, node_id="n1")).cordoned
        assert [one.job_id for one in await poll] == [job_id]  # its open poll is woken


async def test_a_submitter_sees_of_the_fleet_what_is_their_own(rig):
    node = await rig.enrolled("n1")
    async with rig.person(Role.SUBMITTER, "a") as a, rig.person(Role.SUBMITTER, "b") as b, rig.person(Role.VIEWER) as viewer:
        for person, count in ((a, 2), (b, 3)):
            await person.call(routes.SUBMIT, codec.encode([{"command": "true"}] * count))
        held = tuple(m.Held(one.job_id, one.attempt) for one in await node.pull(slots=4))
        await node.ack(*held)
        whole = await viewer.call(routes.OVERVIEW)
        assert {(one.owner, one.running, one.queued) for one in whole.queues} == {("a", 2, 0), ("b", 2, 1)}
        assert [one.jobs for one in whole.nodes] == [4]
        [mine] = (await b.call(routes.OVERVIEW)).queues
        assert (mine.owner, mine.running, mine.queued) == ("b", 2, 1)
        ended = await node.finish(
            *(m.Outcome(job_id=one.job_id, attempt=one.attempt, failure=Failure(FailureCode.DENY, "no")) for one in held)
        )
        assert all(one.ok for one in ended)
        seen = await a.call(routes.OVERVIEW)
        assert (seen.queues, [one.owner for one in seen.failures]) == ((), ["a", "a"])
        assert sorted(one.owner for one in (await viewer.call(routes.OVERVIEW)).failures) == ["a", "a", "b", "b"]


async def told_who(node, protocol, *, held=(), **changes):
    """A registration of another protocol, with proof: refused, with what it is refused with."""
    with pytest.raises(errors.UpgradeRequired) as first:
        await node.register(protocol=protocol)
    challenge = first.value.challenge
    about = {"challenge": challenge, **signed(node, challenge), "protocol": protocol, "held": held, **changes}
    with pytest.raises(errors.UpgradeRequired) as refused:
        await node.register(**about)
    return refused.value


@pytest.mark.parametrize(("protocol", "side"), [(m.PROTOCOL_MIN - 1, "older"), (m.PROTOCOL + 1, "newer")])
async def test_a_node_outside_the_window_that_proves_who_it_is_keeps_its_leases(rig, protocol, side):
    """Also a daemon that was started since, and without a session."""
    node = await rig.enrolled()
    held = await node.take()

    node.epoch = "boot:2"
    refused = await told_who(node, protocol, held=(held,), version="9.9.9")
    assert refused.lease_s == rig.config.lease.total_seconds()
    assert f"ostler fleet update --host {node.node_id}" in refused.hint
    view = await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)
    assert (view.outside.value, view.protocol, view.version, view.attempts) == (side, protocol, "9.9.9", (held,))
    await told_who(node, protocol, held=(held,))
    events = (await rig.http.get("/events", params={"kind": "outside"}, headers=rig.bearer())).json()["items"]
    assert [one["node_id"] for one in events if one["node_id"] == node.node_id] == [node.node_id]  # once, however often it asks
    beat = m.HeartbeatRequest(node_id=node.node_id, held=(held,), version="0.1.0")
    await node.call(routes.HEARTBEAT, beat)  # of the daemon that has a session, beside which the other was tried
    view = await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)
    assert (view.outside, view.protocol, view.version, view.draining) == (None, m.PROTOCOL, "0.1.0", False)
    await node.register(**signed(node, await challenge(node)), held=(held,))
    view = await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)
    assert (view.outside, view.draining, view.attempts) == (None, False, (held,))


async def test_nobody_speaks_for_a_node_outside_the_window_without_its_key(rig):
    node, other = await rig.enrolled(), rig.node()
    with pytest.raises(errors.UpgradeRequired) as first:
        await node.register(protocol=99)
    for wrong in (signed(node, first.value.challenge, key=other.key), signed(node, "made.up.challenge")):
        with pytest.raises(errors.Unauthenticated):
            await node.register(**wrong, protocol=99)
    old, node.epoch = node.epoch, "boot:next"
    await node.register(**signed(node, await challenge(node)))
    node.epoch = old  # a daemon that was left behind, beside the one of the node's newest session
    with pytest.raises(errors.StaleAttempt):
        await node.register(**signed(node, await challenge(node)), protocol=99)
    assert (await rig.people.call(routes.SHOW_NODE, node_id=node.node_id)).outside is None


async def test_a_list_of_nodes_is_not_filled_by_retired_ones(rig, monkeypatch):
    monkeypatch.setenv("OSTLER_URL", rig.url)
    monkeypatch.setenv("OSTLER_TOKEN", ADMIN)
    for name in ("a1", "a2", "a3"):
        await rig.enrolled(name)
        await rig.people.call(routes.RETIRE_NODE, m.ReasonRequest(), node_id=name)
    await rig.enrolled("b1")
    await rig.enrolled("b2")

    async def listed(*words, noun="node"):
        return await asyncio.to_thread(ostler, noun, "list", *words)

    def names(done):
        return [one["node_id"] for one in done.json["items"]]

    assert names(await listed("--limit", 2, "--json")) == ["b1", "b2"]
    assert names(await listed("--all", "--limit", 4, "--json")) == ["a1", "a2", "a3", "b1"]
    some = await listed("--limit", 1)
    assert ("b1" in some.stdout, "b2" in some.stdout) == (True, False)
    assert "there are more than 1: --limit shows more" in some.stderr
    assert "--limit" not in (await listed()).stderr
    for noun in ("token", "audit"):
        assert "there are more than 1: --limit shows more" in (await listed("--limit", 1, noun=noun)).stderr
