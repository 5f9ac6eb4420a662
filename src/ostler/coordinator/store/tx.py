"""One operation's view of the database: its connection, its time, and what happens once it is durable."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection

from ostler.coordinator.store.database import Database
from ostler.coordinator.store.times import micros
from ostler.coordinator.store.wakeups import Topic

T = TypeVar("T")
Row = tuple[Any, ...]


class Tx:
    """What an operation gets. `now` is aware UTC and the same for the whole operation, `at` the same in microseconds for columns.

    Rare statements are SQLAlchemy Core through `connection.execute`. Hot ones are plain SQL through `rows`, `run` and `many`,
    which go to the driver's cursor of that same connection: Core costs about 20 µs a statement, the cursor 2. That SQL uses `?`
    for parameters and only what SQLite and PostgreSQL share; `any_of` and `array` spell the one thing that they do not.
    """

    __slots__ = ("_cursor", "_database", "_memo", "at", "callbacks", "connection", "hushed", "now", "topics")

    def __init__(self, connection: Connection, database: Database, now: datetime, memo: dict[type, Any]) -> None:
        self.connection = connection
        self.now = now
        self.at = micros(now)
        self.callbacks: list[Callable[[], None]] = []
        self.topics: set[Topic] = set()
        self.hushed: set[Topic] = set()
        self._database = database
        self._cursor = connection.connection.cursor()
        self._memo = memo

    def rows(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query."""
        self._cursor.execute(self._database.sql(sql), params)
        return list(self._cursor.fetchall())

    def row(self, sql: str, params: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None. All are fetched: an unfinished SELECT keeps the snapshot open past the commit."""
        found = self.rows(sql, params)
        return found[0] if found else None

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Execute a statement; how many rows it changed."""
        self._cursor.execute(self._database.sql(sql), params)
        return int(self._cursor.rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Execute a statement once per row of parameters; how many rows all of them changed together."""
        self._cursor.executemany(self._database.sql(sql), rows)
        return int(self._cursor.rowcount)

    def any_of(self, column: str) -> str:
        """The SQL of "`column` is one of the values in the next parameter", which is made by `array`."""
        return self._database.any_of(column)

    def array(self, values: Iterable[Any]) -> Any:
        """Values (strings or integers) as the one parameter that `any_of` stands for."""
        return self._database.array(values)

    def by_index(self, name: str) -> str:
        """The SQL, after a table's name and alias, that makes a query walk this index."""
        return self._database.by_index(name)

    def settled(self, alias: str) -> str:
        """The SQL that keeps a reader of an append-only table from rows which one that commits later may come before."""
        return self._database.settled(alias)

    def memo(self, kind: type[T]) -> T:
        """This process's only instance of a cache. It may forget anything at any time, and outlives undone operations."""
        found = self._memo.get(kind)
        if found is None:
            found = self._memo.setdefault(kind, kind())
        instance: T = found
        return instance

    def wake(self, *topics: Topic) -> None:
        """Publish topics once this operation is durable."""
        self.topics.update(topics)

    def hush(self, topic: Topic) -> None:
        """Of an operation that stands for a topic (`Store.stand`): it has left nothing that anybody need be woken for."""
        self.hushed.add(topic)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this in the event loop's thread once this operation is durable."""
        self.callbacks.append(callback)
