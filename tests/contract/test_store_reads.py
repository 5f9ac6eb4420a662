"""The store contract: lists, pages, filters, explanations."""

import pytest

from ostler.coordinator.operations import jobs, nodes, reads
from ostler.model.errors import InvalidSpec, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Policy, Requirements, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.protocol import messages as m
from store_rig import Rig, log_end, manifest


async def pages(rig: Rig, **query) -> list[str]:
    """All of a list, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = await rig.read(reads.list_jobs, m.JobQuery(cursor=cursor, **query))
        found += [one.job_id for one in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_pages_are_stable_while_jobs_come(rig: Rig):
    old = await rig.submit(7)
    first = await rig.read(reads.list_jobs, m.JobQuery(limit=3))
    await rig.submit(5)
    second = await rig.read(reads.list_jobs, m.JobQuery(limit=3, cursor=first.next_cursor))
    third = await rig.read(reads.list_jobs, m.JobQuery(limit=3, cursor=second.next_cursor))
    assert [one.job_id for one in (*first.items, *second.items, *third.items)] == old[::-1]
    assert third.next_cursor is None
    assert first.total is None


async def test_filters_and_totals(rig: Rig):
    red = await rig.submit(3, labels={"colour": "red", "size": "l"})
    blue = await rig.submit(2, labels={"colour": "blue"}, queue="slow")
    await rig.join()
    begun = await rig.begin(slots=2, filters={"queues": ["default"]})
    await rig.write(jobs.cancel_job, blue[0])
    await rig.finish("n1", begun[0])
    assert await pages(rig, label="colour=red", limit=2) == red[::-1]
    assert await pages(rig, label="colour=green") == []
    assert await pages(rig, queue="slow", limit=1) == blue[::-1]
    assert await pages(rig, node="n1") == red[1::-1]
    assert await pages(rig, state="done,acked", limit=1) == red[1::-1]
    assert await pages(rig, state="done, acked ,cancelled", limit=2) == [blue[0], red[1], red[0]]
    assert await pages(rig, state="queued", label="size=l") == [red[2]]
    page = await rig.read(reads.list_jobs, m.JobQuery(state="queued,done", limit=1, count=True))
    assert (page.total, len(page.items)) == (3, 1)
    assert (await rig.read(reads.list_jobs, m.JobQuery(count=True, label="colour=blue", queue="slow"))).total == 2


async def test_who_waits_for_an_end_is_woken_by_that_alone(rig: Rig):
    done, cancelled = await rig.submit(2)
    await rig.join()
    async with rig.store.wakeups.subscribe(("over", done)) as first, rig.store.wakeups.subscribe(("over", cancelled)) as second:
        [held] = await rig.begin(slots=1)
        assert held.job_id == done
        await rig.write(jobs.hold_job, cancelled)
        assert not first.is_set()
        assert not second.is_set()
        await rig.write(jobs.cancel_job, cancelled)
        assert second.is_set()
        assert not first.is_set()
        await rig.finish("n1", held)
        assert first.is_set()


@pytest.mark.parametrize(
    ("query", "path"),
    [
        (m.JobQuery(limit=0), "limit"),
        (m.JobQuery(limit=501), "limit"),
        (m.JobQuery(cursor="not one"), "cursor"),
        (m.JobQuery(cursor="YWJj"), "cursor"),
        (m.JobQuery(state="queued,asleep"), "state"),
        (m.JobQuery(label="colour"), "label"),
        (m.JobQuery(label="=red"), "label"),
    ],
)
async def test_wrong_queries_are_named(rig: Rig, query, path):
    with pytest.raises(InvalidSpec) as caught:
        await rig.read(reads.list_jobs, query)
    assert [one.path for one in caught.value.problems] == [path]


async def test_one_job_light_and_whole(rig: Rig):
    (job_id,) = await rig.submit(labels={"a": "b"})
    light = await rig.read(reads.job_state, job_id)
    whole = await rig.read(reads.show_job, job_id)
    assert (light.timeline, light.manifest, light.labels) == ((), None, {"a": "b"})
    assert [one.kind for one in whole.timeline] == ["submit"]
    assert whole.manifest is not None
    ids = [one.id for one in whole.timeline]
    assert ids == sorted(ids)
    assert whole.timeline[0].at == rig.clock.now()
    for read in (reads.job_state, reads.show_job, reads.explain_job, reads.list_artifacts):
        with pytest.raises(NotFound, match="no job nothing"):
            await rig.read(read, "nothing")


async def test_those_that_are_over_with_their_artifacts(rig: Rig):
    entry = m.ArtifactEntry(path="result.json", type="application/json", size=2, sha256="ab" * 32)
    await rig.join("n1")
    done, failed, running, queued = await rig.submit(4, retries=0)
    first, second, third = await rig.begin("n1", slots=3)
    assert [first.job_id, second.job_id, third.job_id] == [done, failed, running]
    await rig.finish("n1", first, artifacts=(entry,))
    await rig.finish("n1", second, failure=Failure(FailureCode.TASK, "x"), artifacts=(entry,))
    asked = [done, failed, running, queued, "nothing"]
    views, missing = await rig.read(reads.ended_jobs, asked, 10)
    assert {one.job_id: (one.state, one.artifacts) for one in views} == {
        done: (JobState.DONE, (entry,)),
        failed: (JobState.FAILED, (entry,)),
    }
    assert missing == ("nothing",)
    assert len((await rig.read(reads.ended_jobs, asked, 1))[0]) == 1
    assert await rig.read(reads.ended_jobs, [], 1) == ((), ())
    views, missing = await rig.read(reads.ended_jobs, [done], 10)
    assert ([one.job_id for one in views], missing) == ([done], ())


async def test_artifacts_and_logs_of_attempts(rig: Rig):
    (job_id,) = await rig.submit(retries=2)
    assert await rig.read(reads.log_facts, job_id, "stdout") == reads.LogFacts(0, 0, False)
    await rig.join()
    (lease,) = await rig.begin()
    one = m.ArtifactEntry(path="a", type="t/t", size=1, sha256="1" * 64)
    await rig.append("n1", lease, 0, b"one")
    assert await rig.read(reads.log_facts, job_id, "stdout") == reads.LogFacts(1, 3, False)
    assert (await rig.read(reads.list_artifacts, job_id)).items == ()
    await rig.finish("n1", lease, failure=Failure(FailureCode.EXIT, "1"), artifacts=(one,), logs=(log_end(b"one", offset=3),))
    assert (await rig.read(reads.list_artifacts, job_id)).items == (one,)
    await rig.write(jobs.retry_job, job_id)
    (lease,) = await rig.begin()
    assert (await rig.read(reads.list_artifacts, job_id)).items == (one,)  # the latest that is over
    assert (await rig.read(reads.list_artifacts, job_id, 2)).items == ()
    assert await rig.read(reads.find_artifact, job_id, "a") == one
    assert await rig.read(reads.find_artifact, job_id, "a", 1) == one
    with pytest.raises(NotFound, match="it has a"):
        await rig.read(reads.find_artifact, job_id, "b")
    with pytest.raises(NotFound, match="it has none"):
        await rig.read(reads.find_artifact, job_id, "a", 2)
    with pytest.raises(NotFound, match="no attempt 3"):
        await rig.read(reads.list_artifacts, job_id, 3)
    with pytest.raises(NotFound, match="no attempt 3"):
        await rig.read(reads.log_facts, job_id, "stdout", 3)
    with pytest.raises(InvalidSpec):
        await rig.read(reads.log_facts, job_id, "stdlog")
    assert (await rig.read(reads.log_facts, job_id, "stdout")).attempt == 2
    assert await rig.read(reads.read_log, job_id, 1, "stdout", 1, 10) == b"ne"
    assert await rig.read(reads.read_log, job_id, 2, "stdout", 0, 10) == b""
    # Streams of attempts do not mix, and a silent one is over with its attempt.
    await rig.append("n1", lease, 0, b"two")
    await rig.finish("n1", lease)
    assert await rig.read(reads.log_facts, job_id, "stderr") == reads.LogFacts(2, 0, True)
    assert await rig.read(reads.read_log, job_id, 2, "stdout", 0, 10) == b"two"


async def test_an_offer_that_came_back_hides_no_log(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.append("n1", lease, 0, b"one")
    await rig.fail("n1", lease)
    await rig.write(jobs.retry_job, job_id)
    await rig.ack("n1", await rig.pull(), decline="no")
    assert await rig.read(reads.log_facts, job_id, "stdout") == reads.LogFacts(1, 3, True)
    assert (await rig.read(reads.list_artifacts, job_id)).items == ()


# --- why a job waits ---------------------------------------------------------------------------------------------------------


async def explain(rig: Rig, **changes) -> m.Explanation:
    (job_id,) = await rig.submit(**changes)
    return await rig.read(reads.explain_job, job_id)


async def test_no_node_has_joined(rig: Rig):
    found = await explain(rig)
    assert found.summary == "no node has joined yet: `ostler token create --join`"
    assert (found.nodes_total, found.blockers) == (0, ())


async def test_no_node_has_what_is_needed(rig: Rig):
    for number in range(5):
        await rig.join(f"n{number}")
    found = await explain(rig, requirements=Requirements(gpu=True))
    assert found.summary == "no node has a GPU: 5 of 5 nodes fail `gpu`"
    (blocker,) = found.blockers
    assert (blocker.requirement, blocker.nodes, blocker.examples[0], len(blocker.examples)) == (
        "gpu", 5, "n0 needs 1 GPU, has 0", 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"cpu_threads": 99}, "no node has 99 threads"),
        ({"memory_mb": 10**6}, "no node has 1000000 MB of memory"),
        ({"disk_mb": 10**6}, "no node has 1000000 MB of free disk"),
        ({"tags": ("x",)}, "no node has the tag x"),
        ({"tags": ("x", "y")}, "no node has the tags x, y"),
        ({"node": "other"}, "no node is called other"),
        ({"gpus": 2}, "no node has 2 GPUs"),
        ({"vram_mb": 9}, "no node has a GPU"),
    ],
)
async def test_the_sentence_names_the_need(rig: Rig, needs, words):
    await rig.join()
    assert words in (await explain(rig, requirements=Requirements(**needs))).summary


async def test_needs_that_only_fail_together(rig: Rig):
    await rig.join("small", tags=("fast",))
    await rig.join("slow", memory_mb=64_000)
    found = await explain(rig, requirements=Requirements(memory_mb=32_000, tags=("fast",)))
    assert found.summary == "no node meets all requirements together: `memory_mb` fails on 1 of 2, `tags` fails on 1 of 2"
    assert {one.requirement: one.examples for one in found.blockers} == {
        "memory_mb": ("small needs 32000 MB of memory, has 16000",),
        "tags": ("slow lacks the tag fast",),
    }


async def test_nodes_without_slots_and_runners_nobody_offers(rig: Rig):
    await rig.join(slots=0)
    assert "no node takes jobs without a GPU" in (await explain(rig)).summary
    assert "no node offers the agent runner" in (await explain(rig, runner=Runner.AGENT)).summary


async def test_sandbox_level(rig: Rig):
    await rig.join()
    found = await explain(rig, policy=Policy(sandbox=SandboxLevel.CONTAINER))
    assert "no node has a sandbox of level container or stronger" in found.summary


async def test_busy_draining_and_next(rig: Rig):
    await rig.join(slots=1)
    (first,) = await rig.submit(priority=9)
    assert (await rig.read(reads.explain_job, first)).summary == "it is next: n1 can run it and gets it with its next pull"
    second = await explain(rig)
    assert (second.summary, second.ahead, second.nodes_free) == ("1 job is ahead; 1 node with room could run it", 1, 1)
    (lease,) = await rig.begin(slots=1)
    second = await rig.read(reads.explain_job, second.job_id)
    assert (second.summary, second.nodes_free) == ("1 node could run it and is busy; no job is ahead", 0)
    await rig.write(nodes.drain_node, "n1", m.DrainRequest())
    second = await rig.read(reads.explain_job, second.job_id)
    assert second.summary == "1 node could run it, but 1 is draining"
    assert (await rig.read(reads.explain_job, first)).summary == "it is acked on n1 (attempt 1)"
    await rig.write(jobs.cancel_job, first)
    assert "its cancel was asked for" in (await rig.read(reads.explain_job, first)).summary
    await rig.finish("n1", lease, cancelled=True)
    assert (await rig.read(reads.explain_job, first)).summary == f"it is over; `ostler job retry {first}` submits it anew"


async def test_stories_of_jobs_that_do_not_wait_for_a_node(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    some = await rig.pull()
    assert "was offered to n1" in (await rig.read(reads.explain_job, job_id)).summary
    await rig.ack("n1", some)
    await rig.fail("n1", some[0])
    found = await rig.read(reads.explain_job, job_id)
    assert found.state is JobState.RETRY_WAIT
    assert "E_LOST: it broke" in found.summary
    assert "is tried again at" in found.summary
    await rig.write(jobs.retry_job, job_id)
    (lease,) = await rig.begin()
    await rig.fail("n1", lease, FailureCode.DENY)
    assert "after 2 tries" in (await rig.read(reads.explain_job, job_id)).summary


async def test_stories_of_jobs_that_are_over(rig: Rig):
    (good,) = await rig.submit()
    await rig.join(slots=1)
    (lease,) = await rig.begin(slots=1)
    await rig.finish("n1", lease)
    assert (await rig.read(reads.explain_job, good)).summary == f"it ended well; see `ostler job show {good}`"
    (bad,) = await rig.submit()
    (lease,) = await rig.begin(slots=1)
    await rig.fail("n1", lease, FailureCode.DENY)
    assert "after 1 try; " in (await rig.read(reads.explain_job, bad)).summary


async def test_who_is_ahead_is_counted_to_a_bound(rig: Rig):
    await rig.join()
    await rig.write(jobs.submit_jobs, [manifest()] * 600 + [manifest(requirements=Requirements(memory_mb=1))] * 600)
    found = await explain(rig)
    assert found.ahead == 1000
    assert found.summary == "at least 1000 jobs are ahead; 1 node with room could run it"
    assert (await explain(rig, priority=5)).ahead == 0
