"""Logs over the API: appended at offsets, read in ranges, followed over retries and broken connections."""

import asyncio
import base64
import json
from datetime import UTC, datetime

import pytest

from integration.api_rig import coordinator, sha256
from ostler.coordinator.api import logs
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.upkeep.eras import begin_era
from ostler.model import errors
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c", max_log_bytes=1000) as one:
        yield one


@pytest.fixture
async def node(rig):
    return await rig.enrolled()


async def append(node, held, offset, data, **more):
    return await node.rig.nobody.append_log(held, "stdout", offset, data, token=node.token, **more)


def end(data):
    return m.LogEnd(stream="stdout", length=len(data), sha256=sha256(data))


async def test_bytes_go_to_their_offset(rig, node):
    held = await node.take()
    assert await append(node, held, 0, b"hello ") == 6
    with pytest.raises(errors.OffsetMismatch) as caught:
        await append(node, held, 3, b"x")
    assert caught.value.offset == 6
    answer = await rig.http.patch(
        f"/jobs/{held.job_id}/attempts/1/log/stdout", content=b"x", headers=rig.bearer(node.token, **{"Upload-Offset": "99"})
    )
    assert (answer.status_code, answer.headers["upload-offset"], answer.json()["offset"]) == (409, "6", 6)
    assert await append(node, held, 6, b"world", final=end(b"hello world")) == 11
    answer = await rig.http.get(f"/jobs/{held.job_id}/logs", headers=rig.bearer())
    assert (answer.status_code, answer.content, answer.headers["ostler-log-finished"]) == (200, b"hello world", "true")
    with pytest.raises(errors.TooLarge):
        await rig.nobody.append_log(held, "stderr", 0, b"x" * 1001, token=node.token)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Offset": "x"},
        {"Upload-Offset": "-1"},
        {"Upload-Offset": "9" * 30},
        {"Upload-Offset": "0", "Upload-Length": "1"},
        {"Upload-Offset": "0", "Upload-Checksum": "sha256 " + "A" * 43 + "="},
        {"Upload-Offset": "0", "Upload-Length": "1", "Upload-Checksum": "md5 AAAA"},
        {"Upload-Offset": "0", "Upload-Length": "1", "Upload-Checksum": "sha256 !!!"},
        {"Upload-Offset": "0", "Upload-Length": "1", "Upload-Checksum": "sha256"},
    ],
)
async def test_malformed_appends(rig, node, headers):
    held = await node.take()
    url = f"/jobs/{held.job_id}/attempts/1/log/stdout"
    answer = await rig.http.patch(url, content=b"x", headers=rig.bearer(node.token, **headers))
    assert answer.status_code == 422, answer.text
    assert (await rig.http.patch(url.replace("stdout", "stdin"), headers=rig.bearer(node.token))).status_code == 404


async def test_parts_of_a_log(rig, node):
    held = await node.take()
    await append(node, held, 0, b"0123456789")
    url = f"/jobs/{held.job_id}/logs"
    for query, status, content, placed in (
        ("", 200, b"0123456789", None),
        ("?offset=4", 206, b"456789", "bytes 4-9/*"),
        ("?offset=4&limit=2", 206, b"45", "bytes 4-5/*"),
        ("?limit=0", 206, b"", None),
        ("?offset=10", 206, b"", None),
        ("?offset=99", 206, b"", None),
        ("?stream=stderr", 200, b"", None),
    ):
        answer = await rig.http.get(url + query, headers=rig.bearer())
        assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, placed), query
        assert answer.headers["ostler-attempt"] == "1"
    for query, status in (("?stream=x", 422), ("?attempt=9", 404), ("?offset=-1", 422), ("?attempt=x", 422)):
        assert (await rig.http.get(url + query, headers=rig.bearer())).status_code == status, query


async def collected(events):
    """What a follower saw: bytes by attempt, the kinds in order, and the end."""
    seen, kinds, last = {}, [], {}
    async for event in events:
        said = json.loads(event.data)
        kinds.append(event.kind)
        if event.kind == "log":
            data = base64.b64decode(said["data"])
            assert said["offset"] == len(seen.get(said["attempt"], b""))
            seen[said["attempt"]] = seen.get(said["attempt"], b"") + data
        last = said
    return seen, kinds, last


async def test_following_to_the_end_over_a_retry(rig, node):
    held = await node.take(retries={"max": 1, "backoff_s": 0})
    following = asyncio.create_task(collected(rig.people.follow_log(held.job_id, m.LogQuery())))
    await rig.open_calls(routes.READ_LOG)
    await append(node, held, 0, b"one ")
    await append(node, held, 4, b"two")
    failure = Failure(FailureCode.EXIT, "no")
    await node.finish(m.Outcome(job_id=held.job_id, attempt=1, failure=failure, exit_code=1, logs=(end(b"one two"),)))
    [lease] = await node.pull(wait_s=30)
    again = m.Held(lease.job_id, lease.attempt)
    await node.ack(again)
    await append(node, again, 0, b"three")
    await node.finish(m.Outcome(job_id=held.job_id, attempt=again.attempt, exit_code=0, logs=(end(b"three"),)))
    seen, kinds, last = await asyncio.wait_for(following, 20)
    assert seen == {1: b"one two", again.attempt: b"three"}
    assert kinds.count("attempt") == 2
    assert (kinds[-1], last["state"], last["exit_code"]) == ("end", "done", 0)


async def test_following_resumes_after_the_last_event(rig, node):
    held = await node.take()
    await append(node, held, 0, "grüße ".encode())
    async with rig.people.download(
        routes.READ_LOG, query=m.LogQuery(follow=True), headers={"Last-Event-ID": "1.7"}, job_id=held.job_id
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = b""
        async for block in answer.blocks():
            text += block
            if b"event: log" in text and text.endswith(b"\n\n"):
                break
    assert b"id: 1.8" in text
    assert json.loads(text.split(b"data: ")[-1])["data"] == base64.b64encode(b" ").decode()
    await node.finish(m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, logs=(end("grüße ".encode()),)))
    for ident, expected in (
        ("1.0", "grüße "),
        ("4", "ße "),
        ("1.8", ""),
        ("junk", "grüße "),
        ("1.x", "grüße "),
        ("9" * 40, "grüße "),
    ):
        answer = await rig.http.get(f"/jobs/{held.job_id}/logs?follow=true", headers=rig.bearer(**{"Last-Event-ID": ident}))
        found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert "".join(one.get("text", "") for one in found) == expected, ident
        assert "event: end" in answer.text


async def test_a_character_that_is_not_whole_waits_for_its_rest(rig, node):
    held = await node.take()
    whole = "ä😀".encode()
    following = asyncio.create_task(collected(rig.people.follow_log(held.job_id, m.LogQuery())))
    texts = asyncio.create_task(_texts(rig, held))
    await rig.open_calls(routes.READ_LOG, 2)
    for place in range(len(whole)):
        await append(node, held, place, whole[place : place + 1])
    await append(node, held, len(whole), b"\xff\xc3")
    await node.finish(m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, logs=(end(whole + b"\xff\xc3"),)))
    seen, _, _ = await asyncio.wait_for(following, 20)
    assert seen == {1: whole + b"\xff\xc3"}
    assert await asyncio.wait_for(texts, 20) == "ä😀\ufffd\ufffd"


async def _texts(rig, held):
    return "".join([json.loads(one.data).get("text", "") async for one in rig.people.follow_log(held.job_id, m.LogQuery())])


async def test_a_quiet_log_says_that_the_line_is_alive(rig, node, monkeypatch):
    monkeypatch.setattr(logs, "KEEP_ALIVE_S", 0.01)  # nobody waits for a quarter of a minute here
    held = await node.take()
    async with rig.people.download(routes.READ_LOG, query=m.LogQuery(follow=True), job_id=held.job_id) as answer:
        async for block in answer.blocks():
            if block == b": keep-alive\n\n":
                break


async def test_following_a_job_that_never_ran(rig):
    job_id = await rig.submit()
    following = asyncio.create_task(collected(rig.people.follow_log(job_id, m.LogQuery(stream="stderr"))))
    await rig.open_calls(routes.READ_LOG)
    await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(), job_id=job_id)
    seen, kinds, last = await asyncio.wait_for(following, 20)
    assert (seen, kinds, last["state"]) == ({}, ["end"], "cancelled")


async def test_following_goes_on_after_the_coordinator_was_restarted(tmp_path):
    """The reader is told nothing of it: what it had comes once, and what it lacks comes after."""
    async with coordinator(tmp_path / "c") as rig:
        node = await rig.enrolled()
        held = await node.take()
        await append(node, held, 0, b"before ")
        port = int(rig.url.rpartition(":")[2])
        reader = AsyncClient(rig.url, token=rig.people.token, patience_s=60)
        following = asyncio.create_task(collected(reader.follow_log(held.job_id, m.LogQuery())))
        await rig.open_calls(routes.READ_LOG)
    async with coordinator(tmp_path / "c", listen_port=port) as rig:
        node.rig = rig
        await append(node, held, 7, b"after")
        await node.finish(m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, logs=(end(b"before after"),)))
        seen, kinds, _ = await asyncio.wait_for(following, 30)
        assert seen == {1: b"before after"}
        assert kinds[-1] == "end"
    await reader.close()


async def test_following_goes_over_the_numbers_that_a_restore_leaves_out(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        node = await rig.enrolled()
        held = await node.take(retries={"max": 1, "backoff_s": 0})
        await append(node, held, 0, b"before")
    database = SqliteDatabase(tmp_path / "c" / "ostler.db")
    era = begin_era(database, "b", datetime.now(UTC), now=datetime.now(UTC))
    database.close()
    async with coordinator(tmp_path / "c") as rig:
        node.rig = rig
        following = asyncio.create_task(collected(rig.people.follow_log(held.job_id, m.LogQuery())))
        await rig.open_calls(routes.READ_LOG)
        failure = Failure(FailureCode.EXIT, "no")
        await node.finish(m.Outcome(job_id=held.job_id, attempt=1, failure=failure, exit_code=1, logs=(end(b"before"),)))
        [lease] = await node.pull(wait_s=30)
        assert lease.attempt == era + 1
        again = m.Held(lease.job_id, lease.attempt)
        await node.ack(again)
        await append(node, again, 0, b"after")
        await node.finish(m.Outcome(job_id=held.job_id, attempt=again.attempt, exit_code=0, logs=(end(b"after"),)))
        seen, kinds, _ = await asyncio.wait_for(following, 20)
        assert seen == {1: b"before", again.attempt: b"after"}
        assert kinds.count("attempt") == 2
