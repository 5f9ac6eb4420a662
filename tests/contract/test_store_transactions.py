"""The store contract: what a transaction promises. Durable before it is answered, whole or not at all."""

import asyncio
import random
import threading
from contextlib import suppress
from functools import partial

import pytest

from ostler.coordinator.operations import jobs, reads
from ostler.coordinator.operations.changes import write
from ostler.model.errors import InvalidSpec, NotFound, StoreBusy
from ostler.model.job import JobState
from ostler.model.manifest import Requirements, Runner
from ostler.protocol import messages as m
from store_rig import Rig, manifest


class Gate:
    """Keeps the writer inside an operation, so that those behind it share its transaction."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.inside, self.leave = rig, threading.Event(), threading.Event()

    async def __aenter__(self) -> "Gate":
        def wait(tx):
            self.inside.set()
            self.leave.wait()

        self.task = asyncio.create_task(self.rig.write(wait))
        await asyncio.to_thread(self.inside.wait)
        return self

    async def __aexit__(self, *_):
        await asyncio.sleep(0)  # let what was created begin: each puts its operation into the queue at once
        self.leave.set()
        await self.task


def note(tx, kind, *, fail=False):
    tx.run("INSERT INTO events (at, kind) VALUES (?, ?)", (tx.at, kind))
    tx.wake(("job", kind))
    tx.after_commit(lambda: None)
    if fail:
        raise NotFound(f"no {kind}")
    return kind


async def kinds(rig: Rig) -> list[str]:
    return [row[0] for row in await rig.rows("SELECT kind FROM events ORDER BY id")]


async def test_an_error_undoes_its_own_operation_alone(rig: Rig):
    async with Gate(rig):
        tasks = [asyncio.create_task(rig.write(note, kind, fail=kind in "bd")) for kind in "abcde"]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer if isinstance(answer, str) else type(answer) for answer in answers] == ["a", NotFound, "c", NotFound, "e"]
    assert await kinds(rig) == ["a", "c", "e"]


@pytest.mark.parametrize("failing", ["a", "ab", "abc"])
async def test_an_error_at_the_head_of_a_transaction(rig: Rig, failing: str):
    for kind in "abc":
        if kind in failing:
            with pytest.raises(NotFound):
                await rig.write(note, kind, fail=True)
        else:
            await rig.write(note, kind)
    assert await kinds(rig) == [kind for kind in "abc" if kind not in failing]


async def test_a_bug_in_one_operation_leaves_the_writer_working(rig: Rig):
    with pytest.raises(ZeroDivisionError):
        await rig.write(lambda tx: 1 / 0)
    with pytest.raises(Exception, match=r"(?i)syntax"):
        await rig.write(lambda tx: tx.run("SELEKT"))
    assert await rig.write(note, "a") == "a"


class Remembered:
    value: str | None = None


async def test_what_was_remembered_of_a_transaction_that_failed_is_forgotten(rig: Rig):
    """At its commit, by a row that names what is not there: the numbers of rows that never came to be are given anew."""

    def late(tx, values):
        tx.run("INSERT INTO labels (key, value, job_seq) VALUES ('k', 'v', 123456)")

    def remember(tx):
        tx.memo(Remembered).value = "never came to be"
        tx.at_commit(late, None)

    with pytest.raises(Exception):  # noqa: B017, PT011 - each engine's own
        await rig.write(remember)
    assert await rig.write(lambda tx: tx.memo(Remembered).value) is None


async def test_reads_see_one_moment_and_all_that_was_answered(rig: Rig):
    await rig.write(note, "a")
    between, go_on = threading.Event(), threading.Event()

    def look_twice(tx):
        first = tx.rows("SELECT count(*) FROM events")
        between.set()
        go_on.wait()
        return first, tx.rows("SELECT count(*) FROM events")

    looking = asyncio.create_task(rig.read(look_twice))
    await asyncio.to_thread(between.wait)
    await rig.write(note, "b")
    go_on.set()
    assert await looking == ([(1,)], [(1,)])
    assert await kinds(rig) == ["a", "b"]


async def test_a_read_cannot_write(rig: Rig):
    with pytest.raises(StoreBusy):
        await rig.read(note, "a")
    assert await kinds(rig) == []


async def test_wake_ups_and_callbacks_come_after_the_commit(rig: Rig):
    wakeups, order = rig.store.wakeups, []

    def operation(tx):
        note(tx, "a")
        tx.wake(("queue",))
        tx.after_commit(lambda: order.append(("after", threading.current_thread() is threading.main_thread())))
        order.append(("inside", threading.current_thread() is threading.main_thread()))

    async with wakeups.subscribe(("queue",), ("node", "n1")) as event, wakeups.subscribe(("node", "n1")) as other:
        await rig.write(operation)
        await event.wait()
        assert await kinds(rig) == ["a"]
        assert not other.is_set()
    assert order == [("inside", False), ("after", True)]
    async with wakeups.subscribe(("job", "b")) as event:
        with pytest.raises(NotFound):
            await rig.write(note, "b", fail=True)
        assert not event.is_set()


def take(tx, taken: list[str], *, fail=False):
    """Stands for work: takes one event of the kind "work", and hushes once there is no more."""
    row = tx.row("SELECT min(id) FROM events WHERE kind = 'work'")
    if row is None or row[0] is None:
        return None
    tx.run("UPDATE events SET kind = 'taken' WHERE id = ?", (row[0],))
    if fail:
        raise NotFound("no taker")
    if tx.row("SELECT 1 FROM events WHERE kind = 'work'") is None:
        tx.hush(("job", "work"))
    taken.append(row[0])
    return row[0]


async def test_what_stands_for_a_topic_runs_in_the_transaction_that_publishes_it(rig: Rig):
    taken: list[str] = []
    standing = rig.store.stand(("job", "work"), take, taken)
    await rig.write(note, "else")
    assert not standing.future.done()
    async with rig.store.wakeups.subscribe(("job", "work")) as woken:
        await rig.write(note, "work")
        assert await asyncio.wait_for(standing.future, 5)
        assert await kinds(rig) == ["else", "taken"]
        assert not woken.is_set()  # nothing was left
        await rig.write(note, "work")
        assert woken.is_set()
    assert await kinds(rig) == ["else", "taken", "work"], "it has answered, so it stands no longer"
    rig.store.withdraw(standing)


async def test_what_stands_is_answered_while_the_disk_works_and_only_there_where_nobody_else_can_ask(rig: Rig, monkeypatch):
    database, on_disk = rig.store._database, threading.Event()
    commit = database.commit

    def slow(connection):
        on_disk.wait()
        commit(connection)

    standing = rig.store.stand(("job", "work"), take, [])
    monkeypatch.setattr(database, "commit", slow)  # a disk that takes its time: there is no other way to hold one up
    writing = asyncio.create_task(rig.write(note, "work"))
    try:
        if not database.shared:
            assert await asyncio.wait_for(asyncio.shield(standing.future), 10)
        await asyncio.sleep(0)
        assert not writing.done()
        assert await rig.read(lambda tx: tx.rows("SELECT kind FROM events")) == []
    finally:
        on_disk.set()
    assert await writing == "work"
    assert await asyncio.wait_for(standing.future, 10)
    assert await kinds(rig) == ["taken"]


async def test_what_stands_and_was_run_keeps_its_answer_though_it_is_withdrawn_while_the_disk_works(rig: Rig, monkeypatch):
    """A poll whose time is over in that moment would else leave the job that it got to nobody."""
    database, reached, on_disk = rig.store._database, threading.Event(), threading.Event()
    commit = database.commit

    def slow(connection):
        reached.set()
        on_disk.wait()
        commit(connection)

    standing = rig.store.stand(("job", "work"), take, [])
    monkeypatch.setattr(database, "commit", slow)  # a disk that takes its time: there is no other way to hold one up
    writing = asyncio.create_task(rig.store.write_lazily(note, "work"))  # nothing of it is told in front of its commit
    await asyncio.to_thread(reached.wait)
    rig.store.withdraw(standing)
    on_disk.set()
    await writing
    assert await asyncio.wait_for(standing.future, 10)
    assert await kinds(rig) == ["taken"]


async def test_those_that_stand_take_turns_and_an_error_of_one_undoes_it_alone(rig: Rig):
    taken: list[str] = []
    fails = rig.store.stand(("job", "work"), partial(take, fail=True), taken)
    others = [rig.store.stand(("job", "work"), take, taken) for _ in range(2)]
    await rig.write(note, "work")
    with pytest.raises(NotFound, match="no taker"):
        await asyncio.wait_for(fails.future, 5)
    assert await asyncio.wait_for(others[0].future, 5)
    assert not others[1].future.done()
    assert await kinds(rig) == ["taken"]
    rig.store.withdraw(others[1])
    assert await others[1].future is None
    await rig.write(note, "work")
    assert await kinds(rig) == ["taken", "work"]


async def test_what_stands_does_nothing_for_an_operation_that_failed(rig: Rig):
    standing = rig.store.stand(("job", "work"), take, [])
    with pytest.raises(NotFound):
        await rig.write(note, "work", fail=True)
    assert await kinds(rig) == []
    assert not standing.future.done()
    rig.store.withdraw(standing)


async def test_shutdown_wakes_everyone_now_and_later(rig: Rig):
    async with rig.store.wakeups.subscribe(("queue",)) as event:
        rig.store.wakeups.wake_all()
        assert event.is_set()
        assert rig.store.wakeups.closed
    async with rig.store.wakeups.subscribe(("queue",)) as event:
        assert event.is_set()


async def test_a_caller_that_gives_up_disturbs_nobody(rig: Rig):
    async with Gate(rig):
        gone = asyncio.create_task(rig.write(note, "a"))
        stays = asyncio.create_task(rig.write(note, "b"))
        await asyncio.sleep(0)
        gone.cancel()
    assert await stays == "b"
    assert await kinds(rig) == ["a", "b"]  # what was on its way is done


async def test_closing_finishes_what_waits_and_refuses_the_rest(rig: Rig):
    async with Gate(rig):
        tasks = [asyncio.create_task(rig.write(note, kind)) for kind in "abc"]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(rig.close))
        await asyncio.sleep(0)
    await closing
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    with pytest.raises(StoreBusy, match="closed"):
        await rig.write(note, "d")
    rig.reopen()
    assert await kinds(rig) == ["a", "b", "c"]


async def test_a_guarded_write_that_misses_undoes_the_operation(rig: Rig):
    (job_id,) = await rig.submit()

    def lost_race(tx):
        note(tx, "a")
        write(tx, "UPDATE jobs SET state = ? WHERE job_id = ? AND state = ?", [("leased", job_id, "acked")])

    with pytest.raises(StoreBusy, match="1 of 1 rows"):
        await rig.write(lost_race)
    assert await kinds(rig) == ["submit"]
    assert (await rig.job(job_id)).state is JobState.QUEUED


async def test_a_reopened_store_has_everything(rig: Rig):
    job_ids = await rig.submit(5)
    await rig.join()
    (lease, *_) = await rig.begin(slots=2)
    await rig.append("n1", lease, 0, b"hello")
    before = await rig.everything()
    rig.reopen()
    assert await rig.everything() == before
    page = await rig.read(reads.list_jobs, m.JobQuery())
    assert [one.job_id for one in page.items] == job_ids[::-1]
    assert await rig.append("n1", lease, 5, b" world") == 11
    assert (await rig.submit())[0] not in job_ids


def draw(tx, count, *, fail=False):
    first = tx.reserve(count)
    if fail:
        raise NotFound("nothing")
    return list(range(first, first + count))


async def test_a_number_is_given_once_whatever_is_undone_and_across_a_restart(rig: Rig):
    given: list[int] = []
    chance = random.Random(5)
    for _ in range(30):
        async with Gate(rig):  # several in one transaction, some of them undone
            tasks = [
                asyncio.create_task(rig.write(draw, chance.choice([1, 1, 2, 100, 300, 5000]), fail=chance.random() < 0.3))
                for _ in range(chance.randrange(1, 6))
            ]
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            given += answer if isinstance(answer, list) else []
        with suppress(NotFound):
            given += await rig.write(draw, 3, fail=chance.random() < 0.5)  # at the head of a transaction
        if chance.random() < 0.3:
            rig.reopen()
    assert len(set(given)) == len(given)
    if not rig.store.shared:
        assert given == sorted(given)


async def test_who_was_refused_for_what_is_undone_is_told_to_come_again(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """A submission whose client gave up waiting, and the same made again, in one transaction, which the disk then does not take."""

    def full(connection):
        raise StoreBusy("the disk is full")

    with suppress(StoreBusy):
        async with Gate(rig):
            tasks = [asyncio.create_task(rig.submit(job_id="one")) for _ in range(2)]
            monkeypatch.setattr(rig.store._database, "commit", full)
    assert [type(answer) for answer in await asyncio.gather(*tasks, return_exceptions=True)] == [StoreBusy, StoreBusy]
    monkeypatch.undo()
    assert await rig.submit(job_id="one") == ["one"]


async def test_a_shape_of_an_undone_submission_is_not_taken_for_one_that_is_there(rig: Rig):
    await rig.join("n1")
    restart = manifest(runner=Runner.SERVICE, command="miner", args=("restart",), requirements=Requirements(node="n1"))
    with pytest.raises(InvalidSpec, match="typo"):
        await rig.write(jobs.submit_jobs, [restart, manifest(depends_on=("typo",))])
    assert len((await rig.write(jobs.submit_jobs, [restart])).items) == 1
