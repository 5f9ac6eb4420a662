"""The port behind which SQLite and PostgreSQL differ: connections, transactions, a little SQL."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from ostler.coordinator.store.wakeups import Topic, Wakeups
from ostler.model.errors import OstlerError


class Duty(Protocol):
    """Something that one coordinator at a time does: `held` while that is this one."""

    name: str
    changed: Callable[[], None]  # called, from any thread, when `held` is another

    @property
    def held(self) -> bool:
        """Whether it is ours now."""
        ...


class Peers(Protocol):
    """The other coordinators on the same database."""

    def announce(self, topics: Iterable[Topic]) -> None:
        """Wake those who wait for these elsewhere; from any thread."""
        ...

    def seek(self, name: str) -> Duty:
        """A duty, which becomes ours as soon as nobody else has it."""
        ...

    def close(self) -> None:
        """Give up the duties, be silent."""
        ...


class Database(Protocol):
    """One database. The writer has one connection, each reading thread one of its own."""

    engine: Engine
    shared: bool  # whether other coordinators may use it at the same time
    max_operations: int  # in one transaction

    def connect(self, *, write: bool) -> Connection:
        """A connection, set up for writing or for reading alone."""
        ...

    def begin(
        self, connection: Connection, *, write: bool, durable: bool = True, alone: bool = True, settled: bool = False
    ) -> int:
        """Begin a transaction. One that writes is `alone`, or beside others that are not; one that reads may want to know what is
        `settled`. Answers a number that is another one whenever what processes remember of the tables may have changed.
        """
        ...

    def begin_schema(self, connection: Connection) -> None:
        """Begin a transaction that makes or changes tables, alone; whatever is there, or nothing."""
        ...

    def commit(self, connection: Connection) -> None:
        """Make it durable: when this returns, a power cut loses nothing of it."""
        ...

    def make_ready(self, connection: Connection) -> None:
        """Do while nobody waits what the next transaction that must be durable would have to do first."""
        ...

    def rollback(self, connection: Connection) -> None:
        """Undo the transaction; no error where the engine did so already."""
        ...

    def savepoint(self, connection: Connection) -> None:
        """Mark where one more operation begins inside the transaction."""
        ...

    def release(self, connection: Connection) -> None:
        """Keep what was done since the mark."""
        ...

    def undo(self, connection: Connection) -> bool:
        """Undo what was done since the mark; False where the engine has undone the whole transaction by itself."""
        ...

    def sql(self, text: str) -> str:
        """Plain SQL with `?` parameters in the driver's spelling."""
        ...

    def any_of(self, column: str) -> str:
        """SQL of "column is one of the values in the next parameter"."""
        ...

    def array(self, values: Iterable[Any]) -> Any:
        """Values as that one parameter."""
        ...

    def json_text(self, column: str, name: str) -> str:
        """SQL of the text that a JSON object in a column has under this name; null where it has none."""
        ...

    def by_index(self, name: str) -> str:
        """SQL after a table's name (and alias) that makes a query walk this index; empty where the planner cannot be told.

        For the few queries whose cost must never depend on how much is stored: without it SQLite weighs indexes by guesses.
        """
        ...

    def settled(self, table: str, alias: str) -> str:
        """SQL that is true for rows of an append-only table (`events`, `audit`) which no row that commits later can come before.

        Readers that remember the id of the last row they saw depend on it. With one writer every committed row is settled; where
        transactions commit side by side it is what the oldest one still running leaves in order. Holds for a transaction that was
        begun with `settled`, or after `settle`.
        """
        ...

    def settle(self, connection: Connection) -> None:
        """Find out, inside of a transaction that writes, what is settled by now."""
        ...

    def passing_over(self) -> str:
        """SQL at the end of a SELECT that takes the rows for this transaction, without those that another one has taken."""
        ...

    def reserve(self, connection: Connection, count: int) -> int:
        """The first of `count` numbers for jobs, which nobody else ever gets."""
        ...

    def one_by_one(self, connection: Connection, what: str) -> None:
        """Wait until no other transaction that called this for the same is under way."""
        ...

    def forget_everywhere(self, connection: Connection) -> None:
        """Once this transaction is committed, what processes remember of the tables is out of date."""
        ...

    def collided(self, exc: BaseException) -> bool:
        """Whether an error is what others did meanwhile, so that the same operation may succeed alone."""
        ...

    def lost(self, connection: Connection) -> bool:
        """Whether a connection is gone for good: whatever was not committed through it is undone."""
        ...

    def tune(self, connection: Connection) -> None:
        """Settings of tables that the engine keeps, after they were made or migrated; inside the caller's transaction."""
        ...

    def join(self, wakeups: Wakeups, *, logger: logging.Logger) -> Peers | None:
        """Meet the other coordinators on this database; None where there can be none."""
        ...

    def translate(self, exc: BaseException) -> OstlerError | None:
        """The error tree's class for a driver's error; None where it is a bug of ours."""
        ...

    def close(self) -> None:
        """Close all connections and give up the lock."""
        ...
