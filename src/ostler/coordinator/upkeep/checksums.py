"""What tables hold, as a number of rows and a checksum that does not depend on their order, so that two databases can be compared."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, LargeBinary, inspect

from ostler.coordinator.store.schema import metadata
from ostler.coordinator.upkeep.reading import is_shared

BATCH, FEW = 2000, 100  # rows in memory; the latter of tables that hold bytes
_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSum:
    """One table. `sum` is over the values of `columns`, in that order: a later schema has more of them."""

    columns: tuple[str, ...]
    rows: int
    sum: str


class Summing:
    """Adds rows up: the sum of their hashes modulo 2^128. A row twice counts twice, which exclusive-or would not see."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns, self.rows, self._sum = tuple(columns), 0, 0

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Some more rows, each with its values in the order of the columns."""
        encode, total, count = msgspec.msgpack.encode, self._sum, 0
        for row in rows:
            total += int.from_bytes(hashlib.blake2b(encode(tuple(row)), digest_size=_BYTES).digest())
            count += 1
        self._sum, self.rows = total % 2 ** (8 * _BYTES), self.rows + count

    @property
    def result(self) -> TableSum:
        """All rows so far."""
        return TableSum(columns=self.columns, rows=self.rows, sum=f"{self._sum:0{2 * _BYTES}x}")


def sums_of(connection: Connection) -> dict[str, TableSum]:
    """All tables that this release knows and that are there, with the columns that they have."""
    there = inspect(connection)
    names = set(there.get_table_names())
    columns = {
        table.name: [column["name"] for column in there.get_columns(table.name)]
        for table in metadata.sorted_tables
        if table.name in names
    }
    return {name: sum_of(connection, name, some) for name, some in columns.items()}


def sum_of(connection: Connection, table: str, columns: Sequence[str]) -> TableSum:
    """One table, read once."""
    summing = Summing(columns)
    for rows in batches(connection, table, columns):
        summing.add(rows)
    return summing.result


def batches(connection: Connection, table: str, columns: Sequence[str]) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows of a table, so many at once as memory should hold."""
    names = ", ".join(f'"{name}"' for name in columns)
    size = FEW if any(isinstance(one.type, LargeBinary) for one in metadata.tables[table].columns) else BATCH
    yield from pieces(connection, f'SELECT {names} FROM "{table}"', size)  # noqa: S608 - names of ours


def pieces(connection: Connection, query: str, size: int = BATCH) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows of a query, `size` at once."""
    # The driver's own cursor: what Core makes of a row costs more than reading it.
    cursor = connection.connection.cursor()
    try:
        if not is_shared(connection):
            cursor.execute(query)
            while rows := cursor.fetchmany(size):
                yield rows
            return
        cursor.execute(f"DECLARE reading NO SCROLL CURSOR FOR {query}")  # else the server's whole answer came to this memory
        cursor.execute(fetch := f"FETCH {size} FROM reading")
        while rows := cursor.fetchall():
            yield rows
            cursor.execute(fetch)
        cursor.execute("CLOSE reading")
    finally:
        with suppress(sqlite3.ProgrammingError):  # closed with its connection: whoever read was interrupted
            cursor.close()


def differences(wanted: Mapping[str, TableSum], connection: Connection) -> list[str]:
    """What a database holds otherwise than `wanted` says, one line per table; empty where it is the same."""
    names = set(inspect(connection).get_table_names())
    found = []
    for name, one in wanted.items():
        if name not in names:
            found.append(f"the table {name} is missing")
        elif (other := sum_of(connection, name, one.columns)).rows != one.rows:
            found.append(f"{name} has {other.rows} rows, not {one.rows}")
        elif other.sum != one.sum:
            found.append(f"{name} has other content")
    return found
