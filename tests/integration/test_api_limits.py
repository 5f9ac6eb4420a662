"""What comes in is bounded: bodies, heads, depth, counts, calls, connections, and time; each over a real socket."""

import asyncio
import json

import httpx
import pytest

from integration.api_rig import ADMIN, coordinator, until
from ostler.coordinator.config import LimitsConfig
from ostler.model.errors import NoCapacity, Unauthenticated
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import Client


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as made:
        yield made


async def metric(rig, reason):
    page = (await rig.http.get(rig.url + "/metrics")).text
    return float(page.partition(f'ostler_refused_calls_total{{reason="{reason}"}} ')[2].split()[0])


async def spoken(rig, data, *, more=b""):
    """What comes back on a raw connection, which is then closed by the other end."""
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    writer.write(data)
    await writer.drain()
    if more:
        writer.write(more)
    try:
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


async def test_a_body_that_says_or_turns_out_to_be_too_large(rig):
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nConnection: close\r\n"
    announced = await spoken(rig, f"{head}Content-Length: {2**40}\r\n\r\n".encode())
    assert announced.startswith(b"HTTP/1.1 413 ")

    async def endless():
        for _ in range(65):
            yield b" " * 2**20

    answer = await rig.http.post("/jobs", content=endless(), headers=rig.bearer())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_depth_numbers_and_counts(rig):
    deep = b'{"command":"true","labels":' + b'{"a":' * 70 + b"1" + b"}" * 71
    answer = await rig.http.post("/jobs", content=deep, headers=rig.bearer())
    assert (answer.status_code, "nest" in answer.text) == (422, True)
    answer = await rig.http.post("/jobs", content=b'{"command":"true","priority":' + b"9" * 30 + b"}", headers=rig.bearer())
    assert answer.status_code == 422
    answer = await rig.http.get("/jobs?" + "&".join(f"limit={i}" for i in range(65)), headers=rig.bearer())
    assert (answer.status_code, "query" in answer.text) == (422, True)
    many = json.dumps([{"command": "true"}] * 10_001)
    answer = await rig.http.post("/jobs", content=many, headers=rig.bearer())
    assert answer.status_code == 413


async def test_a_form_has_so_many_parts(rig):
    node = await rig.enrolled()
    await node.take()
    part = b'--b\r\nContent-Disposition: form-data; name="artifacts"; filename="a"\r\n\r\n\r\n'
    said = b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{"node_id":"%s"}\r\n' % node.node_id.encode()
    headers = rig.bearer(node.token, **{"Content-Type": "multipart/form-data; boundary=b"})
    answer = await rig.http.post("/jobs/result", content=said + part * 1100 + b"--b--\r\n", headers=headers)
    assert answer.status_code == 422
    long = b"--b\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n"
    answer = await rig.http.post("/jobs/result", content=long, headers=headers)
    assert answer.status_code == 422
    crowd = b"--b\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(1000)) + b"\r\n\r\n--b--\r\n"
    answer = await rig.http.post("/jobs/result", content=crowd, headers=headers)
    assert answer.status_code == 422


async def test_a_head_that_is_too_long_or_takes_too_long(rig, monkeypatch):
    assert (await spoken(rig, b"GET /" + b"x" * 50_000)).startswith(b"HTTP/1.1 431 ")
    assert (await spoken(rig, b"GET / HTTP/1.1\r\n", more=b"X-A: " + b"y" * 40_000)).startswith(b"HTTP/1.1 431 ")
    monkeypatch.setattr("ostler.coordinator.api.server.HEAD_S", 0.3)  # nobody waits half a minute for a test
    monkeypatch.setattr("ostler.coordinator.api.server.LINGER_S", 0.1)
    for begun in (b"", b"GET / HTTP/1.1\r\n"):
        assert (await spoken(rig, begun)).startswith(b"HTTP/1.1 408 ")
    whole = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await spoken(rig, whole, more=b"GET / HT")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer, "the second head of a connection has its time too"


async def test_a_call_may_take_longer_than_its_head(rig, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.api.server.HEAD_S", 0.2)
    node = await rig.enrolled()
    assert await node.pull(wait_s=1.0) == []


async def used_up(call):
    """Calls until one is refused as one too many."""
    with pytest.raises(NoCapacity, match="calls a second"):
        await forever(call)


async def forever(call):
    while True:
        await call()


async def test_calls_a_second(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(calls_per_s=5, burst=10)) as rig:
        answers = await asyncio.gather(*(rig.http.get("/jobs", headers=rig.bearer()) for _ in range(30)))
        refused = [one for one in answers if one.status_code == 429]
        assert 10 <= len(refused) <= 20
        for one in refused:
            assert one.json()["code"] == "no_capacity"
            assert int(one.headers["retry-after"]) >= 1
        assert await metric(rig, "calls") == len(refused)
        node = rig.node()
        await used_up(lambda: rig.people.call(routes.LIST_JOBS))
        with Client(rig.url, token=ADMIN) as impatient:
            await used_up(lambda: asyncio.to_thread(impatient.call, routes.LIST_JOBS))
        with Client(rig.url, token=ADMIN, busy_s=20) as patient:
            for _ in range(3):  # what was refused was not done: it is done again, whatever it is
                made = await asyncio.to_thread(patient.call, routes.CREATE_TOKEN, m.TokenRequest())
        assert (await node.register(made.token)).node_token, "another caller is not held up"


async def test_failed_authentications_of_an_address(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(failures_per_s=1)) as rig:
        assert (await rig.http.get("/jobs", headers=rig.bearer())).status_code == 200
        wrong = [rig.bearer("ostler_api_x_" + "a" * 32), rig.bearer("nonsense"), {"Authorization": "Basic eDp5"}]
        answers = [await rig.http.get("/jobs", headers=wrong[i % 3]) for i in range(20)]
        statuses = [one.status_code for one in answers]
        assert statuses[:4] == [401] * 4
        assert 429 in statuses
        blocked = next(one for one in answers if one.status_code == 429)
        assert int(blocked.headers["retry-after"]) == 1
        assert await metric(rig, "failures") == statuses.count(429)
        assert (await rig.http.get("/jobs", headers=rig.bearer())).status_code == 200, "who was let in before still is"
        for _ in range(20):
            assert (await rig.http.get("/jobs")).status_code == 401, "who shows nothing guesses nothing"


async def test_a_guesser_does_not_keep_a_node_at_the_same_address_from_showing_a_new_token(tmp_path):
    """A dead token in somebody's script must not cost the node beside it its lease, each time that its own token is renewed."""
    async with coordinator(tmp_path / "c", limits=LimitsConfig(failures_per_s=0.01)) as rig:
        node = await rig.enrolled()
        guess = rig.bearer("ostler_api_x_" + "a" * 32)
        while (await rig.http.get("/jobs", headers=guess)).status_code != 429:
            pass
        await node.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=node.node_id))
        forged = rig.bearer(node.token[:-1] + ("A" if node.token[-1] != "A" else "B"))
        assert (await rig.http.post("/jobs/pull", headers=forged, json={})).status_code == 429, "a wrong signature is a guess"


async def test_wrong_join_tokens_are_guesses_too(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(failures_per_s=1)) as rig:
        refusals = []
        for _ in range(20):
            with pytest.raises((Unauthenticated, NoCapacity)) as caught:
                await rig.node().register("ostler_join_x_" + "a" * 32)
            refusals.append(caught.type)
        assert refusals[:4] == [Unauthenticated] * 4
        assert refusals[4] is NoCapacity


async def test_open_calls_of_one_caller(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(open_calls=3)) as rig:
        job_id = await rig.submit()
        polls = [asyncio.create_task(rig.http.get(f"/jobs/{job_id}/result?wait_s=50", headers=rig.bearer())) for _ in range(3)]
        await rig.open_calls(routes.AWAIT_JOB, 3)
        answer = await rig.http.get("/jobs", headers=rig.bearer())
        assert (answer.status_code, answer.json()["code"]) == (429, "no_capacity")
        assert await metric(rig, "open_calls") == 1
        for poll in polls:
            poll.cancel()

        async def is_let_in():
            return (await rig.http.get("/jobs", headers=rig.bearer())).status_code == 200

        await until(is_let_in)


async def test_connections_of_one_address(tmp_path):
    async with coordinator(tmp_path / "c", limits=LimitsConfig(connections=5)) as rig:
        host, port = rig.url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, port) for _ in range(5)]
        answer = await spoken(rig, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer
        for _, writer in held:
            writer.close()

        async def is_let_in():
            try:
                return (await rig.http.get(rig.url + "/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(is_let_in)
        assert await metric(rig, "connections") >= 1
