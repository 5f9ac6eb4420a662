"""SQLite as it is embedded: schema, lock, plans, full disk, kill -9."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import event

from ostler import __version__
from ostler.coordinator.operations import claims, jobs, leases, reads
from ostler.coordinator.store import migrate
from ostler.coordinator.store.schema import LIVE_SQL, SCHEMA, metadata
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.store.store import Store
from ostler.model.attempt import AttemptState
from ostler.model.errors import Conflict, InvalidSpec, NotFound, Rejected, StoreBusy, UpgradeRequired
from ostler.model.job import JobState
from ostler.model.manifest import Requirements
from ostler.model.node import NodeState
from ostler.protocol import messages as m
from store_rig import LOGGER, Rig, held, manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ostler.db"


@pytest.fixture
def rig(path: Path):
    rig = Rig.open(path)
    yield rig
    rig.close()


def alter(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def tables(path: Path) -> dict[str, list[str]]:
    """Each table and index with the words of its definition in no order: constraints may be written in any."""
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: sorted(re.findall(r"[\w']+", sql)) for name, sql in found}


# --- the schema --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "kind"), [("jobs", JobState), ("attempts", AttemptState), ("nodes", NodeState)])
async def test_the_checks_equal_the_enums(rig: Rig, table: str, kind):
    ((sql,),) = await rig.rows("SELECT sql FROM sqlite_master WHERE name = ?", table)
    found = re.search(rf"ck_{table}_state CHECK \(state IN \(([^)]*)\)\)", sql)
    assert found is not None
    assert set(re.findall(r"'(\w+)'", found[1])) == {state.value for state in kind}


async def test_the_checks_hold(rig: Rig):
    await rig.submit()
    for statement in (
        "UPDATE jobs SET state = 'asleep'", "UPDATE jobs SET held = 2", "UPDATE jobs SET tries = 1",
        "UPDATE jobs SET priority = 'high'", "UPDATE jobs SET shape_id = 1",
        "INSERT INTO specs (job_seq, body) VALUES (99, '{}')",
    ):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError):
            await rig.write(lambda tx, statement=statement: tx.run(statement))


def test_the_migrations_make_the_tables_that_the_code_describes(tmp_path: Path):
    Store.open(tmp_path / "made" / "ostler.db", logger=LOGGER).close()
    database = SqliteDatabase(tmp_path / "migrated" / "ostler.db")
    connection = database.connect(write=True)
    database.begin(connection, write=True)
    migrate.upgrade(connection)
    database.commit(connection)
    connection.close()
    database.close()
    assert tables(tmp_path / "migrated" / "ostler.db") == tables(tmp_path / "made" / "ostler.db")
    for name in ("made", "migrated"):
        connection = sqlite3.connect(tmp_path / name / "ostler.db")
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(f"{SCHEMA:04}",)]
        connection.close()
    assert set(metadata.tables) <= set(tables(tmp_path / "made" / "ostler.db"))


def test_opening_without_a_migration_imports_no_alembic(path: Path):
    code = (
        "import sys, logging; from ostler.coordinator.store.store import Store\n"
        "for _ in range(2): Store.open(sys.argv[1], logger=logging.getLogger()).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


async def test_a_database_says_what_made_it(rig: Rig):
    assert dict(await rig.rows("SELECT key, value FROM meta")) == {"schema": str(SCHEMA), "protocol": "1", "release": __version__}
    rig.close()
    alter(Path(rig.url), "UPDATE meta SET value = '0.0.9' WHERE key = 'release'")
    rig.reopen()
    assert await rig.rows("SELECT value FROM meta WHERE key = 'release'") == [(__version__,)]


def test_a_newer_schema_is_refused_with_the_command(path: Path):
    Store.open(path, logger=LOGGER).close()
    alter(
        path,
        f"UPDATE meta SET value = '{SCHEMA + 1}' WHERE key = 'schema'",
        "UPDATE meta SET value = '9.9.9' WHERE key = 'release'",
    )
    before = path.read_bytes()
    with pytest.raises(UpgradeRequired, match=f"schema {SCHEMA + 1}") as caught:
        Store.open(path, logger=LOGGER)
    assert "9.9.9" in (caught.value.hint or "")
    assert "pipx upgrade ostler" in (caught.value.hint or "")
    assert path.read_bytes() == before
    with pytest.raises(UpgradeRequired):  # the refusal left no lock behind
        Store.open(path, logger=LOGGER)


def test_what_is_not_ours_is_refused(tmp_path: Path):
    alter(tmp_path / "other.db", "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(Rejected, match="not those of an Ostler coordinator"):
        Store.open(tmp_path / "other.db", logger=LOGGER)
    (tmp_path / "text.db").write_text("hello " * 1000)
    with pytest.raises(Rejected, match="not an SQLite database"):
        Store.open(tmp_path / "text.db", logger=LOGGER)
    (tmp_path / "dir.db").mkdir()
    with pytest.raises(Rejected, match="cannot be used"):
        Store.open(tmp_path / "dir.db", logger=LOGGER)
    with pytest.raises(InvalidSpec, match="mysql"):
        Store.open("mysql://localhost/x", logger=LOGGER)
    with pytest.raises(Rejected, match="cannot be used"):
        Store.open(tmp_path / "text.db" / "below" / "ostler.db", logger=LOGGER)


def test_two_coordinators_never_open_one_file(path: Path):
    first = Store.open(f"sqlite:///{path}", logger=LOGGER)
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        Store.open(path, logger=LOGGER)
    first.close()
    Store.open(path, logger=LOGGER).close()


async def test_nobody_else_reads_the_file(rig: Rig, path: Path):
    await rig.submit()
    modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "ostler.db-wal" in modes
    assert path.parent.stat().st_mode & 0o777 == 0o700


# --- plans -------------------------------------------------------------------------------------------------------------------


async def plan(rig: Rig, sql: str, *params) -> str:
    return "\n".join(str(row[3]) for row in await rig.rows(f"EXPLAIN QUERY PLAN {sql}", *params))


async def test_a_claim_walks_its_index_whatever_is_queued(rig: Rig):
    await rig.write(jobs.submit_jobs, [manifest()] * 10_000 + [manifest(requirements=Requirements(memory_mb=1))] * 10_000)
    await rig.write(lambda tx: tx.run("ANALYZE"))
    shape_id = (await rig.rows("SELECT min(shape_id) FROM shapes"))[0][0]
    heads = await plan(rig, await rig.read(claims.heads_sql), shape_id, 10)
    assert "ix_jobs_claim (shape_id=?)" in heads
    assert "TEMP B-TREE" not in heads
    shapes = await plan(rig, await rig.read(claims.queued_shapes_sql))
    assert "ix_jobs_claim" in shapes
    assert "(shape_id>?)" in shapes


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("SELECT job_seq FROM attempts WHERE node_id = 'n' AND state IN ({LIVE})", "ix_attempts_live"),
        ("SELECT min(due_at) FROM jobs INDEXED BY ix_jobs_due WHERE state = 'retry_wait'", "ix_jobs_due"),
        ("SELECT state, count(*) FROM jobs WHERE state IN ('queued', 'acked') GROUP BY state", "ix_jobs_list"),
        ("SELECT seq FROM jobs WHERE node_id = 'n' AND seq < 9 ORDER BY seq DESC LIMIT 5", "ix_jobs_node"),
        ("SELECT id FROM events WHERE job_seq = 1 ORDER BY id", "ix_events_job"),
        ("SELECT state, count(*) FROM jobs WHERE group_id = 'g' GROUP BY state", "ix_jobs_group"),
        ("SELECT 1 FROM jobs WHERE group_id = 'g' AND state IN ('queued', 'acked') LIMIT 1", "COVERING INDEX ix_jobs_group"),
        ("SELECT seq FROM jobs WHERE group_id = 'g' AND state = 'done' AND seq < 9 ORDER BY seq DESC LIMIT 5", "ix_jobs_group"),
        ("SELECT title FROM jobs WHERE group_id = 'g' AND state = 'failed' ORDER BY seq LIMIT 5", "ix_jobs_group"),
    ],
)
async def test_hot_and_listed_reads_use_an_index(rig: Rig, sql: str, index: str):
    found = await plan(rig, sql.replace("{LIVE}", LIVE_SQL))
    assert index in found
    assert "TEMP B-TREE" not in found
    assert "SCAN jobs" not in found.replace(f"SCAN jobs USING COVERING INDEX {index}", "")


# --- disks -------------------------------------------------------------------------------------------------------------------


async def test_a_full_disk_refuses_clearly_and_mends_itself(rig: Rig):
    await rig.join()
    kept = await rig.submit(3)
    limit = (await rig.write(lambda tx: tx.row("PRAGMA page_count")))[0] + 4
    full = [f"PRAGMA max_page_count = {limit}"]
    event.listen(rig.store._database.engine, "connect", lambda driver, _: [driver.execute(one).close() for one in full])
    await rig.write(lambda tx: tx.rows(full[0]))
    answered, refused = list(kept), 0
    for _ in range(20):
        some = await asyncio.gather(*(rig.submit(10, env={"X": "y" * 500}) for _ in range(5)), return_exceptions=True)
        for one in some:
            if isinstance(one, list):
                answered += one
            else:
                assert isinstance(one, StoreBusy)
                assert one.retry_after
                assert "df -h" in (one.hint or "")
                refused += 1
    assert refused > 50
    assert set(await all_jobs(rig)) == set(answered)
    assert await rig.rows("PRAGMA integrity_check") == [("ok",)]
    assert await rig.rows("PRAGMA foreign_key_check") == []
    full.clear()
    await rig.write(lambda tx: tx.rows("PRAGMA max_page_count = 1000000"))
    answered += await rig.submit(10, env={"X": "y" * 500})
    assert set(await all_jobs(rig)) == set(answered)
    assert len(await rig.pull()) == 4


async def all_jobs(rig: Rig) -> list[str]:
    return [row[0] for row in await rig.rows("SELECT job_id FROM jobs JOIN specs ON job_seq = seq")]


def mount(*arguments: str) -> str:
    """Why it could not be mounted; empty where it was."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system of our own needs root")
async def test_a_really_full_file_system(tmp_path: Path):
    where = tmp_path / "small"
    where.mkdir()
    if why := mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)):
        pytest.skip(f"this root may not mount: {why}")
    try:
        rig = Rig.open(where / "ostler.db")
        try:
            answered: list[str] = []
            with contextlib.suppress(StoreBusy):
                while len(answered) < 10_000:
                    answered += await rig.submit(20, env={"X": "y" * 1000})
            assert len(answered) < 10_000
            assert set(await all_jobs(rig)) == set(answered)
            assert not mount("-o", "remount,size=64m", str(where))
            answered += await rig.submit(20)
            rig.reopen()
            assert set(await all_jobs(rig)) == set(answered)
        finally:
            rig.close()
    finally:
        subprocess.run(["umount", str(where)], check=True)  # noqa: ASYNC221 - nothing else runs here


async def test_someone_else_writing_is_busy_not_broken(rig: Rig):
    await rig.write(lambda tx: tx.rows("PRAGMA busy_timeout = 1"))
    other = sqlite3.connect(rig.url, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="locked"):
        await rig.submit()
    other.execute("ROLLBACK")
    other.close()
    assert len(await rig.submit()) == 1


async def test_values_that_no_column_holds_are_the_callers_mistake(rig: Rig):
    await rig.join()
    for call in (
        rig.beat(free_mb=2**70),
        rig.read(reads.list_artifacts, "j", 2**70),
        rig.write(jobs.cancel_job, "\ud800"),
    ):
        with pytest.raises((InvalidSpec, NotFound)):
            await call
    with pytest.raises(InvalidSpec, match="cannot be stored"):
        await rig.read(lambda tx: tx.rows("SELECT ?", (2**70,)))


async def test_a_migration_that_fails_leaves_the_database_as_it_was(rig: Rig, path: Path):
    (job_id,) = await rig.submit()
    rig.close()
    alter(path, "UPDATE meta SET value = '0' WHERE key = 'schema'", "DELETE FROM alembic_version")
    before = tables(path)
    with pytest.raises(Exception, match="already exists"):
        Store.open(path, logger=LOGGER)
    assert tables(path) == before
    alter(path, f"UPDATE meta SET value = '{SCHEMA}' WHERE key = 'schema'")
    rig.reopen()
    assert (await rig.job(job_id)).state is JobState.QUEUED


# --- death -------------------------------------------------------------------------------------------------------------------

_SUBMITTER = """
import asyncio, sys
from store_rig import Rig, held
from ostler.coordinator.operations import leases
from ostler.protocol import messages as m

async def main():
    rig = Rig.open(sys.argv[1])
    await rig.join()

    async def submit(number):
        while True:
            for job_id in await rig.submit(3):
                print("submitted", job_id, flush=True)

    async def work():
        while True:
            for lease in await rig.begin(held=[]):
                await rig.append("n1", lease, 0, b"hello")
                print("begun", lease.job_id, lease.attempt, flush=True)
                result = await rig.finish("n1", lease)
                print("done", lease.job_id, flush=True)

    await asyncio.gather(*(submit(number) for number in range(4)), work())

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [40, 400, 1500])
def test_what_was_answered_survives_kill_9(path: Path, lines: int):
    """A process that submits and works in a loop is killed between two of its answers, wherever its writer is then."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", _SUBMITTER, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    words = [line.split() for line in said if line.endswith("\n")]
    assert len(words) >= lines
    connection = sqlite3.connect(path)
    states = dict(connection.execute("SELECT job_id, state FROM jobs").fetchall())
    logged = {row[0] for row in connection.execute("SELECT job_id FROM log_chunks JOIN jobs ON seq = job_seq")}
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    for what, job_id, *_ in words:
        assert job_id in states, f"{job_id} was {what} and is gone"
        if what == "done":
            assert states[job_id] == "done"
        if what == "begun":
            assert states[job_id] in {"acked", "done"}
            assert job_id in logged
    Store.open(path, logger=LOGGER).close()


async def test_leases_go_on_after_a_restart(rig: Rig):
    (job_id,) = await rig.submit()
    await rig.join()
    (lease,) = await rig.begin()
    rig.reopen()
    assert await rig.beat(held=held([lease])) == []
    assert (await rig.finish("n1", lease)).ok
    assert (await rig.read(reads.job_state, job_id)).state is JobState.DONE
    assert await rig.write(leases.finish_attempts, "n1", [m.Outcome(job_id=job_id, attempt=1)]) == [
        m.ItemResult(job_id=job_id, attempt=1)
    ]


# --- what must be on the disk before it is answered ---------------------------------------------------------------------------


def level(tx, started=None, go=None):
    """The `synchronous` that an operation's transaction is committed with: 1 leaves the sync to a later one, 2 syncs."""
    if started is not None:
        started.set()
        assert go.wait(10)
    return tx.row("PRAGMA synchronous")[0]


async def test_only_a_lease_is_answered_before_it_is_synced(rig):
    store = rig.store
    assert await store.write(level) == 2
    assert await store.write_lazily(level) == 1
    assert await store.write(level) == 2
    # one behind the other while the writer is busy: what must be synced never shares the transaction of what need not
    started, go = threading.Event(), threading.Event()
    first = asyncio.create_task(store.write_lazily(level, started, go))
    await asyncio.to_thread(started.wait, 10)
    others = [asyncio.create_task(write(level)) for write in (store.write_lazily, store.write, store.write_lazily)]
    await asyncio.sleep(0)
    go.set()
    assert await first == 1
    found = [await other for other in others]
    assert found[1] == 2


async def test_a_lazy_write_that_fails_leaves_the_next_one_whole(rig):
    def fail(tx):
        raise NotFound("nothing")

    with pytest.raises(NotFound):
        await rig.store.write_lazily(fail)
    results = await asyncio.gather(rig.store.write_lazily(fail), rig.store.write(level), return_exceptions=True)
    assert isinstance(results[0], NotFound)
    assert results[1] == 2
