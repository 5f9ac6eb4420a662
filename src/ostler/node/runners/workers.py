"""The warm workers of a node: started under the keeper, handed tasks, taken over by the next daemon.

A worker's key is `worker/<name>`; its socket, status file, ledger and log lie in `STATE/workers/<name>.*`, its spare workspace among
the others. The daemon learns of a task's end from the worker's message, and of a worker's end from the keeper. Which task a worker had
when it ended tells the status file; how those ended that left no workspace tells the ledger.

Tasks that may wait are handed to a worker a few at a time. What lies behind one that takes long, or whose worker ends, was not begun
and goes to another: the status file and the number behind it tell that for certain (see `worker/serve.py`).
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ostler.model.errors import KeeperUnreachable, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.node import worker as worker_package
from ostler.node.config import NodeConfig
from ostler.node.keeper_client import ExitRecord, KeeperClient, KeeperRefused, Limits, StartSpec
from ostler.node.runners.task_ending import died_of_backstop
from ostler.node.runners.warm_worker import (
    TRIES,
    Died,
    Finished,
    Outcome,
    Run,
    Status,
    Worker,
    begin,
    count_try,
    interpreter,
    last_line,
    reopen,
    resolve,
    share,
    start_spec,
    unreachable,
    unseen,
)
from ostler.node.runners.worker_link import WorkerLink
from ostler.node.sandbox import Host
from ostler.node.trees import remove_tree
from ostler.node.workspace import NO_ROOM, NODES_SPARE, SPARE
from ostler.protocol.ports import Withdrawn

PREFIX = "worker/"
PROGRAM = Path(worker_package.__file__).parent
IDLE_S = 60.0
START_S = 30.0
HELLO_S = 2.0
AHEAD = 16  # tasks that lie at a worker behind the one that it works on
LOOK_S = 0.05  # nothing lies longer behind one task, and no end is waited for longer
_POLL_S = 0.002
_LONGEST_POLL_S = 0.05
_NEXT_KEEPER_S = 0.5
_SUFFIXES = ("sock", "status", "log")
LASTING_S = 0.25  # a task that took so long has a workspace to look into
LEDGER_S = 60.0  # how long a ledger outlives its worker: then what it tells is in the journal


class WorkerPool:
    """Gives tasks to workers; there are as many as tasks at work at one time, so the caller's slots bound them."""

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
        self._line: deque[Run] = deque()  # which no worker has
        self._dispatching = False
        self._births: set[asyncio.Task[None]] = set()
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
            found = [child for child in await self._keeper().list() if child.key.startswith(PREFIX)]
            for child in found:
                if child.running:
                    self._worker(child.key).revoke()  # what lies there is given out anew
            for path in self._folder.glob("*.ledger"):
                self._ended |= self._worker(PREFIX + path.stem).read_ledger()
            await asyncio.gather(*(self._adopt_living(child.key) for child in found if child.running))
            for child in found:
                if child.record is not None:
                    await self._bury(self._worker(child.key), child.record)
            self._sweep()
            self._adopted = True

    def has(self, key: str) -> bool:
        """Whether an attempt is here: in a worker, or in one that died with it."""
        return key in self._runs or key in self._dead or key in self._ended

    async def start(self, key: str, order: dict[str, Any], *, room: int | None = None, first: bool = False) -> Failure | None:
        """Give a task to a worker; None once it is its turn. With a `room` it may lie behind another until then, and be taken back; so
        many tasks are at work at one time. Raises KeeperUnreachable, Withdrawn.
        """
        await self.adopt()
        loop = asyncio.get_running_loop()
        if room is None:
            worker = await self._take()
            if isinstance(worker, Failure):
                return worker
            run = self._runs[key] = Run(key, order, loop.create_future())
            self._hand_over(run, worker)
            worker.flush()
            return None
        run = self._runs[key] = Run(key, order, loop.create_future(), room=room, first=first, begun=loop.create_future())
        if first:
            self._put_back([run])
        else:
            self._line.append(run)
            if len(self._runs) == 1:  # alone: nothing comes that it could go with
                self._dispatch()
            else:
                self._dispatch_soon()
        return None if run.begun is None else await run.begun

    def is_over(self, key: str) -> bool:
        """Whether its end is known."""
        run = self._runs.get(key)
        return run is None or run.outcome.done()

    async def wait(self, key: str, progress: Callable[[float | None, str | None], None]) -> Outcome:
        """Until the task is over. Raises KeeperUnreachable; then it may be waited for again."""
        dead = self._dead.get(key)
        if dead is not None:
            return Died(dead[1])
        if (record := self._ended.get(key)) is not None:
            return Finished(record)
        run = self._runs[key]
        if run.outcome.done() and run.outcome.exception() is None:
            return run.outcome.result()
        run.progress = progress
        reopen(run)
        try:
            return await asyncio.shield(run.outcome)
        except Withdrawn:
            self._runs.pop(key, None)
            raise

    async def kill(self, key: str, *, reason: str, grace_s: float) -> None:
        """End a task, and its worker with it; nothing happens to one that is over. One that was not begun is taken back."""
        run = self._runs.get(key)
        if run is None or run.outcome.done():
            return
        if not self._has_begun(run):
            self._withdraw(run)
            return
        worker = run.worker
        if worker is not None and run.at:
            self._catch_up(worker)
        if worker is None or run not in worker.runs:
            return
        worker.leaving = True
        await self._keeper().kill(worker.key, reason=reason, grace_s=grace_s)

    def withdraw(self, key: str) -> None:
        """Take back a task that waits for its turn."""
        run = self._runs.get(key)
        if run is not None and run.begun is not None and not run.begun.done() and not self._has_begun(run):
            self._withdraw(run)

    async def forget(self, key: str) -> None:
        """The task's outcome is safe elsewhere."""
        self._runs.pop(key, None)
        self._ended.pop(key, None)
        dead = self._dead.pop(key, None)
        if dead is not None:
            await self._discard(dead[0])

    async def close(self) -> None:
        """The daemon ends. Workers finish what they have, and wait for the next one for a while."""
        self._line.clear()
        for timer in self._shelf.values():
            timer.cancel()
        watches = [worker.watch for worker in self._workers.values() if worker.watch is not None]
        for task in (*watches, *self._births):
            task.cancel()
        await asyncio.gather(*watches, *self._births, return_exceptions=True)
        for worker in self._workers.values():
            if worker.look is not None:
                worker.look.cancel()
            if worker.link is not None:
                worker.link.close()

    # --- giving out ---

    async def _take(self) -> Worker | Failure:
        while self._idle:
            worker = self._idle.pop()
            if worker.usable:
                return worker
        return await self._begin()

    def _dispatch_soon(self) -> None:
        """Once for all that come in one turn of the event loop."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._line:
            run = self._line.popleft()
            worker = self._free_for(run) or self._busy_for(run)
            if worker is None:
                self._line.appendleft(run)
                break
            self._hand_over(run, worker)
        for worker in self._workers.values():
            worker.flush()

    def _free_for(self, run: Run) -> Worker | None:
        """One that has nothing to do, if there is room; more are started where there is and none has nothing to do."""
        room = (run.room or 1) - len([1 for worker in self._workers.values() if worker.runs])
        while room > 0 and self._idle:
            worker = self._idle.pop()
            if worker.usable:
                return worker
        for _ in range(min(room, len(self._line) + 1) - len(self._births)):
            birth = asyncio.get_running_loop().create_task(self._bear())
            self._births.add(birth)
            birth.add_done_callback(self._births.discard)
        return None

    def _busy_for(self, run: Run) -> Worker | None:
        """The one with the least before it. A task that is to come first goes before all that was not begun."""
        able = [worker for worker in self._workers.values() if worker.takes_more(2 * AHEAD if run.first else AHEAD)]
        if not able:
            return None
        worker = min(able, key=lambda one: len(one.runs))
        if run.first and not all(one.first for one in list(worker.runs)[1:]):
            self._put_back(worker.take_back())
        return worker

    def _hand_over(self, run: Run, worker: Worker) -> None:
        if not worker.runs:
            worker.heard_at = asyncio.get_running_loop().time()
        worker.hand(run)
        if len(worker.runs) > 1 and worker.look is None:
            self._look_later(worker, LOOK_S)

    def _put_back(self, runs: Iterable[Run]) -> None:
        """To the head of the line, those first that are to come first."""
        self._line = deque(sorted([*runs, *self._line], key=lambda run: not run.first))
        self._dispatch_soon()

    def _take_back(self, worker: Worker) -> None:
        self._put_back(worker.take_back())
        if worker.usable:
            self._rest(worker)

    def _has_begun(self, run: Run) -> bool:
        """For certain; what lies behind others is back in the line then."""
        if run.worker is not None and run in run.worker.runs and run.at:
            self._take_back(run.worker)
        return run not in self._line

    def _withdraw(self, run: Run) -> None:
        self._line.remove(run)
        told = Withdrawn(f"{run.key} was taken back")
        if run.begun is not None and not run.begun.done():
            self._runs.pop(run.key, None)
            run.begun.set_exception(told)
        else:
            run.outcome.set_exception(told)
            run.outcome.exception()  # nobody may be waiting, and that is no mistake

    def _look_later(self, worker: Worker, after_s: float) -> None:
        worker.look = asyncio.get_running_loop().call_later(after_s, self._look, worker)

    def _look(self, worker: Worker) -> None:
        """Whoever has said nothing for a while keeps no end for itself, and nothing that another could begin."""
        worker.look = None
        if len(worker.runs) < 2 or worker.leaving:
            return
        quiet_s = asyncio.get_running_loop().time() - worker.heard_at
        if quiet_s < LOOK_S:
            self._look_later(worker, LOOK_S - quiet_s)
            return
        self._catch_up(worker)
        if len(worker.runs) > 1:
            worker.hangs = True
            self._take_back(worker)

    def _catch_up(self, worker: Worker) -> None:
        """Learn of ends from the disk that were not told yet."""
        status = worker.read_status()
        if status is None:
            return
        ledger = worker.read_ledger()
        for run in list(worker.runs):
            before = 0 < run.at < status.begun or (run.at == status.begun and status.key is None)
            if run.key in ledger or (run.at and before):
                self._over(worker, run, last=False, outcome=Finished(ledger.get(run.key)))

    async def _bear(self) -> None:
        """Start a worker for the line; whoever has been waiting longest is told if there is none to be had."""
        try:
            worker = await self._begin()
        except KeeperUnreachable:
            await asyncio.sleep(_NEXT_KEEPER_S)  # nothing was begun, so nothing is lost
        else:
            if isinstance(worker, Worker):
                self._rest(worker)
            elif self._line:
                run = self._line.popleft()
                if run.begun is None or run.begun.done():
                    resolve(run, worker)
                else:
                    self._runs.pop(run.key, None)
                    run.begun.set_result(worker)
        asyncio.get_running_loop().call_soon(self._dispatch_soon)  # when this task is over

    async def _begin(self) -> Worker | Failure:
        """Start a worker, and wait until it listens."""
        worker = self._worker(PREFIX + secrets.token_hex(6))
        try:
            await self._keeper().start(self._spec(worker))
        except KeeperRefused as exc:
            code = FailureCode.DISK if exc.errno in NO_ROOM else FailureCode.START
            return Failure(code, f"no worker for Python tasks: {exc.message}")
        self._workers[worker.key] = worker
        self._watch(worker)
        if await self._connect(worker, START_S):
            return worker
        if worker.ended is not None and worker.ended.killed == "keeper-lost":  # it fell with its keeper, and no task with it
            return await self._take()
        said = worker.said or last_line(worker.log)
        await self._keeper().kill(worker.key, reason="unused", grace_s=0)
        return _no_worker(said)

    def _spec(self, worker: Worker) -> StartSpec:
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
        return start_spec(worker, argv, level=self._level, host=self._host, limits=self._limits)

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
        worker.heard_at, worker.hangs = asyncio.get_running_loop().time(), False
        if "done" in message:
            key = message["done"].get("key")
            run = next((one for one in worker.runs if one.key == key), None)
            if run is not None:
                self._over(worker, run, last=bool(message.get("last")), outcome=Finished(message["done"]))
        elif "hello" in message:
            worker.hello.set()
            self._greeted(worker, message["hello"])
        elif "progress" in message:
            news = message["progress"]
            for run in worker.runs:
                if run.key == news.get("key") and run.progress is not None:
                    run.progress(news.get("pct"), news.get("note"))
        elif "void" in message:
            self._not_begun(worker, message["void"])
        elif "stale" in message:  # it ends by itself, and the watch gives its tasks to others
            worker.leaving = True

    def _greeted(self, worker: Worker, hello: dict[str, Any]) -> None:
        """By one that may have had a task from an earlier daemon."""
        run = worker.runs[0] if worker.runs else None
        if run is None or not run.adopted or hello.get("busy") == run.key:
            return
        if run.at and hello.get("void") == run.at:
            self._not_begun(worker, run.at)
        else:  # it ended while nobody was connected
            self._over(worker, run, last=False, outcome=Finished(worker.read_ledger().get(run.key)))

    def _not_begun(self, worker: Worker, number: int) -> None:
        """The worker saw that a task was taken back, when that was not known here."""
        for run in [one for one in worker.runs if one.at == number]:
            worker.runs.remove(run)
            if worker.usable:
                self._rest(worker)
            self._put_back([run])
            if run.adopted:
                self._withdraw(run)

    def _over(self, worker: Worker, run: Run, *, last: bool, outcome: Outcome) -> None:
        worker.runs.remove(run)
        if last:
            worker.leaving = True
            self._put_back(worker.runs)
            worker.runs = deque()
        elif worker.runs:
            begin(worker.runs[0])
        elif not worker.leaving:
            self._rest(worker)
        resolve(run, outcome)
        if self._line:
            self._dispatch_soon()

    def _rest(self, worker: Worker) -> None:
        if worker in self._idle:
            return
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
                record = unseen(worker.key)
                await self._bury(worker, record)
                return
            except KeeperUnreachable as exc:
                worker.leaving = True  # its keeper is gone, and it with it; the next keeper has a record of that
                for run in worker.runs:
                    if run.begun is None or run.begun.done():
                        unreachable(run, exc)
                await asyncio.sleep(_NEXT_KEEPER_S)
            else:
                await self._bury(worker, record)
                return

    async def _bury(self, worker: Worker, record: ExitRecord) -> None:
        """A worker ended: its task, if it had begun one, ended with it; what it had not begun goes to another."""
        worker.leaving, worker.ended, worker.said = True, record, last_line(worker.log)
        self._workers.pop(worker.key, None)
        if worker.look is not None:
            worker.look.cancel()
        runs, worker.runs = worker.runs, deque()
        status, ledger = worker.read_status() or Status(), worker.read_ledger()
        if worker.link is not None:
            worker.link.close()
        dead = status.key if status.key not in ledger else None
        if dead is not None:
            own = died_of_backstop(share(record, status), kill_s=status.kill_s)
            self._dead[dead] = (worker.key, own)
        back = []
        for run in runs:
            if dead is not None and run.key == dead:
                resolve(run, Died(own))
            elif run.key in ledger or 0 < run.at <= status.begun:
                resolve(run, Finished(ledger.get(run.key)))
            else:
                back.append(run)
        if dead is None:
            await self._discard(worker.key)
            if back:
                back = count_try(back, record)
        await self._give_anew(back)

    async def _give_anew(self, runs: list[Run]) -> None:
        for run in runs:
            reopen(run)
        self._put_back([run for run in runs if run.room is not None])
        for run in runs:
            if run.room is not None:
                continue
            try:
                worker = await self._take()
            except KeeperUnreachable as exc:
                unreachable(run, exc)
                continue
            if isinstance(worker, Failure):
                resolve(run, worker)
            else:
                self._hand_over(run, worker)
                worker.flush()

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
        status = self._status_of(worker)
        while status.key is None and not connecting.done():
            await asyncio.wait({connecting}, timeout=_LONGEST_POLL_S)
            status = self._status_of(worker)
        connected = await connecting if status.key is None or connecting.done() else False
        if status.key is not None:
            run = Run(
                status.key, {}, asyncio.get_running_loop().create_future(), worker, at=status.begun, tries=TRIES, adopted=True
            )
            self._runs[status.key] = run
            worker.runs.append(run)
        elif connected:
            self._rest(worker)
        else:
            worker.leaving = True
            await self._keeper().kill(key, reason="unused", grace_s=0)

    def _status_of(self, worker: Worker) -> Status:
        """With a key only while that task is at work; the ends of those before it are known then."""
        status = worker.read_status() or Status()
        self._ended |= worker.read_ledger()
        return replace(status, key=None) if status.key in self._ended else status

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
            if path.name.removeprefix(SPARE) not in known and not path.name.startswith(NODES_SPARE):
                with contextlib.suppress(OSError):  # the next daemon comes this way, too
                    remove_tree(path)


def _no_worker(said: str) -> Failure:
    """Why a worker that was started takes no tasks, by its last word. Nothing of a task was begun: where the machine is at fault (it is
    too slow, or its disk is full) another attempt may go well."""
    if not said:
        return Failure(FailureCode.LOST, "the worker for Python tasks did not start, and said nothing")
    full = any(os.strerror(number) in said for number in NO_ROOM)
    return Failure(FailureCode.DISK if full else FailureCode.START, f"the worker for Python tasks did not start: {said}")
