"""The warm workers of a node: started under the keeper, handed one task after another, taken over by the next daemon.

A worker's key is `worker/<name>`; its socket, status file, ledger and log lie in `STATE/workers/<name>.*`, its spare workspace among
the others. The daemon learns of a
task's end from the worker's message, and of a worker's end from the keeper. Which task a worker had when it ended tells the
status file; how those ended that left no workspace tells the ledger.
"""

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ostler.model.errors import KeeperUnreachable, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.model.sandbox import SandboxLevel
from ostler.node import worker as worker_package
from ostler.node.config import NodeConfig
from ostler.node.keeper_client import ExitRecord, KeeperClient, KeeperRefused, Limits, StartSpec
from ostler.node.runners.environment import PATH
from ostler.node.runners.task_ending import died_of_backstop
from ostler.node.runners.worker_link import WorkerLink
from ostler.node.sandbox import Host, plan
from ostler.node.trees import remove_tree
from ostler.node.workspace import NO_ROOM, SPARE

PREFIX = "worker/"
PROGRAM = Path(worker_package.__file__).parent
IDLE_S = 60.0
START_S = 30.0
HELLO_S = 2.0
_POLL_S = 0.002
_LONGEST_POLL_S = 0.05
_NEXT_KEEPER_S = 0.5
_TRIES = 3
_SUFFIXES = ("sock", "status", "log")
LASTING_S = 0.25  # a task that took so long has a workspace to look into
LEDGER_S = 60.0  # how long a ledger outlives its worker: then what it tells is in the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a worker's status file says: the attempt's key, and where clock and counters of the process stood when it began."""

    key: str | None = None
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
    """One attempt in a worker. `outcome` resolves once; KeeperUnreachable in it means: ask again when there is a keeper."""

    key: str
    order: dict[str, Any]
    worker: "Worker"
    outcome: asyncio.Future[Outcome]
    progress: Callable[[float | None, str | None], None] | None = None
    tries: int = 1
    adopted: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One process, as this daemon knows it."""

    key: str
    files: Path
    link: WorkerLink | None = None
    hello: asyncio.Event = field(default_factory=asyncio.Event)
    run: Run | None = None
    leaving: bool = False
    watch: asyncio.Task[None] | None = None
    ended: ExitRecord | None = None

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

    def read_ledger(self) -> dict[str, dict[str, Any]]:
        """Records by the keys of their attempts; what is torn is left out."""
        found = {}
        with contextlib.suppress(OSError):
            for line in self.ledger.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                    record = msgspec.json.decode(line)
                    found[str(record["key"])] = record
        return found

    @property
    def log(self) -> Path:
        """What it says outside of tasks: why it could not start."""
        return self.files.with_name(f"{self.files.name}.log")

    def read_status(self) -> Status:
        """The status; an empty one where the file is missing or being overwritten."""
        try:
            return msgspec.json.decode(self.status.read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError):
            return Status()

    @property
    def usable(self) -> bool:
        """Whether it can be given a task."""
        return self.run is None and not self.leaving and self.link is not None and not self.link.closed


class WorkerPool:
    """Gives tasks to workers; there are as many as tasks at one time, so the caller's slots bound them."""

    def __init__(
        self, *, keeper: Callable[[], KeeperClient], config: NodeConfig, host: Host, limits: Limits, logger: logging.Logger
    ) -> None:
        self._keeper = keeper
        self._config = config.runners.python
        self._level = config.sandbox.level
        self._most = config.resources.max_concurrent_cpu
        self._host = host
        self._limits = limits
        self._logger = logger
        self._folder = config.state / "workers"
        self._root = config.workspace.root
        self._workers: dict[str, Worker] = {}
        self._idle: list[Worker] = []
        self._runs: dict[str, Run] = {}
        self._dead: dict[str, tuple[str, ExitRecord]] = {}
        self._ended: dict[str, dict[str, Any]] = {}  # what the ledgers told that were found
        self._shelf: dict[Path, asyncio.TimerHandle] = {}  # ledgers that are removed soon
        self._adopted = False
        self._adopting = asyncio.Lock()

    async def adopt(self) -> None:
        """Take over what an earlier daemon left: once, before anything is asked of the pool. Raises KeeperUnreachable."""
        if self._adopted:
            return
        async with self._adopting:
            if self._adopted:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._folder.glob("*.ledger"):
                self._ended |= self._worker(PREFIX + path.stem).read_ledger()
            found = [child for child in await self._keeper().list() if child.key.startswith(PREFIX)]
            await asyncio.gather(*(self._adopt_living(child.key) for child in found if child.running))
            for child in found:
                if child.record is not None:
                    await self._bury(self._worker(child.key), child.record)
            self._sweep()
            self._adopted = True

    def has(self, key: str) -> bool:
        """Whether an attempt is here: in a worker, or in one that died with it."""
        return key in self._runs or key in self._dead or key in self._ended

    async def start(self, key: str, order: dict[str, Any]) -> Failure | None:
        """Give a task to a worker; None once it has it. Raises KeeperUnreachable."""
        await self.adopt()
        worker = await self._take()
        if isinstance(worker, Failure):
            return worker
        run = Run(key, order, worker, asyncio.get_running_loop().create_future())
        self._runs[key] = run
        self._hand_over(run, worker)
        return None

    async def wait(self, key: str, progress: Callable[[float | None, str | None], None]) -> Outcome:
        """Until the task is over. Raises KeeperUnreachable; then it may be waited for again."""
        dead = self._dead.get(key)
        if dead is not None:
            return Died(dead[1])
        if (record := self._ended.get(key)) is not None:
            return Finished(record)
        run = self._runs[key]
        run.progress = progress
        _reopen(run)
        return await asyncio.shield(run.outcome)

    async def kill(self, key: str, *, reason: str, grace_s: float) -> None:
        """End a task, and its worker with it; nothing happens to one that is over."""
        run = self._runs.get(key)
        if run is None or run.outcome.done() or run.worker.run is not run:
            return
        run.worker.leaving = True
        await self._keeper().kill(run.worker.key, reason=reason, grace_s=grace_s)

    async def forget(self, key: str) -> None:
        """The task's outcome is safe elsewhere."""
        self._runs.pop(key, None)
        self._ended.pop(key, None)
        dead = self._dead.pop(key, None)
        if dead is not None:
            await self._discard(dead[0])

    async def close(self) -> None:
        """The daemon ends. Workers finish what they have, and wait for the next one for a while."""
        for timer in self._shelf.values():
            timer.cancel()
        watches = [worker.watch for worker in self._workers.values() if worker.watch is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for worker in self._workers.values():
            if worker.link is not None:
                worker.link.close()

    # --- giving out ---

    async def _take(self) -> Worker | Failure:
        while self._idle:
            worker = self._idle.pop()
            if worker.usable:
                return worker
        return await self._begin()

    def _hand_over(self, run: Run, worker: Worker) -> None:
        run.worker, worker.run = worker, run
        if worker.link is not None:
            worker.link.send({"run": run.order})

    async def _begin(self) -> Worker | Failure:
        """Start a worker, and wait until it listens."""
        worker = self._worker(PREFIX + secrets.token_hex(6))
        settings = {
            "socket": str(worker.socket),
            "status": str(worker.status),
            "ledger": str(worker.ledger),
            "spare": str(self._spare(worker)),
            "lasting_s": LASTING_S,
            "task_paths": [str(path) for path in self._config.task_paths],
            "max_tasks": self._config.max_tasks_per_worker,
            "idle_s": IDLE_S,
        }
        argv = (str(interpreter(self._config.venv)), "-I", str(PROGRAM), msgspec.json.encode(settings).decode())
        sandbox = plan(
            self._level if self._level in (SandboxLevel.NONE, SandboxLevel.PROCESS) else SandboxLevel.PROCESS,
            host=self._host,
            workspace=str(self._folder),
            cwd=str(self._folder),
            argv=argv,
            env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": str(self._folder)},
        )
        spec = StartSpec(
            key=worker.key,
            argv=sandbox.argv,
            env=dict(sandbox.env),
            cwd=sandbox.cwd,
            stdout=str(worker.log),
            stderr=str(worker.log),
            no_new_privs=sandbox.no_new_privs,
            seccomp=sandbox.seccomp,
            limits=self._limits,
        )
        try:
            await self._keeper().start(spec)
        except KeeperRefused as exc:
            code = FailureCode.DISK if exc.errno in NO_ROOM else FailureCode.START
            return Failure(code, f"no worker for Python tasks: {exc.message}")
        self._workers[worker.key] = worker
        self._watch(worker)
        if await self._connect(worker, START_S):
            return worker
        if worker.ended is not None and worker.ended.killed == "keeper-lost":  # it fell with its keeper, and no task with it
            return await self._take()
        said = _last_line(worker.log)
        await self._keeper().kill(worker.key, reason="unused", grace_s=0)
        return Failure(FailureCode.START, f"the worker for Python tasks did not start: {said or 'it does not listen'}")

    async def _connect(self, worker: Worker, patience_s: float) -> bool:
        """True once it has said hello; False when it ended or the time is over."""
        loop = asyncio.get_running_loop()
        deadline, poll_s = loop.time() + patience_s, _POLL_S
        while loop.time() < deadline and worker.key in self._workers:
            try:
                worker.link = await WorkerLink.open(worker.socket, lambda message: self._receive(worker, message))
            except OSError:
                await asyncio.sleep(poll_s)
                poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.hello.wait(), max(0.0, deadline - loop.time()))
            return worker.hello.is_set()
        return False

    # --- what workers say ---

    def _receive(self, worker: Worker, message: dict[str, Any]) -> None:
        run = worker.run
        if "hello" in message:
            worker.hello.set()
            if run is not None and run.adopted and message["hello"].get("busy") != run.key:
                self._over(
                    worker, run, last=False, outcome=Finished(worker.read_ledger().get(run.key))
                )  # while nobody was connected
            return
        if run is None:
            return
        if "progress" in message:
            news = message["progress"]
            if news.get("key") == run.key and run.progress is not None:
                run.progress(news.get("pct"), news.get("note"))
        elif "done" in message and message["done"].get("key") == run.key:
            self._over(worker, run, last=bool(message.get("last")), outcome=Finished(message["done"]))
        elif "stale" in message:  # it ends by itself, and the watch gives the task to another
            worker.leaving = True

    def _over(self, worker: Worker, run: Run, *, last: bool, outcome: Outcome) -> None:
        worker.run = None
        if last:
            worker.leaving = True
        elif not worker.leaving:
            self._rest(worker)
        _resolve(run, outcome)

    def _rest(self, worker: Worker) -> None:
        if len(self._idle) < self._most:
            self._idle.append(worker)
        elif worker.link is not None:
            worker.leaving = True
            worker.link.send({"stop": {}})

    # --- the end of workers ---

    def _watch(self, worker: Worker) -> None:
        worker.watch = asyncio.get_running_loop().create_task(self._see_off(worker))

    async def _see_off(self, worker: Worker) -> None:
        while True:
            try:
                record = await self._keeper().wait(worker.key)
            except NotFound:  # a keeper that has lost its memory, and its children with it
                record = _unseen(worker.key)
                await self._bury(worker, record)
                return
            except KeeperUnreachable as exc:
                worker.leaving = True  # its keeper is gone, and it with it; the next keeper has a record of that
                if worker.run is not None:
                    _unreachable(worker.run, exc)
                await asyncio.sleep(_NEXT_KEEPER_S)
            else:
                await self._bury(worker, record)
                return

    async def _bury(self, worker: Worker, record: ExitRecord) -> None:
        """A worker ended: its task, if it had begun one, ended with it; one that it had not begun goes to another."""
        worker.leaving, worker.ended = True, record
        self._workers.pop(worker.key, None)
        run, worker.run = worker.run, None
        status = worker.read_status()
        if worker.link is not None:
            worker.link.close()
        if status.key is not None:
            share = died_of_backstop(_share(record, status), kill_s=status.kill_s)
            self._dead[status.key] = (worker.key, share)
            if run is not None:
                _resolve(run, Died(share))
            return
        if run is not None:
            _reopen(run)
            if record.killed is not None or run.tries >= _TRIES:
                _resolve(run, Died(replace(record, wall_s=0.0)))
            else:
                await self._again(run)
        await self._discard(worker.key)

    async def _again(self, run: Run) -> None:
        run.tries += 1
        try:
            worker = await self._take()
        except KeeperUnreachable as exc:
            _unreachable(run, exc)
            return
        if isinstance(worker, Failure):
            _resolve(run, worker)
        else:
            self._hand_over(run, worker)

    async def _discard(self, key: str) -> None:
        with contextlib.suppress(KeeperUnreachable):  # then it is listed once more, and forgotten by whoever adopts
            await self._keeper().forget(key)
        files = self._worker(key).files
        for suffix in _SUFFIXES:
            files.with_name(f"{files.name}.{suffix}").unlink(missing_ok=True)
        await asyncio.to_thread(remove_tree, self._spare(self._worker(key)))
        self._put_aside(self._worker(key).ledger)

    def _put_aside(self, ledger: Path) -> None:
        def remove() -> None:
            self._shelf.pop(ledger, None)
            ledger.unlink(missing_ok=True)

        if ledger not in self._shelf:
            self._shelf[ledger] = asyncio.get_running_loop().call_later(LEDGER_S, remove)

    def _spare(self, worker: Worker) -> Path:
        return self._root / f"{SPARE}{worker.files.name}"

    # --- adoption ---

    def _worker(self, key: str) -> Worker:
        return Worker(key, self._folder / key.removeprefix(PREFIX))

    async def _adopt_living(self, key: str) -> None:
        """Learn what it does. One with a task does not answer, but its status does; one just sent a task, neither at first."""
        worker = self._workers[key] = self._worker(key)
        self._watch(worker)
        connecting = asyncio.create_task(self._connect(worker, HELLO_S))
        status = worker.read_status()
        while status.key is None and not connecting.done():
            await asyncio.wait({connecting}, timeout=_LONGEST_POLL_S)
            status = worker.read_status()
        connected = await connecting if status.key is None or connecting.done() else False
        if status.key is not None:
            run = Run(status.key, {}, worker, asyncio.get_running_loop().create_future(), tries=_TRIES, adopted=True)
            self._runs[status.key] = worker.run = run
        elif connected:
            self._rest(worker)
        else:
            worker.leaving = True
            await self._keeper().kill(key, reason="unused", grace_s=0)

    def _sweep(self) -> None:
        """Files of workers that nobody knows any more."""
        known = {self._worker(key).files.name for key in self._workers} | {
            self._worker(key).files.name for key, _ in self._dead.values()
        }
        for path in self._folder.iterdir():
            if path.stem in known:
                continue
            if path.suffix == ".ledger":
                self._put_aside(path)
            else:
                path.unlink(missing_ok=True)
        for path in self._root.glob(f"{SPARE}*"):
            if path.name.removeprefix(SPARE) not in known:
                remove_tree(path)


def interpreter(venv: Path | None) -> Path:
    """The Python that runs tasks: the configured venv's, else this one."""
    return venv / "bin" / "python" if venv is not None else Path(sys.executable)


def _reopen(run: Run) -> None:
    """A run whose keeper went away can be waited for again."""
    if run.outcome.done() and run.outcome.exception() is not None:
        run.outcome = asyncio.get_running_loop().create_future()


def _unreachable(run: Run, exc: KeeperUnreachable) -> None:
    if not run.outcome.done():
        run.outcome.set_exception(exc)
        run.outcome.exception()  # nobody may be waiting, and that is no mistake


def _resolve(run: Run, outcome: Outcome) -> None:
    if not run.outcome.done():
        run.outcome.set_result(outcome)


def _share(record: ExitRecord, status: Status) -> ExitRecord:
    """A worker's exit record, less what earlier tasks in it had used."""
    return replace(
        record,
        key=status.key or record.key,
        wall_s=max(0.0, record.wall_s - status.age_s),
        cpu_user_s=max(0.0, record.cpu_user_s - status.cpu_user_s),
        cpu_system_s=max(0.0, record.cpu_system_s - status.cpu_system_s),
        read_bytes=max(0, record.read_bytes - status.read_bytes),
        written_bytes=max(0, record.written_bytes - status.written_bytes),
    )


def _unseen(key: str) -> ExitRecord:
    """For a worker whose end no keeper tells."""
    nothing: dict[str, Any] = dict.fromkeys(("pid", "start_time", "read_bytes", "written_bytes", "leftovers_killed"), 0)
    nothing |= dict.fromkeys(("wall_s", "cpu_user_s", "cpu_system_s", "peak_memory_mb", "started_at", "ended_at"), 0.0)
    return ExitRecord(key=key, boot_id="", exit_code=None, signal=None, killed="keeper-lost", oom=None, **nothing)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace")[-4000:].strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
