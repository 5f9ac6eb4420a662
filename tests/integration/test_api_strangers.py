"""Nobody is trusted: replayed, expired, revoked and foreign tokens, and a node that asks for what is not its own."""

import asyncio
import contextlib
import time
from datetime import timedelta

import httpx
import pytest
from msgspec.structs import replace

from integration.api_rig import capabilities, coordinator, sha256, url_of
from ostler.model import errors
from ostler.model.access import Role
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES, Audience

MANIFEST = {"command": "true"}


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def test_a_revoked_token_ends_what_it_holds_open(rig):
    """Long polls and streams began with a good token; they end with it, not with their own patience."""
    made = await rig.token_for(Role.SUBMITTER, "alice")
    headers = rig.bearer(made.token)
    job_id = (await rig.http.post("/jobs", headers=headers, json=MANIFEST)).json()["items"][0]["job_id"]
    waiting = asyncio.create_task(rig.http.get(f"/jobs/{job_id}/result", headers=headers, params={"wait_s": "60"}))

    async def follow():
        async with rig.http.stream("GET", f"/jobs/{job_id}/logs", headers=headers, params={"follow": "true"}) as answer:
            assert answer.status_code == 200
            async for _ in answer.aiter_bytes():
                pass

    following = asyncio.create_task(follow())
    await rig.open_calls(routes.AWAIT_JOB)
    await rig.open_calls(routes.READ_LOG)
    await rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id)
    async with asyncio.timeout(20):  # far below the poll's own 60 s; the pace itself is the bench's business
        assert (await waiting).status_code == 401
        await following
    again = await rig.http.get(f"/jobs/{job_id}/logs", headers=headers, params={"follow": "true"})
    assert again.status_code == 401
    assert "revoked" in again.json()["detail"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (routes.CREATE_TOKEN, b'{"kind":"api","role":"admin","principal":"again"}'),
        (routes.SUBMIT, b'{"command":"true"}'),
        (routes.SET_SECRET, b"value"),
        (routes.UPLOAD_BLOB, b"bytes"),
    ],
    ids=lambda one: one.name if isinstance(one, routes.Route) else "",
)
async def test_a_body_that_was_kept_back_does_not_outlast_its_token(rig, route, body):
    """A head with a good token opens the door for a call that ends much later."""
    made = await rig.token_for(Role.ADMIN, "mallory")
    host, _, port = rig.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [
        f"{route.method} {url_of(route)} HTTP/1.1",
        "Host: h",
        f"Authorization: Bearer {made.token}",
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body[:-1])
    await rig.open_calls(route)
    await rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id)
    writer.write(body[-1:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_download_ends_with_its_token(rig):
    data = bytes(64 * 2**20)  # more than sockets hold
    sha = (await rig.http.post("/blobs", content=data, headers=rig.bearer())).json()["sha256"]
    made = await rig.token_for(Role.VIEWER)
    async with rig.http.stream("GET", f"/blobs/{sha}", headers=rig.bearer(made.token)) as answer:
        assert answer.status_code == 200
        await rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id)
        with pytest.raises(httpx.RemoteProtocolError):  # it ends in the middle
            await answer.aread()


async def test_a_join_token_makes_nobody_a_node_that_is_known(rig):
    """A public key is no secret: who shows it, and a join token with uses left, is not that node yet."""
    token = await rig.join_token(uses=3)
    victim = rig.node()
    await victim.register(token)
    mallory = rig.node(victim.node_id)
    with pytest.raises(errors.Unauthenticated, match="sign the challenge") as caught:
        await mallory.register(token, public_key=victim.key.public_key().public_bytes_raw())
    assert caught.value.challenge
    await victim.pull()  # its session goes on
    proof = victim.key.sign(m.register_message(caught.value.challenge, victim.node_id, "boot:next"))
    await victim.register(challenge=caught.value.challenge, signature=proof, boot_epoch="boot:next")
    assert (await rig.people.call(routes.LIST_TOKENS)).items[0].uses_left == 2
    plain = codec.decode(codec.encode(capabilities("plain")), dict)
    first = await rig.http.post("/nodes/register", json=plain, headers=rig.bearer(token))
    again = await rig.http.post("/nodes/register", json=plain, headers=rig.bearer(token))
    assert (first.status_code, again.status_code) == (200, 200), first.text
    other = await rig.http.post("/nodes/register", json=plain, headers=rig.bearer(await rig.join_token()))
    assert other.status_code == 409
    assert "another join token" in other.json()["detail"]


async def test_an_expired_token_opens_nothing(rig):
    made = await rig.token_for(Role.VIEWER, expires_s=1.0)
    until = time.monotonic() + 30
    while (answer := await rig.http.get("/jobs", headers=rig.bearer(made.token))).status_code == 200:
        assert time.monotonic() < until, "it never expires"
        await asyncio.sleep(0.02)
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


async def test_tokens_of_another_coordinator_open_nothing(rig, tmp_path):
    async with coordinator(tmp_path / "other") as other:
        foreign_node = await other.enrolled()
        foreign = [(await other.token_for(Role.ADMIN)).token, foreign_node.token, await other.join_token()]
    for token in foreign[:2]:
        for route in ("/jobs", "/nodes"):
            assert (await rig.http.get(route, headers=rig.bearer(token))).status_code == 401
    with pytest.raises(errors.Unauthenticated):
        await rig.node().register(foreign[2])
    foreign_node.rig = rig
    with pytest.raises(errors.Unauthenticated):
        await foreign_node.pull()


async def test_a_join_token_is_no_api_token_and_an_api_token_joins_nobody(rig):
    join = await rig.join_token()
    assert (await rig.http.get("/jobs", headers=rig.bearer(join))).status_code == 403
    api = (await rig.token_for(Role.ADMIN)).token
    with pytest.raises(errors.Forbidden):
        await rig.node().register(api)


async def test_a_registration_cannot_be_replayed(rig):
    node = await rig.enrolled()
    with pytest.raises(errors.Unauthenticated) as caught:
        await node.register()
    challenge = caught.value.challenge
    said = node.registration(
        challenge=challenge, signature=node.key.sign(m.register_message(challenge, node.node_id, node.epoch))
    )
    await rig.nobody.call(routes.REGISTER, said)
    with pytest.raises(errors.Unauthenticated):
        await rig.nobody.call(routes.REGISTER, said)


async def test_a_hostile_node_reaches_its_own_attempts_and_nothing_else(rig):
    """It has a good token and knows every id there is."""
    honest, hostile = await rig.enrolled("honest"), await rig.enrolled("hostile")
    data = b"a submitter's input"
    digest = sha256(data)
    await rig.http.post("/blobs", headers=rig.bearer(), content=data)
    file = {"name": "x", "sha256": digest, "size": len(data)}
    theirs = await honest.take(input={"files": [file]}, artifacts=[{"path": "out"}])
    queued = await rig.submit()
    mine = rig.bearer(hostile.token)
    before = await rig.show(theirs.job_id)

    # whatever is for people is refused before anybody looks for the thing itself
    for route in ROUTES:
        if route.audience is Audience.CLIENT:
            url = url_of(route, job_id=theirs.job_id, sha256=digest, node_id="honest")
            content = b"{}" if route.method in {"POST", "PUT"} else None
            answer = await rig.http.request(route.method, rig.url + url, headers=mine, content=content)
            assert answer.status_code == 403, (route.name, answer.text)

    # and of what is for nodes it reaches nothing of the other's
    for job_id in (theirs.job_id, queued):
        outcome = m.Outcome(job_id=job_id, attempt=1, exit_code=0)
        for route, message in (
            (routes.ACK, m.AckBatch(items=(m.AckItem(job_id=job_id, attempt=1),))),
            (routes.PROGRESS, m.ProgressBatch(items=(m.ProgressItem(job_id=job_id, attempt=1, pct=50.0, note="mine"),))),
            (routes.RESULT, m.OutcomeBatch(items=(outcome,))),
            (routes.FAIL, m.OutcomeBatch(items=(replace(outcome, failure=Failure(FailureCode.LOST, "forged")),))),
        ):
            [answer] = (await hostile.call(route, message)).items
            assert (answer.ok, answer.code) == (False, "stale_attempt"), route.name
        for method, path in (
            ("PATCH", f"/jobs/{job_id}/attempts/1/log/stdout"), ("PUT", f"/jobs/{job_id}/attempts/1/workspace"),
        ):  # fmt: skip
            answer = await rig.http.request(method, path, headers=mine | {"Upload-Offset": "0"}, content=b"forged")
            assert answer.status_code in {404, 410}, answer.text
    assert (await rig.http.get(f"/blobs/{digest}", headers=mine)).status_code == 404
    for verb in ("drain", "resume"):
        assert (await rig.http.post(f"/nodes/honest/{verb}", headers=mine, json={})).status_code == 404
    for path, body in (
        ("/jobs/pull", {"node_id": "honest", "protocol": m.PROTOCOL}), ("/nodes/heartbeat", {"node_id": "honest", "held": []}),
    ):  # fmt: skip
        assert (await rig.http.post(path, headers=mine, json=body)).status_code == 404
    assert await rig.show(theirs.job_id) == before
    assert (await honest.finish(m.Outcome(job_id=theirs.job_id, attempt=theirs.attempt, exit_code=3)))[0].ok


async def test_a_hostile_node_cannot_take_another_ones_name(rig):
    await rig.enrolled("honest")
    thief = rig.node("honest")
    with pytest.raises(errors.AlreadyExists):
        await thief.register(await rig.join_token())


async def test_a_token_that_is_guessed_at_looks_the_same_whether_its_id_exists_or_not(rig):
    made = await rig.token_for(Role.VIEWER)
    almost = made.token[:-4] + "aaaa"
    answers = [await rig.http.get("/jobs", headers=rig.bearer(token)) for token in (almost, "ostler_api_zzzzzzzz_" + "a" * 56)]
    assert {one.status_code for one in answers} == {401}
    assert len({one.json()["detail"] for one in answers}) == 1


async def test_what_a_node_token_says_cannot_outlive_its_session(tmp_path):
    async with coordinator(tmp_path / "c", token_ttl=timedelta(hours=1)) as rig:
        node = await rig.enrolled()
        old = node.token
        node.epoch = "boot:later"
        with pytest.raises(errors.Unauthenticated) as caught:
            await node.register()
        text = caught.value.challenge
        await node.register(challenge=text, signature=node.key.sign(m.register_message(text, node.node_id, node.epoch)))
        answer = await rig.http.post("/jobs/pull", headers=rig.bearer(old), json={"node_id": node.node_id})
        assert answer.status_code == 401
        assert codec.decode(answer.content, dict)["hint"]
