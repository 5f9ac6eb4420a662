"""Service watcher: sees how each declared service is, starts anew what crashed, carries out commands, and tells what changed.

systemd's signals wake it; it also looks by itself every few seconds, since a signal may be lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ostler.model.failures import Failure, FailureCode
from ostler.model.service import Command, Desired, Observation, ServiceState, Verb
from ostler.node.config import ServiceConfig
from ostler.node.services.asking import Asking, Unasked, metrics
from ostler.node.services.journals import Journals
from ostler.node.services.judging import condition, judge
from ostler.node.services.programs import Programs
from ostler.node.services.restarts import Restarts, decide
from ostler.node.services.standing import Standing, Terms, advance, overall
from ostler.node.services.units import Trouble, Units, UnitTrouble
from ostler.node.services.verdicts import PERMIT, refused, verdict
from ostler.node.services.watched import Watched, gist, observe, seen_of, watched
from ostler.node.services.wishes import Wish, Wishes
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EVERY_S = 5.0
GATHER_S = 0.05  # systemd tells of one change in several signals
TELL_S = 1.0  # changes are told no more often
METRICS_S = 3.0
SETTLING = 10  # tenths of a second, for a start without a program


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a command: the failure, if it is one, and the service as it was seen afterwards."""

    failure: Failure | None
    seen: Observation | None


class ServiceWatcher(Loop):
    """`carry_out` is what the runner calls. `tell` is given all observations, and whether that cannot wait for the next heartbeat."""

    name = "services"

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        *,
        units: Units,
        wishes: Wishes,
        journals: Journals,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        super().__init__(clock=clock, interval_s=EVERY_S, logger=logger)
        self.tell: Callable[[tuple[Observation, ...], bool], None] = lambda seen, soon: None
        self._units = units
        self._wishes = wishes
        self._journals = journals
        self._asking = Asking(journals)
        self._programs = Programs()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._told_at: float | None = None
        self._writing = asyncio.Lock()
        self._watching = self._settled = False
        self._all = {name: watched(name, config, wishes.of(name)) for name, config in services.items()}

    @property
    def observations(self) -> tuple[Observation, ...]:
        """All that was seen last."""
        return tuple(one.told for one in self._all.values() if one.told is not None)

    @property
    def loop(self) -> Loop:
        """Itself."""
        return self

    def declares(self, name: str) -> bool:
        """Whether commands may touch a service of this name."""
        return name in self._all

    async def close(self) -> None:
        """The daemon ends; services go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._units.close()

    # --- looking ---

    async def turn(self) -> float | None:
        """Look at all, ask what is due, start what is due, tell what changed."""
        if not self._watching:
            self._watching = True
            await self._units.watch([one.config.unit for one in self._all.values()], self._changed)
        await asyncio.gather(*(self._look(one) for one in self._all.values()))
        await self._start_wanted()
        now = self.clock.monotonic()
        for one in self._all.values():
            self._ask(one, now)
            await self._mend(one, now)
        wait_s = self._publish(now)
        due = [one.restarts.due_at - now for one in self._all.values() if one.restarts.due_at is not None]
        return max(0.0, min([EVERY_S, wait_s, *due]))

    def _changed(self) -> None:
        """systemd says so."""
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.wake()

    async def _look(self, one: Watched) -> None:
        try:
            view = await self._units.look(one.config.unit)
        except UnitTrouble as exc:
            one.trouble = f"systemd cannot be asked: {exc}"
            return
        one.trouble = ""
        before, one.view = one.view, view
        if not one.runs or before is None or before.invocation != view.invocation:
            one.started_at = self.clock.monotonic()
            one.standings = [Standing() for _ in one.questions]
            one.metrics = {}
        if not one.runs or before is None:
            one.absent = await asyncio.to_thread(self._programs.absent, one.name, one.config)

    def _ask(self, one: Watched, now: float) -> None:
        """Put the questions that are due, beside everything else."""
        if not one.runs:
            return
        for i, question in enumerate(one.questions):
            if i not in one.asking and now - one.asked_at[i] >= question.config.interval.total_seconds():
                one.asked_at[i] = now
                one.asking.add(i)
                self._spawn(self._put(one, i))
        wanted = one.config.metrics
        if wanted is not None and not one.measuring and now - one.measured_at >= wanted.interval.total_seconds():
            one.measured_at, one.measuring = now, True
            self._spawn(self._measure(one))

    async def _put(self, one: Watched, i: int) -> None:
        invocation = one.view.invocation if one.view is not None else ""
        probe = one.questions[i].config
        try:
            failure = await self._asking.ask(one.config.unit, one.questions[i])
        except Unasked as exc:
            one.unasked = str(exc)
            return
        finally:
            one.asking.discard(i)
        if not one.runs or one.view is None or one.view.invocation != invocation:
            return  # it was another one that answered
        one.unasked = one.unasked if probe.log is None else ""
        before = overall(one.standings)
        one.standings[i] = advance(
            one.standings[i],
            failure,
            now=self.clock.monotonic(),
            started_at=one.started_at,
            grace_s=one.config.grace.total_seconds(),
            terms=Terms(probe.failures, probe.successes),
        )
        if overall(one.standings) != before:
            self.wake()

    async def _measure(self, one: Watched) -> None:
        try:
            if one.config.metrics is not None:
                found = await metrics(one.config.metrics, timeout_s=METRICS_S)
                one.metrics = found if one.runs else {}
        finally:
            one.measuring = False

    # --- starting anew ---

    async def _mend(self, one: Watched, now: float) -> None:
        if one.doing is not None or one.view is None or one.trouble:
            return
        state, _ = judge(seen_of(one))
        found = condition(state, restart_sick=one.config.restart.unhealthy)
        wanted = one.desired is Desired.RUNNING
        decision = decide(one.restarts, found, wanted=wanted, limit=one.config.restart.limit, now=now)
        one.restarts = decision.restarts
        if (one.wish.restarts, one.wish.tries) != (one.restarts.count, one.restarts.tries):
            one.wish = replace(one.wish, restarts=one.restarts.count, tries=one.restarts.tries)
            await self._keep(one)
        if decision.now:
            self._spawn(self._anew(one, Verb.START if state is ServiceState.CRASHED else Verb.RESTART))

    async def _start_wanted(self) -> None:
        """After the machine was started anew, once: what is wanted running and was not started with it is started."""
        if self._settled or any(one.view is None or one.trouble for one in self._all.values()):
            return
        try:
            boot = await self._units.booted()
        except UnitTrouble:
            return
        self._settled = True
        if self._wishes.is_new(boot):
            for one in self._all.values():
                if one.wish.desired is Desired.RUNNING and judge(seen_of(one))[0] is ServiceState.STOPPED:
                    self._spawn(self._anew(one, Verb.START))
        with contextlib.suppress(OSError):
            async with self._writing:
                await asyncio.to_thread(self._wishes.settle, boot)

    async def _anew(self, one: Watched, verb: Verb) -> None:
        attrs: dict[str, object] = {"service": one.name, "unit": one.config.unit, "verb": verb.value, "count": one.restarts.count}
        if one.desired is not Desired.RUNNING or one.doing is not None:
            return  # a person came before
        self.logger.warning("service_restarted", extra={"attrs": attrs})
        try:
            await self._order(one, verb, lambda: None)
            one.note = ""
        except UnitTrouble as exc:
            one.note = f"it cannot be started anew: {PERMIT if exc.trouble is Trouble.DENIED else exc}"
            self.logger.warning("service_not_restarted", extra={"attrs": {**attrs, "error": str(exc)}})
        self.wake()

    async def _order(self, one: Watched, verb: Verb, accepted: Callable[[], None]) -> str:
        """Have systemd do it. Whoever asks for something else meanwhile need not wait: systemd then drops what it was at."""
        mine = one.doing = object()
        one.verb = verb
        self._changed()
        try:
            return await self._units.act(verb, one.config.unit, accepted)
        finally:
            if one.doing is mine:
                one.doing = one.verb = None

    async def _keep(self, one: Watched) -> None:
        """Remember its wish on the disk; a disk that cannot is no reason to do nothing."""
        try:
            async with self._writing:
                await asyncio.to_thread(self._wishes.keep, one.name, one.wish)
        except OSError as exc:
            self.logger.error("service_wish_not_kept", extra={"attrs": {"service": one.name, "error": str(exc)}})  # noqa: TRY400

    # --- commands ---

    async def carry_out(self, command: Command) -> Done:
        """One command, from what is asked to what was seen. It may be carried out twice."""
        one = self._all.get(command.service)
        if one is None:
            return Done(Failure(FailureCode.DENY, f"this node declares no service {command.service}"), None)
        failure = None
        if command.verb is not Verb.STATUS:
            failure = await self._act(one, command)
        await self._look(one)
        self.wake()
        if command.verb is Verb.STATUS and one.trouble:
            failure = Failure(FailureCode.LOST, one.trouble)
        return Done(failure, observe(one, self.clock))

    async def _act(self, one: Watched, command: Command) -> Failure | None:
        unit, verb, keeping = one.config.unit, command.verb, list[asyncio.Future[None]]()

        def accepted() -> None:
            one.wish, one.restarts, one.note = Wish(command.desired), Restarts(), ""
            keeping.append(asyncio.ensure_future(self._keep(one)))

        try:
            end = await self._order(one, verb, accepted)
        except UnitTrouble as exc:
            return refused(unit, verb, exc)
        finally:
            if keeping:
                await asyncio.shield(keeping[0])
        absent = None if verb is Verb.STOP else await asyncio.to_thread(self._programs.absent, one.name, one.config)
        await self._look(one)
        for _ in range(SETTLING if absent is not None and end == "done" else 0):
            if not one.runs:  # systemd calls a unit of the type `simple` started before it has found the program
                break
            await asyncio.sleep(0.1)
            await self._look(one)
        failure = verdict(unit, verb, end, one.view, absent)
        if failure is not None and failure.code is FailureCode.SERVICE and verb is not Verb.STOP:
            words = await asyncio.to_thread(self._journals.last_words, unit)
            failure = replace(failure, message=f"{failure.message}\n{words}" if words else failure.message)
        return failure

    # --- telling ---

    def _publish(self, now: float) -> float:
        """Tell what changed; how many seconds until there is more to tell."""
        fresh = {one.name: observe(one, self.clock) for one in self._all.values()}
        soon = any(gist(one.told) != gist(fresh[one.name]) for one in self._all.values())
        if soon and self._told_at is not None and now - self._told_at < TELL_S:
            return self._told_at + TELL_S - now
        measured = any(one.told is None or one.told.metrics != fresh[one.name].metrics for one in self._all.values())
        for one in self._all.values():
            if one.told is None or one.told.state is not fresh[one.name].state:
                attrs = {"service": one.name, "state": fresh[one.name].state.value, "message": fresh[one.name].message}
                self.logger.info("service_state", extra={"attrs": attrs})
            one.told = fresh[one.name]
        if soon:
            self._told_at = now
        if soon or measured:
            self.tell(tuple(fresh.values()), soon)
        return EVERY_S

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.logger.error("service_task_crashed", exc_info=exc)
