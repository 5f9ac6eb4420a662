"""The store contract: submitting, cancelling, retrying, holding."""

import asyncio
import json
from datetime import timedelta

import pytest

from ostler.coordinator.operations import duties, jobs, leases, reads
from ostler.coordinator.operations.uploads import note_upload
from ostler.model.attempt import AttemptState
from ostler.model.errors import AlreadyExists, Conflict, InvalidTransition, NotFound
from ostler.model.failures import FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import InputFile, Inputs, RetryPolicy
from ostler.protocol import messages as m
from store_rig import Rig, manifest


async def test_submit_answers_in_order_and_keeps_the_text_byte_for_byte(rig: Rig):
    text = '{ "command":"echo",  "args": ["é", "x"],"job_id":"mine" }'
    mine, _ = manifest(command="echo", args=("é", "x"), job_id="mine")
    answer = await rig.write(jobs.submit_jobs, [manifest(), (mine, text), manifest()])
    assert [one.job_id for one in answer.items][1] == "mine"
    assert [one.state for one in answer.items] == [JobState.QUEUED] * 3
    await rig.join()
    leased = {one.job_id: one for one in await rig.pull()}
    assert leased["mine"].spec == text
    job = await rig.job("mine")
    assert job.title == "echo é x" or job.title == "echo 'é' x"
    assert job.manifest == json.loads(text)
    assert job.attempt == 1
    assert job.tries == 0


async def test_ids_sort_by_time_and_are_unique(rig: Rig):
    first = await rig.submit(50)
    rig.clock.advance(0.001)
    second = await rig.submit(50)
    assert [*first, *second] == sorted({*first, *second})
    assert all(one.startswith("j-") and len(one) == 28 for one in first)


async def test_a_taken_id_refuses_the_whole_batch(rig: Rig):
    await rig.submit(job_id="mine")
    with pytest.raises(AlreadyExists, match="mine"):
        await rig.write(jobs.submit_jobs, [manifest(), manifest(job_id="mine")])
    with pytest.raises(AlreadyExists, match="twice"):
        await rig.write(jobs.submit_jobs, [manifest(job_id="a"), manifest(job_id="a")])
    assert len((await rig.read(reads.list_jobs, m.JobQuery())).items) == 1


async def test_ten_thousand_manifests_in_one_call(rig: Rig):
    many = [manifest(labels={"batch": "big"}, job_id=f"big-{number}") for number in range(10_000)]
    answer = await rig.write(jobs.submit_jobs, many)
    assert [one.job_id for one in answer.items] == [one.job_id for one, _ in many]
    page = await rig.read(reads.list_jobs, m.JobQuery(label="batch=big", limit=500, count=True))
    assert (len(page.items), page.total) == (500, 10_000)
    assert page.items[0].job_id == "big-9999"


async def test_an_empty_batch_is_answered_empty(rig: Rig):
    assert (await rig.write(jobs.submit_jobs, [])).items == ()


async def test_cancel_of_what_nobody_works_on_is_at_once(rig: Rig):
    (queued,) = await rig.submit()
    view = await rig.write(jobs.cancel_job, queued, "not needed")
    assert view.state is JobState.CANCELLED
    assert view.finished_at == rig.clock.now()
    assert await rig.kinds(queued) == ["submit", "cancel"]
    assert (await rig.job(queued)).timeline[-1].message == "not needed"
    await rig.join()
    assert await rig.pull() == []


async def test_cancel_of_a_lease_that_was_not_acknowledged_makes_it_stale(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    some = await rig.pull()
    view = await rig.write(jobs.cancel_job, job_id, None)
    assert view.state is JobState.CANCELLED
    assert (await rig.job(job_id)).attempts[0].state is AttemptState.CANCELLED
    assert [one.code for one in await rig.ack("n1", some)] == ["stale_attempt"]


async def test_cancel_of_running_work_is_asked_for_and_confirmed(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    view = await rig.write(jobs.cancel_job, job_id, "enough")
    assert view.state is JobState.ACKED
    assert view.cancel_requested
    rig.clock.advance(1)
    again = await rig.write(jobs.cancel_job, job_id, "other words")
    assert again.cancel_requested
    (directive,) = await rig.beat(held=[m.Held(job_id, 1)])
    assert (directive.kind, directive.job_id, directive.attempt, directive.reason) == (
        m.DirectiveKind.CANCEL,
        job_id,
        1,
        "enough",
    )
    assert (await rig.finish("n1", lease, cancelled=True)).ok
    job = await rig.job(job_id)
    assert job.state is JobState.CANCELLED
    assert job.attempts[0].state is AttemptState.CANCELLED
    assert await rig.kinds(job_id) == ["submit", "lease", "ack", "request_cancel", "cancel"]
    assert await rig.beat(held=[]) == []


async def test_a_result_from_before_the_cancel_was_heard_is_a_result(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.write(jobs.cancel_job, job_id)
    assert (await rig.finish("n1", lease, exit_code=0)).ok
    assert (await rig.job(job_id)).state is JobState.DONE


async def test_a_failure_of_what_was_to_be_cancelled_is_the_cancel(rig: Rig):
    (job_id,) = await rig.submit(retries=5)
    await rig.join()
    (lease,) = await rig.begin()
    await rig.write(jobs.cancel_job, job_id)
    assert (await rig.fail("n1", lease, FailureCode.SIGNAL)).ok
    job = await rig.job(job_id)
    assert job.state is JobState.CANCELLED
    assert job.attempts[0].state is AttemptState.FAILED


async def test_what_a_node_ended_unasked_is_tried_elsewhere(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    assert (await rig.finish("n1", lease, cancelled=True)).ok
    job = await rig.job(job_id)
    assert job.state is JobState.RETRY_WAIT
    assert job.failure is not None
    assert job.failure.code is FailureCode.LOST
    assert job.attempts[0].state is AttemptState.CANCELLED


async def test_cancel_of_what_is_over(rig: Rig):
    (done, cancelled) = await rig.submit(2)
    await rig.write(jobs.cancel_job, cancelled)
    await rig.join()
    (lease,) = await rig.begin()
    await rig.finish("n1", lease)
    assert (await rig.write(jobs.cancel_job, cancelled)).state is JobState.CANCELLED
    with pytest.raises(InvalidTransition, match="is done"):
        await rig.write(jobs.cancel_job, done)
    with pytest.raises(NotFound, match="no job nothing"):
        await rig.write(jobs.cancel_job, "nothing")


async def test_retry_now_and_retry_anew(rig: Rig):
    (job_id,) = await rig.submit(labels={"a": "b"}, priority=7)
    await rig.join()
    (lease,) = await rig.begin()
    with pytest.raises(InvalidTransition, match="not over"):
        await rig.write(jobs.retry_job, job_id)
    await rig.fail("n1", lease)
    view = await rig.write(jobs.retry_job, job_id)
    assert (view.job_id, view.state, view.due_at) == (job_id, JobState.QUEUED, None)
    (lease,) = await rig.begin()
    assert (lease.attempt, lease.tries) == (2, 1)
    await rig.fail("n1", lease, FailureCode.DENY)
    assert (await rig.job(job_id)).state is JobState.FAILED
    anew = await rig.write(jobs.retry_job, job_id)
    assert anew.job_id != job_id
    assert anew.retry_of == job_id
    assert anew.state is JobState.QUEUED
    assert (anew.labels, anew.priority, anew.tries) == ({"a": "b"}, 7, 0)
    assert (await rig.job(job_id)).state is JobState.FAILED
    (lease,) = await rig.pull(held=[])
    assert lease.spec == manifest(labels={"a": "b"}, priority=7)[1]


async def test_retry_anew_of_a_job_with_a_chosen_id_and_a_ttl(rig: Rig):
    await rig.submit(job_id="mine", ttl_s=60.0)
    await rig.write(jobs.cancel_job, "mine")
    rig.clock.advance(3600)
    anew = await rig.write(jobs.retry_job, "mine")
    assert anew.job_id != "mine"
    assert anew.expires_at == rig.clock.now() + timedelta(seconds=60)


async def test_hold_and_release(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    assert (await rig.write(jobs.hold_job, job_id)).held
    assert (await rig.write(jobs.hold_job, job_id)).held
    assert await rig.pull() == []
    assert "held" in (await rig.read(reads.explain_job, job_id)).summary
    assert not (await rig.write(jobs.release_job, job_id)).held
    assert not (await rig.write(jobs.release_job, job_id)).held
    assert len(await rig.pull()) == 1
    assert await rig.kinds(job_id) == ["submit", "hold", "release", "lease"]
    with pytest.raises(InvalidTransition, match="pending"):
        await rig.write(jobs.hold_job, job_id)


async def test_a_held_job_stays_held_over_its_wait(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.fail("n1", lease)
    await rig.write(jobs.hold_job, job_id)
    rig.clock.advance(10)
    assert await rig.write(duties.promote_due) == 1
    assert (await rig.job(job_id)).state is JobState.QUEUED
    assert await rig.pull() == []


async def test_debug_is_asked_for_until_the_workspace_is_here(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    with pytest.raises(Conflict, match="never begun"):
        await rig.write(jobs.request_debug, job_id)
    (lease,) = await rig.begin()
    with pytest.raises(NotFound, match="not asked for"):
        await rig.write(leases.set_workspace, "n1", job_id, 1, "a" * 64)
    await rig.fail("n1", lease, FailureCode.DENY)
    await rig.write(jobs.request_debug, job_id)
    await rig.write(jobs.request_debug, job_id)
    assert [(one.kind, one.job_id, one.attempt) for one in await rig.beat()] == [(m.DirectiveKind.DEBUG, job_id, 1)]
    with pytest.raises(NotFound, match="not here"):
        await rig.read(reads.workspace_of, job_id, 1)
    with pytest.raises(NotFound):
        await rig.write(leases.set_workspace, "n2", job_id, 1, "a" * 64)
    await rig.write(leases.set_workspace, "n1", job_id, 1, "a" * 64)
    assert await rig.beat() == []
    assert await rig.read(reads.workspace_of, job_id, 1) == "a" * 64
    assert (await rig.job(job_id)).attempts[0].workspace_sha256 == "a" * 64
    assert (await rig.kinds(job_id))[-2:] == ["request_debug", "workspace"]


@pytest.mark.parametrize(
    ("retries", "code", "states"),
    [
        (None, FailureCode.LOST, [JobState.RETRY_WAIT] * 3 + [JobState.FAILED]),
        (None, FailureCode.EXIT, [JobState.FAILED]),
        (1, FailureCode.EXIT, [JobState.RETRY_WAIT, JobState.FAILED]),
        (0, FailureCode.LOST, [JobState.FAILED]),
        (5, FailureCode.INPUT, [JobState.FAILED]),
        (
            RetryPolicy(max=2, backoff_s=4.0, codes=(FailureCode.OOM,)),
            FailureCode.OOM,
            [JobState.RETRY_WAIT] * 2 + [JobState.FAILED],
        ),
        (RetryPolicy(max=2, codes=(FailureCode.OOM,)), FailureCode.LOST, [JobState.FAILED]),
    ],
)
async def test_retries_follow_the_policy(rig: Rig, retries, code, states):
    (job_id,) = await rig.submit(retries=retries)
    await rig.join(slots=1)
    for number, state in enumerate(states, 1):
        (lease,) = await rig.begin()
        assert lease.attempt == number
        assert (await rig.fail("n1", lease, code)).ok
        job = await rig.job(job_id)
        assert (job.state, job.tries) == (state, number)
        if state is JobState.RETRY_WAIT:
            base = (4.0 if isinstance(retries, RetryPolicy) else 1.0) * 2 ** (number - 1)
            assert job.due_at is not None
            assert job.node_id is None
            wait = (job.due_at - rig.clock.now()).total_seconds()
            assert 0.9 * base <= wait <= 1.1 * base
            assert await rig.read(duties.next_due_s) == pytest.approx(wait, abs=1e-6)
            assert await rig.write(duties.promote_due) == 0
            assert await rig.pull() == []
            rig.clock.advance(wait)
            assert await rig.write(duties.promote_due) == 1
    assert await rig.write(duties.promote_due) == 0
    failure = (await rig.job(job_id)).failure
    assert failure is not None
    assert failure.code is code


async def test_ttl_ends_what_no_node_took(rig: Rig):
    ((soon,), (late,), (forever,)) = await rig.submit(ttl_s=5.0), await rig.submit(ttl_s=50.0), await rig.submit()
    (begun,) = await rig.submit(ttl_s=5.0, priority=9)
    await rig.join(slots=1)
    (lease,) = await rig.begin(slots=1)
    assert lease.job_id == begun
    rig.clock.advance(5)
    assert await rig.read(duties.next_expiry_s) == 0
    assert await rig.write(duties.expire_due) == 1
    states = {job_id: (await rig.job(job_id)).state for job_id in (soon, late, forever, begun)}
    assert states == {soon: JobState.EXPIRED, late: JobState.QUEUED, forever: JobState.QUEUED, begun: JobState.ACKED}
    assert (await rig.kinds(soon)) == ["submit", "expire"]
    assert await rig.read(duties.next_expiry_s) == pytest.approx(45)
    await rig.fail("n1", lease)
    assert await rig.write(duties.expire_due) == 1
    assert (await rig.job(begun)).state is JobState.EXPIRED


async def test_inputs_open_their_blobs_to_the_holder_alone(rig: Rig):
    sha = "ab" * 32
    await rig.write(note_upload, sha, "alice")
    await rig.submit(input=Inputs(files=(InputFile(name="a", sha256=sha, size=1), InputFile(name="b", sha256=sha, size=1))))
    await rig.join()
    await rig.join("n2")
    assert not await rig.read(reads.blob_for_node, "n1", sha)
    (lease,) = await rig.pull()
    assert await rig.read(reads.blob_for_node, "n1", sha)
    assert not await rig.read(reads.blob_for_node, "n2", sha)
    assert not await rig.read(reads.blob_for_node, "n1", "cd" * 32)
    await rig.ack("n1", [lease])
    await rig.finish("n1", lease)
    assert not await rig.read(reads.blob_for_node, "n1", sha)


async def test_many_callers_share_commits_and_all_are_answered(rig: Rig):
    answers = await asyncio.gather(*(rig.submit() for _ in range(200)))
    page = await rig.read(reads.list_jobs, m.JobQuery(limit=500))
    assert {one.job_id for one in page.items} == {one for (one,) in answers}
