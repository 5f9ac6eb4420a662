"""The python runner: `tasks.<name>:run(**params)` from the node's own folders, in a process of its own (N7).

A task without limits of its own runs in a warm worker at the levels `none` and `process`. Everything else (bwrap, GPUs, limits)
gets a process for itself: the same program in its one-shot form, started through the sandbox like any command.
"""

# ruff: noqa: PTH104, PTH108, PTH113, PTH122, PTH123 - as in cli.py
import asyncio
import base64
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, Policy, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import NodeConfig
from ostler.node.keeper_client import Limits
from ostler.node.runners import limits
from ostler.node.runners.ending import NO_TRACE, Circumstances, lost
from ostler.node.runners.environment import dangerous, environment, secret_variables
from ostler.node.runners.processes import Command, Processes, tmp_folder
from ostler.node.runners.task_ending import TaskRecord, parse_task_record, read_task_record, task_ending
from ostler.node.runners.warm_worker import Died, interpreter
from ostler.node.runners.watch import Watched, free_mb
from ostler.node.runners.workers import AHEAD, PROGRAM, WorkerPool
from ostler.node.sandbox import needed
from ostler.protocol.ports import AttemptTask, Ending, Progress

TASK_RECORD = "task.json"
ORDER = "order.json"
ORDER_FD = "8"
# In a sandbox only work/ and output/ can be written to; from there it is taken away when the process is gone.
INNER_RECORD = ".ostler-task.json"
BACKSTOP_S = 5.0
PROGRESS_S = 1.0
_LISTED = 10
FOUND_S = 1.0
MAX_FOUND = 1000
_PACKAGE = "tasks"
RESULTS = frozenset({"result.json", "error.json", "result.pkl"})  # what a worker writes, and no task needs a folder for
_USUAL = Policy()


class PythonRunner:
    """A RunnerPort."""

    runner = Runner.PYTHON

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._config = processes.config.runners.python
        self._pool = WorkerPool(
            keeper=lambda: processes.keeper,
            config=processes.config,
            host=processes.host,
            limits=self._worker_limits(),
            logger=processes.logger,
        )
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._killing: set[asyncio.Task[None]] = set()
        self._shown: tuple[str, ...] | None = None
        self._found: dict[str, tuple[bool, float]] = {}
        self._granted: dict[int, tuple[Manifest, NodeConfig, float]] = {}

    def waits(self, manifest: Manifest, *, lent: bool) -> int:
        """What is lent its workspace leaves no trace until it begins, so a few may lie at each worker."""
        return AHEAD if lent else 0

    async def withdraw(self, task: AttemptTask) -> None:
        """Take back what lies at a worker and has not begun."""
        self._pool.withdraw(task.key)

    def refuse(self, manifest: Manifest) -> Failure | None:
        """Why this manifest will not be run here, or None; looked at once a second for all jobs that share it."""
        now, config = time.monotonic(), self._processes.config
        known = self._granted.get(id(manifest))
        if known is not None and known[0] is manifest and known[1] is config and now < known[2]:
            return None
        failure = self._refused(manifest)
        if failure is None:
            if len(self._granted) >= MAX_FOUND:
                self._granted.clear()
            self._granted[id(manifest)] = manifest, config, now + FOUND_S
        return failure

    def _refused(self, manifest: Manifest) -> Failure | None:
        if not self._config.enable:
            return Failure(FailureCode.DENY, "the python runner is switched off on this node (runners.python.enable)")
        if manifest.code is not None:
            if not self._config.by_value:
                return Failure(
                    FailureCode.DENY,
                    "this node runs no functions by value (runners.python.by_value is false); send one by name from its task modules",
                )
        elif not manifest.task or not self._file(module_name(manifest.task)):
            known = self.tasks()
            listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
            return Failure(FailureCode.DENY, f"this node has no task {manifest.task!r}; it has {listed or 'none at all'}")
        if names := dangerous((*manifest.env, *secret_variables(manifest))):
            return Failure(
                FailureCode.DENY, f"a task's manifest may not set {', '.join(names)}: it could make the task run other code"
            )
        return self._processes.refuse(manifest, self.level(manifest))

    def tasks(self) -> list[str]:
        """The tasks in the configured folders, by name; those in packages are not looked for."""
        found = set()
        for place in self._places():
            with contextlib.suppress(OSError):
                for entry in os.scandir(place):
                    stem, ending = os.path.splitext(entry.name)
                    if (ending == ".py" or (not ending and self._file(stem))) and stem.isidentifier() and stem != "__init__":
                        found.add(stem)
        return sorted(found - {_PACKAGE, "__pycache__"})

    def timeout_s(self, manifest: Manifest) -> float:
        """The wall-clock limit of one attempt."""
        return manifest.timeout_s

    def level(self, manifest: Manifest) -> SandboxLevel:
        """The sandbox level of one attempt."""
        return self._processes.level(manifest)

    async def start(self, task: AttemptTask) -> Failure | None:
        """Hand the task to a warm worker, or start a process for it."""
        if not task.lent and (refused := self.refuse(task.manifest)):  # time may have passed since it was asked
            return refused
        if task.gpus or not self._is_warm(task.manifest, task.sandbox):
            return await self._start_cold(task)
        room = task.room if task.lent else None
        failure = await self._pool.start(task.key, self._order(task), room=room, first=task.first)
        if failure is None and not self._pool.is_over(task.key):
            loop = asyncio.get_running_loop()
            self._timers[task.key] = loop.call_later(task.timeout_s, self._time_is_over, task)
        return failure

    async def wait(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        """Until the task is over, and for one in a process of its own, until all of that is gone."""
        await self._pool.adopt()
        if self._pool.has(task.key):
            return await self._wait_warm(task, progress)
        record = read_task_record(f"{task.root}/{TASK_RECORD}", task.key)
        if record is not None and not await self._processes.knows(task):  # it ended in a worker while no daemon was there
            return task_ending(record, None, self._about(task, failed=record.outcome != "done"))
        return await self._wait_cold(task, progress)

    async def alive(self, task: AttemptTask) -> bool:
        """Whether a worker has it, or its end is known."""
        await self._pool.adopt()
        if self._pool.has(task.key) or read_task_record(f"{task.root}/{TASK_RECORD}", task.key) is not None:
            return True
        return await self._processes.knows(task)

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        """End the task; a warm worker ends with it."""
        if self._pool.has(task.key):
            await self._pool.kill(task.key, reason=reason, grace_s=grace_s)
        else:
            await self._processes.kill(task, reason=reason, grace_s=grace_s)

    async def forget(self, *tasks: AttemptTask) -> None:
        """Their outcomes are delivered."""
        others = [task for task in tasks if not self._pool.has(task.key)]
        for task in tasks:
            if task not in others:
                await self._pool.forget(task.key)
        if others:
            await self._processes.forget(*others)

    async def close(self) -> None:
        """The daemon ends; tasks go on."""
        for timer in self._timers.values():
            timer.cancel()
        await self._pool.close()
        await self._processes.close()

    # --- in a warm worker ---

    def lends(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        """A warm worker has a spare workspace for what brings no inputs and declares nothing but results."""
        return (
            not manifest.input
            and not [one for one in manifest.artifacts if not one.optional or one.path not in RESULTS]
            and self._is_warm(manifest, sandbox)
        )

    def _is_warm(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        """A worker has one set of limits and one view of GPUs for all its tasks, so who wants others gets a process; so does who
        gets secrets, of which nothing may be left to the next task."""
        policy = manifest.policy
        return (
            self._config.warm_workers
            and sandbox is self._processes.config.sandbox.level
            and sandbox in (SandboxLevel.NONE, SandboxLevel.PROCESS)
            and manifest.code is None  # what a stranger wrote leaves nothing behind in the process of trusted tasks
            and not manifest.secrets
            and not manifest.requirements.memory_mb
            and (
                policy == _USUAL  # most say nothing
                or policy == Policy(sandbox=policy.sandbox, log_mb=policy.log_mb, disk_mb=policy.disk_mb, grace_s=policy.grace_s)
            )
        )

    def _order(self, task: AttemptTask) -> dict[str, Any]:
        root = task.root
        grace_s = limits.grace_s(task.manifest, self._processes.config.resources)
        order = {
            "key": task.key,
            "task": short_name(task.manifest.task or ""),
            "params": task.manifest.params,
            "env": environment(task, tmp=tmp_folder(task)),
            "kill_s": task.timeout_s + grace_s + BACKSTOP_S,
        }
        if task.lent:
            return {**order, "root": root, "wants": [one.path for one in task.manifest.artifacts]}
        return {
            **order,
            **({} if task.manifest.code is None else {"code": msgspec.to_builtins(task.manifest.code)}),
            "work": f"{root}/work",
            "output": f"{root}/output",
            "record": f"{root}/{TASK_RECORD}",
            "stdout": str(task.log("stdout")),
            "stderr": str(task.log("stderr")),
        }

    async def _wait_warm(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        if watched := not self._pool.is_over(task.key):
            self._watch(task)
        try:
            outcome = await self._pool.wait(task.key, lambda pct, note: progress(Progress(pct=pct, note=note)))
        finally:
            if watched:
                self._processes.watch.remove(task.key)
        if (timer := self._timers.pop(task.key, None)) is not None:
            timer.cancel()
        if isinstance(outcome, Failure):
            return Ending(failure=outcome)
        if isinstance(outcome, Died):
            record = read_task_record(f"{task.root}/{TASK_RECORD}", task.key)
            return task_ending(record, outcome.record, self._about(task, failed=True))
        told = _told(outcome.record, task)
        ending = task_ending(told, None, self._about(task, failed=told is None or told.outcome != "done"))
        if told is None or not told.lent:
            return ending
        wanted = {one.path for one in task.manifest.artifacts}
        return replace(ending, bare=True, contents={name: text.encode() for name, text in told.files.items() if name in wanted})

    def _watch(self, task: AttemptTask) -> None:
        async def end(reason: str) -> None:
            await self._pool.kill(task.key, reason=reason, grace_s=1.0)

        self._processes.watch.add(
            Watched(
                key=task.key,
                root=task.root,
                quota_mb=limits.disk_mb(task.manifest, self._processes.config.resources),
                kill=end,
                log_mb=limits.log_mb(task.manifest, self._processes.config.resources),
            )
        )

    def _time_is_over(self, task: AttemptTask) -> None:
        grace_s = limits.grace_s(task.manifest, self._processes.config.resources)
        killing = asyncio.get_running_loop().create_task(self._pool.kill(task.key, reason="timeout", grace_s=grace_s))
        self._killing.add(killing)
        killing.add_done_callback(self._killed)

    def _killed(self, killing: asyncio.Task[None]) -> None:
        self._killing.discard(killing)
        if not killing.cancelled() and (exc := killing.exception()) is not None:  # the worker's own timer is still there
            self._processes.logger.warning("timeout_not_told", extra={"attrs": {"error": str(exc)}})

    def _worker_limits(self) -> Limits:
        node = self._processes.config.resources
        return Limits(
            nice=node.cpu_nice,
            io_class=node.io_class,
            io_level=node.io_level,
            memory_mb=node.mem_soft_mb,
            processes=node.processes,
            open_files=node.open_files,
            grace_s=node.grace_s,
        )

    # --- in a process of its own ---

    async def _start_cold(self, task: AttemptTask) -> Failure | None:
        root = task.root
        env = environment(task, tmp=tmp_folder(task))
        order = {
            **self._order(task),
            "record": f"{root}/work/{INNER_RECORD}",
            "env": env,
            "kill_s": 0.0,
            "masks": [] if task.confidence is None else [base64.b64encode(one).decode() for one in task.confidence.values],
            "stdout": None,
            "stderr": None,
        }
        written = f"{root if task.confidence is None else task.confidence.folder}/{ORDER}"
        settings = {"once": int(ORDER_FD), "task_paths": [str(path) for path in self._config.task_paths]}
        python = str(interpreter(self._config.venv))
        try:
            _write_order(written, msgspec.json.encode(order))
        except OSError as exc:
            return Failure(FailureCode.DISK, f"the task's order could not be written: {exc.strerror}")
        try:
            return await self._processes.start(
                task,
                Command(
                    argv=(python, "-I", str(PROGRAM), msgspec.json.encode(settings).decode()),
                    env=env,
                    read_only_paths=self._needed(python),
                    open_fds={ORDER_FD: written},
                ),
            )
        finally:
            os.unlink(written)  # it is open where it is needed, and may hold what shall not stay on the disk

    async def _wait_cold(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        inner = f"{task.root}/work/{INNER_RECORD}"
        listening = asyncio.create_task(_follow_progress(f"{inner}.progress", progress))
        try:
            process = await self._processes.wait(task)
        finally:
            listening.cancel()
        if process is None:
            return lost(NO_TRACE)
        record = read_task_record(inner, task.key) or read_task_record(f"{task.root}/{TASK_RECORD}", task.key)
        with contextlib.suppress(OSError):
            os.rename(inner, f"{task.root}/{TASK_RECORD}")
        with contextlib.suppress(OSError):
            os.unlink(f"{inner}.progress")
        return task_ending(record, process, self._processes.circumstances(task, process))

    def _needed(self, python: str) -> tuple[str, ...]:
        if self._shown is None:
            package = str(PROGRAM.parents[1])
            self._shown = (*needed(python), package, *(str(path) for path in self._config.task_paths))
        return self._shown

    # --- what both have in common ---

    def _about(self, task: AttemptTask, *, failed: bool) -> Circumstances:
        return Circumstances(
            timeout_s=task.timeout_s,
            memory_mb=limits.memory_mb(task.manifest, self._processes.config.resources),
            log_mb=limits.log_mb(task.manifest, self._processes.config.resources),
            free_mb=free_mb(task.root) if failed else None,
        )

    def _places(self) -> list[str]:
        return [place for path in self._config.task_paths for place in (f"{path}/{_PACKAGE}", str(path))]

    def _file(self, name: str) -> bool:
        """Whether there is a module of this name; looked for once a second, since many tasks of one name come in a row."""
        now = time.monotonic()
        found, until = self._found.get(name, (False, 0.0))
        if now >= until:
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            found = self._look_for(name)
            self._found[name] = found, now + FOUND_S if found else now
        return found

    def _look_for(self, name: str) -> bool:
        relative = name.replace(".", "/")
        candidates = (f"{place}/{relative}{ending}" for place in self._places() for ending in (".py", "/__init__.py"))
        return any(os.path.isfile(candidate) for candidate in candidates)


def _told(record: dict[str, Any] | None, task: AttemptTask) -> TaskRecord | None:
    if record is None:
        return read_task_record(f"{task.root}/{TASK_RECORD}", task.key)
    return parse_task_record(record, task.key)


def module_name(task: str) -> str:
    """The module of `resize`, `tasks.resize` or `resize:thumbnail`: `resize`."""
    return short_name(task).partition(":")[0]


def short_name(task: str) -> str:
    """`tasks.resize`, as the source writes it, and `resize` name the same task."""
    return task.removeprefix(f"{_PACKAGE}.")


def _write_order(path: str, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        file.write(content)


async def _follow_progress(path: str, progress: Callable[[Progress], None]) -> None:
    """Pass on what a process says of itself in a file that it replaces."""
    last = 0
    while True:
        await asyncio.sleep(PROGRESS_S)
        changed, news = _read_progress(path, last)
        if news is not None:
            progress(news)
        last = changed


def _read_progress(path: str, last: int) -> tuple[int, Progress | None]:
    """The time of the file's last change, and what it says if that is not `last`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return last, None
    with open(handle, "rb") as file:
        changed = os.fstat(handle).st_mtime_ns
        if changed == last:
            return last, None
        try:
            return changed, msgspec.json.decode(file.read(1 << 14), type=Progress)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return changed, None
