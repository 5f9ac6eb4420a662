"""A consistent look at a coordinator's database from beside it, whether a coordinator runs on it or not."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ostler.coordinator.store.sqlite import BUSY_TIMEOUT_MS
from ostler.model.errors import InvalidSpec, NotFound, Rejected

SQLITE = "sqlite:///"


def sqlite_path(store: str) -> Path | None:
    """The file of an SQLite database, given as a path or a URL; None for one of another kind."""
    scheme, separator, _ = store.partition("://")
    if separator and scheme != "sqlite":
        return None
    return Path(store.removeprefix(SQLITE)).absolute()


@contextlib.contextmanager
def reading(store: str) -> Iterator[Connection]:
    """A connection in one snapshot, which changes nothing. Raises NotFound, or Rejected for what cannot be read."""
    path = sqlite_path(store)
    if path is None:
        raise InvalidSpec(
            f"databases of the kind {store.partition('://')[0]!r} are not supported by this release",
            hint="give a path to an SQLite file",
        )
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
