"""Runs attempts: one task each, from the verdict of the runner to an outcome in the journal."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ostler.model.attempt import AttemptState, Usage
from ostler.model.errors import InvalidSpec, KeeperUnreachable, OstlerError, StoreBusy
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Artifact, Runner
from ostler.model.sandbox import SandboxLevel, strongest
from ostler.node import outputs
from ostler.node.attempts import AttemptTable, Live
from ostler.node.confidences import Confidences
from ostler.node.disk_lane import DiskLane
from ostler.node.gpus import Card, choose
from ostler.node.journal import Journal
from ostler.node.log_tails import ends, has_logs, open_tails
from ostler.node.spares import Spares
from ostler.node.workspace import NO_ROOM, Workspace, disk_failure
from ostler.protocol.messages import ArtifactEntry, LogEnd, Outcome
from ostler.protocol.ports import AttemptTask, Ending, Progress, RunnerPort, Withdrawn
from ostler.runtime.clock import Clock

T = TypeVar("T")

KEEPER_TRIES = 5  # keepers that an attempt outlives before it is called lost
_PASSED = {
    AttemptState.PREPARING: (AttemptState.LEASED, AttemptState.ACKED),
    AttemptState.RUNNING: (AttemptState.LEASED, AttemptState.ACKED, AttemptState.PREPARING),
}
_OWN_FAILURES = frozenset({FailureCode.EXIT, FailureCode.SIGNAL, FailureCode.TASK, FailureCode.TIMEOUT, FailureCode.OOM})
NOTE_AFTER_S = 0.1  # what an attempt that has its workspace already may take without a word in it
NOTE_LENT_AFTER_S = 1.0  # the same for one that is lent it: long after it can still be taken back
DURABLE_TRIES = 3  # how often an outcome knocks at a full journal before it is delivered from memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchers:
    """Who wants to know: that an attempt reached a stage, what it says of itself, that its slot is free, that it is over, that
    it is forgotten."""

    stage: Callable[[Live], None]
    progress: Callable[[Live, Progress], None]
    freed: Callable[[], None]
    over: Callable[[Live], None]
    forgotten: Callable[[Live], None]


class Executor:
    """Starts, adopts and ends attempts. It never starts one that was not acknowledged: that is for its caller to see to."""

    def __init__(
        self,
        *,
        root: Path,
        level: SandboxLevel,
        grace_s: float,
        runners: Mapping[Runner, RunnerPort],
        cards: Callable[[], Awaitable[Sequence[Card]]],
        prepare: Callable[[Live, Workspace], Awaitable[Failure | None]],
        keeper: Callable[[], Awaitable[None]],
        table: AttemptTable,
        journal: Journal,
        disk: DiskLane,
        confidences: Confidences,
        watchers: Watchers,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`cards` looks at the GPUs, `prepare` brings the inputs, `keeper` returns when a keeper answers again."""
        self._root = root
        self._spares = Spares(root)
        self._level = level
        self._grace_s = grace_s
        self._runners = runners
        self._cards = cards
        self._prepare = prepare
        self._keeper = keeper
        self._table = table
        self._journal = journal
        self._disk = disk
        self._confidences = confidences
        self._watchers = watchers
        self._clock = clock
        self._logger = logger

    def may_wait(self, live: Live) -> int:
        """How many like it for each slot may be handed to its runner before there is room: nothing but its start is left to do, and that
        can be undone."""
        return self._waits(live) if live.furnished is not None or self._is_lent(live) else 0

    def _waits(self, live: Live) -> int:
        runner = self._runners.get(live.manifest.runner)
        return runner.waits(live.manifest, lent=self._is_lent(live)) if runner is not None and _is_plain(live) else 0

    def start(self, live: Live, slots: int) -> None:
        """Begin the work on an acknowledged attempt; one that may wait begins once fewer than `slots` of its kind run."""
        live.room = slots if self._waits(live) else None
        live.started_at = self._clock.monotonic()
        self._work(live, self._run(live, adopted=False))

    def furnish(self, live: Live, *, here: bool = False) -> None:
        """Make the workspace of an acknowledged attempt before it has its slot, so that it need not wait for the disk then; with `here`
        before this returns, if nothing else waits for the disk.

        Until it begins there is no `state.json` in it: that tells a later life of the daemon that nothing was run.
        """
        if live.furnished is None and not self._is_lent(live):
            make = self._spares.take if _is_plain(live) else partial(Workspace.create, self._root)
            do = self._disk.do_here if here else self._disk.do
            live.furnished = do(make, live.job_id, live.attempt)

    def withdraw(self, live: Live) -> None:
        """Take back what waits for room at the keeper: somebody else shall have the next slot."""
        if live.task is not None and live.room is not None and live.state is not AttemptState.RUNNING and live.stopping is None:
            live.stopping = asyncio.get_running_loop().create_task(self._withdraw(live, live.task))

    async def _withdraw(self, live: Live, task: AttemptTask) -> None:
        with suppress(KeeperUnreachable):  # then its start ends too
            await self._runners[live.manifest.runner].withdraw(task)
        live.stopping = None

    def adopt(self, live: Live) -> None:
        """Wait for an attempt that an earlier daemon started; its `task` and `workspace` are known."""
        live.started_at = self._clock.monotonic()
        live.state = AttemptState.RUNNING
        self._work(live, self._run(live, adopted=True))

    def report_lost(self, live: Live, message: str) -> None:
        """End an attempt of which nothing lives any more."""
        live.lost = message
        self._work(live, self._end(live, Ending()))

    def refuse(self, live: Live, failure: Failure) -> None:
        """End an attempt that is not run at all."""
        self._work(live, self._end(live, Ending(failure=failure)))

    def cancel(self, live: Live, reason: str) -> None:
        """End it and report it cancelled; nothing happens to one that is over."""
        if live.outcome is None and live.cancelled is None:
            live.cancelled = reason
            self._stop(live, "cancel")

    def lose(self, live: Live, reason: str) -> None:
        """End it and report E_LOST, so that it is tried elsewhere."""
        if live.outcome is None and live.lost is None:
            live.lost = reason
            self._stop(live, "lost")

    def forget(self, live: Live) -> None:
        """End it and report nothing: the coordinator has given it to somebody else."""
        if live.forgotten:
            return
        live.forgotten = True
        if live.work is None and live.furnished is not None:
            live.work = asyncio.get_running_loop().create_task(self._unfurnish(live, live.furnished))
        elif live.work is None or live.work.done():
            self._watchers.forgotten(live)
        else:
            self._stop(live, "forgotten")

    def _work(self, live: Live, work: Coroutine[Any, Any, None]) -> None:
        self._table.begin(live)
        live.work = asyncio.get_running_loop().create_task(work)

    def _stop(self, live: Live, reason: str) -> None:
        if live.work is None:  # no work has begun: the outcome is all there is to it
            if not live.forgotten:
                self._work(live, self._end(live, Ending()))
        elif live.preparing is not None:
            live.preparing.cancel()
        elif live.task is not None and (live.state is AttemptState.RUNNING or live.room is not None):
            live.stopping = asyncio.get_running_loop().create_task(self._kill(live, live.task, reason))

    async def _kill(self, live: Live, task: AttemptTask, reason: str) -> None:
        runner = self._runners[live.manifest.runner]
        grace = live.manifest.policy.grace_s
        for _ in range(KEEPER_TRIES):
            try:
                await runner.kill(task, reason=reason, grace_s=self._grace_s if grace is None else min(grace, self._grace_s))
            except KeeperUnreachable:
                await self._keeper()
            else:
                return

    # --- the life of one attempt ---

    async def _run(self, live: Live, *, adopted: bool) -> None:
        try:
            ending = await (self._follow(live) if adopted else self._begin(live))
        except Withdrawn:
            live.state = AttemptState.ACKED
            if not _to_end(live):
                live.work, live.task, live.unnoted = None, None, False
                if live.lent:
                    live.forsake_workspace()
                self._table.put_back(live)
                self._watchers.freed()
                return
            ending = Ending()
        except OstlerError as exc:
            ending = Ending(failure=Failure(FailureCode.INTERNAL, f"{exc.code}: {exc}"))
            self._tell_crash(live)
        except OSError as exc:
            ending = Ending(failure=disk_failure(exc, "running the attempt"))
            if exc.errno not in NO_ROOM:
                self._tell_crash(live)
        except Exception as exc:
            ending = Ending(failure=Failure(FailureCode.INTERNAL, f"a bug of the node: {exc!r}"))
            self._tell_crash(live)
        await self._end(live, ending)

    def _tell_crash(self, live: Live) -> None:
        self._logger.exception("attempt_crashed", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt}})

    async def _begin(self, live: Live) -> Ending:
        manifest = live.manifest
        runner = self._runners.get(manifest.runner)
        if runner is None:
            return _failed(FailureCode.SPEC, f"this node does not offer the {manifest.runner.value} runner")
        prepared = live.furnished is not None and _is_plain(
            live
        )  # then nothing is left that a refusal by its start would come after
        if not prepared and (failure := runner.refuse(manifest)) is not None:
            return Ending(failure=failure)
        level = self._level_of(live)
        if live.gpu_count:
            cards = await self._cards()  # before it is asked who holds which: nothing may come between that and the choice
            taken = {uuid for other in self._table.open() if other is not live for uuid in other.gpus}
            chosen = choose(cards, manifest.requirements, held=taken)
            if isinstance(chosen, Failure):
                return Ending(failure=chosen)
            live.gpus = chosen
        first = AttemptState.PREPARING if manifest.input or manifest.secrets else AttemptState.RUNNING
        try:
            workspace = await self._workspace(live, first, level)
        except InvalidSpec as exc:
            return _failed(FailureCode.SPEC, str(exc))
        except OSError as exc:
            return Ending(failure=disk_failure(exc, "making the workspace"))
        live.workspace = workspace
        live.task = AttemptTask(
            job_id=live.job_id,
            attempt=live.attempt,
            manifest=manifest,
            root=workspace.place,
            sandbox=level,
            timeout_s=manifest.timeout_s,
            gpus=live.gpus,
            lent=live.lent,
            room=live.room,
            first=live.latency,
        )
        if (ended := await self._launch(live, runner, live.task, workspace, first)) is not None:
            return replace(ended, bare=live.lent)
        live.state = AttemptState.RUNNING
        if live.room is not None:
            live.started_at = self._clock.monotonic()
            if live.furnished is None and not live.lent:  # others may be handed over ahead now
                self._watchers.freed()
        if live.unnoted and live.note is None and not live.slotless:
            self._note_later(live, workspace, level, after_s=NOTE_LENT_AFTER_S if live.lent else NOTE_AFTER_S)
        self._watchers.stage(live)
        if _to_end(live):  # asked for while it was being started
            self._stop(live, "cancel" if live.cancelled else "lost")
        return await self._wait(live, runner, live.task)

    async def _launch(
        self, live: Live, runner: RunnerPort, task: AttemptTask, workspace: Workspace, first: AttemptState
    ) -> Ending | None:
        """From a workspace to processes; None once they live."""
        if first is AttemptState.PREPARING:
            live.state = first
            if (ended := await self._prepare_all(live, workspace)) is not None:
                return ended
        if live.manifest.secrets:  # last of all, and in no other value than this one, which ends with the start
            told = await self._cancellable(live, self._confidences.fetch(live))
            if told is None:
                return Ending()
            if isinstance(told, Failure):
                return Ending(failure=told)
            task = replace(task, confidence=told)
        if _to_end(live):
            return Ending()
        failure = await self._start(runner, task)
        return None if failure is None else Ending(failure=failure)

    async def _follow(self, live: Live) -> Ending:
        runner = self._runners.get(live.manifest.runner)
        if runner is None or live.task is None:
            return _failed(FailureCode.LOST, f"the node no longer offers the {live.manifest.runner.value} runner")
        self._watchers.stage(live)
        return await self._wait(live, runner, live.task)

    async def _prepare_all(self, live: Live, workspace: Workspace) -> Ending | None:
        self._watchers.stage(live)
        if live.manifest.input:
            began = self._clock.monotonic()
            try:
                failure = await self._cancellable(live, self._prepare(live, workspace))
            finally:
                live.prepare_s = self._clock.monotonic() - began
            if failure is not None:
                return Ending(failure=failure)
            if _to_end(live):
                return Ending()
        try:
            await self._disk.do(workspace.write_state, AttemptState.RUNNING, at=self._clock.now())
        except OSError as exc:
            return Ending(failure=disk_failure(exc, "writing the workspace's state"))
        return None

    @staticmethod
    async def _cancellable(live: Live, work: Awaitable[T]) -> T | None:
        """Its result; None where the attempt was ended meanwhile."""
        doing: asyncio.Future[T] = asyncio.ensure_future(work)
        live.preparing = doing
        try:
            return await doing
        except asyncio.CancelledError:
            if _to_end(live):
                return None
            raise
        finally:
            live.preparing = None

    def _is_lent(self, live: Live) -> bool:
        """Whether its runner has a workspace for it."""
        if live.lends is None:
            runner = self._runners.get(live.manifest.runner)
            free = live.attempt == 1 and not live.gpu_count
            live.lends = free and runner is not None and runner.lends(live.manifest, self._level_of(live))
        return live.lends

    def _level_of(self, live: Live) -> SandboxLevel:
        if live.level is None:
            live.level = strongest(self._level, live.manifest.least_sandbox)
        return live.level

    async def _workspace(self, live: Live, state: AttemptState, level: SandboxLevel) -> Workspace:
        if live.furnished is None and self._is_lent(live):
            lent = Workspace.lent(self._root, live.job_id, live.attempt)
            if lent is not None:
                live.lent = live.unnoted = True
                return lent
        if live.furnished is None:
            return await self._disk.do(self._make, live, state, level)
        workspace = await live.furnished
        if not _is_plain(live):
            await self._disk.do(self._note, live, workspace, state, level)
        else:
            live.unnoted = True
        return workspace

    def _make(self, live: Live, state: AttemptState, level: SandboxLevel) -> Workspace:
        workspace = Workspace.create(self._root, live.job_id, live.attempt)
        self._note(live, workspace, state, level)
        return workspace

    def _note(self, live: Live, workspace: Workspace, state: AttemptState, level: SandboxLevel) -> None:
        workspace.write_state(
            state,
            at=self._clock.now(),
            passed=_PASSED[state],
            **_origin(live, level),
        )

    def _note_later(self, live: Live, workspace: Workspace, level: SandboxLevel, *, after_s: float) -> None:
        """A job of milliseconds gets its `state.json` once, at its end: until then the keeper has a record of its start."""

        def note() -> None:
            live.note, live.unnoted = None, False
            noted = self._disk.do(self._note, live, workspace, AttemptState.RUNNING, level)
            noted.add_done_callback(told)

        def told(noted: asyncio.Future[None]) -> None:
            exc = None if noted.cancelled() else noted.exception()
            if exc is not None:
                self._not_noted(live, exc)

        live.unnoted, live.note = True, asyncio.get_running_loop().call_later(after_s, note)

    def _not_noted(self, live: Live, exc: BaseException) -> None:
        attrs = {"attempt": live.attempt, "error": str(exc)}
        self._logger.warning("workspace_state_not_written", extra={"job_id": live.job_id, "attrs": attrs})

    async def _unfurnish(self, live: Live, furnished: "asyncio.Future[Workspace]") -> None:
        """Take a workspace away in which nothing was begun."""
        try:
            await self._disk.do((await furnished).remove)
        except (InvalidSpec, OSError) as exc:
            attrs = {"attempt": live.attempt, "error": str(exc)}
            self._logger.warning("workspace_not_removed", extra={"job_id": live.job_id, "attrs": attrs})
        self._watchers.forgotten(live)

    async def _start(self, runner: RunnerPort, task: AttemptTask) -> Failure | None:
        try:
            return await runner.start(task)
        except KeeperUnreachable as exc:
            # It may have started and died with its keeper: only the coordinator may say that it runs again.
            if await self._outlived(runner, task):
                return None
            return Failure(FailureCode.LOST, f"the keeper went away while the attempt was started: {exc}")

    async def _wait(self, live: Live, runner: RunnerPort, task: AttemptTask) -> Ending:
        def progress(news: Progress) -> None:
            if live.manifest.secrets:
                news = self._confidences.news(live, news)
            self._watchers.progress(live, news)

        reason = "the keeper went away"
        for _ in range(KEEPER_TRIES):
            try:
                return await runner.wait(task, progress)
            except KeeperUnreachable as exc:
                reason = str(exc)
                if not await self._outlived(runner, task):
                    break
        return _failed(FailureCode.LOST, f"the keeper went away and the attempt's processes with it: {reason}")

    async def _outlived(self, runner: RunnerPort, task: AttemptTask) -> bool:
        """Whether the next keeper knows the attempt; the one after that is asked where it dies before it can tell."""
        for _ in range(KEEPER_TRIES):
            await self._keeper()
            with suppress(KeeperUnreachable):
                return await runner.alive(task)
        return False

    # --- its end ---

    async def _end(self, live: Live, ending: Ending) -> None:
        """From an ending to an outcome in the journal. It is not cancelled by anybody but the end of the daemon."""
        if live.manifest.secrets:
            ending = await self._confidences.end(live, ending)
        if ending.bare:
            live.forsake_workspace()
        if ending.said:
            live.log_ends = (_whole("stdout", ending.said),)
        if live.forgotten:
            await self._leave(live, AttemptState.FAILED, {"discarded": True})
            self._watchers.forgotten(live)
            return
        failure, cancelled = ending.failure, ending.cancelled
        if live.task is None or live.state is not AttemptState.RUNNING:
            cancelled = cancelled or (
                failure is None and live.cancelled is not None
            )  # nothing ever ran that could have ended well
            if failure is None and not cancelled and live.lost is None:
                failure = Failure(FailureCode.INTERNAL, "the attempt ended before it began")
        if live.lost is not None and (failure is not None or live.state is not AttemptState.RUNNING):
            failure, cancelled = Failure(FailureCode.LOST, live.lost), False
        uploading = 0.0
        if ending.contents:
            live.outputs = outputs.carried(_asked_for(live.manifest.artifacts, failure), ending.contents)
        elif failure is None and not cancelled and live.manifest.artifacts and live.workspace is not None:
            began = self._clock.monotonic()
            live.state = AttemptState.UPLOADING
            self._watchers.stage(live)
            found = await outputs.collect(live.manifest.artifacts, live.workspace.path)
            uploading = self._clock.monotonic() - began
            if isinstance(found, Failure):
                failure = found
            else:
                live.outputs = found
        elif failure is not None and failure.code in _OWN_FAILURES and live.workspace is not None:
            found = await outputs.collect(_asked_for(live.manifest.artifacts, failure), live.workspace.path)
            live.outputs = () if isinstance(found, Failure) else found  # why the job failed is the news, not this
        outcome = Outcome(
            job_id=live.job_id,
            attempt=live.attempt,
            failure=failure,
            cancelled=cancelled and failure is None,
            exit_code=ending.exit_code,
            signal=ending.signal,
            usage=_usage(ending.usage, prepare_s=live.prepare_s, upload_s=uploading),
            artifacts=_entries(live.outputs) if not cancelled else (),
            sandbox=live.task.sandbox.value if live.task is not None and not live.slotless else None,
            contents={one.path: ending.contents[one.path] for one in live.outputs} if ending.contents and not cancelled else {},
        )
        await self._settle(live, outcome)

    async def _settle(self, live: Live, outcome: Outcome) -> None:
        durable = self._journal.finish(outcome, gather=self._table.queued() > 0)
        live.settling = True
        self._watchers.freed()  # the next one need not wait for the disk to be sure of this one's end
        state = AttemptState.FAILED if outcome.failure is not None else AttemptState.DONE
        if outcome.cancelled:
            state = AttemptState.CANCELLED
        facts: dict[str, object] = {"exit_code": outcome.exit_code, "signal": outcome.signal}
        if outcome.failure is not None:
            facts["failure"] = [outcome.failure.code.value, outcome.failure.message]
        await self._leave(live, state, facts)
        await self._record(outcome, durable)
        if live.forgotten:  # meanwhile
            self._watchers.forgotten(live)
            return
        live.state = state
        self._table.end(live, outcome)
        if outcome.failure is not None:
            attrs = {"attempt": live.attempt, "code": outcome.failure.code.value, "message": outcome.failure.message}
            self._logger.info("attempt_failed", extra={"job_id": live.job_id, "attrs": attrs})
        self._watchers.over(live)

    async def _record(self, outcome: Outcome, durable: asyncio.Future[None]) -> None:
        """Durable before it is delivered; but a journal that cannot be written does not keep it back for ever."""
        for tries in range(DURABLE_TRIES):
            try:
                await durable
            except StoreBusy:
                await asyncio.sleep(0.2 * 2**tries)
                durable = self._journal.finish(outcome)
            else:
                return
        durable.cancel()

    async def _leave(self, live: Live, state: AttemptState, facts: dict[str, object]) -> None:
        """The workspace's last word, and what its logs hold; a disk that cannot take it is no reason to keep the outcome back."""
        try:
            if live.workspace is None and live.furnished is not None:
                live.workspace = await live.furnished
        except (InvalidSpec, OSError) as exc:
            self._not_noted(live, exc)
        if live.workspace is None:
            live.log_ends = live.log_ends or ()
            return
        passed: tuple[AttemptState, ...] = (AttemptState.UPLOADING,) if state is AttemptState.DONE else ()
        may_go = live.unnoted and live.furnished is not None and state is AttemptState.DONE and not (live.outputs or live.tails)
        if live.unnoted:
            if live.note is not None:
                live.note.cancel()
            passed = (*_PASSED[AttemptState.RUNNING], AttemptState.RUNNING, *passed)
            facts = {**_origin(live), **facts}
        try:
            if may_go and await self._disk.do(self._spares.give_back, live.workspace):
                live.forsake_workspace()
                live.log_ends = ()
                return
            live.log_ends = await self._disk.do(
                _last_word, live, live.workspace, state, at=self._clock.now(), passed=passed, facts=facts
            )
        except OSError as exc:
            self._not_noted(live, exc)
        if live.furnished is not None and not self._table.queued():
            self._disk.do(self._spares.have_one)


def _is_plain(live: Live) -> bool:
    """Whether nothing is to be prepared but its workspace: its start is all there is to do."""
    return not (live.manifest.input or live.manifest.secrets or live.gpu_count)


def _origin(live: Live, level: SandboxLevel | None = None) -> dict[str, object]:
    """What `state.json` says of how an attempt is run."""
    level = live.task.sandbox if level is None and live.task is not None else level
    return {"runner": live.manifest.runner.value, "sandbox": level.value if level else None, "gpus": live.gpus}


def _last_word(
    live: Live,
    workspace: Workspace,
    state: AttemptState,
    *,
    at: datetime,
    passed: Sequence[AttemptState],
    facts: dict[str, object],
) -> tuple[LogEnd, ...] | None:
    workspace.write_state(state, at=at, passed=passed, **facts)
    if live.tails:
        return None  # the shipper has begun with them, and may be at work
    return ends(open_tails(workspace.path)) if has_logs(workspace.path) else ()


def _whole(stream: str, said: bytes) -> LogEnd:
    """A log that is in no file."""
    return LogEnd(stream=stream, length=len(said), sha256=hashlib.sha256(said).hexdigest(), tail=said)


def _asked_for(artifacts: Sequence[Artifact], failure: Failure | None) -> list[Artifact]:
    """Those that are delivered at this end."""
    if failure is None:
        return list(artifacts)
    return [replace(one, optional=True) for one in artifacts if one.always] if failure.code in _OWN_FAILURES else []


def _entries(found: Sequence[outputs.Output]) -> tuple[ArtifactEntry, ...]:
    return tuple(ArtifactEntry(path=one.path, type=one.type, size=one.size, sha256=one.sha256) for one in found)


def _to_end(live: Live) -> bool:
    return live.cancelled is not None or live.lost is not None or live.forgotten


def _failed(code: FailureCode, message: str) -> Ending:
    return Ending(failure=Failure(code, message))


def _usage(usage: Usage, *, prepare_s: float, upload_s: float) -> Usage:
    return replace(usage, prepare_s=round(prepare_s, 6), upload_s=round(upload_s, 6)) if prepare_s or upload_s else usage
