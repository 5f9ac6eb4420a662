"""One operation's view of the database: its connection, its time, and what happens once it is durable."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection

from ostler.coordinator.store.beside import NotAlone
from ostler.coordinator.store.database import Database
from ostler.coordinator.store.times import micros
from ostler.coordinator.store.wakeups import Topic

T = TypeVar("T")
Late = Callable[["Tx", list[Any]], None]
Row = tuple[Any, ...]


class Unsettled(Exception):
    """A reader wants to know what is settled: it is begun anew, with that."""


class Tx:
    """What an operation gets. `now` is aware UTC and the same for the whole operation, `at` the same in microseconds for columns.

    Rare statements are SQLAlchemy Core through `connection.execute`. Hot ones are plain SQL through `rows`, `run` and `many`,
    which go to the driver's cursor of that same connection: Core costs about 20 µs a statement, the cursor 2. That SQL uses `?`
    for parameters and only what SQLite and PostgreSQL share; `any_of` and `array` spell the one thing that they do not.
    """

    __slots__ = (
        "_cursor",
        "_database",
        "_memo",
        "_settled",
        "at",
        "binding",
        "callbacks",
        "connection",
        "hushed",
        "is_alone",
        "is_durable",
        "late",
        "now",
        "topics",
    )

    def __init__(
        self, connection: Connection, database: Database, now: datetime, memo: dict[type, Any], *,
        alone: bool = True, durable: bool = True, settled: bool | None = None,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.now = now
        self.at = micros(now)
        self.callbacks: list[Callable[[], None]] = []
        self.topics: set[Topic] = set()
        self.hushed: set[Topic] = set()
        self.is_alone = alone
        self.is_durable = durable  # whether the disk has it before anybody is told
        self.binding = False
        self.late: list[tuple[Late, Any]] = []
        self._settled = settled  # None: this transaction writes, and finds out by itself
        self._database = database
        self._cursor: Any = connection.connection.dbapi_connection.cursor()  # type: ignore[union-attr]
        self._memo = memo

    def rows(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query."""
        self._cursor.execute(self._database.sql(sql), params)
        found: list[Row] = self._cursor.fetchall()
        return found

    def row(self, sql: str, params: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None. All are fetched: an unfinished SELECT keeps the snapshot open past the commit."""
        self._cursor.execute(self._database.sql(sql), params)
        found: list[Row] = self._cursor.fetchall()
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

    def json_text(self, column: str, name: str) -> str:
        """The SQL of the text that a JSON object in a column has under this name; null where it has none."""
        return self._database.json_text(column, name)

    def by_index(self, name: str) -> str:
        """The SQL, after a table's name and alias, that makes a query walk this index."""
        return self._database.by_index(name)

    def settled(self, table: str, alias: str) -> str:
        """The SQL that keeps a reader of `events` or `audit` from rows which one that commits later may come before."""
        if self._settled is None:
            self._database.settle(self.connection)
        elif not self._settled:
            raise Unsettled
        return self._database.settled(table, alias)

    @property
    def gaps(self) -> bool:
        """Whether ids that the database hands out may be missing without a row having been removed: of what was undone."""
        return self._database.shared

    def alone(self) -> None:
        """What follows must see whatever others do, and is done by nobody else meanwhile: where it is not so, the operation is undone
        and run again alone.
        """
        if not self.is_alone:
            raise NotAlone

    def one_by_one(self, what: str) -> None:
        """Go on once no other transaction is under way that called this for the same. Several names: in their order."""
        if not self.is_alone:
            self._database.one_by_one(self.connection, what)

    def passing_over(self) -> str:
        """The SQL at the end of a SELECT that takes the rows for this transaction, without those that another one has taken."""
        return self._database.passing_over()

    def reserve(self, count: int) -> int:
        """The first of `count` numbers for jobs; they grow, and are never used twice: cursors point between them."""
        return self._database.reserve(self.connection, count)

    def forget_everywhere(self) -> None:
        """What this and other processes remember of the tables (memos with a `forget`) is out of date with this commit."""
        self._database.forget_everywhere(self.connection)

    def at_commit(self, act: Late, value: Any) -> None:
        """Have `act(tx, [values])` called once for all operations of this transaction, at its end: for rows that everybody writes to,
        which are locked from then on.
        """
        self.late.append((act, value))

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

    def bind(self) -> None:
        """Of an operation that stands for a topic (`Store.stand`): what it answers must not be forgotten, so it waits for the disk."""
        self.binding = True

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this in the event loop's thread once this operation is durable."""
        self.callbacks.append(callback)
