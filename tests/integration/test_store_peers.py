"""Coordinators on one PostgreSQL: what one publishes wakes the other, and each duty is one's at a time."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import postgres
from ostler.coordinator.loops.on_duty import run_on_duty
from ostler.coordinator.operations import installation, jobs, leases, nodes
from ostler.coordinator.store.peers import CHANNEL, MAX_BYTES, _pieces
from ostler.coordinator.store.silent import Sessions
from ostler.coordinator.store.store import Store
from ostler.model.errors import Rejected, StoreBusy
from ostler.model.manifest import Requirements, Runner
from ostler.protocol import messages as m
from ostler.runtime.clock import SystemClock
from ostler.runtime.loop import Loop
from postgres import Server
from store_rig import LOGGER, manifest, registration

PATIENCE_S = 30


@pytest.fixture
def database() -> Iterator[tuple[Server, str]]:
    server = postgres.shared()
    with server.borrowed() as name:
        yield server, name


@pytest.fixture
def two(database) -> Iterator[tuple[Store, Store]]:
    server, name = database
    stores = [Store.open(server.url(name), logger=LOGGER) for _ in range(2)]
    for store in stores:
        store.join()
    yield stores[0], stores[1]
    for store in stores:
        store.close()


async def submit(store: Store) -> str:
    answer = await store.write(jobs.submit_jobs, [manifest()])
    return answer.items[0].job_id


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110 - whatever it is, nobody tells of it
            await asyncio.sleep(0.01)


async def woken(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()
    event.clear()


async def acquainted(one: Store, other: Store) -> None:
    await until(lambda: bool(one._peers and one._peers._others and other._peers and other._peers._others))


def backends(database: tuple[Server, str], query: str) -> int:
    server, name = database
    return len(
        server.rows(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND query LIKE '{query}%'", name
        )
    )


# --- wake-ups ----------------------------------------------------------------------------------------------------------------


async def test_what_one_commits_wakes_who_waits_at_the_other(two):
    here, there = two
    await acquainted(here, there)
    async with there.wakeups.subscribe(("queue",)) as event:
        event.clear()
        await submit(here)
        await woken(event)
    job_id = await submit(there)
    async with there.wakeups.subscribe(("job", job_id)) as job, there.wakeups.subscribe(("job", "another")) as another:
        await here.write(jobs.cancel_job, job_id)
        await woken(job)
        assert not another.is_set()


async def test_a_command_reaches_the_nodes_of_both_and_one_gets_what_is_for_any(two):
    here, there = two
    await acquainted(here, there)
    for node_id in ("n1", "n2"):
        request = registration(node_id, runners=("service",), services=("miner",))
        await here.write(nodes.enrol_node, request, "join")
        await here.write(nodes.open_session, request)

    def pull(store: Store, node_id: str):
        return store.write(leases.lease_jobs, m.PullRequest(node_id=node_id, slots=0, protocol=1, number=1))

    async def give(need: Requirements) -> str:
        one = manifest(runner=Runner.SERVICE, command="miner", args=("restart",), requirements=need)
        return (await here.write(jobs.submit_jobs, [one])).items[0].job_id

    async with there.wakeups.subscribe(("node", "n2")) as event:
        for need in (Requirements(node="n2"), Requirements()):
            event.clear()
            job_id = await give(need)
            await woken(event)
            got = await asyncio.gather(pull(here, "n1"), pull(there, "n2"))
            assert [one.job_id for some in got for one in some] == [job_id]


async def test_who_was_not_told_of_yet_misses_nothing(database):
    server, name = database
    first = Store.open(server.url(name), logger=LOGGER)
    first.join()
    second = Store.open(server.url(name), logger=LOGGER)
    async with second.wakeups.subscribe(("queue",)) as event:
        second.join()
        await submit(first)  # perhaps before either has heard of the other
        await woken(event)
    second.close()
    first.close()


async def test_without_a_connection_to_listen_on_everybody_is_woken_all_the_time(database, two):
    here, there = two
    await acquainted(here, there)
    async with there.wakeups.subscribe(("job", "x")) as event:
        event.clear()
        assert backends(database, "LISTEN") == 2
        await woken(event)
        await until(lambda: there._peers is not None and there._peers.listening)
        async with there.wakeups.subscribe(("queue",)) as news:
            news.clear()
            await submit(here)
            await woken(news)


async def test_one_that_is_gone_without_a_word_may_have_owed_one(two):
    here, there = two
    await acquainted(here, there)
    mine, its = there._peers, here._peers
    assert mine is not None
    assert its is not None
    known_when_stirred: list[int] = []
    there.wakeups.stir = lambda: known_when_stirred.append(len(mine._others))  # type: ignore[method-assign]
    its._tell = lambda *args, **kwargs: None  # type: ignore[method-assign]  # what a kill -9 does: nothing more is said
    await until(lambda: 0 in known_when_stirred)


@pytest.mark.parametrize("words", ["", "hello", "a b c", "peer 1 [[{}]]", 'peer 2 {"a": 1}', "peer 3 [[1"])
async def test_what_is_not_understood_ends_nothing(database, two, words):
    """Every user of the server who may connect to the database may notify."""
    server, name = database
    here, there = two
    await acquainted(here, there)
    server.rows(f"SELECT pg_notify('{CHANNEL}', '{words}')", name)
    job_id = await submit(there)
    async with there.wakeups.subscribe(("job", job_id)) as event:
        there.wakeups.stir = lambda: None  # type: ignore[method-assign]  # no net below
        event.clear()
        await here.write(jobs.cancel_job, job_id)
        await woken(event)


def test_no_notification_is_longer_than_the_server_takes():
    topics = {("job", f"j-{number:040}") for number in range(1000)}
    pieces = _pieces(topics)
    assert max(map(len, pieces)) <= MAX_BYTES
    assert sum(piece.count('["job"') for piece in pieces) == 1000
    assert _pieces(set()) == []


# --- duties ------------------------------------------------------------------------------------------------------------------


class Worker(Loop):
    name = "worker"

    def __init__(self) -> None:
        super().__init__(clock=SystemClock(), interval_s=0.01, logger=LOGGER)
        self.begun = self.turns = 0

    def begin(self) -> None:
        self.begun += 1

    async def turn(self) -> float | None:
        self.turns += 1
        return None


async def test_a_duty_is_ones_at_a_time_and_another_takes_over(database, two):
    workers = [Worker(), Worker()]
    tasks = [asyncio.create_task(run_on_duty(worker, store)) for worker, store in zip(workers, two, strict=True)]
    await until(lambda: any(worker.turns for worker in workers))
    holder, other = sorted(workers, key=lambda worker: -worker.turns)
    assert (holder.on_duty, other.on_duty, other.turns, holder.begun) == (True, False, 0, 1)
    tasks[workers.index(holder)].cancel()
    two[workers.index(holder)].close()
    await until(lambda: other.turns > 3)
    assert other.begun == 1
    # Its connection is cut: the duty is lost, and taken again, by whomever, from the start.
    assert backends(database, "SELECT pg_try_advisory") + backends(database, "SELECT pg_notify") == 1
    await until(lambda: other.begun == 2 and other.on_duty)
    tasks[workers.index(other)].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_with_one_coordinator_there_is_nothing_to_share(tmp_path):
    store = Store.open(tmp_path / "ostler.db", logger=LOGGER)
    assert not store.shared
    worker = Worker()
    task = asyncio.create_task(run_on_duty(worker, store))
    await until(lambda: worker.turns > 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store.close()


# --- what they must have alike -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [installation.KEYS, installation.SECRETS, installation.ARTIFACTS])
async def test_who_has_other_keys_or_artifacts_is_refused(database, two, key):
    server, name = database
    marks = dict.fromkeys((installation.KEYS, installation.SECRETS, installation.ARTIFACTS), "a")
    try:
        await two[0].write(installation.join_installation, marks)
        await two[1].write(installation.join_installation, marks)
        with pytest.raises(Rejected) as caught:
            await two[1].write(installation.join_installation, marks | {key: "b"})
        assert caught.value.hint
    finally:
        server.execute("DELETE FROM meta WHERE key IN ('keys', 'secrets', 'artifacts')", database=name)


# --- lines on which nothing comes any more -----------------------------------------------------------------------------------


class Deaf:
    """Stands between a store and its server; from the moment that somebody asks for `LOST`, nothing comes back on that connection."""

    LOST = b"lost on the way"

    def __init__(self, folder: Path, server: Server) -> None:
        self.url_of = lambda name: f"postgresql://postgres@/{name}?host={folder}"
        self._there = str(server.home / ".s.PGSQL.5432")
        self._folder = str(folder)
        self._lines: set[asyncio.Task] = set()

    async def __aenter__(self) -> "Deaf":
        self._server = await asyncio.start_unix_server(self._carry, f"{self._folder}/.s.PGSQL.5432")
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(asyncio.current_task())
        back, far = await asyncio.open_unix_connection(self._there)
        deaf = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(1 << 16):
                if self.LOST in data:
                    deaf.set()
                far.write(data)
            far.close()

        async def down() -> None:
            while data := await back.read(1 << 16):
                if not deaf.is_set():
                    writer.write(data)

        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(up(), down())
        finally:
            writer.transport.abort()
            far.transport.abort()


async def test_whoever_waits_for_an_answer_that_was_lost_is_told(database, tmp_path, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.store.silent.SILENT_S", 1.0)
    server, name = database
    async with Deaf(tmp_path, server) as between:
        store = await asyncio.to_thread(Store.open, between.url_of(name), logger=LOGGER)
        try:
            store.join()
            query = f"SELECT '{between.LOST.decode()}'"
            for act in (store.write, store.read):
                with pytest.raises(StoreBusy):
                    await asyncio.wait_for(act(lambda tx: tx.rows(query)), PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                while True:  # on a machine that is slower than its patience here, others may be cut, too
                    with contextlib.suppress(StoreBusy):
                        assert await submit(store), "it goes on"
                        break
        finally:
            await asyncio.to_thread(store.close)


async def test_whoever_waits_for_work_is_left_alone(database, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.store.silent.SILENT_S", 0.0)
    server, name = database
    sessions = Sessions()
    with contextlib.ExitStack() as stack:
        working, by, other = (stack.enter_context(psycopg.connect(server.url(name), autocommit=True)) for _ in range(3))
        sessions.add(working, working.info.backend_pid)
        other.execute("SELECT pg_advisory_lock(7)")
        work = asyncio.create_task(asyncio.to_thread(working.execute, "SELECT pg_advisory_lock(7)"))
        state = "SELECT state = 'active' AND wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        await until(lambda: by.execute(state, [working.info.backend_pid]).fetchone() == (True,))
        assert [sessions.cut_silent(by) for _ in range(2)] == [0, 0]
        other.execute("SELECT pg_advisory_unlock(7)")
        await work
        assert sessions.cut_silent(by) == 0, "nor is one that waits for nothing"
