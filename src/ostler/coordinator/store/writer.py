"""The one writer: operations that wait share a transaction, and each is answered after the commit."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from ostler.coordinator.store.database import Database, Peers
from ostler.coordinator.store.tx import Tx
from ostler.coordinator.store.wakeups import Topic, Wakeups
from ostler.model.errors import StoreBusy
from ostler.runtime.clock import Clock

MAX_OPERATIONS = 512  # in one transaction
MAX_BATCH_S = 0.02  # no further operation is begun in a transaction this old, so that its first one is not kept waiting


@dataclass(slots=True)
class Pending:
    """One operation on its way through the writer."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: asyncio.Future[Any]
    durable: bool = True
    value: Any = None
    error: BaseException | None = None
    topics: set[Topic] = field(default_factory=set)
    callbacks: list[Callable[[], None]] = field(default_factory=list)


class Writer:
    """A thread that owns the only connection that writes.

    Each operation of a batch runs between savepoints, so its error undoes that operation alone. The first one needs none: while
    nothing stands before it, its error simply undoes the transaction.
    """

    def __init__(
        self, database: Database, *, clock: Clock, memo: dict[type, Any], wakeups: Wakeups, logger: logging.Logger
    ) -> None:
        self._database = database
        self._clock = clock
        self._memo = memo
        self._wakeups = wakeups
        self._logger = logger
        self._waiting: deque[Pending] = deque()
        self._some = threading.Condition()
        self._closing = False
        self._connection: Connection | None = None
        self.peers: Peers | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, pending: Pending) -> None:
        """Queue an operation; its future resolves in its own event loop after the commit."""
        with self._some:
            if self._closing:
                raise StoreBusy("the store is closed", hint="the coordinator is shutting down")
            self._waiting.append(pending)
            self._some.notify()

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._some:
            self._closing = True
            self._some.notify()
        self._thread.join()

    def _run(self) -> None:
        while (first := self._next()) is not None:
            self._answer(self._commit(first))
        self._drop_connection()

    def _drop_connection(self) -> None:
        """After a failed transaction nobody knows what state the connection is in: the next one gets a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._database.rollback(connection)
            connection.close()

    def _next(self) -> Pending | None:
        with self._some:
            while not self._waiting:
                if self._closing:
                    return None
                self._some.wait()
            return self._waiting.popleft()

    def _commit(self, first: Pending) -> list[Pending]:
        """One transaction: `first` and whatever else waits meanwhile. Answers all that were taken, with value or error."""
        database, batch = self._database, [first]
        until = time.monotonic() + MAX_BATCH_S
        try:
            with self._some:
                durable = first.durable or any(pending.durable for pending in self._waiting)
            connection = self._begin(durable=durable)
            done = self._execute(connection, first, alone=True, durable=durable)
            while self._waiting and len(batch) < MAX_OPERATIONS and time.monotonic() < until:
                if self._waiting[0].durable and not durable:
                    break
                pending = self._waiting.popleft()
                batch.append(pending)
                done = self._execute(connection, pending, alone=not done, durable=durable) or done
            database.commit(connection)
        except BaseException as exc:
            # Nothing of this transaction is durable: whoever believed to be done is told otherwise.
            self._drop_connection()
            for pending in batch:
                if pending.error is None:
                    pending.error = database.translate(exc) or exc
            self._logger.warning("transaction_failed", extra={"attrs": {"operations": len(batch), "error": str(exc)}})
        return batch

    def _begin(self, *, durable: bool) -> Connection:
        """The connection, in a new transaction. One that was cut while nobody used it is replaced, and no caller learns of it."""
        database = self._database
        if self._connection is not None:
            try:
                database.begin(self._connection, write=True, durable=durable)
                return self._connection
            except Exception:
                if not database.lost(self._connection):
                    raise
                self._drop_connection()
        connection = self._connection = database.connect(write=True)
        database.begin(connection, write=True, durable=durable)
        return connection

    def _execute(self, connection: Connection, pending: Pending, *, alone: bool, durable: bool) -> bool:
        """Run one operation; True when it succeeded. Raises where the engine has undone the whole transaction."""
        database = self._database
        if not alone:
            database.savepoint(connection)
        tx = Tx(connection, database, self._clock.now(), self._memo)
        try:
            pending.value = pending.operation(tx, *pending.args, **pending.kwargs)
        except BaseException as exc:
            pending.error = database.translate(exc) or exc
            if alone:
                database.rollback(connection)
                database.begin(connection, write=True, durable=durable)
            elif not database.undo(connection):
                raise
            return False
        if not alone:
            database.release(connection)
        pending.topics, pending.callbacks = tx.topics, tx.callbacks
        return True

    def _answer(self, batch: list[Pending]) -> None:
        if self.peers is not None and (topics := set[Topic]().union(*(pending.topics for pending in batch))):
            self.peers.announce(topics)
        by_loop: dict[asyncio.AbstractEventLoop, list[Pending]] = {}
        for pending in batch:
            by_loop.setdefault(pending.future.get_loop(), []).append(pending)
        for loop, some in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._settle, some)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._logger.info("answer_dropped", extra={"attrs": {"operations": len(some)}})

    def _settle(self, batch: list[Pending]) -> None:
        """In the event loop's thread: answer, then publish; whoever is woken finds the answers given."""
        done = [pending for pending in batch if pending.error is None]
        for pending in batch:
            if pending.future.done():  # its caller gave up; what was done stands
                continue
            if pending.error is None:
                pending.future.set_result(pending.value)
            else:
                pending.future.set_exception(pending.error)
        self._wakeups.publish_all(set().union(*(pending.topics for pending in done)))
        for pending in done:
            for callback in pending.callbacks:
                callback()
