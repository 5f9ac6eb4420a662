"""PostgreSQL as it is: who is let in and who is not, schema, plans, restarts."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import postgres
from ostler.coordinator.store import migrate
from ostler.coordinator.store.postgres import PostgresDatabase, describe
from ostler.coordinator.store.schema import SCHEMA, metadata
from ostler.coordinator.store.store import Store
from ostler.model.attempt import AttemptState
from ostler.model.errors import InvalidSpec, OstlerError, Rejected, StoreBusy, UpgradeRequired
from ostler.model.job import JobState
from ostler.model.node import NodeState
from postgres import Server
from store_rig import LOGGER, Rig

SECRET = "s3cret-w0rd"


@pytest.fixture(params=postgres.VERSIONS)
def server(request: pytest.FixtureRequest) -> Server:
    return postgres.shared(request.param)


@pytest.fixture
def newest() -> Server:
    return postgres.shared()


@pytest.fixture
def empty(newest: Server) -> Iterator[str]:
    name = newest.create()
    yield name
    newest.drop(name)


@pytest.fixture
def rig(server: Server) -> Iterator[Rig]:
    with server.borrowed() as name:
        rig = Rig.open(server.url(name))
        yield rig
        rig.close()


# --- who is let in -----------------------------------------------------------------------------------------------------------


def refusal(url: str, kind: type[OstlerError] = Rejected) -> OstlerError:
    with pytest.raises(kind) as caught:
        Store.open(url, logger=LOGGER)
    told = f"{caught.value} {caught.value.hint}"
    assert SECRET not in told
    assert caught.value.hint
    return caught.value


def test_a_wrong_password_user_or_database_is_told_with_what_to_do(newest: Server, empty: str):
    newest.execute(f"CREATE ROLE walter LOGIN PASSWORD '{SECRET}'")
    try:
        wrong = refusal(newest.url(empty, user="walter", password=SECRET + "x"))
        assert "password authentication failed" in str(wrong)
        assert ".pgpass" in (wrong.hint or "")
        assert "no password" in str(refusal(newest.url(empty, user="walter")))
        assert "createdb" in (refusal(newest.url("nowhere", user="walter", password=SECRET)).hint or "")
        for address in (f"postgresql://walter:{SECRET}@host.invalid/x", f"postgresql://walter:{SECRET}@127.0.0.1:port/x"):
            assert "cannot be reached" in str(refusal(address))
        rights = refusal(newest.url(empty, user="walter", password=SECRET))
        assert "permission denied" in str(rights)
        assert "GRANT" in (rights.hint or "")
        newest.execute("GRANT ALL ON SCHEMA public TO walter", database=empty)
        Store.open(newest.url(empty, user="walter", password=SECRET), logger=LOGGER).close()
    finally:
        newest.execute("DROP OWNED BY walter", database=empty)
        newest.execute("DROP ROLE walter")


def test_a_server_that_is_not_there_is_told(tmp_path: Path):
    for url in (f"postgresql://u:{SECRET}@127.0.0.1:1/db", f"postgresql://u:{SECRET}@/db?host={tmp_path}"):
        assert "cannot be reached" in str(refusal(url, StoreBusy))
    assert "host's name" in (refusal(f"postgresql://u:{SECRET}@no.such.host.invalid/db", Rejected).hint or "")


def test_an_address_that_is_none_is_told_without_repeating_it():
    for url in (f"postgresql://u:{SECRET}@h/db?no_such_option=1", f"postgresql://u:{SECRET}@h:port:x/db"):
        refusal(url, OstlerError)
    assert describe(f"postgresql://u:{SECRET}@h:99/db") == "db at h:99"


def test_the_password_is_taken_from_where_libpq_looks(newest: Server, empty: str, tmp_path: Path, monkeypatch):
    newest.execute(f"CREATE ROLE paula LOGIN PASSWORD '{SECRET}'", f"ALTER DATABASE {empty} OWNER TO paula")
    try:
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"*:*:{empty}:paula:{SECRET}\n")
        passfile.chmod(0o600)
        with monkeypatch.context() as patch:
            patch.setenv("PGPASSFILE", str(passfile))
            Store.open(newest.url(empty, user="paula"), logger=LOGGER).close()
        monkeypatch.setenv("PGPASSWORD", SECRET)
        Store.open(newest.url(empty, user="paula"), logger=LOGGER).close()
    finally:
        newest.execute("REASSIGN OWNED BY paula TO postgres", "DROP OWNED BY paula", database=empty)
        newest.execute(f"ALTER DATABASE {empty} OWNER TO postgres", "DROP ROLE paula")


def test_what_is_not_ours_is_refused(newest: Server, empty: str):
    newest.execute("CREATE TABLE recipes (name text)", database=empty)
    assert "not those of an Ostler coordinator" in str(refusal(newest.url(empty)))


def test_a_database_that_stores_no_unicode_is_refused(newest: Server):
    newest.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        assert "UTF8" in str(refusal(newest.url("ascii")))
    finally:
        newest.drop("ascii")


def test_too_old_a_server_is_refused(newest: Server, empty: str, monkeypatch):
    monkeypatch.setattr("ostler.coordinator.store.postgres.OLDEST", 99)  # no server as old as that runs here
    assert "needs 99 or newer" in str(refusal(newest.url(empty)))


def test_a_newer_schema_is_refused_with_the_command(newest: Server):
    with newest.borrowed() as name:
        try:
            newest.execute(f"UPDATE meta SET value = '{SCHEMA + 1}' WHERE key = 'schema'", database=name)
            assert "ostler" in (refusal(newest.url(name), UpgradeRequired).hint or "")
        finally:
            newest.execute(f"UPDATE meta SET value = '{SCHEMA}' WHERE key = 'schema'", database=name)


# --- the schema --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "kind"), [("jobs", JobState), ("attempts", AttemptState), ("nodes", NodeState)])
async def test_the_checks_equal_the_enums(rig: Rig, table: str, kind):
    ((sql,),) = await rig.rows("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = ?", f"ck_{table}_state")
    assert set(re.findall(r"'(\w+)'", sql)) == {state.value for state in kind}


async def test_the_checks_hold(rig: Rig):
    await rig.submit()
    for statement in (
        "UPDATE jobs SET state = 'asleep'", "UPDATE jobs SET held = 2", "UPDATE jobs SET tries = 1",
        "UPDATE jobs SET shape_id = 1", "INSERT INTO specs (job_seq, body) VALUES (99, '{}')",
    ):  # fmt: skip
        with pytest.raises(psycopg.IntegrityError):
            await rig.write(lambda tx, statement=statement: tx.run(statement))


def described(server: Server, name: str) -> dict[str, list[str]]:
    """Columns, constraints and indexes of all tables, in words."""
    columns = server.rows(
        "SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name FROM information_schema.columns "
        "WHERE table_schema = 'public'", name
    )  # fmt: skip
    constraints = server.rows(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conname NOT LIKE '%not_null'", name
    )
    indexes = server.rows("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'", name)
    options = server.rows("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relkind = 'r'", name)
    return {"columns": sorted(map(str, columns)), "constraints": sorted(map(str, constraints)), "indexes": sorted(map(str, indexes)),
            "options": sorted(map(str, options))}  # fmt: skip


def test_the_migrations_make_the_tables_that_the_code_describes(newest: Server, empty: str):
    database = PostgresDatabase(newest.url(empty))
    connection = database.connect(write=True)
    database.begin_schema(connection)
    migrate.upgrade(connection)
    database.tune(connection)
    database.commit(connection)
    connection.close()
    database.close()
    with newest.borrowed() as name:
        assert described(newest, empty) == described(newest, name)
        assert {row[0] for row in newest.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)} == {
            *metadata.tables, "alembic_version"
        }  # fmt: skip


def test_two_who_make_the_tables_at_once_make_them_once(newest: Server, empty: str):
    code = (
        "import sys, logging; from ostler.coordinator.store.store import Store\n"
        "Store.open(sys.argv[1], logger=logging.getLogger()).close()"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, newest.url(empty)], stderr=subprocess.PIPE) for _ in range(2)]
    assert [one.communicate()[1] for one in both] == [b"", b""]
    assert [one.returncode for one in both] == [0, 0]


# --- values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "heeded"), [("off", "on"), ("remote_apply", "remote_apply")])
async def test_what_a_database_is_set_to_costs_no_promise(newest: Server, empty: str, said: str, heeded: str):
    for setting in ("default_transaction_isolation = 'repeatable read'", f"synchronous_commit = {said}", "lock_timeout = '10ms'"):
        newest.execute(f"ALTER DATABASE {empty} SET {setting}")
    rig = Rig.open(newest.url(empty))
    names = ("transaction_isolation", "synchronous_commit", "lock_timeout")
    asked = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    try:
        assert await rig.write(lambda tx: tx.row(asked)) == ("read committed", heeded, "0")
        assert await rig.store.write_lazily(lambda tx: tx.row(asked)) == ("read committed", "off", "0")
    finally:
        rig.close()


async def test_values_that_no_column_holds_are_the_callers_mistake(rig: Rig):
    with pytest.raises(InvalidSpec, match="out of range"):
        await rig.submit(priority=2**64)
    with pytest.raises(InvalidSpec, match="cannot be stored"):
        await rig.job("\ud800")
    (job_id,) = await rig.submit(command="a\0b")
    assert (await rig.job(job_id)).title == "a\ufffdb"


def test_names_are_in_the_order_of_their_bytes(server: Server):
    with server.borrowed() as name:
        assert server.rows(
            "SELECT min(x.a) FROM (SELECT job_id AS a FROM jobs UNION SELECT 'b' UNION SELECT 'B') AS x", name
        ) == [("B",)]
    assert sqlite3.connect(":memory:").execute("SELECT min('b', 'B')").fetchall() == [("B",)]


# --- when the server goes away -----------------------------------------------------------------------------------------------


async def test_a_restart_of_the_server_is_ridden_out():
    server = Server(durable=True)
    try:
        rig = Rig.open(server.url(server.create()))
        (before,) = await rig.submit()
        server.stop()
        for _ in range(2):
            with pytest.raises(StoreBusy) as caught:
                await rig.submit()
            assert caught.value.retry_after
            with pytest.raises(StoreBusy):
                await rig.job(before)
        server.start()
        assert (await rig.job(before)).job_id == before
        assert await rig.submit()
        server.restart()  # nobody was told
        assert await rig.submit()
        server.crash()
        server.start()
        assert (await rig.job(before)).job_id == before
        assert await rig.rows("SELECT count(*) FROM jobs") == [(3,)]
        rig.close()
    finally:
        server.close()


async def test_what_is_away_is_not_told_of_twenty_times_a_second(caplog):
    caplog.set_level("INFO", LOGGER.name)

    def told() -> list[tuple[str, int | None]]:
        return [
            (one.message, one.attrs.get("times"))
            for one in caplog.records
            if one.message in {"transaction_failed", "transactions_go_on"}
        ]

    async def call(times: int) -> None:
        for _ in range(times):
            with pytest.raises(StoreBusy):
                await rig.submit()

    server = Server(durable=True)
    try:
        rig = Rig.open(server.url(server.create()))
        server.stop()
        await call(20)
        assert told() == [("transaction_failed", None)]
        rig.clock.advance(31)
        await call(20)
        assert told() == [("transaction_failed", None), ("transaction_failed", 20)]
        server.start()
        assert await rig.submit(1)
        assert await rig.submit(1)
        assert told() == [("transaction_failed", None), ("transaction_failed", 20), ("transactions_go_on", 40)]
        rig.close()
    finally:
        server.close()


async def test_a_connection_that_is_cut_inside_an_operation_undoes_it(rig: Rig):
    def cut(tx):
        tx.run("INSERT INTO counters (name, next) VALUES ('cut', 1)")
        tx.rows("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreBusy):
        await rig.write(cut)
    assert await rig.rows("SELECT * FROM counters WHERE name = 'cut'") == []
    assert await rig.submit()
