"""`ostler db copy` between SQLite and PostgreSQL, with thousands of rows in every table, and what stops it."""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Integer, LargeBinary

import postgres
from cli_rig import ostler
from ostler.coordinator.store.schema import metadata
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.upkeep.checksums import sums_of
from ostler.coordinator.upkeep.reading import reading
from store_rig import Rig

ROWS = 2100  # more than one batch
# What a value must be besides being of its type: the CHECKs of the schema.
CHECKED = {
    "state": lambda table, _: {"jobs": "queued", "nodes": "ready", "rollouts": "planned"}.get(table, "leased"),
    "kind": lambda table, _: "api" if table == "tokens" else "submit",
    "phase": lambda *_: "planned",
    "role": lambda *_: "admin",
    "stream": lambda _, i: "stdout",
    "part": lambda *_: "logs",
    "until": lambda *_: "done",
    "otherwise": lambda *_: "hold",
    "size": lambda table, i: 7 if table == "log_chunks" else i,
    "attempt": lambda _, i: i,
    "tries": lambda *_: 0,
    "uses_left": lambda _, i: i,
    "count": lambda _, i: i + 1,
    "data": lambda *_: b"\0\xff bytes"[:7],
}
FLAGS = {"draining", "resume", "held"}


@pytest.fixture(params=postgres.VERSIONS)
def server(request: pytest.FixtureRequest) -> postgres.Server:
    return postgres.shared(request.param)


@pytest.fixture
def url(server: postgres.Server) -> Iterator[str]:
    name = server.create()
    yield server.url(name)
    server.drop(name)


def fill(path: Path, rows: int) -> None:
    """Many rows in every table, with every kind of value: long numbers, NULL, text of all planes, bytes, fractions."""
    texts = itertools.cycle(["plain", "grüße 😀 \U0010ffff", "tab\tnew\nline\\N \\. 'quote'", "", "%s ? $1 {x}"])
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in metadata.sorted_tables:
            if table.name == "meta":
                continue
            made = []
            for i in range(1, rows + 1):
                row = []
                for column in table.columns:
                    keyed = column.primary_key or column.foreign_keys or column.unique
                    if column.name in CHECKED:
                        row.append(CHECKED[column.name](table.name, i))
                    elif column.name in FLAGS:
                        row.append(i % 2)
                    elif column.nullable and not keyed and i % 3 == 0:
                        row.append(None)
                    elif isinstance(column.type, Integer) or column.type.python_type is int:
                        row.append(i if keyed or column.name.endswith("_seq") else i * 2**40 - 2**62)
                    elif column.type.python_type is float:
                        row.append(i / 7)
                    elif isinstance(column.type, LargeBinary):
                        row.append(i.to_bytes(4, "big"))
                    else:
                        row.append(f"key {i}" if keyed or column.name == "job_id" else next(texts))
                made.append(row)
            marks = ", ".join("?" * len(table.columns))
            connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', made)


def sums(store: str) -> dict:
    with reading(store) as connection:
        return {name: (one.rows, one.sum) for name, one in sums_of(connection).items()}


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "ostler.db"
    Rig.open(path).close()
    fill(path, ROWS)
    return path


@pytest.fixture
def full(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(filled, tmp_path / "ostler.db"))


@pytest.fixture
def newest() -> Iterator[str]:
    """A database of the newest server alone."""
    server = postgres.shared()
    name = server.create()
    yield server.url(name)
    server.drop(name)


def test_every_row_of_every_table_arrives_and_comes_back(full: Path, url: str):
    before = dump(full)
    done = ostler("db", "copy", "--from", full, "--to", url, "--json")
    assert done.returncode == 0, done.stderr
    told = done.json["tables"]
    assert {name: one["rows"] for name, one in told.items()} == {
        table.name: 3 if table.name == "meta" else ROWS for table in metadata.sorted_tables
    }
    assert {name: (one["rows"], one["sum"]) for name, one in told.items()} == sums(url) == sums(str(full))
    assert dump(full) == before, "the source is as it was"
    back = full.with_name("back.db")
    done = ostler("db", "copy", "--from", url, "--to", f"sqlite:{back}", "--json")
    assert done.returncode == 0, done.stderr
    assert sums(str(back)) == sums(url)
    with closing(sqlite3.connect(back)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_an_installation_goes_on_in_the_other_engine(tmp_path: Path, url: str):
    """Numbers go on where they stood, also behind rows that were deleted; what was leased is still the node's."""
    rig = Rig.open(tmp_path / "ostler.db")
    await rig.join("n1", slots=8)
    await rig.submit(5)
    first, second, *_ = await rig.begin("n1", slots=3)
    await rig.append("n1", first, 0, b"said \0 before\n")
    await rig.fail("n1", second)
    [(last,)] = await rig.rows("SELECT max(id) FROM events")
    await rig.write(lambda tx: tx.run("DELETE FROM events WHERE id > ?", (last - 2,)))  # as retention does
    jobs = await rig.rows("SELECT * FROM jobs ORDER BY seq")
    rig.close()
    with closing(sqlite3.connect(tmp_path / "ostler.db")) as connection, connection:
        connection.execute("UPDATE jobs SET title = 'a' || char(0) || 'b' WHERE seq = 1")
    done = ostler("db", "copy", "--from", tmp_path / "ostler.db", "--to", url, "--json")
    assert (done.returncode, done.json["replaced"]) == (0, 1), done.stderr
    for place in (url, str(tmp_path / "back.db")):
        if place != url:
            assert ostler("db", "copy", "--from", url, "--to", place).returncode == 0
        moved = Rig.open(place, rig.clock)
        try:
            there = await moved.rows("SELECT * FROM jobs ORDER BY seq")
            assert [tuple(row)[:7] for row in there] == [row[:7] for row in jobs]
            if place == url:
                continue
            assert (await moved.finish("n1", first)).ok
            await moved.submit(2)
            assert len(await moved.begin("n1", slots=8)) == 4
            [(lowest,)] = await moved.rows("SELECT min(id) FROM events WHERE kind = 'finish'")
            assert lowest > last
        finally:
            moved.close()


async def test_what_may_not_be_copied(full: Path, newest: str):
    url = newest
    database = SqliteDatabase(full)
    done = ostler("db", "copy", "--from", full, "--to", url)
    assert (done.returncode, "another coordinator" in done.stderr) == (3, True)
    database.close()
    rig = Rig.open(url)
    await rig.rows("SELECT 1")
    done = ostler("db", "copy", "--from", full, "--to", url)
    assert (done.returncode, "a coordinator runs" in done.stderr) == (3, True)
    assert ostler("db", "status", "--store", url, "--json").json["coordinator"] == 0
    done = ostler("db", "copy", "--from", url, "--to", full.with_name("new.db"))
    assert (done.returncode, "a coordinator runs" in done.stderr) == (3, True)
    await rig.write(lambda tx: tx.run("INSERT INTO shapes (shape_id, body) VALUES (1, '{}')"))
    rig.close()
    assert ostler("db", "status", "--store", url, "--json").json["coordinator"] is None
    done = ostler("db", "copy", "--from", full, "--to", url)
    assert (done.returncode, "is not empty: it has rows in shapes" in done.stderr) == (3, True)
    done = ostler("db", "copy", "--from", url, "--to", full)
    assert (done.returncode, "there is a database already" in done.stderr) == (3, True)
    done = ostler("db", "copy", "--from", full, "--to", "postgresql://u:secret@nowhere/x")
    assert (done.returncode, "secret" in done.stderr) == (3, False)


@pytest.mark.parametrize(
    "address",
    [
        "host=db password=geheim dbname=x", "postgresql://u@db/x?pass%77ord=geheim", "postgresql://u:geheim@[::1/x",
        "postgresql://u:ge%20heim@db/x", "host=db dbname=x",
    ],
)  # fmt: skip
def test_what_is_no_address_is_not_taken_for_a_file_nor_said_again(full: Path, address: str):
    for options in (
        ("copy", "--from", full, "--to", address),
        ("copy", "--from", address, "--to", full),
        ("status", "--store", address),
    ):
        done = ostler("db", *options)
        assert done.returncode == 3, done
        assert "geheim" not in done.stderr
        assert "hint: " in done.stderr
    assert not list(Path.cwd().glob("host=*"))


def test_what_holds_nothing_to_copy(full: Path, newest: str, tmp_path: Path):
    (notes := tmp_path / "notes.txt").write_text("nobody's database " * 1000)
    for source, said in ((notes, "not a database"), (full.parent, "is a directory"), (newest, "no tables of a coordinator")):
        done = ostler("db", "copy", "--from", source, "--to", tmp_path / "new.db")
        assert (done.returncode, said in done.stderr) == (3, True), done
    assert not {"notes.lock", "new.db", "new.lock"} & {one.name for one in tmp_path.iterdir()}


INTERRUPTED = """
import os, signal, sys
from ostler.coordinator.upkeep.checksums import Summing
from ostler.cli.main import main
Summing.add = lambda *_: os.kill(os.getpid(), signal.SIGINT)  # while rows are being read
sys.exit(main())
"""


def test_ctrl_c_ends_it_without_a_word(full: Path, newest: str):
    command = [sys.executable, "-c", INTERRUPTED, "db", "copy", "--from", str(full), "--to"]
    for target in (newest, str(full.with_name("new.db"))):
        done = subprocess.run([*command, target], capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert not list(full.parent.glob("new.db*")) + list(full.parent.glob("new.part*"))


KILLED = """
import os, signal, sys
from ostler.coordinator.upkeep import transferring
from ostler.cli.main import app
count = 0
real = transferring.sum_of
def last(*arguments):
    global count
    count += 1
    if count == 20:
        os.kill(os.getpid(), signal.SIGKILL)  # all rows are there, and half of them are read back
    return real(*arguments)
transferring.sum_of = last
app(sys.argv[1:])
"""


def test_one_that_was_killed_is_made_again(full: Path, newest: str):
    url, new = newest, full.with_name("new.db")
    for target in (url, str(new)):
        command = [sys.executable, "-c", KILLED, "db", "copy", "--from", str(full), "--to", target]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, env={**os.environ})
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not new.exists()
        if target == url:
            assert {rows for name, (rows, _) in sums(url).items() if name != "meta"} == {0}
        assert ostler("db", "copy", "--from", full, "--to", target).returncode == 0
        assert sums(target) == sums(str(full))
