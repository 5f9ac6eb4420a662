"""One warm worker as the daemon knows it: its files, what it was handed, and how that is taken back from it."""

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from ostler.model.errors import KeeperUnreachable
from ostler.model.failures import Failure
from ostler.model.sandbox import SandboxLevel
from ostler.node.keeper_client import ExitRecord, Limits, StartSpec
from ostler.node.runners.environment import PATH
from ostler.node.runners.worker_link import WorkerLink
from ostler.node.sandbox import Host, plan
from ostler.node.worker.serve import NUMBER_BYTES, STATUS_BYTES

TRIES = 3
_READS = 20  # of a status that is being overwritten just then


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a worker's status file says: the attempt's key, and where clock and counters of the process stood when it began; `begun` is
    the number of the last order with a number that it began."""

    key: str | None = None
    begun: int = 0
    age_s: float = 0.0
    kill_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A task came to its end, and its worker lived on; `record` is what the worker says of it (None: look at the disk)."""

    record: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Died:
    """A task's process ended under it; the record's figures are the task's own share."""

    record: ExitRecord


Outcome = Finished | Died | Failure


@dataclass(slots=True, eq=False)
class Run:
    """One attempt. `outcome` resolves once; KeeperUnreachable in it means: ask again when there is a keeper.

    With a `room` it stands in line: it goes to a worker while fewer than so many are at work, or behind what one of them has; `begun`
    resolves when it is its turn there. `at` is the number under which it was handed over last, 0 for what cannot be taken back.
    """

    key: str
    order: dict[str, Any]
    outcome: asyncio.Future[Outcome]
    worker: "Worker | None" = None
    room: int | None = None
    first: bool = False
    begun: asyncio.Future[Failure | None] | None = None
    at: int = 0
    progress: Callable[[float | None, str | None], None] | None = None
    tries: int = 1
    adopted: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One process. `runs` is what it was handed and has not told the end of: the first is at work, as far as is known."""

    key: str
    files: Path
    link: WorkerLink | None = None
    hello: asyncio.Event = field(default_factory=asyncio.Event)
    runs: deque[Run] = field(default_factory=deque)
    leaving: bool = False
    hangs: bool = False  # what is at work there takes so long that nothing is put behind it
    heard_at: float = 0.0
    look: asyncio.TimerHandle | None = None
    watch: asyncio.Task[None] | None = None
    ended: ExitRecord | None = None
    said: str = ""  # its last word, once it has ended
    outgoing: list[dict[str, Any]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.files.with_name(f"{self.files.name}.sock")

    @property
    def status(self) -> Path:
        """What it is doing."""
        return self.files.with_name(f"{self.files.name}.status")

    @property
    def ledger(self) -> Path:
        """How tasks ended that left nothing else behind."""
        return self.files.with_name(f"{self.files.name}.ledger")

    @property
    def log(self) -> Path:
        """What it says outside of tasks: why it could not start."""
        return self.files.with_name(f"{self.files.name}.log")

    def read_ledger(self) -> dict[str, dict[str, Any]]:
        """Records by the keys of their attempts; what is torn is left out."""
        found = {}
        with contextlib.suppress(OSError):
            for line in self.ledger.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                    record = msgspec.json.decode(line)
                    found[str(record["key"])] = record
        return found

    def read_status(self) -> Status | None:
        """The status as it is written, which may name a task that the ledger knows as over; None where the file cannot be read."""
        for _ in range(_READS):
            try:
                return msgspec.json.decode(self.status.read_bytes()[:STATUS_BYTES], type=Status)
            except OSError:
                return None
            except msgspec.DecodeError:
                continue
        return None

    @property
    def usable(self) -> bool:
        """Whether it can be given a task."""
        return not self.runs and not self.leaving and self.link is not None and not self.link.closed

    def takes_more(self, ahead: int) -> bool:
        """Whether one more may be put behind what it has, at most `ahead` of them."""
        there = self.link is not None and not self.link.closed and not self.leaving and not self.hangs
        return there and 0 < len(self.runs) <= ahead and self.runs[0].at > 0

    def hand(self, run: Run) -> None:
        """Put it behind what is there; `flush` sends it."""
        run.worker = self
        if run.room is not None:
            run.at = run.order["at"] = _number()
        self.runs.append(run)
        self.outgoing.append({"run": run.order})
        if len(self.runs) == 1:
            begin(run)

    def flush(self) -> None:
        """Send what was handed over, in one piece."""
        if self.outgoing and self.link is not None:
            self.link.send(*self.outgoing)
        self.outgoing = []

    def take_back(self) -> list[Run]:
        """Have nothing more begun there of what can be taken back; what was not begun is the caller's again.

        One that is being begun at this moment counts as begun, and the worker may still tell that it was not.
        """
        if not self.runs or not self.runs[0].at:
            return []
        self.revoke()
        status = self.read_status()
        if status is None:
            return []
        back = [run for run in self.runs if run.at > status.begun]
        self.runs = deque(run for run in self.runs if run.at <= status.begun)
        if back:
            sent = {id(run.order) for run in self.runs}
            self.outgoing = [message for message in self.outgoing if id(message["run"]) in sent]
        for run in self.runs:
            begin(run)
        return back

    def revoke(self) -> None:
        """Write behind the status that nothing may begin any more that was handed over before now."""
        with contextlib.suppress(OSError):
            handle = os.open(self.status, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.pwrite(handle, _number().to_bytes(NUMBER_BYTES, "little"), STATUS_BYTES)
            finally:
                os.close(handle)


def begin(run: Run) -> None:
    """It is its turn."""
    if run.begun is not None and not run.begun.done():
        run.begun.set_result(None)


def reopen(run: Run) -> None:
    """A run whose keeper went away can be waited for again."""
    if run.outcome.done() and isinstance(run.outcome.exception(), KeeperUnreachable):
        run.outcome = asyncio.get_running_loop().create_future()


def unreachable(run: Run, exc: KeeperUnreachable) -> None:
    """Its keeper is gone: whoever waits must ask again."""
    if not run.outcome.done():
        run.outcome.set_exception(exc)
        run.outcome.exception()  # nobody may be waiting, and that is no mistake


def resolve(run: Run, outcome: Outcome) -> None:
    """How it ended; the first word counts."""
    begin(run)
    if not run.outcome.done():
        run.outcome.set_result(outcome)


def share(record: ExitRecord, status: Status) -> ExitRecord:
    """A worker's exit record, less what earlier tasks in it had used."""
    return structs.replace(
        record,
        key=status.key or record.key,
        wall_s=max(0.0, record.wall_s - status.age_s),
        cpu_user_s=max(0.0, record.cpu_user_s - status.cpu_user_s),
        cpu_system_s=max(0.0, record.cpu_system_s - status.cpu_system_s),
        read_bytes=max(0, record.read_bytes - status.read_bytes),
        written_bytes=max(0, record.written_bytes - status.written_bytes),
    )


def unseen(key: str) -> ExitRecord:
    """For a worker whose end no keeper tells."""
    nothing: dict[str, Any] = dict.fromkeys(("pid", "start_time", "read_bytes", "written_bytes", "leftovers_killed"), 0)
    nothing |= dict.fromkeys(("wall_s", "cpu_user_s", "cpu_system_s", "peak_memory_mb", "started_at", "ended_at"), 0.0)
    return ExitRecord(key=key, boot_id="", exit_code=None, signal=None, killed="keeper-lost", oom=None, **nothing)


def last_line(path: Path) -> str:
    """Of a log; empty where there is none."""
    try:
        lines = path.read_text(errors="replace")[-4000:].strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def count_try(runs: list[Run], record: ExitRecord) -> list[Run]:
    """Those that were not begun and have not met too many workers that began nothing; it is the first one that is counted."""
    run = runs[0]
    run.tries += 1
    if record.killed is None and run.tries <= TRIES:
        return runs
    reopen(run)
    resolve(run, Died(structs.replace(record, wall_s=0.0)))
    return runs[1:]


def interpreter(venv: Path | None) -> Path:
    """The Python that runs tasks: the configured venv's, else this one."""
    return venv / "bin" / "python" if venv is not None else Path(sys.executable)


def start_spec(worker: Worker, argv: tuple[str, ...], *, level: SandboxLevel, host: Host, limits: Limits) -> StartSpec:
    """How the keeper starts it: in the folder of its files, with all limits of the node and no environment of the daemon's."""
    folder = str(worker.files.parent)
    sandbox = plan(
        level if level in (SandboxLevel.NONE, SandboxLevel.PROCESS) else SandboxLevel.PROCESS,
        host=host,
        workspace=folder,
        cwd=folder,
        argv=argv,
        env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": folder},
    )
    return StartSpec(
        key=worker.key,
        argv=sandbox.argv,
        env=dict(sandbox.env),
        cwd=sandbox.cwd,
        stdout=str(worker.log),
        stderr=str(worker.log),
        no_new_privs=sandbox.no_new_privs,
        seccomp=sandbox.seccomp,
        limits=limits,
    )


_last = 0


def _number() -> int:
    """Greater than every one before, also of an earlier daemon on this machine: workers do not outlive a boot."""
    global _last  # noqa: PLW0603 - one clock for all workers of this process
    _last = max(_last + 1, time.monotonic_ns())
    return _last
