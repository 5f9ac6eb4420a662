"""The embedded adapter: SQLite in WAL mode with full sync, one file that belongs to one coordinator."""

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import NullPool

from ostler.coordinator.store.wakeups import Wakeups
from ostler.model.errors import Conflict, InvalidSpec, OstlerError, Rejected, StoreBusy

BUSY_TIMEOUT_MS = 5000  # readers and the writer never wait for each other in WAL mode; a backup or an `sqlite3` shell may
WRITER_CACHE_KB = 16_384
READER_CACHE_KB = 4_096
BLOCK = 256  # numbers for jobs that are drawn at once
WAL_KEPT_BYTES = 64 * 2**20  # what a burst made longer is cut back to this

# What the disk or another process did; the same call may succeed later. SQLite names the condition, not the cause.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)


class _Driver(sqlite3.Connection):
    """The driver's connection, and what is known of it."""

    level = "FULL"  # of syncing
    numbers = (0, 0)  # for jobs, what is left of a block: the next one, and the end


class SqliteDatabase:
    """One SQLite file, locked for this process."""

    shared = False
    max_operations = 512
    sql = staticmethod(str)  # `?` is this driver's own spelling; no call of ours stands in front of each statement

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._lock = _lock(path)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:
            _create_private(path)
            # Isolation is ours: the driver must never begin or commit on its own, and Core's autobegin must not either.
            self.engine = create_engine(
                f"sqlite:///{path}",
                poolclass=NullPool,
                isolation_level="AUTOCOMMIT",
                connect_args={"check_same_thread": False, "factory": _Driver},
            )
            event.listen(self.engine, "connect", _prepare)
        except OSError as exc:
            os.close(self._lock)
            raise _unusable(path, exc) from exc

    def connect(self, *, write: bool) -> Connection:
        """A connection, set up for writing or for reading alone."""
        connection = self.engine.connect()
        driver = _driver(connection)
        driver.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KB if write else READER_CACHE_KB}")
        if not write:
            driver.execute("PRAGMA query_only = ON")
        return connection

    def begin(
        self, connection: Connection, *, write: bool, durable: bool = True, alone: bool = True, settled: bool = False
    ) -> int:
        """Begin; the writer takes its lock now, so that no statement of an operation can fail for want of it.

        What need not be `durable` survives the process; the log is synced with the next transaction that must be.
        """
        driver = _driver(connection)
        if write:
            _set_level(driver, "FULL" if durable else "NORMAL")
        driver.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        return 0  # this process alone changes what it remembers

    def begin_schema(self, connection: Connection) -> None:
        """Like any that writes."""
        self.begin(connection, write=True)

    def commit(self, connection: Connection) -> None:
        """Commit; where it must be durable the log is synced before this returns."""
        _driver(connection).execute("COMMIT")

    def make_ready(self, connection: Connection) -> None:
        """Submissions are durable."""
        _set_level(_driver(connection), "FULL")

    def rollback(self, connection: Connection) -> None:
        """Undo the transaction; no error where the engine did so already (as it does on a full disk)."""
        driver = _driver(connection)
        driver.numbers = (0, 0)
        if driver.in_transaction:
            try:
                driver.execute("ROLLBACK")
            except sqlite3.Error:
                return

    def savepoint(self, connection: Connection) -> None:
        """Mark where one more operation begins."""
        _driver(connection).execute("SAVEPOINT operation")

    def release(self, connection: Connection) -> None:
        """Keep what was done since the mark."""
        _driver(connection).execute("RELEASE operation")

    def undo(self, connection: Connection) -> bool:
        """Undo what was done since the mark; False where the engine has undone the whole transaction by itself."""
        driver = _driver(connection)
        driver.numbers = (0, 0)
        if not driver.in_transaction:
            return False
        driver.execute("ROLLBACK TO operation")
        driver.execute("RELEASE operation")
        return True

    def any_of(self, column: str) -> str:
        """One text for lists of any length, so that each statement is compiled once."""
        return f"{column} IN (SELECT value FROM json_each(?))"  # noqa: S608 - a column of ours

    def array(self, values: Iterable[Any]) -> Any:
        """A JSON array, which `json_each` unfolds."""
        return msgspec.json.encode(list(values)).decode()

    def json_text(self, column: str, name: str) -> str:
        """By a path: `->>` came later than the SQLite of some hosts."""
        return f"json_extract({column}, '$.{name}')"

    def by_index(self, name: str) -> str:
        """A plan that is an error where the index cannot serve it, instead of a slow one."""
        return f"INDEXED BY {name}"

    def settled(self, table: str, alias: str) -> str:
        """One writer draws the ids, one transaction after the other."""
        return "1 = 1"

    def settle(self, connection: Connection) -> None:
        """Everything is."""

    def passing_over(self) -> str:
        """There is nobody who takes any."""
        return ""

    def reserve(self, connection: Connection, count: int) -> int:
        """A row counts blocks of them: what is left of one is handed out without a write, unless anything was undone since it was drawn,
        which may have been its drawing."""
        driver = _driver(connection)
        first, end = driver.numbers
        if end - first < count:
            drawn = max(count, BLOCK)
            row = driver.execute("UPDATE counters SET next = next + ? WHERE name = 'jobs' RETURNING next", (drawn,)).fetchall()
            if not row:
                begin = "INSERT INTO counters (name, next) SELECT 'jobs', coalesce(max(seq), 0) + 1 + ? FROM jobs RETURNING next"
                row = driver.execute(begin, (drawn,)).fetchall()
            end = int(row[0][0])
            first = end - drawn
        driver.numbers = (first + count, end)
        return int(first)

    def one_by_one(self, connection: Connection, what: str) -> None:
        """They are, always."""

    def forget_everywhere(self, connection: Connection) -> None:
        """Nobody else remembers anything."""

    def collided(self, exc: BaseException) -> bool:
        """Nobody else was there."""
        return False

    def lost(self, connection: Connection) -> bool:
        """A file does not go away."""
        return False

    def tune(self, connection: Connection) -> None:
        """SQLite keeps none: everything is set for each connection."""

    def join(self, wakeups: Wakeups, *, logger: logging.Logger) -> None:
        """The file's lock keeps others away."""

    def translate(self, exc: BaseException) -> OstlerError | None:
        """A full, busy or failing disk as StoreBusy, a value that no column holds as InvalidSpec; None for the rest."""
        if isinstance(exc, OverflowError | UnicodeEncodeError):
            return InvalidSpec(
                f"a value of the request cannot be stored: {exc}", hint="numbers have 64 bits, text is valid Unicode"
            )
        cause = getattr(exc, "orig", None) or exc  # Core wraps the driver's error
        if not isinstance(cause, sqlite3.Error):
            return None
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if primary == sqlite3.SQLITE_NOTADB:
            return Rejected(
                f"{self.path} is not an SQLite database", hint="move it away, or restore the right file from a backup"
            )
        if primary not in _PASSING:
            return None
        return StoreBusy(
            f"the database {self.path} cannot be used now: {cause}",
            retry_after=1.0,
            hint=f"look at the free space and the health of the disk: df -h {self.path.parent}",
        )

    def close(self) -> None:
        """Close all connections and give up the lock."""
        self.engine.dispose()
        os.close(self._lock)


def _driver(connection: Connection) -> _Driver:
    driver: _Driver = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def _set_level(driver: _Driver, level: str) -> None:
    if driver.level != level:
        driver.execute(f"PRAGMA synchronous = {level}")
        driver.level = level


def _prepare(driver: sqlite3.Connection, _record: object) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        f"journal_size_limit = {WAL_KEPT_BYTES}",
        "temp_store = MEMORY",  # a savepoint's journal must not become a file
    ):
        driver.execute(f"PRAGMA {pragma}").close()


def _lock(path: Path) -> int:
    """Takes the lock of the file's directory for as long as this process lives; the kernel gives it back however it ends."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path.with_name(f"{path.stem}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        pid = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise Conflict(
            f"another coordinator (pid {pid or 'unknown'}) uses {path}",
            hint=f"stop it first (kill {pid}), or give this one other data",
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _unusable(path: Path, exc: OSError) -> OstlerError:
    message = f"the database {path} cannot be used: {exc.strerror}"
    if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}:
        return StoreBusy(message, retry_after=1.0, hint=f"df -h {path.parent}")
    if exc.errno == errno.EISDIR:
        return Rejected(message, hint=f"name the file: {path / 'ostler.db'}")
    return Rejected(message, hint=f"give the coordinator's user a directory of its own: mkdir -m 700 {path.parent}")


def _create_private(path: Path) -> None:
    """The file holds specs and tokens' digests: nobody else reads it. SQLite gives its log and its index the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
