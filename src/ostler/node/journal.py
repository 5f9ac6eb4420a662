"""The node's journal: what it accepted and how it ended, durable before anybody is told (SQLite, one writer thread, group
commit).

A row is an attempt: written before its ack, filled with its outcome before that is delivered, deleted when the coordinator has
it. So the rows with an outcome are the outbox. Beside them stand a few facts of the node itself.
"""

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ostler.model.errors import StoreBusy
from ostler.model.manifest import InputFile
from ostler.node.leases import Lease
from ostler.protocol import codec
from ostler.protocol.messages import Held, Outcome

SCHEMA = 2
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAX_BATCH = 512
GATHER_S = 0.01  # how long an outcome that nobody waits for may wait for others, so that they share a commit
LAZY_S = 1.0  # how long a deletion may wait for a commit that is due anyway

_TABLES = """
CREATE TABLE IF NOT EXISTS attempts (
    job_id TEXT NOT NULL, attempt INTEGER NOT NULL, spec TEXT NOT NULL, tries INTEGER NOT NULL, lease_s REAL NOT NULL,
    outcome BLOB, inputs BLOB, PRIMARY KEY (job_id, attempt)
);
CREATE TABLE IF NOT EXISTS numbers (job_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_UPGRADES = {1: "ALTER TABLE attempts ADD COLUMN inputs BLOB;"}  # by the schema that was found
_ACCEPT = "INSERT OR IGNORE INTO attempts (job_id, attempt, spec, tries, lease_s, inputs) VALUES (?, ?, ?, ?, ?, ?)"
_AMEND = (
    "INSERT INTO attempts (job_id, attempt, spec, tries, lease_s, outcome) VALUES (?, ?, '', 0, 0, ?)"
    " ON CONFLICT (job_id, attempt) DO UPDATE SET outcome = excluded.outcome"
)
_FINISH = f"{_AMEND} WHERE outcome IS NULL"  # the first outcome stands
_DELETE = "DELETE FROM attempts WHERE job_id = ? AND attempt = ?"
_NUMBER = (
    "INSERT INTO numbers (job_id, attempt) VALUES (?, 1)"
    " ON CONFLICT (job_id) DO UPDATE SET attempt = attempt + 1 RETURNING attempt"
)
_FACT = "INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted attempt: the spec and the inputs as they were signed, and its outcome once there is one."""

    job_id: str
    attempt: int
    spec: str
    tries: int = 0
    lease_s: float = 0.0
    outcome: Outcome | None = None
    inputs: tuple[InputFile, ...] = ()


@dataclass(slots=True)
class _Write:
    """Rows for one statement; `done` resolves after their commit, which waits for the disk where one of those in it must be `durable`."""

    sql: str
    rows: Sequence[tuple[Any, ...]]
    done: asyncio.Future[None] | None = None
    durable: bool = False


class Journal:
    """One file. `load`, `facts` and `put_fact` block for a moment and belong to the start; the rest is for the event loop."""

    def __init__(self, path: Path, *, logger: logging.Logger) -> None:
        """Open or make it. Raises StoreBusy when the file cannot be opened or written, or is of a later release."""
        self.path = path
        self.failure: str | None = None
        self._boot_id = BOOT_ID.read_text().strip()
        self._logger = logger
        self._writes: SimpleQueue[list[_Write] | None] = SimpleQueue()
        self._gathered: list[_Write] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._lazy: deque[tuple[str, int]] = deque()
        self._lock = threading.Lock()
        self._durable = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=16)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-1024")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                self._db.close()
                raise StoreBusy(
                    f"the journal {path} has schema {version}; this release knows {SCHEMA}",
                    hint="run the newer release that wrote it, or drain the node with it first",
                )
            self._db.executescript(f"BEGIN;{_TABLES}{_UPGRADES.get(version, '')}PRAGMA user_version={SCHEMA};COMMIT;")
            path.chmod(0o600)
        except (sqlite3.Error, OSError) as exc:
            raise StoreBusy(f"the journal {path} cannot be opened: {exc}", hint="see to the disk of the node's state") from exc

    def load(self) -> list[Entry]:
        """All attempts that are not delivered, as an earlier life of the daemon left them."""
        rows = self._db.execute("SELECT job_id, attempt, spec, tries, lease_s, outcome, inputs FROM attempts ORDER BY rowid")
        return [
            Entry(
                job_id,
                attempt,
                spec,
                tries,
                lease_s,
                codec.decode(outcome, Outcome) if outcome is not None else None,
                codec.decode(inputs, tuple[InputFile, ...]) if inputs is not None else (),
            )
            for job_id, attempt, spec, tries, lease_s, outcome, inputs in rows
        ]

    def fact(self, name: str) -> bytes | None:
        """One of the node's facts."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def put_fact(self, name: str, value: bytes) -> None:
        """Keep a fact; durable on return."""
        try:
            with self._lock:
                self._sync(durable=True)
                self._db.execute(_FACT, (name, value))
        except sqlite3.Error as exc:
            raise StoreBusy(f"the journal {self.path} cannot be written: {exc}") from exc

    def next_number(self, job_id: str) -> int:
        """The number of one more attempt of a job that a coordinator hands out without any; blocks for one commit."""
        try:
            with self._lock:
                self._sync(durable=True)
                return int(self._db.execute(_NUMBER, (job_id,)).fetchone()[0])
        except sqlite3.Error as exc:
            raise StoreBusy(f"the journal {self.path} cannot be written: {exc}") from exc

    def note_renewal(self, lease: Lease) -> None:
        """Keep when the leases were last renewed, for the next daemon; rides along with what is written anyway."""
        self._hand_over(_Write(_FACT, [("renewal", codec.encode([self._boot_id, lease.sent_at, lease.lease_s]))]))

    def last_renewal(self) -> Lease | None:
        """What an earlier daemon noted; None where the machine was started anew since, and its clock with it."""
        kept = self.fact("renewal")
        if kept is None:
            return None
        boot_id, sent_at, lease_s = codec.decode(kept, tuple[str, float, float])
        return Lease(sent_at, lease_s) if boot_id == self._boot_id else None

    @property
    def rebooted(self) -> bool:
        """Whether an earlier daemon noted a renewal, and the machine was started anew since."""
        return self.fact("renewal") is not None and self.last_renewal() is None

    def start(self) -> None:
        """Begin to write; called in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def accept(self, entries: Iterable[Entry], *, durable: bool = True, here: bool = False) -> asyncio.Future[None]:
        """Resolves when they are durable, or at least outlive this process; raises StoreBusy when they cannot. With `here` that has
        happened on return, unless the writer's thread was at work: for who has nothing that a slow disk would hold up."""
        rows = [(e.job_id, e.attempt, e.spec, e.tries, e.lease_s, codec.encode(e.inputs) if e.inputs else None) for e in entries]
        return self._submit(_ACCEPT, rows, durable=durable, here=here)

    def finish(self, outcome: Outcome, *, gather: bool = False) -> asyncio.Future[None]:
        """Resolves when the outcome is durable, the first one of its attempt; raises StoreBusy when it cannot be. With `gather` it
        waits a moment for others."""
        return self._submit(_FINISH, [(outcome.job_id, outcome.attempt, codec.encode(outcome))], gather=gather)

    def amend(self, outcome: Outcome) -> asyncio.Future[None]:
        """Like `finish`, in the place of an outcome that the coordinator will never take."""
        return self._submit(_AMEND, [(outcome.job_id, outcome.attempt, codec.encode(outcome))])

    def remove(self, attempts: Iterable[Held]) -> None:
        """The coordinator has them, or knows nothing of them. A deletion that a crash loses is only delivered again, so it
        rides along."""
        self._lazy.extend((one.job_id, one.attempt) for one in attempts)
        if self._lazy and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(LAZY_S, self._flush)

    def check(self) -> asyncio.Future[None]:
        """Write something, so that a disk which was mended is noticed; raises StoreBusy when it is not."""
        return self._submit(_FACT, [("checked", b"")])

    async def close(self) -> None:
        """Write what waits and close the file."""
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._hand_over()
            self._writes.put(None)
            await asyncio.to_thread(self._thread.join)
        self._db.close()

    def _flush(self) -> None:
        self._timer = None
        if self._lazy:
            self._hand_over(_Write("", ()))

    def _hand_over(self, *more: _Write) -> None:
        """Have all that was gathered written, and this with it."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if writes := [*self._gathered, *more]:
            self._gathered.clear()
            self._writes.put(writes)

    def _submit(
        self, sql: str, rows: Sequence[tuple[Any, ...]], *, durable: bool = True, gather: bool = False, here: bool = False
    ) -> asyncio.Future[None]:
        if self._loop is None:
            raise RuntimeError("the journal is not started")
        done: asyncio.Future[None] = self._loop.create_future()
        write = _Write(sql, rows, done, durable)
        if here and self._lock.acquire(blocking=False):
            try:
                failure = self._commit([write], ())
            finally:
                self._lock.release()
            _answer([write], failure)
            return done
        if not gather:
            self._hand_over(write)
            return done
        self._gathered.append(write)
        if self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_S, self._hand_over)
        return done

    def _write(self) -> None:
        """The writer thread: what waits goes into one transaction, and is answered after its commit."""
        ended = False
        while not ended:
            batch: list[_Write] = []
            first = self._writes.get()
            while True:
                if first is None:
                    ended = True
                    break
                batch += first
                if len(batch) >= MAX_BATCH or self._writes.empty():
                    break
                first = self._writes.get()
            gone = [self._lazy.popleft() for _ in range(len(self._lazy))]
            with self._lock:
                failure = self._commit(batch, gone)
                if self._writes.empty() and failure is None:
                    with contextlib.suppress(sqlite3.Error):
                        self._sync(durable=False)  # as the next attempt is noted, which then need not say so first
            if failure is not None:
                self._lazy.extend(gone)
            if self._loop is not None and any(one.done is not None for one in batch):
                with contextlib.suppress(RuntimeError):  # the event loop was closed without waiting
                    self._loop.call_soon_threadsafe(_answer, batch, failure)

    def _commit(self, batch: Sequence[_Write], gone: Sequence[tuple[str, int]]) -> str | None:
        """One transaction, under the lock; why it failed."""
        db, durable = self._db, bool([one for one in batch if one.durable])
        try:
            self._sync(durable=durable)
            if len(batch) == 1 and len(batch[0].rows) == 1 and not gone:
                db.execute(batch[0].sql, batch[0].rows[0])  # a transaction of its own
            else:
                db.execute("BEGIN IMMEDIATE")
                for one in batch:
                    if one.rows:
                        db.executemany(one.sql, one.rows)
                if gone:
                    db.executemany(_DELETE, gone)
                db.execute("COMMIT")
        except sqlite3.Error as exc:
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if self.failure is None:
                self._logger.error("journal_failed", extra={"attrs": {"path": str(self.path), "error": str(exc)}})  # noqa: TRY400
            self.failure = f"the journal {self.path} cannot be written: {exc}"
            return self.failure
        if self.failure is not None:
            self._logger.info("journal_mended", extra={"attrs": {"path": str(self.path)}})
            self.failure = None
        return None

    def _sync(self, *, durable: bool) -> None:
        """Whether the next commit waits for the disk; what it did not wait for is there with the next one that does."""
        if durable is not self._durable:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable


def _answer(batch: Sequence[_Write], failure: str | None) -> None:
    for one in batch:
        if one.done is None or one.done.done():
            continue
        if failure is None:
            one.done.set_result(None)
        else:
            one.done.set_exception(StoreBusy(failure, hint="free space on the node"))
