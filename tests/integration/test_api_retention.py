"""Retention over the API: who may look and act, what a reader is told of what is gone, and what becomes of one who reads meanwhile."""

import os
from datetime import timedelta

import pytest

from integration.api_rig import coordinator, sha256
from ostler.coordinator.config import Retention
from ostler.model import errors
from ostler.model.access import Role
from ostler.protocol import messages as m
from ostler.protocol import routes

MB = 2**20
AT_ONCE = timedelta(microseconds=1)


async def deliver(rig, tmp_path, data, log=b"said"):
    """A finished job with one artifact `out` and a log; its node and id."""
    node = await rig.enrolled()
    held = await node.take(artifacts=[{"path": "out"}])
    (tmp_path / "f").write_bytes(data)
    entry = m.ArtifactEntry(path="out", type="x", size=len(data), sha256=sha256(data))
    for begin in range(0, len(log), 8 * MB):
        headers = rig.bearer(node.token, **{"Upload-Offset": str(begin)})
        piece = log[begin : begin + 8 * MB]
        answer = await rig.http.patch(f"/jobs/{held.job_id}/attempts/1/log/stdout", content=piece, headers=headers)
        assert answer.status_code == 204
    end = m.LogEnd(stream="stdout", length=len(log), sha256=sha256(log), offset=len(log))
    outcome = m.Outcome(job_id=held.job_id, attempt=1, exit_code=0, artifacts=(entry,), logs=(end,))
    assert (await rig.nobody.deliver(outcome, {"out": tmp_path / "f"}, token=node.token)).ok
    return held.job_id


def age(rig):
    """Makes the files of the store as old as those that a pass may take."""
    for path in rig.stored:
        os.utime(path, (1, 1))


async def test_what_is_gone_is_said_to_be(tmp_path):
    async with coordinator(tmp_path / "c", retention=Retention(logs=AT_ONCE, artifacts=AT_ONCE)) as rig:
        job_id = await deliver(rig, tmp_path, b"made")
        view = await rig.people.call(routes.SHOW_RETENTION, query=m.RetentionQuery(dry_run=True))
        assert view.plan.counts == {"logs": 1, "artifacts": 1}
        assert view.policy["jobs"] == "90d"
        age(rig)
        done = await rig.people.call(routes.APPLY_RETENTION)
        assert done.last.removed == {"logs": 1, "artifacts": 1, "blob": 1}
        assert rig.stored == []
        for path in ("artifacts", "artifacts/out", "logs", "logs?follow=true"):
            answer = await rig.http.get(f"/jobs/{job_id}/{path}", headers=rig.bearer())
            assert (answer.status_code, answer.json()["code"]) == (410, "gone"), path
            assert "were removed at 20" in answer.json()["detail"]
            assert answer.json()["hint"]
        assert (await rig.show(job_id)).state == "done"
        page = (await rig.http.get(rig.url + "/metrics")).text
        assert 'ostler_retention_removed_total{kind="logs"} 1.0' in page
        assert 'ostler_retention_freed_bytes_total{kind="blob"} 4.0' in page
        assert 'ostler_kept_bytes{kind="blobs"} 0.0' in page


async def test_a_reader_gets_all_of_a_file_that_is_removed_meanwhile(tmp_path):
    async with coordinator(tmp_path / "c", retention=Retention(artifacts=AT_ONCE)) as rig:
        data = os.urandom(24 * MB)  # more than the buffers on the way hold
        job_id = await deliver(rig, tmp_path, data)
        age(rig)
        async with rig.people.download(routes.GET_ARTIFACT, job_id=job_id, path="out") as answer:
            blocks = answer.blocks()
            read = await anext(blocks)
            assert (await rig.people.call(routes.APPLY_RETENTION)).last.removed["blob"] == 1
            assert rig.stored == []
            async for block in blocks:
                read += block
        assert read == data


async def test_a_reader_gets_all_of_a_log_and_the_next_pass_takes_it(tmp_path):
    async with coordinator(tmp_path / "c", retention=Retention(logs=AT_ONCE, jobs=AT_ONCE)) as rig:
        log = os.urandom(24 * MB)
        job_id = await deliver(rig, tmp_path, b"", log)
        async with rig.http.stream("GET", f"/jobs/{job_id}/logs", headers=rig.bearer()) as answer:
            blocks = answer.aiter_raw()
            read = await anext(blocks)
            removed = (await rig.people.call(routes.APPLY_RETENTION)).last.removed
            assert {"logs", "job"} & removed.keys() == set()
            async for block in blocks:
                read += block
        assert read == log
        await rig.open_calls(routes.READ_LOG, 0)
        assert (await rig.people.call(routes.APPLY_RETENTION)).last.removed["job"] == 1
        with pytest.raises(errors.NotFound):
            await rig.show(job_id)


async def test_operators_and_admins_alone(tmp_path):
    async with coordinator(tmp_path / "c") as rig:
        for role in Role:
            async with rig.person(role) as person:
                for route in (routes.SHOW_RETENTION, routes.APPLY_RETENTION):
                    if role in {Role.OPERATOR, Role.ADMIN}:
                        await person.call(route)
                    else:
                        with pytest.raises(errors.Forbidden):
                            await person.call(route)
        answer = await rig.http.get("/retention?dry_run=true&limit=100000", headers=rig.bearer())
        assert answer.status_code == 422


async def test_nobody_submits_what_is_not_stored(tmp_path):
    """Also not an admin: its job would fail at the node, or name what is being removed."""
    async with coordinator(tmp_path / "c") as rig:
        with pytest.raises(errors.InvalidSpec, match="never uploaded"):
            await rig.submit(input={"files": [{"name": "f", "sha256": "ab" * 32, "size": 1}]})
