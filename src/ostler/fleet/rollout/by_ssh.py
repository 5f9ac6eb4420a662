"""The steps of a rollout over SSH: one connection for each host, opened when it is first needed and again when it was lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ostler.fleet.host_steps import HostRefused, HostSteps, Said, read_facts, read_said
from ostler.fleet.inventory.host import Host
from ostler.fleet.node_config import Own
from ostler.fleet.rollout.engine import Result
from ostler.fleet.rollout.preflight import Facts, Verdict, Wanted, judge
from ostler.fleet.ssh.line import Line, StepFailed, connected
from ostler.fleet.ssh.step import Outcome, Step
from ostler.fleet.ssh.trust import Trust
from ostler.model.errors import MachineUnreachable, Rejected
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import Event, Phase
from ostler.model.words import on_one_line

LOOK_S = 1.0  # while the coordinator is asked, its answer is looked for as often
WAIT_S = 10.0  # else the host waits so long for something new before it answers
AGAIN_S = 2.0
AT_ONCE = 64
LACKS = "missing"  # the host's word for a wheel that it said it has, and whose files are gone or others: it is sent all of them
KEEP = 3  # releases on a host, the one in force and the one before it among them

Gate = Callable[[Host, Facts | None], Awaitable[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a rollout brings to each host: the release's bundle for a platform (`cp311-x86_64`) without the wheels whose sha256 a host has,
    the digest of its manifest, and what is each host's own (none: it keeps its configuration)."""

    bundle: Callable[[str, frozenset[str]], bytes]
    digest: str
    own: Mapping[str, Own]
    services: Mapping[str, list[dict[str, Any]]]


class Lines:
    """Connections by host. Use as an async context manager: all of them end with it."""

    def __init__(
        self, trust: Trust, *, local_user: str, told: Callable[[Host, str, Step], None] = lambda host, user, step: None
    ) -> None:
        """`told` hears of each step before it is carried out."""
        self._trust = trust
        self._local_user = local_user
        self._told = told
        self._open: dict[str, tuple[Line, contextlib.AsyncExitStack]] = {}
        self._gates: dict[str, asyncio.Lock] = {}
        self._width = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> "Lines":
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self._open):
            await self.drop(name)

    async def run(self, host: Host, step: Step) -> Outcome:
        """Carry out a step on a host. Raises MachineUnreachable, StepFailed."""
        async with self._gates.setdefault(host.name, asyncio.Lock()):
            line = await self._line(host)
            self._told(host, line.user, step)
            try:
                return await line.run(step)
            except MachineUnreachable:
                await self.drop(host.name)
                raise

    async def read(self, host: Host, step: Step) -> AsyncIterator[str]:
        """The lines of a step's output as they come. Raises MachineUnreachable, StepFailed."""
        async with self._gates.setdefault(host.name, asyncio.Lock()):
            line = await self._line(host)
        self._told(host, line.user, step)
        async for text in line.read(step):
            yield text

    async def drop(self, name: str) -> None:
        """End a host's connection; the next step opens another."""
        if (there := self._open.pop(name, None)) is not None:
            await there[1].aclose()

    async def _line(self, host: Host) -> Line:
        if host.name not in self._open:
            async with self._width, _opening() as stack:
                line = await stack.enter_async_context(connected(host, self._trust, local_user=self._local_user))
                self._open[host.name] = (line, stack.pop_all())
        return self._open[host.name][0]


@contextlib.asynccontextmanager
async def _opening() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What preflight found on a host: facts and verdict, or why it cannot be reached."""

    facts: Facts | None = None
    verdict: Verdict | None = None
    unreachable: str | None = None

    @property
    def unfit(self) -> bool:
        """Whether nothing can begin there."""
        return self.unreachable is not None or (self.verdict is not None and self.verdict.refusal is not None)

    @property
    def changes(self) -> bool:
        """Whether a rollout has anything to do there: something is to be changed, or is still being watched."""
        if self.unfit or self.verdict is None:
            return False
        return bool(self.verdict.drift) or (self.facts is not None and self.facts.update is not None)


class SshCarrier:
    """The `Carrier` over SSH. `gate` asks the coordinator of a host whose daemon is good in itself; it answers what is wrong. `is_over`
    knows rollouts of this operator that came to an end: a lock of theirs was left where a host was lost, and binds nobody. `waits` is told
    what a host that is watched is waited for, going on from "waits …"."""

    def __init__(
        self,
        lines: Lines,
        hosts: Mapping[str, Host],
        *,
        plan: Plan,
        content: Content,
        owner: str,
        message: str,
        gate: Gate | None,
        is_over: Callable[[str], bool] = lambda rollout_id: False,
    ) -> None:
        self._lines = lines
        self._hosts = hosts
        self._plan = plan
        self._content = content
        self._owner = owner
        self._message = message
        self._gate = gate
        self._is_over = is_over
        self.waits: Callable[[str, str], None] = lambda host, what: None
        self._steps = HostSteps()
        self._facts: dict[str, Facts] = {}

    async def look(self, host: str, wanted: Wanted) -> Looked:
        """Preflight of one host; changes nothing."""
        asked = datetime.now(UTC)
        try:
            facts = read_facts(await self._lines.run(self._hosts[host], self._look_step(host)))
        except MachineUnreachable as exc:
            return Looked(unreachable=_line(exc))
        except Rejected as exc:
            return Looked(verdict=Verdict(refusal=_line(exc)))
        self._facts[host] = facts
        free = msgspec.structs.replace(facts, lock=None) if self._left(facts) else facts
        return Looked(facts=facts, verdict=judge(free, wanted, asked_at=asked, answered_at=datetime.now(UTC)))

    async def clear(self, host: str) -> None:
        """Give back a lock that a rollout left which is over; or this one, before it was interrupted."""
        facts = self._facts.get(host)
        if facts is None or facts.lock is None or facts.update is not None:
            return
        if not self._left(facts) and facts.lock.rollout_id != self._plan.rollout_id:
            return
        with contextlib.suppress(MachineUnreachable, HostRefused, StepFailed):
            await self._ask(self._hosts[host], self._steps.unlock(facts.lock.rollout_id))

    def _left(self, facts: Facts) -> bool:
        return facts.lock is not None and self._is_over(facts.lock.rollout_id)

    def steps(self, host: str) -> list[Step]:
        """All steps of a host that was looked at, as they would be carried out where nothing goes wrong."""
        facts, steps = self._facts[host], [self._steps.lock(self._plan.rollout_id, self._owner, self._message)]
        if self._plan.release in facts.releases:
            steps.append(self._steps.altered(self._plan.release))
        else:
            steps.append(self._steps.install(self._content.digest, self._content.bundle(facts.platform, facts.wheels)))
        return [*steps, self._switch_step(host), self._steps.observe(self._plan.rollout_id), self._steps.prune(keep=KEEP),
                self._steps.unlock(self._plan.rollout_id)]  # fmt: skip

    async def carry(self, host: str, phase: Phase, reason: str | None) -> Result:
        """One step; what a host does becomes an event."""
        act = {
            Phase.LOCKING: self._lock,
            Phase.UPLOADING: self._upload,
            Phase.SWITCHING: self._switch,
            Phase.GATING: self._watch,
            Phase.CONFIRMING: self._confirm,
            Phase.GOING_BACK: lambda host: self._go_back(host, reason),
            Phase.UNLOCKING: self._unlock,
        }[phase]
        try:
            return await act(self._hosts[host])
        except MachineUnreachable as exc:
            return Result(event=Event.LOST, reason=_line(exc))
        except HostRefused as exc:
            return Result(event=Event.REFUSED, reason=_line(exc), detail=exc.details or None)
        except Rejected as exc:  # such as a bundle that is damaged here
            return Result(event=Event.REFUSED, reason=_line(exc))

    async def _lock(self, host: Host) -> Result:
        await self._ask(host, self._steps.lock(self._plan.rollout_id, self._owner, self._message))
        return Result(event=Event.DONE)

    async def _upload(self, host: Host) -> Result:
        facts = self._facts.get(host.name)
        if facts is None:
            return Result(event=Event.REFUSED, reason="nobody has looked at this host")
        there = self._plan.release in facts.releases
        if not there or (await self._ask(host, self._steps.altered(self._plan.release))).altered:
            try:
                await self._install(host, facts.platform, facts.wheels)
            except HostRefused as exc:
                if exc.code != LACKS or not facts.wheels:
                    raise
                await self._install(host, facts.platform, frozenset())
        return Result(event=Event.DONE)

    async def _install(self, host: Host, platform: str, there: frozenset[str]) -> None:
        bundle = await asyncio.to_thread(self._content.bundle, platform, there)
        await self._ask(host, self._steps.install(self._content.digest, bundle))

    async def _switch(self, host: Host) -> Result:
        try:
            said = await self._ask(host, self._switch_step(host.name))
        except HostRefused as exc:
            if exc.code in ("disk", "unit"):  # it had begun: the release before is put back
                return Result(event=Event.SICK, reason=on_one_line(exc.message), detail=exc.details or None)
            raise
        if said.failure:
            return Result(event=Event.SICK, reason=on_one_line(said.failure), detail=said.details or None)
        return Result(event=Event.DONE, detail="\n".join(said.warnings) or None)

    def _look_step(self, host: str) -> Step:
        return self._steps.facts(self._content.services.get(host, []), with_config=True)

    def _switch_step(self, host: str) -> Step:
        return self._steps.switch(
            self._plan.rollout_id,
            self._plan.release,
            window_s=self._plan.window_for(host).total_seconds(),
            own=self._content.own.get(host),
        )

    async def _watch(self, host: Host) -> Result:
        """Until the host's watcher and the coordinator agree, or the time is over. A line that breaks is opened again."""
        asking: asyncio.Task[str | None] | None = None
        said = Said()
        answers = False
        try:
            async with asyncio.timeout(self._plan.timeout.total_seconds()):
                while True:
                    try:
                        wait_s = LOOK_S if asking is not None and not asking.done() else WAIT_S
                        step = self._steps.observe(self._plan.rollout_id, seen=said.seen, wait_s=wait_s)
                        said = await self._ask(host, step)
                    except MachineUnreachable as exc:
                        answers = False
                        self.waits(host.name, f"for an answer of the host, whose watcher goes on by itself ({exc.message})")
                        await asyncio.sleep(AGAIN_S)
                        continue
                    answers = True
                    if (result := _judged(said)) is not None:
                        return result
                    good = said.state == "good"
                    if self._gate is not None and asking is None and (said.resumed or good):
                        asking = asyncio.ensure_future(self._gate(host, self._facts.get(host.name)))
                    heard = Result(event=Event.DONE) if self._gate is None else _heard(asking)
                    if heard is not None and (good or heard.event is Event.SICK):
                        return replace(heard, reason=heard.reason or _reason(said))
                    self.waits(host.name, _lacks(said, self._plan.window_for(host.name)))
        except TimeoutError:
            state = _reason(said) or said.state or "it does not answer"
            event = Event.REFUSED if answers else Event.LOST
            return Result(event=event, reason=f"not decided in {self._plan.timeout}: {state}; its watcher goes on by itself")
        finally:
            if asking is not None:
                asking.cancel()

    async def _confirm(self, host: Host) -> Result:
        facts = self._facts.get(host.name)
        if facts is None or len({*facts.releases, self._plan.release}) > KEEP:
            with contextlib.suppress(HostRefused):
                await self._ask(host, self._steps.prune(keep=KEEP))
        return Result(event=Event.DONE)

    async def _go_back(self, host: Host, reason: str | None) -> Result:
        said = await self._ask(host, self._steps.go_back(self._plan.rollout_id, reason or "asked to"))
        if said.state == "went_back":
            return Result(event=Event.DONE, detail=said.journal)
        return Result(event=Event.REFUSED, reason=_reason(said), detail=said.journal)

    async def _unlock(self, host: Host) -> Result:
        await self._ask(host, self._steps.unlock(self._plan.rollout_id))
        return Result(event=Event.DONE)

    async def _ask(self, host: Host, step: Step) -> Said:
        return read_said(await self._lines.run(host, step))


def _judged(said: Said) -> Result | None:
    """What the host's watcher has decided against the release."""
    match said.state:
        case "went_back":
            return Result(event=Event.WENT_BACK, reason=_reason(said), detail=said.journal)
        case "stuck" | "missing":
            return Result(event=Event.SICK, reason=_reason(said), detail=said.journal)
    return None


def _reason(said: Said) -> str | None:
    """Why a host does what it does, on one line: a daemon's own words may be in it."""
    return on_one_line(said.reason or "") or None


def _heard(asking: asyncio.Task[str | None] | None) -> Result | None:
    """What the coordinator said of the release; None while it has not. That it refuses to be asked says nothing of the release, which the
    host's own watcher judges."""
    if asking is None or not asking.done():
        return None
    try:
        wrong = asking.result()
    except Rejected as exc:
        return Result(event=Event.REFUSED, reason=f"good by its own watcher, not judged by the coordinator: {_line(exc)}")
    return Result(event=Event.DONE) if wrong is None else Result(event=Event.SICK, reason=wrong)


def _lacks(said: Said, window: timedelta) -> str:
    """What a host that is watched, and not judged, still has to show."""
    if said.state == "good":
        return "for the coordinator to see the release, and a canary job done"
    if said.reason:
        return f"for its watcher, which says: {_reason(said)}"
    if said.resumed:
        return f"for its window to pass without trouble ({window.total_seconds():g} s)"
    return "for the daemon to be good in itself, and in contact with the coordinator"


def _line(exc: Rejected | MachineUnreachable) -> str:
    message = on_one_line(exc.message)
    return message if exc.hint is None else f"{message} ({exc.hint})"
