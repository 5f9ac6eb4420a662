"""The adapter for PostgreSQL 15 and newer, through psycopg: several coordinators may use one database at the same time.

The driver's connections are in autocommit and begin nothing by themselves: transactions are ours, as with SQLite.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from ostler.coordinator.store.locks import Lock, key_of, parts_of
from ostler.coordinator.store.peers import Peers
from ostler.coordinator.store.schema import JOB_NUMBERS, metadata
from ostler.coordinator.store.silent import Sessions
from ostler.coordinator.store.wakeups import Wakeups
from ostler.model.errors import InvalidSpec, OstlerError, Rejected, StoreBusy

OLDEST = 15
CONNECT_S = 5
RETRY_S = 1.0

# What a session is told, before anything else, whatever the server, its database or the role are set to. No plan may depend on guesses
# about how much is stored: every query of ours has an index to walk, and the planner takes it where all else costs too much. Compiling
# a query takes longer than any of ours runs. A coordinator that vanished without a word is noticed by the server, so that its locks do
# not outlive it for long.
SETTINGS = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "timezone": "UTC",
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",  # who waited for a lock must see what was done under it
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
# What is acknowledged outlives the server's machine; who has set more than that (a standby's disk, too) keeps it.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
# Rows of these tables change all the time: the room of old versions is given back early, or the heads of the queues would be found
# behind thousands of dead entries.
BUSY_TABLES = ("jobs", "attempts", "nodes", "counters", "usage", "webhooks")
UNGUESSED = ("jobs", "attempts", "events", "dependencies")
_TUNED = "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.05"

MEMOS = "ostler_memos"  # a sequence: it goes on when processes must forget what they remember
_APPENDED = ("events", "audit")
_RELEASED = "released"
# ruff: noqa: S608 - all of these are put together from constants of ours
# The last id of a sequence that was drawn: before the first one, its value is what will be drawn.
_DRAWN = "(CASE WHEN {0}_id_seq.is_called THEN {0}_id_seq.last_value ELSE {0}_id_seq.last_value - 1 END)"
_GENERATION = f"{MEMOS}.last_value + {MEMOS}.is_called::int"  # the first call of a sequence leaves its value as it is
_FROM = "FROM events_id_seq, audit_id_seq"
# The lock comes before any id is drawn, and its number is below each of them.
_MARK_BEGINNING = (
    "SELECT " + ", ".join(
        f"pg_advisory_xact_lock_shared({key_of(Lock[table.upper()])} + {_DRAWN.format(table)})" for table in _APPENDED
    ) + f", {_GENERATION} {_FROM}, {MEMOS}"
)  # fmt: skip
_ALONE = f"SELECT pg_advisory_xact_lock({key_of(Lock.WRITE)}); SELECT {_GENERATION} FROM {MEMOS}"
_BESIDE = f"SELECT pg_advisory_xact_lock_shared({key_of(Lock.WRITE)}); {_MARK_BEGINNING}"
_LOCKED = " UNION ALL ".join(
    f"SELECT {lock:d} AS lock, classid::bigint - {first} AS high, objid::bigint AS low FROM pg_locks WHERE locktype = 'advisory' "
    f"AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND classid::bigint BETWEEN {first} AND {first + 2**bits - 1}"
    for lock in (Lock.EVENTS, Lock.AUDIT)
    for first, bits in (parts_of(lock),)
)
_LOOK = (
    f"SELECT {', '.join(map(_DRAWN.format, _APPENDED))} {_FROM};"
    f"SELECT lock, min((high << 32) + low) FROM ({_LOCKED}) AS held GROUP BY lock"
)
_HIGHEST = {
    JOB_NUMBERS: "SELECT greatest((SELECT max(seq) FROM jobs), (SELECT next - 1 FROM counters WHERE name = 'jobs'))",
    "events_id_seq": "SELECT max(id) FROM events",
    "audit_id_seq": "SELECT max(id) FROM audit",
    "log_chunks_chunk_id_seq": "SELECT max(chunk_id) FROM log_chunks",
}
# What others did meanwhile: the same operation may succeed once nobody else is there.
_COLLISIONS = (pg.UniqueViolation, pg.DeadlockDetected, pg.LockNotAvailable, pg.SerializationFailure)

# Not the fault of any call: the same one may succeed later.
_PASSING = (
    pg.OperationalError,
    pg.InterfaceError,
    pg.InternalError_,
    pg.ReadOnlySqlTransaction,
    pg.IdleInTransactionSessionTimeout,
    pg.TransactionTimeout,
    pg.LockNotAvailable,
)


class PostgresDatabase:
    """One database on a server, which other coordinators may use as well."""

    shared = True
    max_operations = 60  # a transaction with more than 64 savepoints costs all others

    def __init__(self, url: str, *, name: str = "ostler") -> None:
        self.where = describe(url)
        self._url = url
        self._name = name  # of its sessions, as the server shows them
        self._sessions = Sessions()
        # Isolation is ours: Core must not begin a transaction of its own, nor undo one on a connection that is closed or lost.
        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=self._open,
            poolclass=NullPool,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
        )
        with self._open() as connection:
            _check(connection, self.where)

    def _open(self) -> psycopg.Connection[Any]:
        try:
            connection = psycopg.connect(
                self._url, autocommit=True, application_name=self._name, connect_timeout=CONNECT_S, keepalives_idle=5,
                keepalives_interval=2, keepalives_count=3, tcp_user_timeout=10_000,
            )  # fmt: skip
            told = "; ".join(
                [*(f"SET {name} = '{value}'" for name, value in SETTINGS.items()), _DURABLE, "SELECT pg_backend_pid()"]
            )
            cursor = connection.execute(told)
            while cursor.nextset():
                pass
            (pid,) = cursor.fetchone() or (0,)
        except psycopg.Error as exc:
            raise _unreachable(exc, self.where) from exc
        _adapt(connection)
        self._sessions.add(connection, pid)
        return connection

    def connect(self, *, write: bool) -> Connection:
        """A connection, set up for writing or for reading alone."""
        return self.engine.connect()

    def begin(
        self, connection: Connection, *, write: bool, durable: bool = True, alone: bool = True, settled: bool = False
    ) -> int:
        """Begin. Who writes alone waits until nobody else does; a reader sees one moment through all of its queries.

        What need not be `durable` survives this process, and the server's unless the machine dies within a moment.
        """
        connection.info.pop(_RELEASED, None)
        if write:
            lazily = "" if durable else "SET LOCAL synchronous_commit = off;"
            if alone:
                return _last(connection, f"BEGIN;{lazily}{_ALONE}")
            return _last(connection, f"BEGIN;{lazily}{_BESIDE}")
        if not settled:
            _simple(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        else:
            places = self._settled(connection)  # found before the snapshot is taken
            _simple(connection, f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;{_told(places)}")
        return 0

    def settle(self, connection: Connection) -> None:
        """The next query of this transaction has a snapshot of its own, which is a later one."""
        _simple(connection, _told(self._settled(connection)))

    def _settled(self, connection: Connection) -> dict[str, int]:
        """Up to which id each append-only table is whole.

        Whoever drew an id up to the sequence's present value holds its lock, with a number below that id, or has ended before the look at
        the locks, and then a later snapshot shows what it wrote.
        """
        cursor = _driver(connection).execute(_LOOK, prepare=False)
        drawn = cursor.fetchone() or (0, 0)
        cursor.nextset()
        found = dict(zip(_APPENDED, drawn, strict=True))
        for lock, least in cursor.fetchall():
            table = Lock(lock).name.lower()
            found[table] = min(found[table], least)
        return found

    def begin_schema(self, connection: Connection) -> None:
        """No sequence of ours need be there yet."""
        _simple(connection, f"BEGIN; SELECT pg_advisory_xact_lock({key_of(Lock.WRITE)})")

    def commit(self, connection: Connection) -> None:
        """Commit; where it must be durable the server's log is synced before this returns."""
        _simple(connection, "COMMIT")

    def make_ready(self, connection: Connection) -> None:
        """There is nothing: each transaction says for itself how durable it is."""

    def rollback(self, connection: Connection) -> None:
        """Undo the transaction; no error where the connection is gone, which undoes it as well."""
        if not self.lost(connection):
            with contextlib.suppress(psycopg.Error):
                _simple(connection, "ROLLBACK")

    def savepoint(self, connection: Connection) -> None:
        """Mark where one more operation begins."""
        released = connection.info.pop(_RELEASED, False)
        _simple(connection, "RELEASE operation; SAVEPOINT operation" if released else "SAVEPOINT operation")

    def release(self, connection: Connection) -> None:
        """Keep what was done since the mark."""
        connection.info[_RELEASED] = True  # told with the next mark, or with the commit

    def undo(self, connection: Connection) -> bool:
        """Undo what was done since the mark; False where the connection is gone and the whole transaction with it."""
        if self.lost(connection):
            return False
        _simple(connection, "ROLLBACK TO operation; RELEASE operation")
        return True

    def sql(self, text: str) -> str:
        """`%s` instead of `?`."""
        return _spelled(text)

    def any_of(self, column: str) -> str:
        """One text for lists of any length."""
        return f"{column} = ANY(?)"

    def array(self, values: Iterable[Any]) -> Any:
        """A list, which the driver makes an array of."""
        return list(values)

    def json_text(self, column: str, name: str) -> str:
        """The column is text for the sake of SQLite."""
        return f"{column}::json ->> '{name}'"

    def by_index(self, name: str) -> str:
        """The planner takes no names of indexes; the session's settings leave it little choice."""
        return ""

    def settled(self, table: str, alias: str) -> str:
        """Rows up to the id that was found at the beginning."""
        return f"{alias}.id <= current_setting('ostler.{table}')::bigint"

    def passing_over(self) -> str:
        """What another coordinator is about to take is not waited for."""
        return "FOR UPDATE SKIP LOCKED"

    def reserve(self, connection: Connection, count: int) -> int:
        """A sequence counts, so that nobody waits for anybody's commit. The lock makes several numbers in a row one's own."""
        if not count:
            return 0
        lock = key_of(Lock.NUMBERS)
        driver = _driver(connection)
        try:
            cursor = driver.execute(
                f"SELECT pg_advisory_lock({lock}); SELECT setval('{JOB_NUMBERS}', nextval('{JOB_NUMBERS}') + {count - 1:d});"
                f"SELECT pg_advisory_unlock({lock})", prepare=False,
            )  # fmt: skip
        except psycopg.Error:
            driver.close()  # or the lock would stay for as long as the session
            raise
        cursor.nextset()
        row = cursor.fetchone() or (0,)
        return int(row[0]) - count + 1

    def one_by_one(self, connection: Connection, what: str) -> None:
        """Until the end of the transaction."""
        number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:5], "big")
        _simple(connection, f"SELECT pg_advisory_xact_lock({key_of(Lock.ONE_BY_ONE, number)})")

    def forget_everywhere(self, connection: Connection) -> None:
        """Every transaction that writes looks at this number as it begins, and this one runs alone."""
        _simple(connection, f"SELECT nextval('{MEMOS}')")

    def collided(self, exc: BaseException) -> bool:
        """Also a name that was free a moment ago."""
        return isinstance(getattr(exc, "orig", None) or exc, _COLLISIONS)

    def join(self, wakeups: Wakeups, *, logger: logging.Logger) -> Peers:
        """Two threads and connections of their own."""
        return Peers(self._open, wakeups, cut_silent=self._sessions.cut_silent, logger=logger)

    def translate(self, exc: BaseException) -> OstlerError | None:
        """A server that is away, busy or full as StoreBusy, a value that no column holds as InvalidSpec; None for the rest."""
        if isinstance(exc, UnicodeEncodeError):
            return InvalidSpec(f"a value of the request cannot be stored: {exc}", hint="text is valid Unicode")
        if isinstance(exc, OstlerError):
            return exc
        cause = getattr(exc, "orig", None) or exc  # Core wraps the driver's error
        if not isinstance(cause, psycopg.Error):
            return None
        if isinstance(cause, pg.DataError):
            return InvalidSpec(
                f"a value of the request cannot be stored: {_line(cause)}", hint="numbers have 64 bits, text is valid Unicode"
            )
        if isinstance(cause, pg.InsufficientPrivilege):
            return _forbidden(cause, self.where)
        if isinstance(cause, _PASSING):
            return StoreBusy(
                f"the database {self.where} cannot be used now: {_line(cause)}", retry_after=RETRY_S,
                hint="look at the server, its log and the free space of its disk; the coordinator goes on by itself",
            )  # fmt: skip
        return None

    def lost(self, connection: Connection) -> bool:
        """Whether the server, or what stands between, has cut it."""
        return connection.invalidated or connection.closed or _driver(connection).closed

    def tune(self, connection: Connection) -> None:
        """Sequences, and settings of tables, after they were made, migrated or filled from elsewhere."""
        for table in BUSY_TABLES:
            _simple(connection, f"ALTER TABLE {table} SET ({_TUNED})")
        for table in UNGUESSED:
            # Statistics of an hour ago say what was there then. Without any the plan is always the one that the tests have seen.
            columns = ", ".join(f"ALTER COLUMN {column.name} SET STATISTICS 0" for column in metadata.tables[table].columns)
            _simple(connection, f"ALTER TABLE {table} {columns}")
        for sequence in (JOB_NUMBERS, MEMOS):
            _simple(connection, f"CREATE SEQUENCE IF NOT EXISTS {sequence}")
        for sequence, highest in _HIGHEST.items():
            _simple(
                connection,
                f"SELECT setval('{sequence}', found.highest) FROM (SELECT ({highest}) AS highest) AS found, {sequence} "
                "WHERE found.highest >= last_value",
            )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


# --- how statements and values are spelled -----------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
    return text.replace("%", "%%").replace("?", "%s")


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def _simple(connection: Connection, statements: str) -> None:
    """Without parameters: several statements go in one message and are never prepared."""
    _driver(connection).execute(statements, prepare=False)


def _last(connection: Connection, statements: str) -> int:
    """The last column of what the last one of several statements answers."""
    cursor = _driver(connection).execute(statements, prepare=False)
    while cursor.nextset():
        pass
    row = cursor.fetchone()
    return int(row[-1]) if row else 0


def _told(places: Mapping[str, int]) -> str:
    return "SELECT " + ", ".join(f"set_config('ostler.{table}', '{place:d}', true)" for table, place in places.items())


class _Text(StrDumperUnknown):
    """Text columns take no NUL: what a program printed or a person typed is stored all the same."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _Flag(Dumper):
    """Flags are integers in the tables, as in SQLite."""

    oid = Int8Dumper.oid

    def dump(self, obj: bool) -> Buffer | None:
        return b"1" if obj else b"0"


class _Sum(Loader):
    """A sum of integers, which the server answers as a decimal number."""

    def load(self, data: Buffer) -> int | float:
        text = bytes(data)
        return float(text) if b"." in text else int(text)


def _adapt(connection: psycopg.Connection[Any]) -> None:
    adapters = connection.adapters
    # One type whatever the size: a statement is planned once for each list of types that it is called with.
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_dumper(bool, _Flag)
    adapters.register_dumper(str, _Text)
    adapters.register_loader("numeric", _Sum)


# --- what goes wrong ---------------------------------------------------------------------------------------------------------


def describe(url: str) -> str:
    """A database in words, without its password: "ostler at db.example:5432". Raises InvalidSpec."""
    try:
        said = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message may repeat the text, and with it the password
        raise InvalidSpec(
            "the address of the store is not valid",
            hint="write postgresql://USER@HOST:PORT/DATABASE, or a path to an SQLite file",
        ) from None
    name, host, port = said.get("dbname") or said.get("user") or "", said.get("host") or "", said.get("port") or 5432
    if not host or str(host).startswith("/"):
        return f"{name or 'of the user'} on this machine"
    return f"{name or 'of the user'} at {host}:{port}"


def has_password(url: str) -> bool:
    """Whether a password stands in the address itself."""
    try:
        return bool(conninfo_to_dict(url).get("password"))
    except psycopg.ProgrammingError:
        return False


def _check(connection: psycopg.Connection[Any], where: str) -> None:
    """Raises Rejected for a server that cannot hold our tables."""
    version = connection.info.server_version
    if version < OLDEST * 10_000:
        raise Rejected(
            f"the server of the database {where} is PostgreSQL {version // 10_000}; Ostler needs {OLDEST} or newer",
            hint="upgrade the server, or use another one",
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise Rejected(
            f"the database {where} stores text as {encoding}; Ostler needs UTF8",
            hint="make another one: CREATE DATABASE ostler TEMPLATE template0 ENCODING 'UTF8'",
        )


_REFUSED = (  # what the server or libpq says -> what to do about it
    (r"password authentication failed|no password supplied|fe_sendauth",
     "check user and password; the password may stand in ~/.pgpass (PGPASSFILE), PGPASSWORD, or the `store` of coordinator.yaml"),
    (r'role "[^"]*" does not exist', "make the user: createuser --pwprompt NAME"),
    (r'database "[^"]*" does not exist', "make the database: createdb --owner USER NAME"),
    (r"no pg_hba.conf entry|authentication failed", "allow the user to connect from here: pg_hba.conf on the server"),
    (r"permission denied", "let the user in: GRANT ALL ON DATABASE NAME TO USER"),
    (r"too many|remaining connection slots", "each coordinator needs ten connections: raise max_connections on the server"),
    (r"could not translate host name|failed to resolve host|Name or service not known",
     "check the host's name in the address of the store"),
    (r"certificate|SSL|TLS", "check sslmode, sslrootcert, sslcert and sslkey in the address of the store"),
    (r"invalid (connection option|URI query parameter|port|sslmode|integer value)", "write postgresql://USER@HOST:PORT/DATABASE"),
)  # fmt: skip
_NOWHERE = re.compile("host name|resolve host|Name or service|invalid ")  # nobody was there to let anybody in


def _unreachable(exc: psycopg.Error, where: str) -> OstlerError:
    """Why there is no connection, in one line."""
    said = _line(exc)
    for pattern, hint in _REFUSED:
        if re.search(pattern, said):
            what = "cannot be reached" if _NOWHERE.search(said) else "does not let the coordinator in"
            return Rejected(f"the database {where} {what}: {said}", hint=hint)
    hint = "start the server, or check host and port in the address of the store"
    return StoreBusy(f"the database {where} cannot be reached: {said}", retry_after=RETRY_S, hint=hint)


def _forbidden(exc: psycopg.Error, where: str) -> OstlerError:
    return Rejected(
        f"the database {where} does not let the coordinator work: {_line(exc)}",
        hint="let its user make and own the tables: GRANT ALL ON SCHEMA public TO USER, or ALTER DATABASE NAME OWNER TO USER",
    )


def _line(exc: psycopg.Error) -> str:
    """The driver's words in one line; they name hosts, users and databases, never a password."""
    return " ".join(str(exc.diag.message_primary or exc).split())[:300]
