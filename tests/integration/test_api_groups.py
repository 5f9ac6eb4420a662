"""Arrays over the API: what is refused and where, what is listed, who is woken when, and that nothing is half applied."""

import asyncio
import json

import pytest

from integration.api_rig import coordinator
from ostler.model import errors
from ostler.model.failures import Failure, FailureCode
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.protocol import codec, routes
from ostler.protocol import messages as m


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


async def post(rig, body):
    return await rig.http.post("/jobs", content=json.dumps(body), headers=rig.bearer(**{"Content-Type": "application/json"}))


async def array(rig, count=3, **fields) -> str:
    answer = await rig.people.call(routes.SUBMIT, codec.encode({"command": "true", "array": count, **fields}))
    assert [one.job_id for one in answer.items] == [f"{answer.items[0].group_id}-{index}" for index in range(count)]
    return answer.items[0].group_id


async def show(rig, group_id, wait_s=0.0) -> m.GroupView:
    return await rig.people.call(routes.SHOW_GROUP, query=m.WaitQuery(wait_s=wait_s), group_id=group_id)


async def begin(node, count) -> list[m.Held]:
    some = [m.Held(one.job_id, one.attempt) for one in await node.pull(slots=count)]
    assert len(some) == count
    await node.ack(*some)
    return some


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"array": 0}, "array", "from 1 to 10000"),
        ({"array": 10_001}, "array", "from 1 to 10000"),
        ({"array": -1}, "array", "from 1 to 10000"),
        ({"array": 1.5}, "array", "whole number"),
        ({"array": "3"}, "array", "whole number"),
        ({"array": True}, "array", "whole number"),
        ({"array": [3]}, "array", "whole number"),
        ({"array": 10**30}, "array", ""),
        ({"array": 3, "array_index": 0}, "array_index", "coordinator alone"),
        ({"array_count": 3}, "array_count", "coordinator alone"),
        ({"array_index": 0, "array_count": 3}, "array_index", "coordinator alone"),
        ({"array": 100, "job_id": "x" * 126}, "job_id", "at most 125"),
        ({"array": 9, "artifacts": [{"path": "o{index}"}, {"path": "o7"}]}, "artifacts[1].path", "'o7' stands twice (in job 7 of"),
        ({"array": 9, "input": {"urls": [{"url": "http://h/", "name": "{index}"}], "inline": {"3": ""}}}, "input.inline.3", "in job 3"),
    ],
)  # fmt: skip
async def test_mistakes_are_named_and_nothing_is_submitted(rig, body, path, said):
    for sent, where in (({"command": "true", **body}, path), ([{"command": "true"}, {"command": "true", **body}], f"[1].{path}")):
        answer = await post(rig, sent)
        assert answer.status_code == 422, answer.text
        told = {one["path"]: one["message"] for one in answer.json()["errors"]}
        assert said in told[where], told
    assert (await rig.people.call(routes.LIST_JOBS)).items == ()


async def test_the_limit_of_a_call_counts_the_jobs(rig):
    assert len((await post(rig, [{"command": "true", "array": 9_999}, {"command": "true"}])).json()["items"]) == 10_000
    for body in ([{"command": "true", "array": 10_000}, {"command": "true"}], [{"command": "true", "array": 5_001}] * 2):
        answer = await post(rig, body)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert "jobs are more than the 10000" in answer.json()["detail"]
    assert (await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(count=True))).total == 10_000


async def test_an_array_cannot_make_gigabytes_of_one_call(rig):
    answer = await post(rig, {"command": "true", "array": 10_000, "input": {"inline": {"a": "x" * 100_000}}})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "upload what is long" in answer.json()["hint"]
    assert (
        len((await post(rig, {"command": "true", "array": 600, "input": {"inline": {"a": "x" * 100_000}}})).json()["items"])
        == 600
    )


async def test_a_taken_id_refuses_all(rig):
    await rig.submit(job_id="taken-2")
    for batch in ([{"job_id": "free"}, {"job_id": "taken", "array": 3}], [{"job_id": "taken", "array": 2}, {"job_id": "taken"}]):
        answer = await post(rig, [{"command": "true", **one} for one in batch])
        assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    assert [one.job_id for one in (await rig.people.call(routes.LIST_JOBS)).items] == ["taken-2"]
    with pytest.raises(errors.NotFound):
        await show(rig, "taken")


async def test_the_text_of_a_plain_job_stays_byte_for_byte(rig):
    await rig.submit(job_id="plain", args=["{index}"], array=None)
    node = await rig.enrolled()
    (lease,) = await node.pull()
    assert json.loads(lease.spec) == {"command": "true", "job_id": "plain", "args": ["{index}"], "array": None}
    assert (await rig.show("plain")).group_id is None


async def test_a_node_gets_whole_manifests(rig):
    group_id = await array(rig, 2, args=["{index}"], env={"A": "{index}"})
    node = await rig.enrolled()
    assert [json.loads(one.spec) for one in await node.pull()] == [
        {"command": "true", "args": [str(index)], "env": {"A": "{index}"}, "array_index": index, "array_count": 2}
        for index in range(2)
    ]
    page = await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(group=group_id))
    assert [(one.job_id, one.group_id) for one in page.items] == [(f"{group_id}-1", group_id), (f"{group_id}-0", group_id)]


async def test_a_wait_ends_with_the_last_job(rig):
    group_id = await array(rig)
    node = await rig.enrolled()
    first, second, third = await begin(node, 3)
    assert (await show(rig, group_id)).state is GroupState.OPEN
    waiting = asyncio.create_task(show(rig, group_id, wait_s=60))
    await rig.open_calls(routes.SHOW_GROUP)
    await node.finish(m.Outcome(job_id=first.job_id, attempt=1))
    broke = Failure(FailureCode.EXIT, "exit code 3")
    await node.finish(m.Outcome(job_id=second.job_id, attempt=1, failure=broke, exit_code=3))
    assert not waiting.done()
    await node.finish(m.Outcome(job_id=third.job_id, attempt=1))
    view = await asyncio.wait_for(waiting, 5)
    assert (view.state, view.counts) == (GroupState.FAILED, {JobState.DONE: 2, JobState.FAILED: 1})
    assert [(one.job_id, one.exit_code, one.failure) for one in view.failures] == [(second.job_id, 3, broke)]
    assert view.finished_at == (await rig.show(third.job_id)).finished_at
    assert await show(rig, group_id, wait_s=60) == view


async def test_a_wait_reads_at_its_begin_and_end_alone(rig, monkeypatch):
    from ostler.coordinator.store.store import Store

    reads = []
    read = Store.read

    async def counted(self, operation, *args, **kwargs):
        reads.append(operation.__name__)
        return await read(self, operation, *args, **kwargs)

    group_id = await array(rig, 8)
    node = await rig.enrolled()
    some = await begin(node, 8)
    monkeypatch.setattr(Store, "read", counted)
    waiting = asyncio.create_task(show(rig, group_id, wait_s=60))
    await rig.open_calls(routes.SHOW_GROUP)
    for held in some:
        await node.finish(m.Outcome(job_id=held.job_id, attempt=1))
    await asyncio.wait_for(waiting, 5)
    assert reads.count("show_group") in {1, 2}


async def test_cancel_wakes_who_waits(rig):
    group_id = await array(rig, 20)
    waiting = asyncio.create_task(show(rig, group_id, wait_s=60))
    await rig.open_calls(routes.SHOW_GROUP)
    view = await rig.people.call(routes.CANCEL_GROUP, m.CancelRequest(reason="enough"), group_id=group_id)
    assert (view.state, view.counts) == (GroupState.CANCELLED, {JobState.CANCELLED: 20})
    assert await asyncio.wait_for(waiting, 5) == view
    assert (await rig.show(f"{group_id}-7")).timeline[-1].message == "enough"
    assert await rig.people.call(routes.CANCEL_GROUP, m.CancelRequest(), group_id=group_id) == view


async def test_cancel_reaches_the_node(rig):
    group_id = await array(rig)
    node = await rig.enrolled()
    (held,) = await begin(node, 1)
    await rig.people.call(routes.CANCEL_GROUP, m.CancelRequest(), group_id=group_id)
    (directive,) = (await node.pull_raw(held=(held,))).directives
    assert (directive.kind, directive.job_id) == (m.DirectiveKind.CANCEL, held.job_id)


@pytest.mark.parametrize("group_id", ["none", "a%00b", "x" * 129, "%ff"])
async def test_a_group_that_is_not_there(rig, group_id):
    for method, path in (("GET", ""), ("POST", "/cancel")):
        answer = await rig.http.request(
            method, f"/groups/{group_id}{path}", headers=rig.bearer(), content=b"{}" if path else None
        )
        assert answer.status_code == 404, answer.text


async def test_bad_calls_about_a_group(rig):
    group_id = await array(rig)
    for query in ("wait_s=nan", "wait_s=-1", "wait_s=x", "limit=1"):
        assert (await rig.http.get(f"/groups/{group_id}?{query}", headers=rig.bearer())).status_code == 422, query
    for query in ("cursor=zzz", "limit=0", "state=none"):
        assert (await rig.http.get(f"/jobs?group={group_id}&{query}", headers=rig.bearer())).status_code == 422, query
    answer = await rig.http.post(f"/groups/{group_id}/cancel", headers=rig.bearer(), json={"reason": "x" * 1001})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "reason")
    assert (await show(rig, group_id)).counts == {JobState.QUEUED: 3}


async def test_a_node_may_not_look_at_groups(rig):
    group_id = await array(rig)
    node = await rig.enrolled()
    with pytest.raises(errors.Rejected):
        await node.call(routes.SHOW_GROUP, group_id=group_id)
