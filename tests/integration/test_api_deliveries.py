"""Results with artifacts: bytes are refused early, verified whole, and leave nothing behind when they are not wanted."""

import asyncio
import os
from datetime import timedelta

import pytest
from msgspec.structs import replace

from integration.api_rig import coordinator, sha256
from ostler.model import errors
from ostler.model.job import JobState
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.forms import FilePart, Form

MB = 2**20


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


@pytest.fixture
async def node(rig):
    return await rig.enrolled()


def entry(path, data, kind="text/plain"):
    return m.ArtifactEntry(path=path, type=kind, size=len(data), sha256=sha256(data))


def result(held, *entries):
    return m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=0, artifacts=entries)


async def send(node, outcome, files, boundary="b", tail=True):
    """A form as raw bytes, so that a test can say what no client of ours would."""
    body = b""
    for name, filename, data in [("metadata", None, codec.encode(outcome)), *files]:
        names = f'name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        body += f"--{boundary}\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode() + data + b"\r\n"
    body += f"--{boundary}--\r\n".encode() if tail else b""
    headers = node.rig.bearer(node.token, **{"Content-Type": f"multipart/form-data; boundary={boundary}"})
    return await node.rig.http.post("/jobs/result", content=body, headers=headers)


async def untouched(rig, held):
    assert (await rig.show(held.job_id)).state is JobState.ACKED
    assert rig.staged == []
    assert rig.stored == []


async def test_files_arrive_whole(rig, node, tmp_path):
    contents = {"out/a.bin": os.urandom(3 * MB + 17), "b.txt": b"", 'odd "name" ä%22.txt': b"x"}
    held = await node.take(artifacts=[{"path": path, "max_mb": 4} for path in contents])
    files = {}
    for number, (path, data) in enumerate(contents.items()):
        files[path] = tmp_path / f"{number}"
        files[path].write_bytes(data)
    outcome = result(held, *(entry(path, data) for path, data in contents.items()))
    item = await rig.nobody.deliver(outcome, files, token=node.token)
    assert item.ok, item
    for path, data in contents.items():
        async with rig.people.download(routes.GET_ARTIFACT, job_id=held.job_id, path=path) as answer:
            assert answer.headers["content-length"] == str(len(data))
            assert b"".join([block async for block in answer.blocks()]) == data
    page = await rig.people.call(routes.LIST_ARTIFACTS, job_id=held.job_id)
    assert {(one.path, one.type) for one in page.items} == {(path, "application/octet-stream") for path in contents}, (
        "the manifest's"
    )
    assert rig.staged == []
    again = await rig.nobody.deliver(outcome, files, token=node.token)
    assert again.ok, "the answer was lost and everything is sent once more"
    assert rig.staged == []


async def test_equal_content_stands_once(rig, node, tmp_path):
    data = os.urandom(1000)
    (tmp_path / "f").write_bytes(data)
    for _ in range(2):
        held = await node.take(artifacts=[{"path": "a"}, {"path": "b"}])
        outcome = result(held, entry("a", data), entry("b", data))
        item = await rig.nobody.deliver(outcome, {"a": tmp_path / "f", "b": tmp_path / "f"}, token=node.token)
        assert item.ok
    assert len(rig.stored) == 1


@pytest.mark.parametrize(
    ("announced", "sent", "path", "status"),
    [
        (b"abc", b"abd", "a", 422),  # other bytes
        (b"abc", b"abcd", "a", 422),  # too many
        (b"abc", b"ab", "a", 422),  # too few
        (b"abc", b"abc", "b", 422),  # not declared
        (b"abc", b"abc", "../a", 422),
        (b"x" * (MB + 1), b"x" * (MB + 1), "a", 413),  # larger than the manifest allows
    ],
)
async def test_what_is_not_as_announced_is_refused(rig, node, announced, sent, path, status):
    held = await node.take(artifacts=[{"path": "a", "max_mb": 1}])
    answer = await send(node, result(held, entry(path, announced)), [("artifacts", path, sent)])
    assert answer.status_code == status, answer.text
    await untouched(rig, held)


async def test_a_size_beyond_the_manifest_is_refused_before_its_bytes_move(rig, node):
    """The body never ends: only an answer that does not wait for it can come."""
    held = await node.take(artifacts=[{"path": "a", "max_mb": 1}])
    metadata = codec.encode(result(held, m.ArtifactEntry(path="a", type="x/y", size=50 * 1024 * MB, sha256="0" * 64)))
    release = asyncio.Event()

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n' + metadata + b"\r\n"
        yield b'--b\r\nContent-Disposition: form-data; name="artifacts"; filename="a"\r\n\r\n'
        await release.wait()

    headers = rig.bearer(node.token, **{"Content-Type": "multipart/form-data; boundary=b"})
    sending = asyncio.create_task(rig.http.post("/jobs/result", content=body(), headers=headers))
    await rig.open_calls(routes.RESULT, 0)
    release.set()
    answer = await sending
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    await untouched(rig, held)


async def test_form_mistakes(rig, node):
    held = await node.take(artifacts=[{"path": "a"}, {"path": "b"}])
    one, two = entry("a", b"1"), entry("b", b"2")
    for files, outcome in [
        ([], result(held, one)),  # announced and not sent
        ([("artifacts", "a", b"1")], result(held, one, two)),
        ([("artifacts", "a", b"1"), ("artifacts", "a", b"1")], result(held, one)),  # twice
        ([("artifacts", "b", b"2")], result(held, one)),  # declared, not announced
        ([("metadata", None, b"{}")], result(held)),  # metadata twice
        ([("artifacts", "a", b"1")], replace(result(held, one), contents={"a": b"evil"})),  # would stand under the sha256 of b"1"
    ]:
        answer = await send(node, outcome, files)
        assert answer.status_code == 422, answer.text
        await untouched(rig, held)
    assert (await send(node, result(held, one), [("artifacts", "a", b"1")], tail=False)).status_code == 422
    headers = rig.bearer(node.token, **{"Content-Type": "multipart/form-data; boundary=b"})
    files_first = b'--b\r\nContent-Disposition: form-data; name="artifacts"; filename="a"\r\n\r\n1\r\n--b--\r\n'
    for body in (files_first, b"", b"--b--\r\n", b"junk", b"--b\r\nbroken header\r\n\r\n", b"--b\r\n\r\n\r\n--b--\r\n"):
        answer = await rig.http.post("/jobs/result", content=body, headers=headers)
        assert answer.status_code == 422, (body, answer.text)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 300):
        answer = await rig.http.post("/jobs/result", content=b"", headers=headers | {"Content-Type": kind})
        assert answer.status_code == 422, answer.text
    await untouched(rig, held)


async def test_a_connection_that_breaks_leaves_nothing(rig, node):
    held = await node.take(artifacts=[{"path": "a"}])
    metadata = codec.encode(result(held, entry("a", b"x" * 5 * MB)))

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n' + metadata + b"\r\n"
        yield b'--b\r\nContent-Disposition: form-data; name="artifacts"; filename="a"\r\n\r\n' + b"x" * 3 * MB
        await rig.staging()
        raise ConnectionResetError("cable pulled")

    headers = rig.bearer(node.token, **{"Content-Type": "multipart/form-data; boundary=b"})
    with pytest.raises(ConnectionResetError):
        await rig.http.post("/jobs/result", content=body(), headers=headers)
    await rig.open_calls(routes.RESULT, 0)
    await untouched(rig, held)


async def test_a_restart_in_the_middle_leaves_no_staging_file(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        staging = tmp_path / "c" / "artifacts" / "staging"
        assert rig.staged == []
    (staging / "left-by-a-killed-process").write_bytes(b"half")
    async with coordinator(tmp_path / "c") as rig:
        assert rig.staged == []


async def test_a_stop_in_the_middle_of_an_upload_leaves_no_staging_file(tmp_path):
    async with coordinator(tmp_path / "c", drain=timedelta(0)) as rig:
        began = asyncio.Event()

        async def body():
            yield b"x" * 2 * MB
            began.set()
            await asyncio.Event().wait()

        sending = asyncio.create_task(rig.http.post("/blobs", content=body(), headers=rig.bearer()))
        await began.wait()
        await rig.staging()
        rig.stop.set()
        await asyncio.wait_for(rig.task, 30)
        assert rig.staged == []
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_log_that_is_not_whole_is_answered_with_the_place_to_rewind_to(rig, node, tmp_path):
    held = await node.take(artifacts=[{"path": "a"}])
    (tmp_path / "f").write_bytes(b"1")
    await rig.nobody.append_log(held, "stdout", 0, b"ab", token=node.token)
    end = m.LogEnd(stream="stdout", length=5, sha256=sha256(b"abcde"), offset=4, tail=b"e")
    outcome = m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, logs=(end,), artifacts=(entry("a", b"1"),))
    item = await rig.nobody.deliver(outcome, {"a": tmp_path / "f"}, token=node.token)
    assert (item.ok, item.code, item.stream, item.offset) == (False, "offset_mismatch", "stdout", 2)


async def test_a_file_that_shrinks_while_it_is_sent_is_the_senders_mistake(rig, node, tmp_path):
    held = await node.take(artifacts=[{"path": "a"}])
    (tmp_path / "f").write_bytes(b"12")
    with pytest.raises(errors.InvalidSpec, match="shorter"):
        await rig.nobody.deliver(result(held, entry("a", b"123")), {"a": tmp_path / "f"}, token=node.token)
    await rig.open_calls(routes.RESULT, 0)
    await untouched(rig, held)


def test_a_form_knows_its_length(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * (2 * MB + 1))
    form = Form.of(
        {"a": b"1", "b": b""}, [FilePart("f", "näme", tmp_path / "f", 2 * MB + 1), FilePart("g", "g", tmp_path / "f", 0)]
    )
    body = b"".join(form.blocks())
    assert form.headers["Content-Length"] == str(len(body))
    assert max(len(block) for block in form.blocks()) <= MB


# --- inside the outcome ---


async def test_small_artifacts_come_inside_the_outcome(rig, node):
    """They are read, listed, waited for and handed on like any other; no file is made for them."""
    held = await node.take(artifacts=[{"path": "r.json", "type": "application/json"}, {"path": "none", "optional": True}])
    outcome = replace(result(held, entry("r.json", b"[42]", "text/html")), contents={"r.json": b"[42]"})
    for item in [*(await node.finish(outcome)), *(await node.finish(outcome))]:
        assert item.ok, "the second time the answer was lost"
    assert rig.stored == []
    [made] = (await rig.people.call(routes.LIST_ARTIFACTS, job_id=held.job_id)).items
    assert made == entry("r.json", b"[42]", "application/json"), "the type is the manifest's"
    url = f"/jobs/{held.job_id}/artifacts/r.json"
    assert (await rig.http.get(url, headers=rig.bearer())).content == b"[42]"
    part = await rig.http.get(url, headers=rig.bearer(Range="bytes=1-2"))
    assert (part.status_code, part.content) == (206, b"42")
    asked = m.AwaitRequest(job_ids=(held.job_id,), contents=("r.json",))
    [ended] = (await rig.people.call(routes.AWAIT_JOBS, asked)).items
    assert (ended.job.state, ended.contents) == (JobState.DONE, {"r.json": b"[42]"})
    taker = await node.take(input={"files": [{"name": "in", "sha256": made.sha256, "size": 4}]})
    assert taker.job_id != held.job_id
    assert (await rig.http.get(f"/blobs/{made.sha256}", headers=rig.bearer(node.token))).content == b"[42]"


@pytest.mark.parametrize(
    ("path", "announced", "brought", "code"),
    [
        ("a", b"good", {"a": b"evil"}, "invalid_spec"),
        ("a", b"good", {"a": b"good", "b": b"more"}, "invalid_spec"),
        ("a", b"good", {"b": b"good"}, "invalid_spec"),
        ("undeclared", b"good", {"undeclared": b"good"}, "invalid_spec"),
        ("a", b"x" * (m.INLINE_BYTES + 1), {"a": b"x" * (m.INLINE_BYTES + 1)}, "invalid_spec"),
        ("a", b"good", {}, "not_found"),
    ],
    ids=["other bytes", "more than announced", "another one", "undeclared", "too large", "none"],
)
async def test_what_an_outcome_brings_is_as_announced_and_wanted(rig, node, path, announced, brought, code):
    held = await node.take(artifacts=[{"path": "a"}, {"path": "b"}])
    try:
        [item] = await node.finish(replace(result(held, entry(path, announced)), contents=brought))
        found = item.code
    except errors.InvalidSpec as exc:
        found = exc.code
    assert found == code
    await untouched(rig, held)
    assert (await rig.people.call(routes.LIST_ARTIFACTS, job_id=held.job_id)).items == ()


async def test_a_stale_outcome_brings_nothing(rig, node):
    held = await node.take(artifacts=[{"path": "a"}])
    stale = replace(result(held, entry("a", b"late")), attempt=held.attempt + 1, contents={"a": b"late"})
    [item] = await node.finish(stale)
    assert item.code == "stale_attempt"
    await untouched(rig, held)
    assert (await rig.http.get(f"/blobs/{sha256(b'late')}", headers=rig.bearer())).status_code == 404
