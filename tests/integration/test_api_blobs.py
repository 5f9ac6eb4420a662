"""Bytes over the API: uploads, ranges, and what a node may reach."""

import os
import subprocess

import pytest

from integration.api_rig import coordinator, sha256
from ostler.model import errors
from ostler.protocol import messages as m
from ostler.protocol import routes

MB = 2**20


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def test_a_large_upload_is_named_by_its_content(rig, tmp_path):
    data = os.urandom(5 * MB + 3)
    (tmp_path / "f").write_bytes(data)
    blob = await rig.people.upload(routes.UPLOAD_BLOB, tmp_path / "f")
    assert blob == m.Blob(sha256=sha256(data), size=len(data))
    async with rig.people.download(routes.GET_BLOB, sha256=blob.sha256) as answer:
        assert b"".join([block async for block in answer.blocks()]) == data
    assert rig.staged == []
    assert (await rig.http.post("/blobs", content=b"", headers=rig.bearer())).json()["size"] == 0


@pytest.fixture
async def digits(rig):
    answer = await rig.http.post("/blobs", content=b"0123456789", headers=rig.bearer())
    return f"/blobs/{answer.json()['sha256']}"


@pytest.mark.parametrize(
    ("asked", "status", "content", "placed"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=99999999999999999999-", 200, b"0123456789", None),
        ("bytes=٣-", 200, b"0123456789", None),
    ],
)
async def test_ranges(rig, digits, asked, status, content, placed):
    answer = await rig.http.get(digits, headers=[*rig.bearer().items(), (b"range", asked.encode())])
    assert (answer.status_code, answer.headers.get("content-range")) == (status, placed)
    if content is not None:
        assert answer.content == content


async def test_a_download_is_safe_to_look_at_and_can_be_resumed(rig, digits):
    answer = await rig.http.get(digits, headers=rig.bearer())
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["etag"] == f'"{digits.rpartition("/")[2]}"'
    part = await rig.http.get(digits, headers=rig.bearer(**{"Range": "bytes=5-", "If-Range": answer.headers["etag"]}))
    assert part.status_code == 206
    other = await rig.http.get(digits, headers=rig.bearer(**{"Range": "bytes=5-", "If-Range": '"another"'}))
    assert (other.status_code, other.content) == (200, b"0123456789")
    head = await rig.http.head(digits, headers=rig.bearer())
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")


async def test_an_artifacts_type_cannot_write_headers(rig, tmp_path):
    node = await rig.enrolled()
    held = await node.take(artifacts=[{"path": "a.html", "type": "text/html\r\nX-Evil: 1"}, {"path": "b", "type": "text/html"}])
    (tmp_path / "f").write_bytes(b"<script>")
    entries = [m.ArtifactEntry(path=path, type="x", size=8, sha256=sha256(b"<script>")) for path in ("a.html", "b")]
    outcome = m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, artifacts=tuple(entries))
    assert (await rig.nobody.deliver(outcome, {"a.html": tmp_path / "f", "b": tmp_path / "f"}, token=node.token)).ok
    answer = await rig.http.get(f"/jobs/{held.job_id}/artifacts/a.html", headers=rig.bearer())
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    for path in ("a.html", "b"):
        answer = await rig.http.get(f"/jobs/{held.job_id}/artifacts/{path}", headers=rig.bearer())
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["content-disposition"].startswith("attachment")


async def test_a_node_reaches_the_inputs_of_its_attempts_alone(rig, tmp_path):
    node, other = await rig.enrolled(), await rig.enrolled()
    (tmp_path / "f").write_bytes(b"input")
    blob = await rig.people.upload(routes.UPLOAD_BLOB, tmp_path / "f")

    async def get(who):
        async with rig.nobody.download(routes.GET_BLOB, sha256=blob.sha256, token=who.token) as answer:
            return b"".join([block async for block in answer.blocks()])

    with pytest.raises(errors.NotFound):
        await get(node)
    held = await node.take(input={"files": [{"name": "f", "sha256": blob.sha256, "size": 5}]})
    assert await get(node) == b"input"
    with pytest.raises(errors.NotFound):
        await get(other)
    assert (await node.finish(m.Outcome(job_id=held.job_id, attempt=1, exit_code=0)))[0].ok
    with pytest.raises(errors.NotFound):
        await get(node)


async def test_a_workspace_is_taken_when_it_was_asked_for(rig, tmp_path):
    node, other = await rig.enrolled(), await rig.enrolled()
    held = await node.take()
    (tmp_path / "w").write_bytes(b"tar.gz")
    path = {"job_id": held.job_id, "attempt": held.attempt}
    with pytest.raises(errors.NotFound, match="not asked for"):
        await rig.nobody.upload(routes.UPLOAD_WORKSPACE, tmp_path / "w", token=node.token, **path)
    await rig.people.call(routes.DEBUG_JOB, job_id=held.job_id)
    with pytest.raises(errors.NotFound):
        await rig.nobody.upload(routes.UPLOAD_WORKSPACE, tmp_path / "w", token=other.token, **path)
    assert rig.stored == []
    blob = await rig.nobody.upload(routes.UPLOAD_WORKSPACE, tmp_path / "w", token=node.token, **path)
    async with rig.people.download(routes.GET_WORKSPACE, **path) as answer:
        assert answer.headers["content-type"] == "application/gzip"
        assert sha256(b"".join([block async for block in answer.blocks()])) == blob.sha256


@pytest.fixture
def small(tmp_path):
    """A data directory whose artifacts have a file system of 4 MB to themselves."""
    root = tmp_path / "c" / "artifacts"
    root.mkdir(parents=True)
    (tmp_path / "c").chmod(0o700)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", root], check=False).returncode:
        pytest.skip("this needs the right to mount a file system")
    yield tmp_path / "c"
    subprocess.run(["umount", root], check=True)


@pytest.mark.root
async def test_a_full_disk_is_a_503_that_leaves_nothing(small):
    async with coordinator(small) as rig:
        for _ in range(2):
            answer = await rig.http.post("/blobs", content=b"x" * 8 * MB, headers=rig.bearer())
            assert (answer.status_code, answer.json()["code"]) == (503, "store_busy")
            assert int(answer.headers["retry-after"]) > 0
            assert rig.staged == []
        assert (await rig.http.post("/blobs", content=b"x" * MB, headers=rig.bearer())).status_code == 201
