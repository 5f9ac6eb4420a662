"""Two coordinators write to one PostgreSQL at the same time: whatever one has begun, the other one's doing fits in.

Operations run in the writers' threads, so that one can be held in the middle of its transaction while the other one goes on.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import postgres
from ostler.coordinator.operations import audit, dependencies, events, groups, jobs, leases, quotas, reads, removals
from ostler.coordinator.operations.idempotency import Mark, submit_once
from ostler.coordinator.store.beside import beside_others, runs_beside
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import AlreadyExists, Gone, InvalidTransition, QuotaExceeded
from ostler.model.job import JobState
from ostler.model.quota import Quota
from ostler.protocol import messages as m
from store_rig import Rig, manifest

PATIENCE_S = 30


@pytest.fixture
def two() -> Iterator[tuple[Rig, Rig]]:
    server = postgres.shared()
    with server.borrowed() as name:
        here = Rig.open(server.url(name))
        there = Rig.open(server.url(name), here.clock)
        yield here, there
        there.close()
        here.close()


class Held:
    """An operation that stops when it is done and goes on, and commits, when told to."""

    def __init__(self, rig: Rig, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._done, self._go, self.runs = threading.Event(), threading.Event(), 0

        @beside_others
        def held(tx: Tx) -> Any:
            self.runs += 1
            value = operation(tx, *args, **kwargs)
            self._done.set()
            assert self._go.wait(PATIENCE_S)
            return value

        self.task = asyncio.create_task(rig.write(held))

    async def done(self) -> "Held":
        assert await asyncio.to_thread(self._done.wait, PATIENCE_S)
        return self

    async def commit(self) -> Any:
        self._go.set()
        return await self.task


def pull(node_id: str, slots: int) -> m.PullRequest:
    return m.PullRequest(node_id=node_id, slots=slots, gpu_slots=0, held=(), protocol=1)


def outcome(lease: leases.Lease) -> m.Outcome:
    return m.Outcome(job_id=lease.job_id, attempt=lease.attempt)


_WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)  # fmt: skip


async def blocked(task: "asyncio.Task[Any]", server_side: Rig) -> None:
    """Until the database says that somebody waits for a lock; the task is not over then."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await server_side.rows(_WAITING))[0][0]:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    assert not task.done()


# --- who waits for whom ------------------------------------------------------------------------------------------------------


def test_what_may_run_beside_others_is_said_by_the_operation():
    assert runs_beside(leases.lease_jobs, ())
    assert not runs_beside(jobs.cancel_job, ("j",))
    assert runs_beside(audit.audited, (None, jobs.submit_jobs))
    assert not runs_beside(audit.audited, (None, jobs.cancel_job))
    assert not runs_beside(dependencies.link, ())


async def test_two_claims_at_the_same_heads_take_different_jobs_and_neither_waits(two):
    here, there = two
    ids = await here.submit(8)
    await here.join("n1")
    await there.join("n2")
    first = await Held(here, leases.lease_jobs, pull("n1", 4)).done()
    second = await there.pull("n2", slots=4)
    assert [one.job_id for one in second] == ids[4:]
    assert [one.job_id for one in await first.commit()] == ids[:4]
    assert await there.rows("SELECT count(*) FROM attempts") == [(8,)]


async def test_who_runs_alone_waits_for_all_and_all_wait_for_it(two):
    here, there = two
    (job_id,) = await here.submit()
    await here.join("n1")
    leasing = await Held(here, leases.lease_jobs, pull("n1", 1)).done()
    cancelling = asyncio.create_task(there.write(jobs.cancel_job, job_id))
    await blocked(cancelling, there)
    (lease,) = await leasing.commit()
    assert (await cancelling).state is JobState.CANCELLED  # it saw the lease
    assert not (await here.ack("n1", [lease]))[0].ok


# --- what two do at the same time --------------------------------------------------------------------------------------------


async def test_the_last_two_whom_a_job_waits_for_end_at_once(two):
    here, there = two
    await here.submit(1, job_id="a")
    await here.submit(1, job_id="b")
    await here.submit(1, job_id="c", depends_on=("a", "b"))
    await here.join("n1")
    first, second = await here.begin(slots=2)
    ends = [
        asyncio.create_task(rig.write(leases.finish_attempts, "n1", [outcome(one)]))
        for rig, one in ((here, first), (there, second))
    ]
    await asyncio.gather(*ends)
    assert await here.rows("SELECT waits FROM jobs WHERE job_id = 'c'") == [(0,)]
    assert [one.job_id for one in await there.pull("n1", slots=2)] == ["c"]


async def test_an_end_that_others_wait_for_is_run_again_alone(two):
    here, there = two
    await here.submit(1, job_id="a")
    await here.submit(1, job_id="b", depends_on=("a",))
    await here.join("n1")
    (lease,) = await here.begin(slots=1)
    runs = []

    @beside_others
    def counted(tx: Tx) -> Any:
        runs.append(tx.is_alone)
        return leases.finish_attempts(tx, "n1", [outcome(lease)])

    assert (await there.write(counted))[0].ok
    assert runs == [False, True]


async def test_the_last_two_of_an_array_end_at_once_and_who_waits_for_it_is_woken(two):
    here, there = two
    made = await here.write(jobs.submit_jobs, groups.expand(*manifest(array=2)))
    group_id = made.items[0].group_id
    await here.join("n1")
    first, second = await here.begin(slots=2)
    topic = ("group", group_id)
    async with here.store.wakeups.subscribe(topic) as at_first, there.store.wakeups.subscribe(topic) as at_second:
        one = await Held(here, leases.finish_attempts, "n1", [outcome(first)]).done()
        other = await Held(there, leases.finish_attempts, "n1", [outcome(second)]).done()
        await asyncio.gather(asyncio.create_task(one.commit()), asyncio.create_task(other.commit()))
        assert at_first.is_set() or at_second.is_set()


async def test_one_name_is_given_once(two):
    here, there = two
    first = await Held(here, jobs.submit_jobs, [manifest(job_id="same")]).done()
    second = asyncio.create_task(there.submit(1, job_id="same"))
    await blocked(second, here)
    await first.commit()
    with pytest.raises(AlreadyExists, match="same"):
        await second


async def test_one_key_is_answered_once(two):
    here, there = two
    mark = Mark("alice", "k", b"digest")
    first = await Held(here, submit_once, mark, [manifest()], "alice").done()
    second = asyncio.create_task(there.write(submit_once, mark, [manifest()], "alice"))
    await blocked(second, here)
    made, again = await first.commit()
    assert (await second) == (made, True)
    assert not again
    assert await here.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_numbers_are_whole_rows_and_nobody_waits_for_them(two):
    here, there = two
    await here.submit()  # the first job of its shape
    first = await Held(here, jobs.submit_jobs, [manifest()] * 3).done()
    await there.submit(2)
    await first.commit()
    assert await here.rows("SELECT seq FROM jobs ORDER BY seq") == [(1,), (2,), (3,), (4,), (5,), (6,)]


async def test_one_attempt_ends_once_by_whichever_way_it_is_told(two):
    here, there = two
    await here.submit()
    await here.join("n1")
    (lease,) = await here.begin(slots=1)
    first = await Held(here, leases.finish_attempts, "n1", [outcome(lease)]).done()
    second = asyncio.create_task(there.write(leases.finish_attempts, "n1", [outcome(lease)]))
    await blocked(second, here)
    assert (await first.commit())[0].ok
    assert (await second)[0].ok
    assert (await here.kinds(lease.job_id)).count("finish") == 1


async def test_log_bytes_that_come_twice_at_once_are_stored_once(two):
    here, there = two
    await here.submit()
    await here.join("n1")
    (lease,) = await here.begin(slots=1)
    place = ("n1", lease.job_id, lease.attempt, "stdout", 0, b"once\n")
    first = await Held(here, leases.append_log, *place).done()
    second = asyncio.create_task(there.write(leases.append_log, *place))
    await blocked(second, here)
    assert await first.commit() == 5
    with pytest.raises(Exception, match="has 5 bytes"):
        await second
    assert await there.read(reads.read_log, lease.job_id, 1, "stdout", 0, 100) == b"once\n"


# --- quotas and the ledger ---------------------------------------------------------------------------------------------------


async def test_of_two_at_a_limit_one_passes_and_a_quota_holds_everywhere_at_once(two):
    here, there = two
    assert (await there.write(jobs.submit_jobs, [manifest()], "alice")).warnings == ()  # it remembers that there is no quota
    await here.write(quotas.set_quota, "alice", Quota(queued=2))
    first = await Held(here, jobs.submit_jobs, [manifest()], "alice").done()
    second = asyncio.create_task(there.write(jobs.submit_jobs, [manifest()], "alice"))
    await blocked(second, here)
    await first.commit()
    with pytest.raises(QuotaExceeded):
        await second
    await here.write(quotas.set_quota, "alice", Quota(running=1))
    await here.join("n1")
    await here.join("n2")
    running = await Held(here, leases.lease_jobs, pull("n1", 2)).done()
    other = asyncio.create_task(there.pull("n2", slots=2))
    await blocked(other, here)
    assert len(await running.commit()) == 1
    assert await other == []


async def test_the_ledger_adds_up(two):
    here, there = two
    await here.write(jobs.submit_jobs, [manifest()] * 2, "alice")
    await here.join("n1")
    first, second = await here.begin(slots=2)
    here.clock.advance(100)
    one = await Held(here, leases.finish_attempts, "n1", [outcome(first)]).done()
    assert (await there.write(leases.finish_attempts, "n1", [outcome(second)]))[
        0
    ].ok  # it does not wait for the other's transaction
    await one.commit()
    assert await here.rows("SELECT sum(cpu_us) FROM usage") == [(200_000_000,)]


# --- events ------------------------------------------------------------------------------------------------------------------


async def test_no_event_is_skipped_that_commits_after_a_later_one(two):
    here, there = two
    await here.submit()
    start = await there.read(events.head)
    assert start == 1
    early = await Held(here, jobs.submit_jobs, [manifest()]).done()  # has drawn its id
    (late,) = await there.submit()
    assert await there.rows("SELECT id FROM events ORDER BY id") == [(1,), (3,)]
    for rig in two:
        window = await rig.read(events.window, start)
        assert (window.found, window.end) == ((), start)
        assert await rig.read(events.head) == start
    (first,) = [one.job_id for one in (await early.commit()).items]
    window = await there.read(events.window, start)
    assert [one.event.job_id for one in window.found] == [first, late]


async def test_an_id_that_was_drawn_in_vain_holds_nobody_up(two):
    here, there = two

    @beside_others
    def fails(tx: Tx) -> None:
        jobs.submit_jobs(tx, [manifest()])
        raise InvalidTransition("in vain")

    with pytest.raises(InvalidTransition):
        await here.write(fails)
    await there.submit()
    window = await here.read(events.window, 0)
    assert [one.id for one in window.found] == [2]
    again = await here.read(events.window, window.end)
    assert again.found == ()


async def test_a_gap_is_no_removal(two):
    here, there = two
    await here.submit()
    place = await here.read(events.head)
    await here.write(lambda tx: tx.rows("SELECT nextval('events_id_seq')"))
    await there.submit()
    assert await here.write(removals.remove_events, [place]) == 1
    window = await there.read(events.window, place)
    assert [one.id for one in window.found] == [place + 2]
    assert await here.write(removals.remove_events, [place + 2]) == 1
    await there.submit()
    with pytest.raises(Gone):
        await there.read(events.window, place)


async def test_one_who_writes_alone_sees_where_the_events_end(two):
    here, there = two
    await here.submit()
    running = await Held(here, jobs.submit_jobs, [manifest()]).done()
    waiting = asyncio.create_task(there.write(events.head))
    await blocked(waiting, there)
    await running.commit()
    assert await waiting == 2


# --- all at once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_two_coordinators_do_each_job_ends_once(two, seed):
    """Nodes call either at random, all at the same time; a reader follows the events."""
    chance = random.Random(seed)
    total = 120
    for number in range(4):
        await two[0].join(f"n{number}")
    seen: list[int] = []
    over = asyncio.Event()

    async def follow() -> None:
        place = 0
        while True:
            last_look = over.is_set()
            window = await chance.choice(two).read(events.window, place)
            seen.extend(one.id for one in window.found)
            place = window.end
            if last_look and not window.found:
                return
            await asyncio.sleep(0)

    async def submit() -> None:
        for _ in range(total // 4):
            await chance.choice(two).submit(4)

    async def work(node_id: str, ended: Counter[str]) -> None:
        while sum(ended.values()) < total:
            some = await chance.choice(two).pull(node_id, slots=chance.randint(1, 6))
            if some and chance.random() < 0.2:
                await chance.choice(two).ack(node_id, some[:1], decline="not now")
                some = some[1:]
            await chance.choice(two).ack(node_id, some)
            for lease in some:
                (result,) = await chance.choice(two).write(leases.finish_attempts, node_id, [outcome(lease)])
                if result.ok:
                    ended[lease.job_id] += 1
            two[0].clock.advance(1)

    ended: Counter[str] = Counter()
    follower = asyncio.create_task(follow())
    async with asyncio.timeout(240):
        await asyncio.gather(submit(), *(work(f"n{number}", ended) for number in range(4)))
    over.set()
    await follower
    assert await two[0].rows("SELECT state, count(*) FROM jobs GROUP BY state") == [("done", total)]
    assert set(ended.values()) == {1}
    ids = [row[0] for row in await two[0].rows("SELECT id FROM events ORDER BY id")]
    assert seen == ids
