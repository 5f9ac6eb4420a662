"""What is next in a rollout: a function of the plan, each host's progress and what is running now."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import FAILURES, IN_FLIGHT, TERMINAL, Event, Phase, Progress
from ostler.model.words import many


@dataclass(frozen=True, slots=True)
class Begin:
    """Let this host begin."""

    host: str


@dataclass(frozen=True, slots=True)
class Carry:
    """Carry out the step of the phase that this host is in."""

    host: str
    phase: Phase


@dataclass(frozen=True, slots=True)
class Leave:
    """This host's turn does not come: `event` and `reason` say why."""

    host: str
    event: Event
    reason: str


Action = Begin | Carry | Leave


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and whether the rollout is over. `halted` says why nothing new begins."""

    actions: tuple[Action, ...]
    over: bool
    halted: str | None = None


def decide(plan: Plan, progress: Mapping[str, Progress], *, busy: Collection[str] = ()) -> Decision:
    """The next actions. `busy` are hosts whose step is being carried out at this moment.

    The canaries go first and together; the others begin once all canaries ended well. A failed canary, or more failures than the
    budget, holds every host that has not begun; those under way are brought to an end.
    """
    hosts = [progress[host] for host in plan.hosts]
    halted = _halted(plan, hosts)
    actions: list[Action] = [
        Leave(host.host, Event.EXCLUDE, plan.excluded[host.host]) for host in hosts if _waits(host) and host.host in plan.excluded
    ]
    waiting = [host.host for host in hosts if _waits(host) and host.host not in plan.excluded]
    if halted:
        actions += [Leave(host, Event.HOLD, halted) for host in waiting]
    else:
        free = plan.width - sum(host.phase in IN_FLIGHT for host in hosts)
        actions += [Begin(host) for host in _next_in_line(plan, progress, waiting)[: max(0, free)]]
    actions += [Carry(host.host, host.phase) for host in hosts if host.phase in IN_FLIGHT and host.host not in busy]
    return Decision(tuple(actions), over=all(host.phase in TERMINAL for host in hosts), halted=halted)


def _waits(host: Progress) -> bool:
    return host.phase is Phase.PLANNED


def _next_in_line(plan: Plan, progress: Mapping[str, Progress], waiting: list[str]) -> list[str]:
    canaries = [host for host in plan.canaries if progress[host].phase not in TERMINAL]
    return [host for host in waiting if host in canaries] if canaries else waiting


def _halted(plan: Plan, hosts: list[Progress]) -> str | None:
    failed = [host for host in hosts if host.failed]
    # A canary that could not even be reached says nothing of the release: it counts against the budget alone.
    spoiled = [host.host for host in failed if host.host in plan.canaries and _tried(host)]
    if spoiled:
        return f"canary {', '.join(spoiled)} failed"
    if len(failed) > plan.budget:
        return f"{len(failed)} of {many(len(hosts), 'host')} failed, --max-failures is {plan.max_failures}"
    return None


def _tried(host: Progress) -> bool:
    return host.phase is not Phase.UNREACHABLE and (host.began_at is not None or host.phase not in FAILURES)
