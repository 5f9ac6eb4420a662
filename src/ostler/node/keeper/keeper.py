"""The keeper itself: starts attempts, watches what they may use, kills their trees, records how they ended.

It knows no sockets: `server` hands it requests, calls `reap` when a child ended and `look` when a time is due.
"""

import os
import time

from ostler.node.keeper import kernel, proc, wire
from ostler.node.keeper.archive import Archive, child
from ostler.node.keeper.attempt import NEVER, Attempt, End, wipe
from ostler.node.keeper.cgroups import CgroupError, Cgroups, Group, remove
from ostler.node.keeper.journal import Journal
from ostler.node.keeper.opening import Openings, unenforced_limits
from ostler.node.keeper.requests import Kill, Refusal, Start
from ostler.node.keeper.spawn import Birth, SpawnError, begin, is_full
from ostler.node.keeper.tree import KEEPER_MARKER, MARKER, GroupTree, Orphans, WalkedTree, send

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable, Iterable

_LOG_GRACE_S = 1.0
_TREE_EVERY_S = 1.0
_AGAIN_S = 0.05
_WRAPPED_LEAVE_S = 0.2
_AFTER_BUG_S = 1.0
_GIVE_UP_S = 10.0
_STOP_GRACE_S = 20.0
_REPAIR_EVERY_S = 0.5


class _Beginning:
    """An attempt whose program does not execute yet; `answer` is told what became of it."""

    __slots__ = ("answer", "began", "birth", "group", "logs", "request", "start_time", "started_at")

    def __init__(
        self,
        request: Start,
        birth: Birth,
        group: Group | None,
        *,
        logs: list[int],
        started_at: float,
        began: float,
        start_time: int,
        answer: "Callable[[dict[str, object] | Exception], None]",
    ) -> None:
        self.request = request
        self.birth = birth
        self.group = group
        self.logs = logs
        self.started_at = started_at
        self.began = began
        self.start_time = start_time
        self.answer = answer


class Keeper:
    """The attempts of one node. `publish` is given each exit event as a line of JSON, after the record was written."""

    def __init__(
        self,
        *,
        boot_id: str,
        keeper_id: str,
        journal: Journal,
        cgroups: Cgroups,
        publish: "Callable[[str], None]",
        log: "Callable[[str, dict[str, object]], None]",
    ) -> None:
        self.next_look = NEVER
        self.stopping = False
        self._boot_id = boot_id
        self._keeper_id = keeper_id.encode()
        self._journal = journal
        self._cgroups = cgroups
        self._publish = publish
        self._log = log
        self._running: dict[str, Attempt] = {}
        self._beginning: dict[int, _Beginning] = {}  # by the child's pid
        self.roomed = 0  # attempts not over that were started with a room
        self._archive = Archive(journal, log)
        self._roots: dict[int, Attempt] = {}
        self._owners: dict[int, Attempt] = {}
        self._touched: dict[str, Attempt] = {}
        self._orphans = Orphans(self._keeper_id)
        self._openings = Openings()
        self._doomed: list[str] = []
        self._repair = NEVER

    @property
    def running(self) -> int:
        """How many attempts are not over."""
        return len(self._running) + len(self._beginning)

    @property
    def beginning(self) -> bool:
        """Whether there are any of which `see_births` will tell, when their programs execute."""
        return bool(self._beginning)

    # requests

    def start(self, request: Start, answer: "Callable[[dict[str, object] | Exception], None]") -> None:
        """Start an attempt. `answer` is given the reply once its program executes, in this call or a later one, or a Refusal, and then
        nothing of it runs (code `state`: it is killed, and that recorded). Raises Refusal where that is known at once."""
        if self.stopping:
            raise Refusal("stopping", "the keeper is shutting down")
        if self._is_running(request.key):
            raise Refusal("exists", f"{request.key} is running already")
        if is_full():
            self.see_births()
            if is_full() and self._beginning:
                self._born(next(iter(self._beginning.values())))  # the oldest: it does not take long any more
        files = self._openings.open(request)
        group: Group | None = None
        try:
            group = self._make_group(request)
            program = self._openings.program(request, files, group)
            program.env[MARKER] = request.key.encode()
            program.env[KEEPER_MARKER] = self._keeper_id
            started_at, began = time.time(), time.monotonic()
            ticks = proc.ticks()
            birth = begin(program)
            # it was made in between; asking the kernel is only worth it where that leaves a doubt
            start_time = ticks if proc.ticks() == ticks else proc.start_time(birth.pid)
            logs = files.take_logs() if request.limits.log_mb is not None else []
        except SpawnError as error:
            self._drop_group(group)
            raise _not_started(request, error) from None
        except BaseException:
            self._drop_group(group)
            raise
        finally:
            files.close()
            if group is not None and not group.plain:
                group.shut()
        self._orphans.roots.add(birth.pid)
        self.roomed += request.room is not None
        self._beginning[birth.pid] = _Beginning(
            request, birth, group, logs=logs, started_at=started_at, began=began, start_time=start_time, answer=answer
        )

    def _is_running(self, key: str) -> bool:
        return key in self._running or (bool(self._beginning) and any(one.request.key == key for one in self._beginning.values()))

    def see_births(self, *, wait: bool = False) -> None:
        """Take in those whose programs execute by now, and those that could not; with `wait`, all."""
        now = time.monotonic()
        for one in list(self._beginning.values()):
            if wait or one.birth.over(now):
                self._born(one)

    def _born(self, one: _Beginning) -> None:
        del self._beginning[one.birth.pid]
        try:
            reply = self._take_in(one)
        except Exception as error:  # a mistake in one must not end the parent of all others
            one.answer(error)
        else:
            one.answer(reply)

    def _take_in(self, one: _Beginning) -> dict[str, object]:
        request, group, pid = one.request, one.group, one.birth.pid
        try:
            one.birth.settle()
        except SpawnError as error:
            self.roomed -= request.room is not None
            self._orphans.roots.discard(pid)
            for descriptor in one.logs:
                os.close(descriptor)
            self._drop_group(group)
            raise _not_started(request, error) from None
        tree = WalkedTree(request.key, pid, one.start_time, self._orphans) if group is None else GroupTree(group, pid)
        attempt = Attempt(
            key=request.key,
            pid=pid,
            start_time=one.start_time,
            started_at=one.started_at,
            began=one.began,
            limits=request.limits,
            record=request.record,
            wipe=request.wipe,
            wrapper=request.wrapper,
            hasty=request.hasty,
            group=group,
            tree=tree,
            log_files=one.logs,
            roomed=request.room is not None,
        )
        self._running[request.key] = self._roots[pid] = attempt
        self._archive.drop(request.key)
        attempt.look = attempt.next_look()
        self.next_look = min(self.next_look, attempt.look)
        self._remember(attempt)
        reply: dict[str, object] = {"pid": pid, "start_time": one.start_time}
        unenforced = unenforced_limits(request, group)
        if unenforced:
            reply["unenforced"] = unenforced
        return reply

    def kill(self, request: Kill) -> dict[str, object]:
        """End an attempt with SIGTERM now and SIGKILL after the grace; one that is over stays as it is."""
        for one in list(self._beginning.values()):
            if one.request.key == request.key:
                self._born(one)
        attempt = self._running.get(request.key)
        if attempt is None:
            if request.key in self._archive:
                return {"running": False}
            raise Refusal("not_found", f"no attempt {request.key} here")
        grace_s = attempt.limits.grace_s if request.grace_s is None else request.grace_s
        self._terminate(attempt, request.reason, grace_s, time.monotonic())
        return {"running": True}

    def children(self) -> str:
        """All attempts that run or are not forgotten, as JSON."""
        self.see_births(wait=True)
        running = [child(key, one.pid, one.start_time, one.started_at, None) for key, one in self._running.items()]
        return "[" + ",".join(running + self._archive.children()) + "]"

    def forget(self, keys: "Iterable[str]") -> dict[str, object]:
        """Drop attempts that are over; one that is unknown is forgotten already, and one that runs is refused when the others are gone."""
        running = None
        for key in keys:
            if self._is_running(key):
                running = key
            else:
                self._archive.forget(key)
        if running is not None:
            raise Refusal("exists", f"{running} is still running")
        return {}

    def stop(self) -> None:
        """Start nothing more and end all attempts; the second call does not wait any longer."""
        self.see_births(wait=True)
        now = time.monotonic()
        for attempt in list(self._running.values()):
            grace_s = 0.0 if self.stopping else min(attempt.limits.grace_s, _STOP_GRACE_S)
            self._terminate(attempt, "shutdown", grace_s, now)
        self.stopping = True

    # what a killed keeper left

    def take_over(self, records: "Iterable[dict[str, object]]", new: dict[str, str]) -> None:
        """List the ended attempts of the keeper before this one; `new` is key → record file for those never written."""
        for record in records:
            key = str(record["key"])
            if key in new:
                self._archive.add(record, new[key], time.monotonic())
            else:
                self._archive.restore(record, wire.encode(record))
        self._rewrite_journal()
        self._mend_soon()

    # what happens by itself

    def reap(self) -> None:
        """Take in all children that ended, and see to the trees that they were part of."""
        self._collect()
        any_touched = bool(self._touched)
        now = time.monotonic()
        while self._touched:
            _, attempt = self._touched.popitem()
            if attempt.end is not None and self._running.get(attempt.key) is attempt:
                self._do(self._settle, attempt, now)
        if any_touched and not self.running:
            self._orphans.claim()  # nobody is left to own any: they are killed

    def _collect(self) -> None:
        """Reap what ended, and add what it used to its attempt's account."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._beginning:  # its program has executed since, or never will
                self._born(self._beginning[pid])
                continue
            attempt = self._roots.get(pid) or self._owners.get(pid) or self._owner_of(pid)
            pid, status, used = os.wait4(pid, 0)
            if pid in self._roots:
                self._root_ended(self._roots.pop(pid), status)
            else:
                self._orphans.reaped(pid)
                self._orphans.roots.discard(pid)
                self._owners.pop(pid, None)
            if attempt is not None:
                attempt.add_usage(used)
                self._touched[attempt.key] = attempt

    def _owner_of(self, pid: int) -> Attempt | None:
        """Whose orphan has ended, by its session or its ancestry; cgroups do not tell that of the dead."""
        found = proc.stat(pid)
        if found is None:
            return None
        key = self._orphans.key_of(pid, found)
        if key is not None:
            return self._running.get(key)
        return next((one for one in self._running.values() if one.pid == found.session), None)

    def look(self, now: float) -> None:
        """Do what is due."""
        if now >= self._repair:
            self._mend(now)
        for attempt in list(self._running.values()):
            if attempt.look <= now:
                self._do(self._look_at, attempt, now)
        self.next_look = min([attempt.look for attempt in self._running.values()], default=NEVER)
        self.next_look = min(self.next_look, self._repair)

    def flush(self) -> None:
        """Bring the journal up to date; called once per turn, before anyone is told what happened in it."""
        if not self.running and not self._archive:
            self._journal.empty()
        elif self._journal.bloated:
            self._rewrite_journal()
        if not self._journal.flush():
            self._mend_soon()

    def close(self) -> None:
        """Write what waits, and remove what only a living keeper needs."""
        self._archive.mend(NEVER)
        self._journal.flush()
        for directory in self._doomed:
            remove(directory)
        self._cgroups.close()

    def _do(self, what: "Callable[[Attempt, float], None]", attempt: Attempt, now: float) -> None:
        """Do something about one attempt; a mistake in it must not end the parent of all others."""
        try:
            what(attempt, now)
        except Exception as error:
            self._log("keeper.bug", {"key": attempt.key, "error": f"{type(error).__name__}: {error}"})
            attempt.look = now + _AFTER_BUG_S
            self.next_look = min(self.next_look, attempt.look)

    # starting

    def _make_group(self, request: Start) -> Group | None:
        limits = request.limits
        try:
            return self._cgroups.take(request.key, memory_mb=limits.memory_mb, cpu_pct=limits.cpu_pct, processes=limits.processes)
        except CgroupError as error:
            raise Refusal("cgroup", f"{request.key}: {error}") from None

    def _drop_group(self, group: Group | None) -> None:
        if group is not None:
            self._remove_later(group.remove())

    def _remember(self, attempt: Attempt) -> None:
        """Write the running record; without it a keeper's death would leave processes that nobody knows of."""
        attempt.journal_line = wire.encode(
            {
                "start": {
                    "key": attempt.key,
                    "pid": attempt.pid,
                    "start_time": attempt.start_time,
                    "boot_id": self._boot_id,
                    "started_at": attempt.started_at,
                    "record": attempt.record,
                    "wipe": attempt.wipe,
                    "groups": attempt.group.directories if attempt.group else [],
                }
            }
        ) + "\n"  # fmt: skip
        try:
            self._journal.append(attempt.journal_line)
        except OSError as error:
            self._terminate(attempt, "journal", 0.0, time.monotonic())
            raise Refusal("state", f"{attempt.key}: its record cannot be kept", number=error.errno) from None

    # ending

    def _terminate(self, attempt: Attempt, reason: str, grace_s: float, now: float) -> None:
        """Begin to end an attempt, or shorten the grace of one that is being ended; the first reason stays."""
        if attempt.killed is None and attempt.end is None:
            attempt.killed = reason
        attempt.deadline = NEVER
        attempt.kill_due = min(attempt.kill_due, now + grace_s)
        if grace_s <= 0:
            self._kill_now(attempt, now)
        elif not attempt.termed:
            attempt.termed = True
            members = attempt.tree.living()
            # A wrapper (bwrap) does not pass SIGTERM on but takes its whole tree down: it ends when the rest has.
            rest = [pid for pid in members if pid != attempt.pid] if attempt.wrapper else members
            for pid in rest or members:
                self._own(attempt, pid)
                send(pid, kernel.SIGTERM)
                send(pid, kernel.SIGCONT)
        attempt.look = attempt.next_look()
        self.next_look = min(self.next_look, attempt.look)

    def _kill_now(self, attempt: Attempt, now: float) -> None:
        for pid in attempt.tree.kill():
            self._own(attempt, pid)
            if attempt.end is not None and pid not in attempt.signalled:
                attempt.leftovers += 1
            attempt.signalled.add(pid)
        if attempt.end is None:
            send(attempt.pid, kernel.SIGKILL)
        if attempt.give_up == NEVER:
            attempt.give_up = now + _GIVE_UP_S
        attempt.kill_due = now + _AGAIN_S

    def _own(self, attempt: Attempt, pid: int) -> None:
        """Note whose child this is, for when it is reaped here."""
        if pid != attempt.pid:
            self._owners[pid] = attempt
            attempt.owned.add(pid)

    def _root_ended(self, attempt: Attempt, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        attempt.end = End(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            at=time.time(),
            monotonic=time.monotonic(),
        )
        self._orphans.roots.discard(attempt.pid)
        attempt.tree.root_ended()
        attempt.deadline = attempt.look_log = attempt.look_memory = attempt.look_tree = attempt.look_inner = NEVER
        if attempt.wrapper:  # bwrap ends just before the first process of its sandbox, which takes the rest with it
            attempt.kill_due = min(attempt.kill_due, time.monotonic() + _WRAPPED_LEAVE_S)

    def _settle(self, attempt: Attempt, now: float) -> None:
        """The root has ended: see that nothing else of it lives on, then record its end."""
        living = attempt.tree.living() or self._unreaped(attempt)
        if not living:
            self._finish(attempt, now, [])
        elif now >= attempt.give_up:
            self._finish(attempt, now, living)
        else:
            for pid in living:
                self._own(attempt, pid)
            graceful = (attempt.termed or attempt.wrapper) and not attempt.signalled and now < attempt.kill_due
            if not graceful:
                self._kill_now(attempt, now)
            attempt.look = min(now + _AGAIN_S, attempt.next_look())
            self.next_look = min(self.next_look, attempt.look)

    def _unreaped(self, attempt: Attempt) -> "list[int]":
        """What a wrapper started and left to be reaped here: it is no member of a cgroup any more once it begins to end."""
        own = os.getpid()
        found = [(pid, proc.stat(pid)) for pid in attempt.inner]
        return [pid for pid, one in found if one is not None and one.parent == own]

    def _finish(self, attempt: Attempt, now: float, stuck: list[int]) -> None:
        """Record the end of an attempt, and let go of all that was held for it."""
        record = attempt.record_of_end(self._boot_id, time.time(), now, stuck)
        del self._running[attempt.key]
        self.roomed -= attempt.roomed
        if attempt.end is None:
            del self._roots[attempt.pid]  # it stays in `_orphans.roots`: a stuck root is no orphan
        for pid in attempt.owned:
            self._owners.pop(pid, None)
        attempt.close_logs()
        wipe(attempt.wipe)
        attempt.tree.end()
        if attempt.group is not None:
            self._remove_later(self._cgroups.release(attempt.group, empty=not stuck))
        text = self._archive.add(record, attempt.record, now)
        self._mend_soon()
        self._publish(f'{{"event":"exited","key":{wire.encode(attempt.key)},"record":{text}}}')
        if stuck:
            self._log("keeper.stuck_processes", {"key": attempt.key, "pids": stuck[:100]})

    # looking

    def _look_at(self, attempt: Attempt, now: float) -> None:
        if attempt.end is not None:
            self._settle(attempt, now)
            return
        if now >= attempt.deadline:
            self._terminate(attempt, "timeout", attempt.limits.grace_s, now)
        if now >= attempt.look_log and attempt.too_much_log(now):
            self._terminate(attempt, "log", min(attempt.limits.grace_s, _LOG_GRACE_S), now)
        if now >= attempt.look_memory and attempt.too_much_memory(now):
            self._terminate(attempt, "memory", 0.0, now)
        if now >= attempt.look_inner:
            self._look_inside(attempt, now)
        if now >= attempt.look_tree:
            attempt.tree.sample()
            attempt.look_tree = now + _TREE_EVERY_S
        if now >= attempt.kill_due:
            self._kill_now(attempt, now)
        if now >= attempt.give_up:
            self._finish(attempt, now, attempt.tree.living() or [attempt.pid])
        attempt.look = attempt.next_look()

    def _look_inside(self, attempt: Attempt, now: float) -> None:
        """Get to know what a wrapper starts while it can be seen to be the wrapper's: bwrap does not wait for its sandbox's first
        process, and in the account of that is what all below it used.
        """
        attempt.inner = set(proc.children(attempt.pid))
        for pid in attempt.inner:
            self._own(attempt, pid)
        attempt.look_inner = NEVER if attempt.inner else now + min(now - attempt.began, _TREE_EVERY_S)

    # mending

    def _remove_later(self, directories: list[str]) -> None:
        if directories:
            self._doomed += directories
            self._mend_soon()

    def _mend_soon(self) -> None:
        self._repair = min(self._repair, time.monotonic() + _REPAIR_EVERY_S)
        self.next_look = min(self.next_look, self._repair)

    def _mend(self, now: float) -> None:
        """Try again what a full disk or a dying process was in the way of."""
        self._doomed = [directory for directory in self._doomed if not remove(directory)]
        done = [self._archive.mend(now), self._journal.flush(), not self._doomed]
        self._repair = NEVER if all(done) else now + _REPAIR_EVERY_S

    def _rewrite_journal(self) -> None:
        lines = [attempt.journal_line for attempt in self._running.values()]
        self._journal.rewrite(lines + self._archive.journal_lines())


def _not_started(request: Start, error: SpawnError) -> Refusal:
    code = error.step if error.step in ("exec", "fork") else "setup"
    return Refusal(code, f"{request.key}: {error}", number=error.number, step=error.step)
