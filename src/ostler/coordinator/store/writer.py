"""The one writer: operations that wait share a transaction, and each is answered after the commit."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from ostler.coordinator.store.beside import Changed, NotAlone
from ostler.coordinator.store.database import Database, Peers
from ostler.coordinator.store.tx import Late, Tx
from ostler.coordinator.store.wakeups import Topic, Wakeups
from ostler.model.errors import Rejected, StoreBusy
from ostler.runtime.affinity import Followers
from ostler.runtime.clock import Clock
from ostler.runtime.outage import Outage

ABREAST = 8  # of those that stand for one topic, as many are tried in a transaction
MOST_STANDING = 64  # of those that stand for whatever topic; the others are woken behind it
MAX_BATCH_S = 0.02  # no further operation is begun in a transaction this old, so that its first one is not kept waiting


class _Again(Exception):
    pass


_AGAIN = _Again()  # the error of an operation that is to be run once more, alone


@dataclass(slots=True)
class Pending:
    """One operation on its way through the writer."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: asyncio.Future[Any]
    durable: bool = True
    beside: bool = False  # it may run beside the operations of other coordinators, of which there may be some
    value: Any = None
    error: BaseException | None = None
    topics: set[Topic] = field(default_factory=set)
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    hushed: set[Topic] = field(default_factory=set)
    stood: bool = False  # for others' work, which goes on with its answer
    early: bool = False  # answered in front of the commit, where nobody but this process can ask about it


@dataclass(slots=True, eq=False)
class Standing:
    """Operations that wait, each for a topic: it is run behind the operations that publish it, in their transaction, until one answers
    something else than None. So what it does costs no transaction and no way through the event loop of its own.

    `future` is its answer: None once it was withdrawn without one. It does not wait for the disk, unless the operation has said so
    (`Tx.bind`), so it must be something that may be forgotten: whatever is asked for because of it comes through the same writer, behind
    the commit, and learns whether that was done.
    """

    operations: Mapping[Topic, Callable[..., Any]]
    args: tuple[Any, ...]
    future: asyncio.Future[Any]
    running: bool = False
    withdrawn: bool = False


class Writer:
    """A thread that owns the only connection that writes.

    Each operation of a batch runs between savepoints, so its error undoes that operation alone. The first one needs none: while
    nothing stands before it, its error simply undoes the transaction.

    Where other coordinators write too, a batch is of one kind: operations that may run beside others, or those that must run alone
    (`store.beside`). What collides with another coordinator's doing is undone and begins the next batch, alone; nobody learns of it.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        memo: dict[type, Any],
        wakeups: Wakeups,
        followers: Followers,
        logger: logging.Logger,
    ) -> None:
        self._database = database
        self._clock = clock
        self._memo = memo
        self._wakeups = wakeups
        self._followers = followers
        self._logger = logger
        self._outage = Outage("transaction_failed", "transactions_go_on", monotonic=clock.monotonic, logger=logger)
        self._waiting: deque[Pending] = deque()
        self._standing: dict[Topic, dict[Standing, None]] = {}
        self._some = threading.Lock()
        self._bell = threading.Lock()  # released once for each time that the thread sleeps; a condition costs ten times as much
        self._bell.acquire()
        self._asleep = False
        self._closing = False
        self._connection: Connection | None = None
        self._generation = 0
        self.written = 0  # transactions; counted before any of their callers is answered
        self.peers: Peers | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, pending: Pending) -> None:
        """Queue an operation; its future resolves in its own event loop after the commit."""
        with self._some:
            if self._closing:
                raise StoreBusy("the store is closed", hint="the coordinator is shutting down")
            self._waiting.append(pending)
            self._ring()

    def stand(self, standing: Standing) -> None:
        """Keep an operation for whoever publishes its topic; `withdraw` follows."""
        with self._some:
            for topic in standing.operations:
                self._standing.setdefault(topic, {})[standing] = None

    def withdraw(self, standing: Standing) -> None:
        """Run it no more. Where it is being run its answer comes all the same, and what it did stands."""
        with self._some:
            standing.withdrawn = True
            self._forget(standing)
            if standing.running:
                return
        if not standing.future.done():
            standing.future.set_result(None)

    def _forget(self, standing: Standing) -> None:
        for topic in standing.operations:
            line = self._standing.get(topic, {})
            line.pop(standing, None)
            if not line:
                self._standing.pop(topic, None)

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._some:
            self._closing = True
            self._ring()
        self._thread.join()

    def _ring(self) -> None:
        if self._asleep:
            self._asleep = False
            self._bell.release()

    def _run(self) -> None:
        self._followers.join()
        while (first := self._next()) is not None:
            batch = self._commit(first)
            self.written += 1
            self._answer(batch)
            if not self._waiting:
                self._make_ready()
        self._drop_connection()

    def _make_ready(self) -> None:
        if self._connection is not None:
            try:
                self._database.make_ready(self._connection)
            except Exception:  # the next transaction finds out by itself, on a new one
                self._drop_connection()

    def _drop_connection(self) -> None:
        """After a failed transaction nobody knows what state the connection is in: the next one gets a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._database.rollback(connection)
            connection.close()

    def _next(self) -> Pending | None:
        while True:
            with self._some:
                if self._waiting:
                    return self._waiting.popleft()
                if self._closing:
                    return None
                self._asleep = True
            self._bell.acquire()

    def _commit(self, first: Pending) -> list[Pending]:
        """One transaction: `first` and whatever else of its kind waits meanwhile. Answers all that were taken, with value or error."""
        database, batch, late = self._database, [first], list[tuple[Late, Any]]()
        until = time.monotonic() + MAX_BATCH_S
        beside = first.beside
        try:
            with self._some:
                durable = first.durable or any(pending.durable for pending in self._waiting)
            kind = {"durable": durable, "alone": not beside}
            connection = self._begin(**kind)
            done = self._execute(connection, first, late, first=True, **kind)
            while (
                first.error is not _AGAIN and self._waiting and len(batch) < database.max_operations and time.monotonic() < until
            ):
                following = self._waiting[0]
                if (following.durable and not durable) or (database.shared and following.beside is not beside):
                    break
                pending = self._waiting.popleft()
                batch.append(pending)
                done = self._execute(connection, pending, late, first=not done, **kind) or done
                if pending.error is _AGAIN:
                    break
            if self._standing and done:
                self._run_standing(connection, batch, late, **kind)
            self._finish_late(connection, batch, late, alone=not beside)
            if durable and not database.shared and (early := [one for one in batch if one.early and one.error is None]):
                self._answer(early, self._tell)  # while the disk works
            database.commit(connection)
            self._outage.over()
        except BaseException as exc:
            # Whether or not the commit came through is not known where its answer is lost: whoever believed to be done is told to
            # call again, and each operation knows what it did before.
            self._drop_connection()
            self._memo.clear()  # it may know of rows that never came to be, under numbers that are given anew
            for pending in batch:  # what a later one was refused for may be what is undone with it
                if pending.error in (None, _AGAIN) or (pending is not first and isinstance(pending.error, Rejected)):
                    pending.error = database.translate(exc) or exc
            self._outage.failed(operations=len(batch), error=str(exc))
        return self._without_colliding(batch)

    def _without_colliding(self, batch: list[Pending]) -> list[Pending]:
        """The batch without its last operation where that is to be run again: it begins the next one."""
        if batch[-1].error is not _AGAIN:
            return batch
        again = batch.pop()
        again.error, again.beside = None, False
        with self._some:
            self._waiting.appendleft(again)
        return batch

    def _run_standing(
        self, connection: Connection, batch: list[Pending], late: list[tuple[Late, Any]], *, durable: bool, alone: bool
    ) -> None:
        """Run what stands for the topics of this transaction; what has answered joins the batch, as the first: somebody's work waits
        for it."""
        hushed: set[Topic] = set()
        tried = 0
        for topic in {topic for pending in batch if pending.error is None for topic in pending.topics} & self._standing.keys():
            for standing in list(self._standing.get(topic, ()))[:ABREAST]:
                with self._some:
                    if standing.withdrawn or tried >= MOST_STANDING:
                        continue
                    standing.running = True
                tried += 1
                pending = Pending(standing.operations[topic], standing.args, {}, standing.future, stood=True, early=True)
                batch.insert(0, pending)
                self._execute(connection, pending, late, first=False, durable=durable, alone=alone)
                if pending.error is _AGAIN:  # its caller is woken by the topic, and asks anew
                    pending.error = None
                with self._some:
                    if pending.value is None and pending.error is None and not standing.withdrawn:
                        standing.running = False
                        del batch[0]
                    else:  # its answer is on its way, behind the commit, whoever withdraws it meanwhile
                        self._forget(standing)
                hushed |= pending.hushed
                if pending.value is not None and topic in hushed:
                    break
        for pending in batch:
            pending.topics -= hushed

    def _finish_late(self, connection: Connection, batch: list[Pending], late: list[tuple[Late, Any]], *, alone: bool) -> None:
        """What operations left for the end of their transaction, all of a kind at once, the kinds always in the same order."""
        if not late:
            return
        tx = Tx(connection, self._database, self._clock.now(), self._memo, alone=alone)
        for act in sorted({act for act, _ in late}, key=lambda act: act.__name__):
            act(tx, [value for other, value in late if other is act])
        batch[0].topics |= tx.topics

    def _begin(self, *, durable: bool, alone: bool) -> Connection:
        """The connection, in a new transaction. One that was cut while nobody used it is replaced, and no caller learns of it."""
        database = self._database
        connection = self._connection
        if connection is not None:
            try:
                generation = database.begin(connection, write=True, durable=durable, alone=alone)
            except Exception:
                if not database.lost(connection):
                    raise
                self._drop_connection()
                connection = None
        if connection is None:
            connection = self._connection = database.connect(write=True)
            generation = database.begin(connection, write=True, durable=durable, alone=alone)
        if generation != self._generation:
            self._generation = generation
            for memory in list(self._memo.values()):
                if (forget := getattr(memory, "forget", None)) is not None:
                    forget()
        return connection

    def _execute(
        self, connection: Connection, pending: Pending, late: list[tuple[Late, Any]], *, first: bool, durable: bool, alone: bool
    ) -> bool:
        """Run one operation; True when it succeeded. Raises where the engine has undone the whole transaction."""
        database = self._database
        if not first:
            database.savepoint(connection)
        tx = Tx(connection, database, self._clock.now(), self._memo, alone=alone, durable=durable)
        try:
            pending.value = pending.operation(tx, *pending.args, **pending.kwargs)
        except BaseException as exc:
            collided = not alone and (isinstance(exc, NotAlone | Changed) or database.collided(exc))
            pending.error = _AGAIN if collided else database.translate(exc) or exc
            if first:
                database.rollback(connection)
                if not database.lost(connection):
                    database.begin(connection, write=True, durable=durable, alone=alone)
            elif not database.undo(connection):
                raise
            return False
        if not first:
            database.release(connection)
        late += tx.late
        pending.topics, pending.callbacks, pending.hushed = tx.topics, tx.callbacks, tx.hushed
        pending.early = pending.early and not tx.binding
        return True

    def _answer(self, batch: list[Pending], settle: Callable[[list[Pending]], None] | None = None) -> None:
        if self.peers is not None and (topics := set[Topic]().union(*(pending.topics for pending in batch))):
            self.peers.announce(topics)
        by_loop: dict[asyncio.AbstractEventLoop, list[Pending]] = {}
        for pending in batch:
            by_loop.setdefault(pending.future.get_loop(), []).append(pending)
        for loop, some in by_loop.items():
            try:
                loop.call_soon_threadsafe(settle or self._settle, some)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._logger.info("answer_dropped", extra={"attrs": {"operations": len(some)}})

    @staticmethod
    def _tell(batch: list[Pending]) -> None:
        for pending in batch:
            if not pending.future.done():
                pending.future.set_result(pending.value)

    def _settle(self, batch: list[Pending]) -> None:
        """In the event loop's thread: answer, then publish; whoever is woken finds the answers given.

        Also what is not known to have failed is published: to be woken for nothing does no harm. Whoever waits for work has it on its
        way before those are told who brought it.
        """
        if batch[0].stood and not batch[0].future.done() and batch[0].error is None:
            batch[0].future.set_result(batch[0].value)
            batch[0].future.get_loop().call_soon(self._settle, batch)
            return
        for pending in batch:
            if pending.future.done():  # its caller gave up; what was done stands
                continue
            if pending.error is None:
                pending.future.set_result(pending.value)
            else:
                pending.future.set_exception(pending.error)
        self._wakeups.publish_all(set().union(*(pending.topics for pending in batch)))
        for pending in batch:
            for callback in pending.callbacks:
                callback()
