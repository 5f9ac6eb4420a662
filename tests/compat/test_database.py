"""Databases of past releases open in this one, with everything in them, and go on."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import postgres
from cli_rig import ostler
from ostler.coordinator.operations import duties, groups, jobs, nodes, reads, tokens
from ostler.coordinator.store import migrate
from ostler.coordinator.store.postgres import PostgresDatabase
from ostler.coordinator.store.schema import SCHEMA, metadata
from ostler.model.attempt import AttemptState
from ostler.model.errors import UpgradeRequired
from ostler.model.group import GroupState
from ostler.model.job import TERMINAL, JobState
from ostler.model.node import NodeState
from ostler.protocol import messages as m
from store_rig import Rig, manifest, registration

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("coordinator-*.db"))


def as_it_was_in_postgresql(fixture: Path, url: str) -> None:
    """The same rows in the tables that the migrations up to the fixture's schema make in PostgreSQL."""
    database = PostgresDatabase(url)
    with closing(sqlite3.connect(fixture)) as old, database.connect(write=True) as new:
        database.begin_schema(new)
        [(revision,)] = old.execute("SELECT version_num FROM alembic_version")
        migrate.upgrade(new, to=revision)
        names = {table for (table,) in old.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        cursor = new.connection.cursor()
        for table in (one.name for one in metadata.sorted_tables if one.name in names):
            rows = old.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            marks = ", ".join(["%s"] * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows.fetchall())
            if (column := metadata.tables[table].autoincrement_column) is not None:
                highest = f"(SELECT max({column.name}) FROM {table})"
                cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{column.name}'), {highest})")
        database.commit(new)
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def store(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> Iterator[str]:
    """A database of an earlier schema."""
    path = tmp_path / "ostler.db"
    if engine == "sqlite":
        shutil.copyfile(request.param, path)
        yield str(path)
        return
    server = postgres.shared()
    name = server.create()
    as_it_was_in_postgresql(request.param, server.url(name))
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def rig(store: str, engine: str):
    if engine == "postgresql":
        with pytest.raises(UpgradeRequired, match="needs") as refused:
            Rig.open(store)
        assert "ostler db upgrade" in refused.value.hint
        upgraded = ostler("db", "upgrade", "--store", store, "--json")
        assert (upgraded.returncode, upgraded.json["after"]) == (0, SCHEMA), upgraded.stderr
    rig = Rig.open(store)
    yield rig
    rig.close()


def test_there_is_a_database_of_each_schema():
    found = []
    for path in FIXTURES:
        with closing(sqlite3.connect(path)) as connection:
            found += connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchall()
    assert [int(number) for (number,) in found] == list(range(1, SCHEMA))


async def integrity(rig: Rig) -> None:
    if not rig.url.startswith("postgresql"):
        assert await rig.rows("PRAGMA integrity_check") == [("ok",)]
        assert await rig.rows("PRAGMA foreign_key_check") == []


def test_it_is_not_upgraded_under_coordinators_of_the_earlier_release():
    server = postgres.shared()
    name = server.create()
    url = server.url(name)
    as_it_was_in_postgresql(FIXTURES[0], url)
    with closing(psycopg.connect(url, application_name="ostler")):  # the name that every release gives its sessions
        refused = ostler("db", "upgrade", "--store", url)
        assert (refused.returncode, "a coordinator runs" in refused.stderr) == (3, True)
        assert ostler("db", "status", "--store", url, "--json").json["state"] == "pending"
    assert ostler("db", "upgrade", "--store", url).returncode == 0
    assert ostler("db", "status", "--store", url).returncode == 0
    server.drop(name)


async def test_everything_can_be_read(rig: Rig):
    assert dict(await rig.rows("SELECT key, value FROM meta"))["schema"] == str(SCHEMA)
    await integrity(rig)
    page = await rig.read(reads.list_jobs, m.JobQuery(limit=500, label="fixture=yes", count=True))
    assert page.total == len(page.items)
    assert {one.state for one in page.items} == set(JobState)
    attempts = set()
    for one in page.items:
        job = await rig.job(one.job_id)
        assert job.timeline[0].kind == "submit"
        assert job.manifest is not None
        assert job.manifest["job_id"] == job.job_id
        assert (job.finished_at is not None) is (job.state in TERMINAL)
        assert (await rig.read(reads.explain_job, job.job_id)).summary
        attempts |= {attempt.state for attempt in job.attempts}
    assert attempts == set(AttemptState)
    found = await rig.read(reads.list_nodes, m.PageQuery(limit=500))
    assert {node.state for node in found.items} == set(NodeState)
    for node in found.items:
        assert (await rig.read(reads.show_node, node.node_id)).capabilities is not None
    assert len((await rig.read(tokens.list_tokens, m.PageQuery())).items) == 3
    assert await rig.read(tokens.check_api_token, "ostler_api_fixture_not-a-secret")


async def test_what_is_done_is_whole(rig: Rig):
    job = await rig.job("done")
    (artifact,) = job.artifacts
    assert (artifact.path, artifact.size, job.exit_code) == ("out.txt", 6, 0)
    facts = await rig.read(reads.log_facts, "done", "stdout")
    assert (facts.length, facts.finished, facts.sha256) == (6, True, artifact.sha256)
    assert await rig.read(reads.read_log, "done", 1, "stdout", 0, 100) == b"hello\n"
    assert (await rig.job("failed")).attempts[0].workspace_sha256 == await rig.read(reads.workspace_of, "failed", 1)


async def test_work_goes_on_where_it_stood(rig: Rig):
    live = (await rig.read(reads.show_node, "worker")).attempts
    assert {one.job_id for one in live} == {"leased", "acked", "preparing", "running", "uploading"}
    session = await rig.register("worker", "boot:2", held=live, key=registration("worker").public_key, slots=8)
    assert session == nodes.Session((), True)
    found = {(one.kind, one.job_id) for one in await rig.beat("worker", held=live)}
    assert found == {(m.DirectiveKind.DRAIN, None), (m.DirectiveKind.CANCEL, "running")}
    await rig.write(nodes.resume_node, "worker")
    leases = {one.job_id: one for one in await rig.pull("worker", slots=50, gpu_slots=1, held=live)}
    assert leases.keys() == {"queued", "queued-python", "returned"}
    assert leases["returned"].attempt == 2
    by_id = {one.job_id: one for one in live}
    assert await rig.append("worker", by_id["running"], 11, b" and the rest\n") == 25
    assert (await rig.finish("worker", by_id["running"], cancelled=True)).ok
    for job_id in ("acked", "preparing", "uploading"):
        assert (await rig.finish("worker", by_id[job_id])).ok
        assert (await rig.job(job_id)).state is JobState.DONE
    assert (await rig.job("running")).state is JobState.CANCELLED
    rig.clock.advance(10**6)
    assert await rig.write(duties.promote_due) == 1
    assert (await rig.write(jobs.retry_job, "expired")).retry_of == "expired"
    assert len(await rig.submit(3)) == 3


async def test_arrays_are_at_home_in_it(rig: Rig):
    before = await rig.rows("SELECT seq, job_id, state FROM jobs ORDER BY seq")
    await rig.write(jobs.submit_jobs, groups.expand(*manifest(array=3, job_id="array", queue="array")))
    assert await rig.rows("SELECT seq, job_id, state FROM jobs WHERE coalesce(group_id, '') <> 'array' ORDER BY seq") == before
    await rig.write(nodes.resume_node, "ready")
    some = await rig.begin("ready", slots=4, filters={"queues": ["array"]})
    assert [one.job_id for one in some] == ["array-0", "array-1", "array-2"]
    for one in some[:2]:
        await rig.finish("ready", one)
    view = await rig.cancel_group("array")
    assert view.counts == {JobState.ACKED: 1, JobState.DONE: 2}
    await rig.finish("ready", some[2], cancelled=True)
    assert (await rig.read(groups.show_group, "array")).state is GroupState.CANCELLED
    page = await rig.read(reads.list_jobs, m.JobQuery(group="array"))
    assert [one.job_id for one in page.items] == ["array-2", "array-1", "array-0"]
    await integrity(rig)
