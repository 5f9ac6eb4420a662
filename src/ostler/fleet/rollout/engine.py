"""Carries a rollout out: asks `decide` what is next, has it done, writes down what happened, until every host has come to an end."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ostler.fleet.rollout.journal import Happened, Journal
from ostler.model.rollout.decide import Begin, Carry, Leave, decide
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import Event, Phase, Progress, advance


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one step: an event that is possible in its phase, a line why, and more than a line where there is."""

    event: Event
    reason: str | None = None
    detail: str | None = None


class Carrier(Protocol):
    """How steps reach hosts."""

    async def carry(self, host: str, phase: Phase, reason: str | None) -> Result:
        """Carry out the step of a phase; `reason` is why the host goes back, where it does. Never raises for what a host does."""
        ...


class Engine:
    """One rollout. `run` answers how each host ended; it may be cancelled and gone on with from its journal."""

    def __init__(
        self,
        plan: Plan,
        carrier: Carrier,
        *,
        journal: Journal,
        progress: Mapping[str, Progress] | None = None,
        heard: Callable[[Happened, Progress], None] = lambda happened, progress: None,
        clock: Callable[[], datetime],
    ) -> None:
        """`heard` is told of each event once it is in the journal."""
        self.plan = plan
        self.progress = dict(progress or {host: Progress(host=host) for host in plan.hosts})
        self.halted: str | None = None
        self._carrier = carrier
        self._journal = journal
        self._heard = heard
        self._clock = clock

    async def run(self) -> Mapping[str, Progress]:
        """Until all hosts have come to an end."""
        busy: dict[str, asyncio.Task[Result]] = {}
        try:
            while True:
                decision = decide(self.plan, self.progress, busy=busy.keys())
                self.halted = decision.halted
                if decision.over:
                    return self.progress
                for action in decision.actions:
                    match action:
                        case Begin(host):
                            self._happen(host, Result(event=Event.BEGIN))
                        case Leave(host, event, reason):
                            self._happen(host, Result(event=event, reason=reason))
                        case Carry(host, phase):
                            work = self._carrier.carry(host, phase, self.progress[host].reason)
                            busy[host] = asyncio.create_task(work, name=f"{phase} {host}")
                if any(not isinstance(action, Carry) for action in decision.actions):
                    continue  # what began has a step now
                await asyncio.wait(busy.values(), return_when=asyncio.FIRST_COMPLETED)
                for host in [host for host, task in busy.items() if task.done()]:
                    self._happen(host, busy.pop(host).result())
        finally:
            for task in busy.values():
                task.cancel()
            await asyncio.gather(*busy.values(), return_exceptions=True)

    def refuse(self, host: str, event: Event, reason: str | None) -> None:
        """What the preflight found, before `run`: REFUSED, LOST, MATCHES or EXCLUDE."""
        self._happen(host, Result(event=event, reason=reason))

    def _happen(self, host: str, result: Result) -> None:
        now = self._clock()
        after = advance(self.progress[host], result.event, now=now, reason=result.reason)
        happened = Happened(at=now, host=host, event=result.event, phase=after.phase, reason=result.reason, detail=result.detail)
        self._journal.note(happened)
        self.progress[host] = after
        self._heard(happened, after)
