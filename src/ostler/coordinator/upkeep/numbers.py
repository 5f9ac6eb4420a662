"""Numbers that the database engine hands out by itself: ids of events, of the audit log, of pieces of logs."""

from collections.abc import Iterator

from sqlalchemy import Connection

from ostler.coordinator.store.schema import JOB_NUMBERS, metadata
from ostler.coordinator.upkeep.reading import is_shared


def numbered() -> Iterator[tuple[str, str]]:
    """The tables whose rows are numbered by the engine, and the column."""
    for table in metadata.sorted_tables:
        if (column := table.autoincrement_column) is not None:
            yield table.name, column.name


def last_number(connection: Connection, table: str, column: str) -> int:
    """The highest number that was handed out so far, also where its row was deleted since and the engine remembers."""
    [highest] = connection.exec_driver_sql(f'SELECT coalesce(max("{column}"), 0) FROM "{table}"').one()  # noqa: S608 - names of ours
    if is_shared(connection):
        sequence = _sequence(connection, table, column)
        [last, called] = connection.exec_driver_sql(f"SELECT last_value, is_called FROM {sequence}").one()  # noqa: S608
        return max(int(highest), int(last) if called else 0)
    if not metadata.tables[table].dialect_options["sqlite"]["autoincrement"]:
        return int(highest)
    row = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).one_or_none()
    return max(int(highest), 0 if row is None else int(row[0]))


def set_last_number(connection: Connection, table: str, column: str, last: int) -> None:
    """From now on higher ones alone."""
    if last <= 0:
        return
    if is_shared(connection):
        connection.exec_driver_sql(f"SELECT setval('{_sequence(connection, table, column)}', {last})")
    elif metadata.tables[table].dialect_options["sqlite"]["autoincrement"]:
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))


def last_job(connection: Connection) -> int:
    """The highest number of a job that was given out: a sequence has it on a server, a row of `counters` in a file."""
    [highest] = connection.exec_driver_sql("SELECT coalesce(max(seq), 0) FROM jobs").one()
    [counted] = connection.exec_driver_sql("SELECT coalesce(max(next), 1) - 1 FROM counters WHERE name = 'jobs'").one()
    drawn = 0
    if is_shared(connection):
        [last, called] = connection.exec_driver_sql(f"SELECT last_value, is_called FROM {JOB_NUMBERS}").one()  # noqa: S608
        drawn = int(last) if called else 0
    return max(int(highest), int(counted), drawn)


def set_last_job(connection: Connection, last: int) -> None:
    """From now on higher ones alone. In a file they go on behind the jobs that there are, where no row says otherwise."""
    if last <= 0:
        return
    if is_shared(connection):
        connection.exec_driver_sql(f"SELECT setval('{JOB_NUMBERS}', {last})")
    elif last > last_job(connection):
        connection.exec_driver_sql("DELETE FROM counters WHERE name = 'jobs'")
        connection.exec_driver_sql(f"INSERT INTO counters (name, next) VALUES ('jobs', {last + 1})")  # noqa: S608 - a number


def _sequence(connection: Connection, table: str, column: str) -> str:
    return str(connection.exec_driver_sql(f"SELECT pg_get_serial_sequence('{table}', '{column}')").scalar_one())
