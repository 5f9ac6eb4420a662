"""The store contract: jobs that wait for their time are nobody's until it comes."""

from datetime import timedelta

import pytest

from ostler.coordinator.operations import duties, jobs, reads
from ostler.model.errors import InvalidSpec
from ostler.model.job import JobState
from ostler.protocol import messages as m
from store_rig import Rig


def ahead(rig: Rig, seconds: float) -> str:
    return f"{rig.clock.now() + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%fZ}"


async def listed(rig: Rig, **query) -> list[str]:
    return [one.job_id for one in (await rig.read(reads.list_jobs, m.JobQuery(**query))).items]


async def pulled(rig: Rig, slots: int = 8) -> list[str]:
    return [one.job_id for one in await rig.pull(slots=slots)]


async def test_a_job_waits_for_its_time(rig: Rig):
    (job_id,) = await rig.submit(not_before=ahead(rig, 60))
    await rig.join()
    job = await rig.job(job_id)
    assert (job.state, job.waiting, job.not_before) == (JobState.QUEUED, True, rig.clock.now() + timedelta(seconds=60))
    assert await pulled(rig) == []
    assert "it waits until" in (await rig.read(reads.explain_job, job_id)).summary
    assert await rig.read(duties.next_start_s) == 60
    rig.clock.advance(59)
    assert await rig.write(duties.start_due) == 0
    rig.clock.advance(1)
    assert (await rig.read(duties.next_start_s), await rig.write(duties.start_due)) == (0, 1)
    assert await rig.read(duties.next_start_s) is None
    assert not (await rig.job(job_id)).waiting
    assert await rig.kinds(job_id) == ["submit", "ready"]
    assert await pulled(rig) == [job_id]


async def test_a_time_that_has_passed_is_no_wait(rig: Rig):
    (job_id,) = await rig.submit(not_before="2020-02-29T10:00:00+05:30")
    await rig.join()
    assert await pulled(rig) == [job_id]
    assert await rig.kinds(job_id) == ["submit", "lease"]


async def test_it_grows_older_once_it_may_run(rig: Rig):
    (late,) = await rig.submit(not_before=ahead(rig, 3600))
    rig.clock.advance(3600 - 60)
    (earlier,) = await rig.submit()
    rig.clock.advance(120)
    (later,) = await rig.submit()
    await rig.write(duties.start_due)
    await rig.join()
    assert await pulled(rig) == [earlier, late, later]


async def test_people_hold_release_and_cancel_what_waits(rig: Rig):
    held, cancelled = await rig.submit(2, not_before=ahead(rig, 60))
    await rig.write(jobs.hold_job, held)
    await rig.write(jobs.cancel_job, cancelled)
    rig.clock.advance(60)
    assert await rig.write(duties.start_due) == 1
    assert await rig.kinds(cancelled) == ["submit", "cancel"]
    await rig.join()
    assert await pulled(rig) == []
    await rig.write(jobs.release_job, held)
    assert await pulled(rig) == [held]


async def test_a_release_does_not_end_the_wait(rig: Rig):
    (job_id,) = await rig.submit(not_before=ahead(rig, 60))
    await rig.write(jobs.hold_job, job_id)
    await rig.write(jobs.release_job, job_id)
    await rig.join()
    assert await pulled(rig) == []


async def test_a_time_to_live_counts_from_the_submission(rig: Rig):
    (job_id,) = await rig.submit(not_before=ahead(rig, 60), ttl_s=90)
    rig.clock.advance(90)
    assert await rig.write(duties.expire_due) == 1
    assert (await rig.job(job_id)).state is JobState.EXPIRED
    assert await rig.write(duties.start_due) == 0
    assert await rig.kinds(job_id) == ["submit", "expire"]


async def test_a_retry_keeps_the_time(rig: Rig):
    (job_id,) = await rig.submit(not_before=ahead(rig, 60))
    await rig.write(jobs.cancel_job, job_id)
    anew = await rig.write(jobs.retry_job, job_id)
    assert anew.waiting
    rig.clock.advance(60)
    await rig.write(jobs.cancel_job, anew.job_id)
    assert not (await rig.write(jobs.retry_job, anew.job_id)).waiting


async def test_many_start_a_piece_at_a_time(rig: Rig):
    await rig.submit(duties.BATCH + 2, not_before=ahead(rig, 5))
    rig.clock.advance(5)
    assert [await rig.write(duties.start_due) for _ in range(3)] == [duties.BATCH, 2, 0]


async def test_lists_of_what_waits(rig: Rig):
    (plain,) = await rig.submit(queue="q")
    waiting = await rig.submit(3, not_before=ahead(rig, 5), labels={"a": "b"})
    (over,) = await rig.submit(not_before=ahead(rig, 5))
    await rig.write(jobs.cancel_job, over)
    newest = list(reversed(waiting))
    assert await listed(rig, state="waiting") == newest
    assert await listed(rig, state="queued") == [*newest, plain]
    assert await listed(rig, state="queued,waiting") == [*newest, plain]
    assert await listed(rig, state="waiting,cancelled") == [over, *newest]
    assert await listed(rig, state="waiting", label="a=b") == newest
    assert await listed(rig, state="waiting", queue="q") == []
    page = await rig.read(reads.list_jobs, m.JobQuery(state="waiting", limit=2, count=True))
    assert page.total == 3
    assert await listed(rig, state="waiting", limit=2, cursor=page.next_cursor) == newest[2:]
    with pytest.raises(InvalidSpec, match=r"waits is no state; known are .*, waiting"):
        await listed(rig, state="waits")


async def test_what_waits_is_listed_along_its_own_index(rig: Rig):
    assert "ix_jobs_waiting" in await rig.plan("SELECT seq FROM jobs WHERE jobs.waits > 0 ORDER BY seq DESC")
