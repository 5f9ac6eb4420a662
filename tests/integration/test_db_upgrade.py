"""`ostler db status` and `upgrade` on databases of each earlier schema: what they say, what they exit with, what a kill leaves."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import postgres
from cli_rig import ostler
from ostler.coordinator.store.schema import SCHEMA
from ostler.coordinator.store.sqlite import SqliteDatabase
from store_rig import Rig

FIXTURES = sorted((Path(__file__).parents[1] / "compat" / "fixtures").glob("coordinator-*.db"))


def status(data: Path) -> tuple[int, dict]:
    done = ostler("db", "status", "--data", data, "--json")
    return done.returncode, done.json


def everything(path: Path) -> list[str]:
    """The whole content as SQL, to compare."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copyfile(request.param, tmp_path / "ostler.db")
    return tmp_path


def test_an_old_database_is_upgraded_once(data: Path):
    code, before = status(data)
    assert (code, before["state"], before["known"], before["coordinator"]) == (1, "pending", SCHEMA, None)
    assert before["counts"]["jobs"] > 0
    old = everything(data / "ostler.db")
    done = ostler("db", "upgrade", "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    told = done.json
    assert (told["before"], told["after"]) == (before["schema"], SCHEMA)
    copy = Path(told["copy"])
    assert everything(copy) == old
    assert copy.stat().st_mode & 0o777 == 0o600
    code, after = status(data)
    assert (code, after["state"], after["schema"]) == (0, "current", SCHEMA)
    assert {name: after["counts"][name] for name in before["counts"]} == before["counts"]
    again = ostler("db", "upgrade", "--data", data, "--json")
    assert (again.returncode, again.json["copy"]) == (0, None)
    assert {file.name for file in data.iterdir()} == {"ostler.db", "ostler.lock", copy.name}


def test_no_copy_where_none_is_wanted(data: Path):
    assert ostler("db", "upgrade", "--data", data, "--no-backup").returncode == 0
    assert {file.name for file in data.iterdir()} == {"ostler.db", "ostler.lock"}


KILLED = """
import os, signal, sys
from pathlib import Path
from ostler.coordinator.store import migrate
from ostler.coordinator.store.sqlite import SqliteDatabase
database = SqliteDatabase(Path(sys.argv[1]))
connection = database.connect(write=True)
database.begin(connection, write=True)
connection.exec_driver_sql("PRAGMA cache_size = 1")  # what was changed so far must stand in the log, not in memory alone
migrate.upgrade(connection)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_before_its_commit_it_leaves_the_old_schema(data: Path):
    old = everything(data / "ostler.db")
    before = status(data)
    done = subprocess.run([sys.executable, "-c", KILLED, data / "ostler.db"], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (data / "ostler.db-wal").stat().st_size > 0
    after = status(data)
    assert after[0] == before[0]
    assert after[1]["schema"] == before[1]["schema"]
    assert everything(data / "ostler.db") == old
    assert ostler("db", "upgrade", "--data", data).returncode == 0
    assert status(data)[0] == 0


def test_it_is_refused_while_a_coordinator_runs_on_it(data: Path):
    database = SqliteDatabase(data / "ostler.db")
    try:
        done = ostler("db", "upgrade", "--data", data)
        assert done.returncode == 3
        assert "another coordinator" in done.stderr
        assert status(data)[1]["coordinator"] > 0
    finally:
        database.close()
    assert status(data)[1]["coordinator"] is None


def test_what_is_newer_or_not_ours_is_refused_with_the_way_out(tmp_path: Path):
    Rig.open(tmp_path / "ostler.db").close()
    assert status(tmp_path)[0] == 0
    with closing(sqlite3.connect(tmp_path / "ostler.db")) as connection, connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    code, found = status(tmp_path)
    assert (code, found["state"]) == (3, "newer")
    done = ostler("db", "upgrade", "--data", tmp_path)
    assert (done.returncode, "pipx upgrade ostler" in done.stderr) == (3, True)
    (tmp_path / "ostler.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    done = ostler("db", "status", "--data", tmp_path)
    assert (done.returncode, "not a database" in done.stderr, "Traceback" in done.stderr) == (3, True, False)
    done = ostler("db", "status", "--data", tmp_path / "nothing")
    assert (done.returncode, "there is no database" in done.stderr) == (3, True)


def test_the_data_s_own_file_says_where_the_database_is(tmp_path: Path):
    Rig.open(tmp_path / "elsewhere" / "jobs.db").close()
    (tmp_path / "coordinator.yaml").write_text(f"store: {tmp_path}/elsewhere/jobs.db\n")
    code, found = status(tmp_path)
    assert (code, found["store"]) == (0, str(tmp_path / "elsewhere" / "jobs.db"))


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_living_nodes_are_left_behind_on_purpose_alone(engine: str, tmp_path: Path):
    server = postgres.shared() if engine == "postgresql" else None
    name = server.create() if server is not None else None
    store = server.url(name) if server is not None else str(tmp_path / "ostler.db")
    rig = Rig.open(store)
    for node_id in ("abandoned", "inside", "newer", "older", "retired"):
        await rig.join(node_id)
    for sql in (
        "UPDATE nodes SET last_seen_at = ?, protocol = CASE node_id WHEN 'inside' THEN 1 WHEN 'newer' THEN 99 ELSE 0 END",
        "UPDATE nodes SET state = 'retired', last_seen_at = ? WHERE node_id = 'retired'",
        "UPDATE nodes SET last_seen_at = ? - 90000000000 WHERE node_id = 'abandoned'",
    ):
        await rig.write(lambda tx, sql=sql: tx.run(sql, (time.time_ns() // 1000,)))
    rig.close()
    done = ostler("db", "upgrade", "--store", store)
    assert done.returncode == 3
    assert "newer (protocol 99, release " in done.stderr
    assert "`ostler fleet update --host newer --host older`" in done.stderr
    assert "abandoned" not in done.stderr
    assert "`ostler db upgrade --leave-nodes-behind`" in done.stderr
    found = ostler("db", "status", "--store", store, "--json")
    assert (found.returncode, [one[0] for one in found.json["behind"]]) == (0, ["newer", "older"])
    assert "newer (protocol 99), older (protocol 0)" in ostler("db", "status", "--store", store).stdout
    assert ostler("db", "upgrade", "--store", store, "--leave-nodes-behind").returncode == 0
    if server is not None:
        server.drop(name)


def test_a_refused_upgrade_leaves_an_old_database_as_it_was(data: Path):
    with closing(sqlite3.connect(data / "ostler.db")) as connection, connection:
        connection.execute("UPDATE nodes SET protocol = 0, last_seen_at = ? WHERE node_id = 'ready'", (time.time_ns() // 1000,))
    before = everything(data / "ostler.db")
    done = ostler("db", "upgrade", "--data", data)
    assert (done.returncode, "--host ready`" in done.stderr) == (3, True)
    assert everything(data / "ostler.db") == before
    assert ostler("db", "upgrade", "--data", data, "--leave-nodes-behind").returncode == 0
