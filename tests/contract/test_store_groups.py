"""The store contract: arrays, from their submission to their end, and what nobody may see half done."""

import pytest

from ostler.coordinator.operations import duties, groups, jobs, reads
from ostler.model.errors import AlreadyExists, InvalidSpec, InvalidTransition, NotFound
from ostler.model.failures import FailureCode
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.protocol import messages as m
from store_rig import Rig, manifest

S = JobState


async def submit(rig: Rig, array: int = 3, **changes) -> str:
    """The id of a new array."""
    answer = await rig.write(jobs.submit_jobs, groups.expand(*manifest(array=array, **changes)))
    (group_id,) = {one.group_id for one in answer.items}
    assert [one.job_id for one in answer.items] == [f"{group_id}-{index}" for index in range(array)]
    return group_id


async def everything(rig: Rig):
    return await rig.everything(), await rig.rows("SELECT * FROM groups"), await rig.rows("SELECT count(*) FROM specs")


async def show(rig: Rig, group_id: str) -> m.GroupView:
    return await rig.read(groups.show_group, group_id)


async def listed(rig: Rig, **query) -> list[str]:
    return [one.job_id for one in (await rig.read(reads.list_jobs, m.JobQuery(**query))).items]


async def test_an_array_is_its_jobs(rig: Rig):
    group_id = await submit(rig, command="echo", args=("{index}", "x"), labels={"a": "{index}"}, priority=3)
    view = await show(rig, group_id)
    assert view == m.GroupView(
        group_id=group_id, state=GroupState.OPEN, count=3, counts={S.QUEUED: 3}, submitted_at=rig.clock.now()
    )
    job = await rig.job(f"{group_id}-2")
    assert (job.group_id, job.title, job.labels, job.priority) == (group_id, "echo 2 x", {"a": "{index}"}, 3)
    assert job.manifest is not None
    assert (job.manifest["array_index"], job.manifest["array_count"], job.manifest["args"]) == (2, 3, ["2", "x"])
    assert "array" not in job.manifest
    await rig.join()
    assert [one.job_id for one in await rig.pull()] == [f"{group_id}-{index}" for index in range(3)]


async def test_arrays_and_jobs_in_one_call(rig: Rig):
    some = [
        manifest(job_id="first"),
        *groups.expand(*manifest(array=2, job_id="chosen")),
        *groups.expand(*manifest(array=2)),
        *groups.expand(*manifest(array=1, job_id="ends-0")),
        manifest(),
    ]
    answer = await rig.write(jobs.submit_jobs, some)
    named = [(one.job_id, one.group_id) for one in answer.items]
    made = named[3][1]
    assert made is not None
    assert named[:-1] == [
        ("first", None), ("chosen-0", "chosen"), ("chosen-1", "chosen"), (f"{made}-0", made), (f"{made}-1", made), ("ends-0-0", "ends-0"),
    ]  # fmt: skip
    assert named[-1][1] is None
    assert [row[0] for row in await rig.rows("SELECT group_id FROM groups ORDER BY count, group_id")] == [
        "ends-0",
        *sorted(["chosen", made]),
    ]


@pytest.mark.parametrize(
    ("taken", "asked", "said"),
    [
        ({"job_id": "x"}, {"job_id": "x", "array": 2}, "job x exists"),
        ({"job_id": "x-1"}, {"job_id": "x", "array": 2}, "job x-1 exists"),
        ({"job_id": "x", "array": 2}, {"job_id": "x"}, "array x exists"),
        ({"job_id": "x", "array": 2}, {"job_id": "x-0"}, "job x-0 exists"),
        ({"job_id": "x", "array": 2}, {"job_id": "x", "array": 1}, "exists"),
        ({"job_id": "x-1", "array": 2}, {"job_id": "x", "array": 2}, "array x-1 exists"),
        ({"job_id": "x", "array": 2}, {"job_id": "x-1", "array": 2}, "job x-1 exists"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
async def test_a_taken_id_leaves_nothing_behind(rig: Rig, taken, asked, said, together):
    def some(fields):
        one = manifest(**fields)
        return groups.expand(*one) if one[0].array else [one]

    if not together:
        await rig.write(jobs.submit_jobs, some(taken))
    before = await everything(rig)
    batch = [manifest(), *some(asked), manifest()]
    with pytest.raises(AlreadyExists, match="twice" if together else said):
        await rig.write(jobs.submit_jobs, [*some(taken), *batch] if together else batch)
    assert await everything(rig) == before


async def test_a_group_is_over_with_its_last_job(rig: Rig):
    group_id = await submit(rig, retries=0)
    await rig.join(slots=9)
    first, second, third = await rig.begin(slots=9)
    await rig.finish("n1", first, exit_code=0)
    rig.clock.advance(5)
    await rig.fail("n1", third, FailureCode.EXIT)
    view = await show(rig, group_id)
    assert (view.state, view.counts, view.finished_at) == (GroupState.OPEN, {S.ACKED: 1, S.DONE: 1, S.FAILED: 1}, None)
    assert [one.job_id for one in view.failures] == [third.job_id]
    rig.clock.advance(5)
    last = rig.clock.now()
    await rig.finish("n1", second, exit_code=0)
    rig.clock.advance(5)
    view = await show(rig, group_id)
    assert (view.state, view.counts, view.finished_at) == (GroupState.FAILED, {S.DONE: 2, S.FAILED: 1}, last)
    with pytest.raises(InvalidTransition, match="is failed"):
        await rig.cancel_group(group_id)


async def test_what_is_tried_again_or_anew(rig: Rig):
    group_id = await submit(rig, array=1, retries=1)
    await rig.join()
    (lease,) = await rig.begin()
    await rig.fail("n1", lease, FailureCode.EXIT)
    assert (await show(rig, group_id)).counts == {S.RETRY_WAIT: 1}
    rig.clock.advance(60)
    await rig.write(duties.promote_due)
    (lease,) = await rig.begin()
    await rig.fail("n1", lease, FailureCode.EXIT)
    over = await show(rig, group_id)
    assert over.state is GroupState.FAILED
    anew = await rig.write(jobs.retry_job, f"{group_id}-0")
    assert (anew.retry_of, anew.group_id) == (f"{group_id}-0", None)
    job = await rig.job(anew.job_id)
    assert job.manifest is not None
    assert job.manifest["array_index"] == 0  # it still is the work of that number
    assert await show(rig, group_id) == over


async def test_an_array_that_expires_has_failed(rig: Rig):
    group_id = await submit(rig, array=7, ttl_s=5.0)
    await rig.join()
    some = await rig.begin()
    await rig.fail("n1", some[3], FailureCode.EXIT)
    for lease in some[:3]:
        await rig.fail("n1", lease)  # waits for its next try when its time is over
    rig.clock.advance(6)
    await rig.write(duties.expire_due)
    view = await show(rig, group_id)
    assert (view.state, view.counts, view.finished_at) == (GroupState.FAILED, {S.FAILED: 1, S.EXPIRED: 6}, rig.clock.now())
    assert [one.job_id for one in view.failures] == [f"{group_id}-{index}" for index in range(groups.MAX_FAILURES)]


async def test_cancel_ends_what_is_not_over(rig: Rig):
    group_id = await submit(rig, array=4)
    await rig.join()
    done, running = await rig.begin(slots=2)
    (leased,) = await rig.pull(slots=1, held=[m.Held(one.job_id, 1) for one in (done, running)])
    await rig.finish("n1", done, exit_code=0)
    other = await rig.submit()
    view = await rig.cancel_group(group_id, "enough")
    assert (view.state, view.counts) == (GroupState.OPEN, {S.ACKED: 1, S.DONE: 1, S.CANCELLED: 2})
    assert (await rig.job(running.job_id)).cancel_requested
    assert (await rig.job(leased.job_id)).timeline[-1].message == "enough"
    assert (await rig.job(other[0])).state is S.QUEUED
    assert (await rig.cancel_group(group_id)).state is GroupState.OPEN
    await rig.finish("n1", running, cancelled=True)
    view = await show(rig, group_id)
    assert (view.state, view.finished_at, view.failures) == (GroupState.CANCELLED, rig.clock.now(), ())
    assert await rig.cancel_group(group_id) == view
    assert [one.kind for one in await rig.beat(held=[])] == []


async def test_a_cancel_that_fails_changes_nothing(rig: Rig):
    group_id = await submit(rig, array=50)
    before = await everything(rig)

    def broken(tx):
        groups.cancel_some(tx, group_id)
        raise InvalidSpec("after all")

    with pytest.raises(InvalidSpec, match="after all"):
        await rig.write(broken)
    assert await everything(rig) == before


async def test_nothing_is_written_for_a_group_while_its_jobs_run(rig: Rig):
    await submit(rig)
    before = await rig.rows("SELECT * FROM groups")
    await rig.join()
    for lease in await rig.begin():
        await rig.finish("n1", lease)
    assert await rig.rows("SELECT * FROM groups") == before


async def test_the_end_of_a_group_is_told_once(rig: Rig):
    told: list[object] = []
    publish = rig.store.wakeups.publish
    rig.store.wakeups.publish = lambda topic: (told.append(topic), publish(topic))[1]  # type: ignore[method-assign]
    group_id = await submit(rig)
    await rig.join()
    some = await rig.begin()
    for lease in some:
        assert ("group", group_id) not in told
        await rig.finish("n1", lease)
    assert told.count(("group", group_id)) == 1
    queued = await submit(rig)
    await rig.cancel_group(queued)
    assert told.count(("group", queued)) == 1


async def test_lists_of_a_group(rig: Rig):
    await rig.submit(2, queue="other")
    group_id = await submit(rig, array=7, labels={"a": "b"})
    await submit(rig, array=2)
    newest = [f"{group_id}-{index}" for index in reversed(range(7))]
    assert await listed(rig, group=group_id) == newest
    assert await listed(rig, group=group_id, label="a=b") == newest
    assert await listed(rig, group=group_id, queue="other") == []
    assert await listed(rig, group="none") == []
    await rig.join()
    (lease,) = await rig.begin(slots=1)  # one of the other queue
    assert not lease.job_id.startswith(group_id)
    await rig.write(jobs.cancel_job, f"{group_id}-3")
    assert await listed(rig, group=group_id, state="cancelled") == [f"{group_id}-3"]
    assert await listed(rig, group=group_id, state="queued,cancelled") == newest
    assert await listed(rig, group=group_id, node="n1") == []


async def test_a_page_goes_on_where_it_ended_although_the_group_changed(rig: Rig):
    group_id = await submit(rig, array=7)
    newest = [f"{group_id}-{index}" for index in reversed(range(7))]
    page = await rig.read(reads.list_jobs, m.JobQuery(group=group_id, limit=3, count=True))
    assert ([one.job_id for one in page.items], page.total) == (newest[:3], 7)
    await rig.cancel_group(group_id)
    await submit(rig)
    rest = await rig.read(reads.list_jobs, m.JobQuery(group=group_id, limit=9, cursor=page.next_cursor))
    assert ([one.job_id for one in rest.items], rest.next_cursor) == (newest[3:], None)
    with pytest.raises(InvalidSpec, match="cursor"):
        await rig.read(reads.list_jobs, m.JobQuery(group=group_id, cursor="x"))


async def test_the_name_of_an_array_is_not_that_of_a_job(rig: Rig):
    group_id = await submit(rig)
    for call in (
        rig.job(group_id), rig.write(jobs.cancel_job, group_id), rig.read(reads.log_facts, group_id, "stdout"),
        rig.read(reads.list_artifacts, group_id), rig.read(reads.explain_job, group_id),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=f"{group_id} is an array .* {group_id}-0 to {group_id}-2"):
            await call
    with pytest.raises(NotFound, match="no array or group nothing"):
        await show(rig, "nothing")
    with pytest.raises(NotFound, match="no array or group nothing"):
        await rig.cancel_group("nothing")


async def test_ten_thousand_jobs(rig: Rig):
    group_id = await submit(rig, array=10_000)
    assert (await show(rig, group_id)).counts == {S.QUEUED: 10_000}
    assert (await rig.cancel_group(group_id)).counts == {S.CANCELLED: 10_000}


async def test_a_group_outlives_a_restart(rig: Rig):
    group_id = await submit(rig)
    before = await show(rig, group_id)
    rig.reopen()
    assert await show(rig, group_id) == before


# --- groups of jobs that are no array ----------------------------------------------------------------------------------------


async def test_several_jobs_are_one_group(rig: Rig):
    some = [manifest(job_id="a"), manifest(), manifest(job_id="c", depends_on=("a",))]
    answer = await rig.write(jobs.submit_jobs, some, group="film")
    names = [one.job_id for one in answer.items]
    assert {one.group_id for one in answer.items} == {"film"}
    view = await show(rig, "film")
    assert (view.count, view.counts, view.array) == (3, {S.QUEUED: 3}, False)
    assert await listed(rig, group="film") == names[::-1]
    assert await listed(rig, group="film", state="waiting") == ["c"]
    with pytest.raises(NotFound, match="film is a group of jobs and no job: this is for one of a to c"):
        await rig.job("film")
    await rig.submit(job_id="after", depends_on=("film",))
    await rig.cancel_group("film")
    assert (await show(rig, "film")).state is GroupState.CANCELLED
    assert (await rig.job("after")).state is S.CANCELLED
    assert (await show(rig, await submit(rig))).array


@pytest.mark.parametrize("name", ["x", "arr", "arr-1", "a"])
async def test_a_group_needs_a_name_of_its_own(rig: Rig, name):
    await rig.submit(job_id="x")
    await submit(rig, array=2, job_id="arr")
    before = await everything(rig)
    with pytest.raises(AlreadyExists, match=name):
        await rig.write(jobs.submit_jobs, [manifest(job_id="a"), manifest()], group=name)
    assert await everything(rig) == before


async def test_who_depends_on_a_group_cannot_be_in_it(rig: Rig):
    with pytest.raises(InvalidSpec) as caught:
        await rig.write(jobs.submit_jobs, [manifest(job_id="a"), manifest(job_id="b", depends_on=("g",))], group="g")
    assert "b depends on itself" in caught.value.problems[0].message
