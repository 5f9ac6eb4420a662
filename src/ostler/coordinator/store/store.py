"""The store: durable writes through one thread, consistent reads beside it."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from ostler.coordinator.store.beside import runs_beside
from ostler.coordinator.store.database import Database, Duty, Peers
from ostler.coordinator.store.migrate import prepare
from ostler.coordinator.store.sqlite import SqliteDatabase
from ostler.coordinator.store.tx import Tx, Unsettled
from ostler.coordinator.store.wakeups import Topic, Wakeups
from ostler.coordinator.store.writer import Pending, Standing, Writer
from ostler.model.errors import InvalidSpec, StoreBusy
from ostler.runtime.affinity import Followers
from ostler.runtime.clock import Clock, SystemClock

P = ParamSpec("P")
T = TypeVar("T")

READERS = 2
MAX_SETTLING = 100


class Store:
    """Runs operations, functions whose first argument is a `Tx`, and knows nothing of what they do."""

    def __init__(self, database: Database, *, clock: Clock, logger: logging.Logger) -> None:
        self.wakeups = Wakeups()
        self._database = database
        self._clock = clock
        self._memo: dict[type, Any] = {}
        self._writing, self._reads = Followers(), Followers()
        self._writer = Writer(
            database, clock=clock, memo=self._memo, wakeups=self.wakeups, followers=self._writing, logger=logger
        )
        self._peers: Peers | None = None
        self._logger = logger
        self._asked: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._answer_reads, name=f"store-reader-{number}", daemon=True) for number in range(READERS)
        ]
        for reader in self._readers:
            reader.start()
        self._reading = threading.local()
        self._connections: list[Connection] = []
        self._settling: set[Callable[..., Any]] = set()
        self._closed = False

    @classmethod
    def open(cls, url_or_path: str | Path, *, logger: logging.Logger, clock: Clock | None = None) -> "Store":
        """Open, make or migrate a database.

        Raises Conflict where another coordinator has it, UpgradeRequired where its schema is newer than this release, Rejected
        where it is not Ostler's, StoreBusy where the disk does not let us.
        """
        database = _database(str(url_or_path))
        try:
            prepare(database, logger=logger)
            return cls(database, clock=clock or SystemClock(), logger=logger)
        except BaseException as exc:
            database.close()
            if error := database.translate(exc):
                raise error from exc
            raise

    @property
    def shared(self) -> bool:
        """Whether other coordinators may use the same database."""
        return self._database.shared

    @property
    def written(self) -> int:
        """How many transactions this process has written so far: where it is the same as before, and nobody else writes, all is as it
        was."""
        return self._writer.written

    def join(self) -> None:
        """Meet them: from now on wake-ups go both ways, and duties are sought."""
        self._peers = self._database.join(self.wakeups, logger=self._logger)
        self._writer.peers = self._peers

    def seek(self, duty: str) -> Duty | None:
        """Something that only one coordinator at a time is to do; None where there is but one."""
        return None if self._peers is None else self._peers.seek(duty)

    async def write(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation in the writer; answers (or raises its error) after the commit. Its error undoes it and it alone."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writing.follow()
        self._writer.put(Pending(operation, args, kwargs, future, beside=self._database.shared and runs_beside(operation, args)))
        return await future

    async def write_lazily(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for what may be forgotten in a power cut: answered after the commit, which is not waited for by the disk.

        It outlives the coordinator all the same, and is durable with whatever is written after it.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writing.follow()
        self._writer.put(
            Pending(operation, args, kwargs, future, durable=False, beside=self._database.shared and runs_beside(operation, args))
        )
        return await future

    def stand(self, topic: Topic, operation: Callable[..., object | None], *args: object) -> Standing:
        """Have an operation run behind whatever publishes this topic, in its transaction, until it answers something (or raises).

        `withdraw` follows in any case. Its answer need not wait for the disk (`Standing`). It is a short cut: who waits is woken by the
        topic as well, unless the operation has hushed it.
        """
        return self.stand_for({topic: operation}, *args)

    def stand_for(self, operations: Mapping[Topic, Callable[..., object | None]], *args: object) -> Standing:
        """The same for several topics, each with its operation; all are given the same arguments, and the first answer counts."""
        standing = Standing(operations, args, asyncio.get_running_loop().create_future())
        self._writer.stand(standing)
        return standing

    def withdraw(self, standing: Standing) -> None:
        """Let it stand no longer; its future is, or comes to be, what it answered, else None."""
        self._writer.withdraw(standing)

    async def read(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that only reads, in one snapshot that holds everything answered so far."""
        if self._closed:
            raise StoreBusy("the store is closed", hint="the coordinator is shutting down")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._reads.follow()
        self._asked.put((future, partial(self._read, operation, *args, **kwargs)))  # an executor costs three times as much
        return await future

    def close(self) -> None:
        """Finish what waits, close everything; from any thread. Whoever sleeps on `wakeups` is woken by their owner."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        if self._peers is not None:
            self._peers.close()
        for _ in self._readers:
            self._asked.put(None)
        for reader in self._readers:
            reader.join()
        for connection in self._connections:
            connection.close()
        self._database.close()

    def _answer_reads(self) -> None:
        """What a reader does, until there is nothing more to read."""
        self._reads.join()
        while (asked := self._asked.get()) is not None:
            future, read = asked
            value, error = None, None
            if future.cancelled():  # its caller gave up before it was begun
                continue
            try:
                value = read()
            except BaseException as exc:
                error = exc
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_settle, future, value, error)
            del asked, future, read, value, error  # nothing is kept alive while nobody asks

    def _read(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        database, connection = self._database, self._reading_connection()
        try:
            try:
                if connection is not None:
                    return self._read_on(connection, operation, *args, **kwargs)
            except Exception:
                if connection is None or not database.lost(connection):
                    raise
                self._forget(connection)  # it was cut, perhaps long ago: once more on another one
            connection = self._reading.connection = database.connect(write=False)
            self._connections.append(connection)
            return self._read_on(connection, operation, *args, **kwargs)
        except Exception as exc:
            if error := database.translate(exc):
                raise error from exc
            raise

    def _reading_connection(self) -> Connection | None:
        found: Connection | None = getattr(self._reading, "connection", None)
        return found

    def _forget(self, connection: Connection) -> None:
        self._reading.connection = None
        self._connections.remove(connection)
        connection.close()

    def _read_on(
        self, connection: Connection, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One snapshot. An operation that turns out to want what is settled is begun anew with that, and then known for it."""
        database, settled = self._database, not self._database.shared or operation in self._settling
        while True:
            database.begin(connection, write=False, settled=settled)
            try:
                return operation(Tx(connection, database, self._clock.now(), self._memo, settled=settled), *args, **kwargs)
            except Unsettled:
                settled = True
                if len(self._settling) < MAX_SETTLING:
                    self._settling.add(operation)
            finally:
                database.rollback(connection)


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _database(url_or_path: str) -> Database:
    scheme, separator, _ = url_or_path.partition("://")
    if not separator:
        return SqliteDatabase(Path(url_or_path).absolute())
    if scheme == "sqlite":
        return SqliteDatabase(Path(url_or_path.removeprefix("sqlite:///")).absolute())
    if scheme in {"postgresql", "postgres"}:
        # 20 MB that a coordinator on SQLite does without.
        from ostler.coordinator.store.postgres import PostgresDatabase

        return PostgresDatabase(url_or_path)
    raise InvalidSpec(
        f"stores of the kind {scheme!r} are not supported",
        hint="write postgresql://USER@HOST:PORT/DATABASE, or a path to an SQLite file",
    )
