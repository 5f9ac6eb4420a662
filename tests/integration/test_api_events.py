"""Events over the API: pages, filters, whose they are, followers that lose nothing, and what a thousand of them cost."""

import asyncio
import contextlib
import json
import random
import sqlite3

import pytest

from integration.api_rig import coordinator
from ostler.coordinator.api import events as api
from ostler.coordinator.operations import events as ops
from ostler.model import errors
from ostler.model.access import Role
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def page(client, **query):
    return await client.call(routes.EVENTS, query=m.EventQuery(**query))


async def now(rig):
    """A cursor behind everything so far."""
    return (await page(rig.people, after="latest")).next_cursor


async def everything(client, **query):
    """All pages, one after the other."""
    found, answer = [], await page(client, **query)
    found += answer.items
    while answer.more:
        answer = await page(client, **{**query, "since_s": None, "after": answer.next_cursor})
        found += answer.items
    return found


def kinds(events):
    return [one.kind for one in events]


async def test_what_happened_in_order(rig):
    node = await rig.enrolled("n-one")
    held = await node.take(retries={"max": 1, "backoff_s": 0})
    await node.finish(m.Outcome(job_id=held.job_id, attempt=1, failure=Failure(FailureCode.EXIT, "no"), exit_code=1))
    [lease] = await node.pull(wait_s=30)
    await node.ack(m.Held(lease.job_id, lease.attempt))
    await node.finish(m.Outcome(job_id=lease.job_id, attempt=lease.attempt, exit_code=0))
    found = await everything(rig.people)
    assert kinds(found)[:1] == ["enrol"]
    assert kinds(await everything(rig.people, job=held.job_id)) == [
        "submit", "lease", "ack", "retry", "due", "lease", "ack", "finish"
    ]  # fmt: skip
    assert await everything(rig.people, limit=2) == found
    assert [one.attempt for one in await everything(rig.people, kind="lease")] == [1, 2]
    assert await everything(rig.people, kind="lease,finish") == [one for one in found if one.kind in {"lease", "finish"}]
    assert await everything(rig.people, node="n-one") == [one for one in found if one.node_id == "n-one"]
    assert await everything(rig.people, since_s=3600) == found
    assert await everything(rig.people, since_s=0) == []
    assert await everything(rig.people, after=found[3].cursor) == found[4:]
    assert (await page(rig.people, after="latest")).items == ()


async def test_queries_that_make_no_sense(rig):
    job_id = await rig.submit()
    for query, status in (
        ("kind=bogus", 422), ("after=%00", 422), ("after=x", 422), ("limit=0", 422), ("limit=501", 422), ("job=j-none", 404),
        ("since_s=-1", 422), ("since_s=nan", 422), (f"after=latest&since_s=1&job={job_id}", 422), ("since=1", 422),
        ("since_s=1e300", 422), ("after=LTU", 200), ("kind=&job=" + job_id, 200), ("group=g-none", 404), ("node=n-none", 404),
    ):  # fmt: skip
        answer = await rig.http.get(f"/events?{query}", headers=rig.bearer())
        assert answer.status_code == status, (query, answer.text)
    answer = await rig.http.get("/events?follow=true", headers=rig.bearer(**{"Last-Event-ID": "x y"}))
    assert answer.status_code == 422
    assert (await rig.http.get("/events?kind=bogus", headers=rig.bearer())).json()["errors"][0]["path"] == "kind"


async def test_a_submitter_sees_only_events_of_own_jobs(rig):
    node = await rig.enrolled()
    await node.take()
    async with rig.person(Role.SUBMITTER, "ann") as ann, rig.person(Role.VIEWER) as viewer:
        answer = await ann.call(routes.SUBMIT, b'{"command": "true"}')
        mine = answer.items[0].job_id
        assert {one.job_id for one in await everything(ann)} == {mine}
        assert all(one.owner == "ann" for one in await everything(ann))
        other = await rig.submit()
        with pytest.raises(errors.NotFound):
            await page(ann, job=other)
        assert await everything(viewer) == await everything(rig.people)
        following = asyncio.create_task(first(ann.follow_events(m.EventQuery()), 2))
        await rig.open_calls(routes.EVENTS)
        await rig.submit()
        await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=mine)
        assert [(one["kind"], one["job_id"]) for one in await following] == [("submit", mine), ("cancel", mine)]


async def first(events, count):
    """The first few of what a follower is told."""
    found = []
    async with contextlib.aclosing(events) as stream:
        async for one in stream:
            found.append(json.loads(one.data))
            if len(found) == count:
                break
    return found


async def test_following_from_now_on(rig):
    await rig.submit()
    following = asyncio.create_task(first(rig.people.follow_events(m.EventQuery(after=await now(rig), kind="submit")), 3))
    await rig.open_calls(routes.EVENTS)
    jobs = [await rig.submit() for _ in range(3)]
    assert [one["job_id"] for one in await asyncio.wait_for(following, 20)] == jobs


async def test_an_event_source_of_a_browser(rig):
    """`Accept` is enough, and `Last-Event-ID` counts more than the query."""
    await rig.submit()
    [one] = await everything(rig.people)
    job_id = await rig.submit()
    headers = rig.bearer(Accept="text/event-stream", **{"Last-Event-ID": one.cursor})
    async with rig.http.stream("GET", "/events?since_s=3600", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            if "data:" in text and text.endswith("\n\n"):
                break
    assert text.startswith(f"id: {one.cursor}\n\nid: ")
    assert json.loads(text.split("data: ")[1])["job_id"] == job_id


async def test_a_quiet_stream_is_kept_alive_and_moves_on(rig, monkeypatch):
    monkeypatch.setattr(api, "KEEP_ALIVE_S", 0.01)
    job_id = await rig.submit()
    async with rig.http.stream("GET", f"/events?follow=true&job={job_id}&after=latest", headers=rig.bearer()) as answer:
        text, place = "", None
        async for piece in answer.aiter_text():
            text += piece
            if ": keep-alive" in text and place is None:
                await rig.submit()
                place = (await everything(rig.people))[-1].cursor
            if place and f"id: {place}\n\n" in text:
                break
    assert "data:" not in text


async def test_a_token_that_expires_ends_a_stream_in_which_nothing_happens(rig, monkeypatch):
    monkeypatch.setattr(api, "KEEP_ALIVE_S", 0.01)
    wanted = m.TokenRequest(kind=m.TokenKind.API, role=Role.VIEWER, principal="eve", expires_s=1)
    headers = {"Authorization": f"Bearer {(await rig.people.call(routes.CREATE_TOKEN, wanted)).token}"}
    async with rig.http.stream("GET", "/events?follow=true&after=latest", headers=headers) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_text():
            pass
    assert (await rig.http.get("/events", headers=headers)).status_code == 401


async def test_revoking_the_token_ends_the_stream(rig):
    made = await rig.token_for(Role.VIEWER)
    async with AsyncClient(rig.url, token=made.token, patience_s=60) as viewer:
        following = asyncio.create_task(first(viewer.follow_events(m.EventQuery(after="latest")), 1))
        await rig.open_calls(routes.EVENTS)
        await rig.people.call(routes.REVOKE_TOKEN, token_id=made.token_id)
        with pytest.raises(errors.Unauthenticated):
            await asyncio.wait_for(following, 20)


async def test_a_cursor_whose_events_were_deleted(rig):
    for _ in range(5):
        await rig.submit()
    found = await everything(rig.people)
    base = sqlite3.connect(rig.config.database)
    with base:
        base.execute("DELETE FROM events WHERE id <= 3")
    base.close()
    assert await everything(rig.people) == found[3:]
    assert await everything(rig.people, after=found[2].cursor) == found[3:]
    with pytest.raises(errors.Gone, match="deleted") as caught:
        await page(rig.people, after=found[1].cursor)
    assert "without a cursor" in caught.value.hint
    with pytest.raises(errors.Gone):
        await first(rig.people.follow_events(m.EventQuery(after=found[0].cursor)), 1)


class CuttingProxy:
    """Passes bytes on to the coordinator, and cuts each connection after a few of them."""

    def __init__(self, port, rng):
        self.port, self.rng, self.cuts = port, rng, 0

    async def serve(self, reader, writer):
        there_reader, there = await asyncio.open_connection("127.0.0.1", self.port)

        async def forth():
            while data := await reader.read(65536):
                there.write(data)

        task = asyncio.create_task(forth())
        left = self.rng.randint(200, 3000)
        try:
            while left > 0 and (data := await there_reader.read(left)):
                writer.write(data)
                await writer.drain()
                left -= len(data)
            self.cuts += 1
        finally:
            task.cancel()
            writer.transport.abort()
            there.close()


async def test_a_line_that_is_cut_again_and_again_loses_nothing(rig):
    """Each event comes once, in order, wherever the connections break."""
    count = 150
    proxy = CuttingProxy(int(rig.url.rpartition(":")[2]), random.Random(7))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"http://127.0.0.1:{port}", token=rig.people.token, patience_s=60) as client:
        following = asyncio.create_task(first(client.follow_events(m.EventQuery(after=await now(rig))), count))
        await rig.open_calls(routes.EVENTS)
        jobs = [await rig.submit() for _ in range(count)]
        found = await asyncio.wait_for(following, 300)
    assert [one["job_id"] for one in found] == jobs
    assert len({one["cursor"] for one in found}) == count
    assert proxy.cuts > 10


async def test_followers_share_reads(rig, monkeypatch):
    """Many followers at the same place cost one read a turn, and each gets all."""
    followers, count, reads, read = 100, 20, [], ops.window
    monkeypatch.setattr(ops, "window", lambda *args: reads.append(args[1]) or read(*args))
    clients = [AsyncClient(rig.url, token=rig.people.token) for _ in range(followers)]
    try:
        query = m.EventQuery(after=await now(rig))
        tasks = [asyncio.create_task(first(one.follow_events(query), count)) for one in clients]
        await rig.open_calls(routes.EVENTS, followers)
        jobs = [await rig.submit() for _ in range(count)]
        for found in await asyncio.wait_for(asyncio.gather(*tasks), 60):
            assert [one["job_id"] for one in found] == jobs
    finally:
        for one in clients:
            await one.close()
    assert len(reads) - followers < followers * count / 4, "each begins on its own; afterwards they share"
