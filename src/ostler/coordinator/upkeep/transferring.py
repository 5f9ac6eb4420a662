"""Every row of one coordinator's database into another one of either kind, in pieces, and read back before it counts."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from ostler.coordinator.store import migrate
from ostler.coordinator.store.database import Database
from ostler.coordinator.store.schema import SCHEMA, metadata
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.upkeep.checksums import Summing, TableSum, batches, sum_of
from ostler.coordinator.upkeep.copying import sync
from ostler.coordinator.upkeep.numbers import last_job, last_number, numbered, set_last_job, set_last_number
from ostler.coordinator.upkeep.progress import Progress, Tell
from ostler.coordinator.upkeep.reading import at_leisure, coordinators_on, is_shared, open_shared, reading, sqlite_path
from ostler.coordinator.upkeep.standing import count_of, name_of
from ostler.model.errors import Conflict, InvalidSpec, NotFound, OstlerError, Rejected

# What of `meta` is about the database itself; the rest says which keys and files those coordinators have that share it.
OWN_META = ("schema", "protocol", "release", "created_at")
_EVERY = 20_000  # rows between two words to whoever waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What was copied from where to where; that both hold the same rows was checked. `replaced` values held the character NUL, which
    PostgreSQL stores in no text, and have U+FFFD instead."""

    source: str
    target: str
    tables: dict[str, TableSum]
    replaced: int

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(one.rows for one in self.tables.values())


def copy_database(source: str, target: str, *, logger: logging.Logger, tell: Tell = lambda _: None) -> Transferred:
    """Copy a database, which stays as it is, into an empty or a new one. No coordinator may run on either.

    All in one transaction (of a file: under another name) that is read back before its commit: one that was interrupted has left an
    empty target, and is made again. Raises Conflict, NotFound, Rejected, UpgradeRequired.
    """
    if name_of(source) == name_of(target):
        raise InvalidSpec("source and target are the same database")
    with reading(source) as connection:  # before a lock is made beside what may be anybody's file
        check_source(connection, source)
    with _held(source), reading(source) as connection:
        check_source(connection, source)
        tables, replaced = into(connection, target, logger=logger, tell=tell)
    return Transferred(source=name_of(source), target=name_of(target), tables=tables, replaced=replaced)


@contextlib.contextmanager
def _held(store: str) -> Iterator[None]:
    """In here no coordinator starts on an SQLite file."""
    path = sqlite_path(store)
    if path is None or not path.exists():
        yield
        return
    database = SqliteDatabase(path)
    try:
        yield
    finally:
        database.close()


def check_source(connection: Connection, store: str) -> None:
    """Raises Rejected for another schema than this release's, Conflict where coordinators run on a server's database."""
    found = migrate.schema_of(connection)
    if found is None:
        raise NotFound(f"there are no tables of a coordinator in {name_of(store)}", hint="name the database that is to be copied")
    if found != SCHEMA:
        raise Rejected(
            f"{name_of(store)} has schema {found}; this release copies schema {SCHEMA} alone",
            hint="`ostler db status` tells what to do",
        )
    if is_shared(connection) and coordinators_on(connection):
        raise Conflict(f"a coordinator runs on the database {name_of(store)}", hint="stop all of them first")


def into(source: Connection, target: str, *, logger: logging.Logger, tell: Tell) -> tuple[dict[str, TableSum], int]:
    """Copy what `source` holds into an empty or a new database; the sums of its tables, and how many values had a NUL replaced."""
    path = sqlite_path(target)
    if path is None:
        return _into_shared(source, target, logger=logger, tell=tell)
    if path.exists():
        raise Conflict(f"there is a database already: {path}", hint="name a file that does not exist yet")
    part = path.with_suffix(".part")  # its lock is that of the file itself
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)
    database = SqliteDatabase(part)
    try:
        migrate.prepare(database, logger=logger)
        with _translated(database), database.connect(write=True) as connection:
            # Nothing of this file counts before its end, so it needs neither a log nor a disk that keeps up with it.
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
            database.begin(connection, write=True)
            found = _rows(source, connection, tell)
            database.commit(connection)
        sync(part)
        part.rename(path)
        sync(path.parent)
    finally:
        database.close()
        part.unlink(missing_ok=True)
    return found


def _into_shared(source: Connection, target: str, *, logger: logging.Logger, tell: Tell) -> tuple[dict[str, TableSum], int]:
    database = open_shared(target)
    try:
        with _translated(database):
            migrate.prepare(database, logger=logger)
            with database.connect(write=True) as connection:
                at_leisure(connection)
                database.begin(connection, write=True)
                try:
                    _refuse_used(connection, target)
                    found = _rows(source, connection, tell)
                except BaseException:
                    database.rollback(connection)
                    raise
                database.commit(connection)
                tell(Progress("statistics"))
                connection.exec_driver_sql("ANALYZE")
    finally:
        database.close()
    return found


@contextlib.contextmanager
def _translated(database: Database) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        error = None if isinstance(exc, OstlerError) else database.translate(exc)
        if error is None:
            raise
        raise error from exc


def refuse_used(target: str, *, logger: logging.Logger) -> None:
    """Raises Conflict where a database of a server holds anything, or coordinators run on it; makes the tables where there are none."""
    database = open_shared(target)
    try:
        with _translated(database):
            migrate.prepare(database, logger=logger)
            with database.connect(write=True) as connection:
                at_leisure(connection)
                _refuse_used(connection, target)
    finally:
        database.close()


def _refuse_used(connection: Connection, target: str) -> None:
    if coordinators_on(connection):
        raise Conflict(f"a coordinator runs on the database {name_of(target)}", hint="stop it first")
    used = [table.name for table in metadata.sorted_tables if table.name != "meta" and count_of(connection, table.name)]
    if used:
        raise Conflict(
            f"the database {name_of(target)} is not empty: it has rows in {', '.join(used[:5])}",
            hint="name another one (createdb NAME), or drop and make this one anew",
        )


def _rows(source: Connection, target: Connection, tell: Tell) -> tuple[dict[str, TableSum], int]:
    target.exec_driver_sql("DELETE FROM meta")
    found, replaced = {}, 0
    for table in metadata.sorted_tables:
        columns, of = [column.name for column in table.columns], count_of(source, table.name)
        summing, cleaning = Summing(columns), _Cleaning(needed=is_shared(target))
        pieces = map(cleaning.clean, batches(source, table.name, columns))
        _write(target, table.name, columns, _watched(pieces, summing, Progress(table.name, 0, of), tell))
        found[table.name], replaced = summing.result, replaced + cleaning.replaced
    for table in metadata.sorted_tables:
        tell(Progress(f"reading back {table.name}"))
        wanted = found[table.name]
        there = sum_of(target, table.name, wanted.columns)
        if there != wanted:
            raise Rejected(
                f"{table.name} does not hold in the copy what it holds in the source ({there.rows} rows of {wanted.rows}); "
                "nothing was kept of it",
                hint="please report it, with both databases' releases",
            )
    names = ", ".join(f"'{one}'" for one in OWN_META)
    target.exec_driver_sql(f"DELETE FROM meta WHERE key NOT IN ({names})")  # noqa: S608 - names of ours
    for name, column in numbered():
        set_last_number(target, name, column, last_number(source, name, column))
    set_last_job(target, last_job(source))
    return found, replaced


class _Cleaning:
    """Text as PostgreSQL stores it."""

    def __init__(self, *, needed: bool) -> None:
        self.needed, self.replaced = needed, 0

    def clean(self, rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        """The same rows where nothing is to be replaced."""
        if not self.needed or not any("\0" in value for row in rows for value in row if type(value) is str):
            return rows
        return [[self._value(value) for value in row] for row in rows]

    def _value(self, value: Any) -> Any:
        if type(value) is str and "\0" in value:
            self.replaced += 1
            return value.replace("\0", "\ufffd")
        return value


def _watched(
    pieces: Iterable[Sequence[Sequence[Any]]], summing: Summing, begin: Progress, tell: Tell
) -> Iterator[Sequence[Sequence[Any]]]:  # fmt: skip
    told = 0
    for rows in pieces:
        summing.add(rows)
        yield rows
        if summing.rows >= told:
            tell(Progress(begin.step, summing.rows, begin.of))
            told = summing.rows + _EVERY


def _write(target: Connection, table: str, columns: Sequence[str], pieces: Iterable[Sequence[Sequence[Any]]]) -> None:
    names = ", ".join(f'"{name}"' for name in columns)
    cursor: Any = target.connection.cursor()
    try:
        if is_shared(target):
            with cursor.copy(f'COPY "{table}" ({names}) FROM STDIN') as copy:
                for rows in pieces:
                    for row in rows:
                        copy.write_row(row)
            return
        marks = ", ".join("?" * len(columns))
        for rows in pieces:
            cursor.executemany(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', rows)  # noqa: S608 - names of ours
    finally:
        cursor.close()
