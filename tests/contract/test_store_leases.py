"""The store contract: leasing, acknowledging, reporting, delivering, expiring; and that stale writes change nothing."""

import hashlib

import pytest

from ostler.coordinator.operations import duties, jobs, leases, reads
from ostler.coordinator.operations.claims import DECLINE_REST_US
from ostler.coordinator.operations.logs import RunningHashes
from ostler.model.attempt import AttemptState, Usage
from ostler.model.errors import Conflict, Gone, InvalidSpec, NotFound, OffsetMismatch, StaleAttempt, TooLarge
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Manifest, Policy, Requirements, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.protocol import messages as m
from store_rig import Rig, held, log_end, manifest


async def test_priority_then_age_decides(rig: Rig):
    low, high, middle = [(await rig.submit(priority=priority))[0] for priority in (-5, 5, 0)]
    (later,) = await rig.submit(priority=5, requirements=Requirements(memory_mb=10))
    await rig.join()
    assert [one.job_id for one in await rig.pull(slots=3)] == [high, later, middle]
    assert [one.job_id for one in await rig.pull(slots=3, fresh=False)] == [low]


async def test_credit_bounds_a_claim(rig: Rig):
    await rig.submit(5)
    await rig.join(slots=1)
    assert await rig.pull(slots=0) == []
    assert len(await rig.pull(slots=3)) == 3  # more than it runs at once: ahead of a free slot, returnable
    assert len(await rig.pull(slots=9, fresh=False)) == 2


async def test_only_what_fits_is_leased(rig: Rig):
    fits = [
        *await rig.submit(requirements=Requirements(memory_mb=16_000)),
        *await rig.submit(requirements=Requirements(cpu_threads=8, tags=("fast",), node="n1")),
        *await rig.submit(policy=Policy(sandbox=SandboxLevel.PROCESS)),
    ]
    for needs in (
        {"memory_mb": 16_001}, {"cpu_threads": 9}, {"disk_mb": 100_001}, {"gpu": True}, {"tags": ("slow",)}, {"node": "n2"},
    ):  # fmt: skip
        await rig.submit(requirements=Requirements(**needs))
    await rig.submit(policy=Policy(sandbox=SandboxLevel.CONTAINER))
    await rig.submit(runner=Runner.AGENT)
    await rig.join(tags=("fast",))
    assert {one.job_id for one in await rig.pull(slots=10, gpu_slots=10)} == set(fits)


async def test_capacity_is_shared_by_live_attempts(rig: Rig):
    big = await rig.submit(3, requirements=Requirements(memory_mb=7000))
    await rig.join()
    first = await rig.begin(slots=4)
    assert [one.job_id for one in first] == big[:2]
    (small,) = await rig.submit(requirements=Requirements(memory_mb=1000))
    (lease,) = await rig.begin(slots=4, held=held(first))
    assert lease.job_id == small
    await rig.finish("n1", first[0])
    assert [one.job_id for one in await rig.pull(held=held([first[1], lease]))] == [big[2]]


async def test_disk_counts_as_last_measured(rig: Rig):
    await rig.submit(requirements=Requirements(disk_mb=50_000))
    await rig.join()
    await rig.beat(disk_free_mb=40_000)
    assert await rig.pull() == []
    await rig.beat(disk_free_mb=60_000)
    assert len(await rig.pull()) == 1


async def test_gpus_are_matched_by_their_memory(rig: Rig):
    await rig.submit(2, requirements=Requirements(vram_mb=20_000))
    small = await rig.submit(2, requirements=Requirements(gpu=True))
    await rig.join(gpu_slots=2, vram=(24_000, 8_000))
    first = await rig.begin(slots=0, gpu_slots=2)
    assert [one.job_id for one in first][1:] == small[:1]  # one large GPU: one large job, and a small one beside it
    assert await rig.pull(slots=4, gpu_slots=1, held=held(first)) == []
    await rig.finish("n1", first[0])
    (lease,) = await rig.pull(gpu_slots=1, held=held(first[1:]))
    assert lease.job_id not in small


async def test_filters_narrow_a_pull(rig: Rig):
    (cli,) = await rig.submit()
    (python,) = await rig.submit(command=None, runner=Runner.PYTHON, task="tasks.example", queue="slow")
    await rig.join()
    assert [one.job_id for one in await rig.pull(filters={"runners": ["python"]})] == [python]
    assert await rig.pull(filters={"queues": ["slow"]}, fresh=False) == []
    assert [one.job_id for one in await rig.pull(filters={"queues": ["default"], "other": 1}, fresh=False)] == [cli]


async def test_an_offer_that_the_next_pull_lacks_is_taken_back_at_no_cost(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lost,) = await rig.pull()
    assert await rig.pull(fresh=False) == []  # a later turn of the same poll proves nothing
    assert await rig.beat(held=[]) == []  # nor does a heartbeat, which may have crossed the answer
    assert (await rig.job(job_id)).state is JobState.LEASED
    (again,) = await rig.pull(held=[])
    assert (again.job_id, again.attempt, again.tries) == (job_id, 2, 0)
    assert [one.code for one in await rig.ack("n1", [lost])] == ["stale_attempt"]
    assert [one.ok for one in await rig.ack("n1", [again])] == [True]
    job = await rig.job(job_id)
    assert (job.attempt, job.tries) == (2, 1)
    assert [one.state for one in job.attempts] == [AttemptState.RETURNED, AttemptState.ACKED]
    assert await rig.kinds(job_id) == ["submit", "lease", "return", "lease", "ack"]


async def test_answers_that_are_lost_become_smaller(rig: Rig):
    """Or whoever is too busy to answer in time would lease and take back all that a node can hold, for ever."""
    for _ in range(70):
        await rig.submit()
    await rig.join(slots=3)
    counts = [len(await rig.pull(slots=32)) for _ in range(6)]
    assert counts == [32, 16, 8, 4, 3, 3]
    arrived = await rig.pull(slots=32)
    assert len(arrived) == 3
    assert len(await rig.pull(slots=32, held=[m.Held(one.job_id, one.attempt) for one in arrived])) == 32, "all is well again"


async def test_a_declined_job_goes_to_others_first(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.join("n2")
    some = await rig.pull()
    assert (await rig.ack("n1", some, decline="its disk is full"))[0].ok
    job = await rig.job(job_id)
    assert (job.state, job.node_id, job.tries) == (JobState.QUEUED, None, 0)
    assert job.timeline[-1].message == "its disk is full"
    assert await rig.pull("n1") == []
    (other,) = await rig.pull("n2")
    assert other.attempt == 2
    await rig.ack("n2", [other], decline="nor here")
    rig.clock.advance(DECLINE_REST_US / 1e6)
    assert [one.attempt for one in await rig.pull("n1")] == [3]


async def test_acks_are_idempotent_and_cannot_be_taken_back(rig: Rig):
    await rig.submit()
    await rig.join()
    some = await rig.begin()
    assert (await rig.ack("n1", some))[0].ok
    refused = (await rig.ack("n1", some, decline="too late"))[0]
    assert (refused.ok, refused.code) == (False, "invalid_transition")


async def test_a_batch_is_answered_item_by_item(rig: Rig):
    await rig.submit(2)
    await rig.join()
    one, two = await rig.pull()
    items = [
        m.AckItem(job_id=one.job_id, attempt=1),
        m.AckItem(job_id="nothing", attempt=1),
        m.AckItem(job_id=two.job_id, attempt=7),
        m.AckItem(job_id=one.job_id, attempt=1),
    ]
    results = await rig.write(leases.ack_jobs, "n1", items)
    assert [(each.job_id, each.ok, each.code) for each in results] == [
        (one.job_id, True, None),
        ("nothing", False, "stale_attempt"),
        (two.job_id, False, "stale_attempt"),
        (one.job_id, True, None),
    ]


async def test_stages_may_be_coalesced_and_never_go_back(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.pull()
    assert (await rig.progress("n1", lease, AttemptState.RUNNING)).code == "invalid_transition"
    await rig.ack("n1", [lease])
    assert (await rig.progress("n1", lease, AttemptState.RUNNING, pct=10.0, note="first")).ok
    assert (await rig.progress("n1", lease, AttemptState.PREPARING, pct=20.0)).ok
    job = await rig.job(job_id)
    assert (job.state, job.pct, job.note) == (JobState.RUNNING, 20.0, "first")
    assert (await rig.progress("n1", lease, AttemptState.DONE)).code == "invalid_transition"
    assert (await rig.progress("n1", lease, AttemptState.UPLOADING)).ok
    assert (await rig.progress("n1", lease, note="n" * 900)).ok
    job = await rig.job(job_id)
    assert (job.state, job.attempts[0].state, len(job.note or "")) == (JobState.UPLOADING, AttemptState.UPLOADING, 500)
    assert await rig.kinds(job_id) == ["submit", "lease", "ack", "start", "upload"]


async def test_an_outcome_is_kept_whole(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    rig.clock.advance(2)
    usage = Usage(prepare_s=0.5, wall_s=1.0, upload_s=0.25, peak_memory_mb=12.5)
    entry = m.ArtifactEntry(path="out.bin", type="application/octet-stream", size=3, sha256="c" * 64)
    result = await rig.finish(
        "n1",
        lease,
        exit_code=0,
        usage=usage,
        sandbox="bwrap",
        artifacts=(entry,),
        logs=(log_end(b"hello\n"), log_end(b"", "stderr")),
    )
    assert result == m.ItemResult(job_id=job_id, attempt=1)
    job = await rig.job(job_id)
    assert (job.state, job.exit_code, job.finished_at, job.artifacts) == (JobState.DONE, 0, rig.clock.now(), (entry,))
    (attempt,) = job.attempts
    assert (attempt.state, attempt.usage, attempt.sandbox) == (AttemptState.DONE, usage, "bwrap")
    assert await rig.kinds(job_id) == ["submit", "lease", "ack", "finish"]


async def test_what_is_over_never_changes_and_the_same_again_is_ok(rig: Rig):
    (job_id,) = await rig.submit(retries=3)
    await rig.join()
    (lease,) = await rig.begin()
    assert (await rig.fail("n1", lease, FailureCode.EXIT)).ok
    before = await rig.everything()
    assert (await rig.fail("n1", lease, FailureCode.EXIT)).ok
    assert (await rig.fail("n1", lease, FailureCode.OOM)).code == "stale_attempt"
    assert (await rig.finish("n1", lease)).code == "stale_attempt"
    assert (await rig.finish("n1", lease, cancelled=True)).code == "stale_attempt"
    assert await rig.everything() == before
    await rig.write(jobs.retry_job, job_id)
    (second,) = await rig.begin()
    before = await rig.everything()
    assert (await rig.fail("n1", lease, FailureCode.EXIT)).ok  # the first one's delivery, doubled late
    assert await rig.everything() == before
    both = [
        m.Outcome(job_id=job_id, attempt=2),
        m.Outcome(job_id=job_id, attempt=2),
        m.Outcome(job_id=job_id, attempt=2, cancelled=True),
    ]
    results = await rig.write(leases.finish_attempts, "n1", both)
    assert [one.code for one in results] == [None, None, "stale_attempt"]
    assert second.attempt == 2
    assert (await rig.job(job_id)).state is JobState.DONE


async def test_an_outcome_needs_an_acknowledged_attempt(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.pull()
    assert (await rig.finish("n1", lease)).code == "invalid_transition"
    assert (await rig.job(job_id)).state is JobState.LEASED


async def test_artifacts_must_be_stored_before_they_are_named(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    entry = m.ArtifactEntry(path="out.bin", type="x/y", size=3, sha256="c" * 64)
    outcome = m.Outcome(job_id=job_id, attempt=lease.attempt, artifacts=(entry,))
    before = await rig.everything()
    (refused,) = await rig.write(leases.finish_attempts, "n1", [outcome], stored=frozenset())
    assert (refused.code, "out.bin" in (refused.message or "")) == ("not_found", True)
    assert await rig.everything() == before
    (taken,) = await rig.write(leases.finish_attempts, "n1", [outcome], stored={"c" * 64})
    assert taken.ok
    (again,) = await rig.write(leases.finish_attempts, "n1", [outcome], stored=frozenset())
    assert again.ok


async def test_a_log_is_appended_at_offsets_and_checked_at_its_end(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    data = bytes(range(256)) * 4000  # larger than a chunk
    assert await rig.append("n1", lease, 0, data[:10]) == 10
    with pytest.raises(OffsetMismatch) as caught:
        await rig.append("n1", lease, 0, data[:10])
    assert caught.value.offset == 10
    with pytest.raises(OffsetMismatch) as caught:
        await rig.append("n1", lease, 99, b"x")
    assert caught.value.offset == 10
    assert await rig.append("n1", lease, 10, data[10:-5]) == len(data) - 5
    short = await rig.finish("n1", lease, logs=(log_end(data, offset=len(data) - 1),))
    assert (short.ok, short.code, short.stream, short.offset) == (False, "offset_mismatch", "stdout", len(data) - 5)
    assert (await rig.job(job_id)).state is JobState.ACKED
    assert (await rig.finish("n1", lease, logs=(log_end(data, offset=len(data) - 100),))).ok  # a tail that overlaps what is here
    facts = await rig.read(reads.log_facts, job_id, "stdout")
    assert facts == reads.LogFacts(attempt=1, length=len(data), finished=True, sha256=hashlib.sha256(data).hexdigest())
    got = b""
    while piece := await rig.read(reads.read_log, job_id, 1, "stdout", len(got), 100_001):
        got += piece
    assert got == data
    assert await rig.read(reads.read_log, job_id, 1, "stdout", 500_000, 7) == data[500_000:500_007]
    with pytest.raises(Gone):
        await rig.append("n1", lease, len(data), b"more")


@pytest.mark.parametrize("forget", [False, True], ids=["running hash", "hash made anew"])
async def test_a_damaged_log_is_sent_anew(rig: Rig, forget: bool):
    await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.append("n1", lease, 0, b"wrong!")
    if forget:
        await rig.write(lambda tx: tx.memo(RunningHashes).by_stream.clear())
    refused = await rig.finish("n1", lease, logs=(log_end(b"right!", offset=6),))
    assert (refused.code, refused.offset) == ("offset_mismatch", 0)
    assert await rig.append("n1", lease, 0, b"right!") == 6
    assert (await rig.finish("n1", lease, logs=(log_end(b"right!", offset=6),))).ok


async def test_the_final_append_checks_length_and_checksum(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    with pytest.raises(OffsetMismatch):
        await rig.append("n1", lease, 0, b"abc", final=log_end(b"abcd"))
    assert await rig.append("n1", lease, 0, b"abd", final=log_end(b"abc")) == 0
    assert await rig.append("n1", lease, 0, b"abc", final=log_end(b"abc")) == 3
    assert await rig.append("n1", lease, 3, b"", final=log_end(b"abc")) == 3
    with pytest.raises(OffsetMismatch):
        await rig.append("n1", lease, 3, b"more")
    facts = await rig.read(reads.log_facts, job_id, "stdout", 1)
    assert (facts.finished, facts.length) == (True, 3)
    assert (await rig.finish("n1", lease, logs=(log_end(b"abc", offset=3),))).ok


async def test_a_log_has_limits_and_known_streams(rig: Rig):
    await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    assert await rig.append("n1", lease, 0, b"12345", max_bytes=6) == 5
    with pytest.raises(TooLarge):
        await rig.append("n1", lease, 5, b"12", max_bytes=6)
    with pytest.raises(InvalidSpec, match="no such log"):
        await rig.append("n1", lease, 0, b"1", "stdlog")
    with pytest.raises(NotFound):
        await rig.append("n2", lease, 0, b"1")


async def test_every_stale_write_is_refused_and_changes_nothing(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    await rig.join("n2")
    (old,) = await rig.begin("n1")
    await rig.append("n1", old, 0, b"first attempt")
    assert await rig.write(leases.expire_attempts, "n1") == [m.Held(job_id, 1)]
    await rig.write(jobs.retry_job, job_id)
    (new,) = await rig.begin("n2")
    await rig.append("n2", new, 0, b"second")
    before = await rig.everything()
    for node, lease in (("n1", old), ("n2", old), ("n1", new)):
        assert (await rig.ack(node, [lease]))[0].code == "stale_attempt"
        assert (await rig.ack(node, [lease], decline="no"))[0].code == "stale_attempt"
        assert (await rig.progress(node, lease, AttemptState.RUNNING, pct=5.0)).code == "stale_attempt"
        assert (await rig.finish(node, lease)).code == "stale_attempt"
        entry = m.ArtifactEntry(path="x", type="x/y", size=1, sha256="d" * 64)
        assert (await rig.finish(node, lease, artifacts=(entry,), logs=(log_end(b"zzz"),))).code == "stale_attempt"
        with pytest.raises((Gone, NotFound)):
            await rig.append(node, lease, 6, b"mixed in")
        with pytest.raises(NotFound):
            await rig.write(leases.set_workspace, node, job_id, lease.attempt, "e" * 64)
    with pytest.raises(Conflict, match="holds no attempt"):
        await rig.read(leases.bind_live_attempt, "n1", job_id)
    assert await rig.read(leases.bind_live_attempt, "n2", job_id) == 2
    assert await rig.everything() == before
    assert (await rig.finish("n2", new, logs=(log_end(b"second", offset=6),))).ok


async def test_an_older_session_may_write_nothing(rig: Rig):
    await rig.submit()
    await rig.join(epoch="boot:1")
    (lease,) = await rig.begin(boot_epoch="boot:1")
    await rig.register(epoch="boot:2", held=held([lease]))
    before = await rig.everything()
    item = m.AckItem(job_id=lease.job_id, attempt=1)
    outcome = m.Outcome(job_id=lease.job_id, attempt=1)
    for call in (
        lambda: rig.pull(boot_epoch="boot:1"),
        lambda: rig.beat(boot_epoch="boot:1"),
        lambda: rig.write(leases.ack_jobs, "n1", [item], boot_epoch="boot:1"),
        lambda: rig.write(
            leases.report_progress, "n1", [m.ProgressItem(job_id=lease.job_id, attempt=1, pct=1.0)], boot_epoch="boot:1"
        ),
        lambda: rig.write(leases.finish_attempts, "n1", [outcome], boot_epoch="boot:1"),
        lambda: rig.append("n1", lease, 0, b"x", boot_epoch="boot:1"),
        lambda: rig.register(epoch="boot:1"),
    ):
        with pytest.raises(StaleAttempt, match="newer session"):
            await call()
    assert await rig.everything() == before
    (result,) = await rig.write(leases.finish_attempts, "n1", [outcome], boot_epoch="boot:2")
    assert result.ok


async def test_expiry_returns_offers_and_fails_what_was_begun(rig: Rig):
    job_ids = await rig.submit(3)
    await rig.join()
    begun = await rig.begin(slots=2)
    await rig.pull(slots=1, held=held(begun))
    await rig.write(jobs.cancel_job, begun[1].job_id)
    ended = await rig.write(leases.expire_attempts, "n1")
    assert {one.job_id for one in ended} == set(job_ids)
    lost, cancelled, offered = [await rig.job(job_id) for job_id in job_ids]
    assert (lost.state, lost.tries) == (JobState.RETRY_WAIT, 1)
    assert lost.failure is not None
    assert lost.failure.code is FailureCode.LOST
    assert (cancelled.state, cancelled.attempts[0].state) == (JobState.CANCELLED, AttemptState.CANCELLED)
    assert (offered.state, offered.tries, offered.attempts[0].state) == (JobState.QUEUED, 0, AttemptState.RETURNED)
    assert await rig.write(leases.expire_attempts, "n1") == []
    assert await rig.write(leases.expire_attempts, "nobody") == []


async def test_a_renewal_in_the_last_moment_wins(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    (seen,) = await rig.read(duties.watch_nodes, ["n1"])
    await rig.beat(held=held([lease]))
    assert await rig.write(leases.expire_attempts, "n1", renewals=seen.renewals) == []
    assert await rig.write(duties.lose_node, "n1", seen.renewals, "silent") == []
    assert not await rig.write(duties.miss_node, "n1", seen.renewals, "silent")
    assert (await rig.job(job_id)).state is JobState.ACKED


async def test_a_source_node_never_gets_a_job_twice_in_one_session(rig: Rig):
    first, second = await rig.submit(2)
    await rig.join()
    pulled = [await rig.pull(slots=1, protocol=None) for _ in range(3)]
    assert [[one.job_id for one in some] for some in pulled] == [[first], [second], []]  # the first went back unacknowledged
    await rig.register(epoch="boot:2")
    assert [one.job_id for one in await rig.pull(slots=2, protocol=None)] == [first, second]


async def test_unknown_nodes_lease_nothing(rig: Rig):
    with pytest.raises(NotFound, match="no node ghost"):
        await rig.pull("ghost")
    with pytest.raises(NotFound, match="no node ghost"):
        await rig.write(leases.ack_jobs, "ghost", [], boot_epoch="x")


async def test_a_later_offer_is_judged_anew(rig: Rig):
    await rig.submit(requirements=Requirements(gpu=True))
    await rig.join()
    assert await rig.pull(gpu_slots=1) == []
    await rig.register(epoch="boot:2", gpu_slots=1, vram=(8000,))
    assert len(await rig.pull(gpu_slots=1)) == 1


async def test_a_long_failure_message_is_cut(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    await rig.finish("n1", lease, failure=Failure(FailureCode.START, "x" * 100_000))
    failure = (await rig.job(job_id)).failure
    assert failure is not None
    assert len(failure.message) == 4000


def test_the_rig_sends_what_a_person_would():
    assert isinstance(manifest()[0], Manifest)
