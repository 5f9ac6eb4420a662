"""A consistent look at a coordinator's database from beside it, whether a coordinator runs on it or not."""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ostler.coordinator.store.sqlite import BUSY_TIMEOUT_MS
from ostler.model.errors import InvalidSpec, NotFound, Rejected

if TYPE_CHECKING:
    from ostler.coordinator.store.postgres import PostgresDatabase

SQLITE = "sqlite:///"
OURS = "ostler-upkeep"  # the name of sessions that are no coordinator's
GONE_S = 1.0


def sqlite_path(store: str) -> Path | None:
    """The file of an SQLite database, given as a path or a URL; None for one of another kind."""
    scheme, separator, _ = store.partition("://")
    if separator and scheme != "sqlite":
        return None
    return Path(store.removeprefix(SQLITE).removeprefix("sqlite:")).absolute()


@contextlib.contextmanager
def reading(store: str) -> Iterator[Connection]:
    """A connection in one snapshot, which changes nothing. Raises NotFound, or Rejected for what cannot be read."""
    path = sqlite_path(store)
    if path is None:
        with _shared(store) as connection:
            yield connection
        return
    if path.is_dir():
        raise NotFound(f"{path} is a directory, and no database", hint=f"name the file: {path / 'ostler.db'}")
    if not path.is_file():
        raise NotFound(f"there is no database {path}", hint="say which with --data DIR or --store FILE")
    engine = create_engine("sqlite://", poolclass=NullPool, isolation_level="AUTOCOMMIT", creator=lambda: _open(path))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar()  # from here on the snapshot stands
            yield connection
    except DBAPIError as exc:
        raise Rejected(
            f"{path} cannot be read as a coordinator's database: {exc.orig}",
            hint="it may belong to another user, or be damaged; see `ostler backup list` for what it can be restored from",
        ) from exc
    finally:
        engine.dispose()


@contextlib.contextmanager
def _shared(store: str) -> Iterator[Connection]:
    database = open_shared(store)
    try:
        with database.connect(write=False) as connection:
            at_leisure(connection)
            database.begin(connection, write=False)
            try:
                yield connection
            finally:
                database.rollback(connection)
    except DBAPIError as exc:
        raise database.translate(exc) or Rejected(f"the database {database.where} cannot be read: {exc.orig}") from exc
    finally:
        database.close()


def open_shared(store: str) -> "PostgresDatabase":
    """A database on a server. Raises InvalidSpec for a kind that there is not, and what its adapter raises."""
    if store.partition("://")[0] not in {"postgresql", "postgres"}:
        raise InvalidSpec(
            f"stores of the kind {store.partition('://')[0]!r} are not supported",
            hint="write postgresql://USER@HOST:PORT/DATABASE, or a path to an SQLite file",
        )
    from ostler.coordinator.store.postgres import PostgresDatabase  # 20 MB that who has an SQLite file does without

    return PostgresDatabase(store, name=OURS)


def at_leisure(connection: Connection) -> None:
    """Settings for a session that reads or writes whole tables."""
    connection.exec_driver_sql(
        "SET idle_in_transaction_session_timeout = 0; SET enable_seqscan = on; "
        "SET enable_bitmapscan = on; SET enable_hashjoin = on; SET enable_mergejoin = on"
    )


def is_shared(connection: Connection) -> bool:
    """Whether it is one to a database server, and not to an SQLite file."""
    return connection.dialect.name == "postgresql"


def coordinators_on(connection: Connection) -> int:
    """How many sessions coordinators have on a database server's database. Those of one that was just stopped end within a moment."""
    until = time.monotonic() + GONE_S
    while True:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ostler'"
        ).scalar()
        if not found or time.monotonic() > until:
            return int(found or 0)
        connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")  # within a transaction the view would stay as it was
        time.sleep(0.05)


def _open(path: Path) -> sqlite3.Connection:
    # Not `mode=ro`: whoever is the last to close the file folds its log into it, as a coordinator would. Where we may not write
    # there is no coordinator of ours either, and a file without a log is read without the lock files that SQLite makes beside it.
    frozen = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    driver = sqlite3.connect(
        f"{path.as_uri()}?mode={'ro&immutable=1' if frozen else 'rw'}", uri=True, isolation_level=None, check_same_thread=False
    )
    driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    driver.execute("PRAGMA query_only = ON")
    return driver


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The SQLite connection below."""
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def holder_of(path: Path) -> int | None:
    """The process id of the coordinator that has this SQLite file; None where none runs, 0 where it did not say which it is."""
    try:
        descriptor = os.open(path.with_name(f"{path.stem}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock, given back at once: only a coordinator that starts in this very moment could trip over it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(said) if said.isdecimal() else 0
    finally:
        os.close(descriptor)
    return None
