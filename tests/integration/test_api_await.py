"""Waiting for many jobs with one call: who is woken when, what comes along, and what is refused."""

import asyncio
import hashlib

import pytest

from integration.api_rig import coordinator
from ostler.coordinator.api import jobs as endpoint
from ostler.model import errors
from ostler.model.access import Role
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.protocol import messages as m
from ostler.protocol import routes


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def ask(rig, *job_ids, wait_s=0.0, contents=()) -> m.AwaitResponse:
    return await rig.people.call(routes.AWAIT_JOBS, m.AwaitRequest(job_ids=job_ids, wait_s=wait_s, contents=contents))


async def taken(rig, node, count, **manifest) -> list[m.Held]:
    artifacts = [{"path": "result.json", "optional": True, "always": True}]
    return [await node.take(command="true", artifacts=artifacts, **manifest) for _ in range(count)]


async def deliver(node, tmp_path, held, data, *, failure=None):
    """An outcome with the artifact `result.json`."""
    file = tmp_path / f"{held.job_id}.json"
    file.write_bytes(data)
    entry = m.ArtifactEntry(
        path="result.json", type="application/octet-stream", size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    outcome = m.Outcome(job_id=held.job_id, attempt=held.attempt, artifacts=(entry,), failure=failure)
    assert (await node.rig.nobody.deliver(outcome, {"result.json": file}, token=node.token)).ok


async def test_the_first_end_wakes(rig):
    node = await rig.enrolled()
    first, second = await taken(rig, node, 2)
    waiting = asyncio.create_task(ask(rig, first.job_id, second.job_id, wait_s=60))
    await asyncio.sleep(0)
    assert (await ask(rig, first.job_id, second.job_id)).items == ()
    assert not waiting.done()
    await node.finish(m.Outcome(job_id=second.job_id, attempt=second.attempt))
    answer = await asyncio.wait_for(waiting, 10)
    assert [(one.job.job_id, one.job.state) for one in answer.items] == [(second.job_id, JobState.DONE)]
    assert answer.missing == ()


async def test_contents_come_along(rig, tmp_path):
    """Of one that is done and of one that failed, where they are small and were asked for."""
    node = await rig.enrolled()
    good, bad, large = await taken(rig, node, 3, retries=0)
    await deliver(node, tmp_path, good, b"42")
    await deliver(node, tmp_path, bad, b"why", failure=Failure(FailureCode.TASK, "x"))
    await deliver(node, tmp_path, large, b"x" * (endpoint.MAX_CONTENT + 1))
    ids = (good.job_id, bad.job_id, large.job_id)
    answer = await ask(rig, *ids, contents=("result.json", "other"))
    found = {one.job.job_id: one for one in answer.items}
    assert {name: one.contents for name, one in found.items()} == {
        good.job_id: {"result.json": b"42"}, bad.job_id: {"result.json": b"why"}, large.job_id: {},
    }  # fmt: skip
    assert [one.path for one in found[large.job_id].job.artifacts] == ["result.json"]
    assert all(one.contents == {} for one in (await ask(rig, *ids)).items)


async def test_an_answer_is_bounded(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_CONTENTS", 10)
    monkeypatch.setattr(endpoint, "MAX_ENDED", 3)
    node = await rig.enrolled()
    some = await taken(rig, node, 4)
    for held in some:
        await deliver(node, tmp_path, held, b"1234")
    ids = [held.job_id for held in some]
    assert len((await ask(rig, *ids, contents=("result.json",))).items) == 2
    assert len((await ask(rig, *ids)).items) == 3


async def test_ids_of_no_job_are_told_at_once(rig):
    job_id = await rig.submit(command="true")
    answer = await asyncio.wait_for(ask(rig, job_id, "nothing", "nothing", wait_s=60), 10)
    assert (answer.items, answer.missing) == ((), ("nothing",))


@pytest.mark.parametrize(
    ("message", "kind", "said"),
    [
        ({"job_ids": ["a/b"]}, errors.InvalidSpec, "job_ids[0]"),
        ({"job_ids": ["ok", ""]}, errors.InvalidSpec, "job_ids[1]"),
        ({"job_ids": [], "wait_s": -1}, errors.InvalidSpec, "wait_s"),
        ({"job_ids": ["x"] * 10_001}, errors.TooLarge, "10000"),
        ({}, errors.InvalidSpec, "job_ids"),
        ({"job_ids": "x"}, errors.InvalidSpec, "job_ids"),
    ],
)
async def test_what_is_refused(rig, message, kind, said):
    with pytest.raises(kind) as caught:
        await rig.people.call(routes.AWAIT_JOBS, message)
    assert said in str(caught.value)


async def test_another_s_jobs_are_as_if_they_did_not_exist(rig):
    node = await rig.enrolled()
    [held] = await taken(rig, node, 1)
    await node.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt))
    stranger = await rig.people.call(
        routes.CREATE_TOKEN, m.TokenRequest(kind=m.TokenKind.API, role=Role.SUBMITTER, principal="eve")
    )
    message = m.AwaitRequest(job_ids=(held.job_id,), contents=("result.json",))
    answer = await rig.nobody.call(routes.AWAIT_JOBS, message, token=stranger.token)
    assert (answer.items, answer.missing) == ((), (held.job_id,))


async def test_a_node_may_not(rig):
    node = await rig.enrolled()
    with pytest.raises((errors.Forbidden, errors.Unauthenticated)):
        await node.call(routes.AWAIT_JOBS, m.AwaitRequest(job_ids=("x",)))
