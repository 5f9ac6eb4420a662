"""A rollout whose hosts call in: what they report becomes events of their phases, and `decide` says who begins."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ostler.model.enumeration import Word
from ostler.model.rollout.decide import Begin, Leave, decide
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import Event, Phase, Progress, advance
from ostler.model.rollout.report import Report, Stage

_ORDER = {stage: number for number, stage in enumerate(Stage)}


class Trial(Word):
    """How a host's canary job stands."""

    NONE = "none"
    UNDER_WAY = "under_way"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the coordinator knows of a host now. `report` is of this rollout (None: none yet), `release` what its daemon runs, `takes_work`
    whether it could do a job, `silent` whether it is not heard of, `waited` how long its phase has been watched without a break.
    """

    report: Report | None = None
    release: str | None = None
    takes_work: bool = False
    silent: bool = False
    trial: Trial = Trial.NONE
    trial_reason: str | None = None
    waited: timedelta = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event of one host."""

    host: str
    event: Event
    phase: Phase
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Moves:
    """What follows from what is seen: each host's progress, what happened, whose canary job is to be submitted, and whether all is over."""

    progress: Mapping[str, Progress]
    happened: tuple[Happened, ...] = ()
    trials: tuple[str, ...] = ()
    over: bool = False
    halted: str | None = None


@dataclass(slots=True)
class _Turn:
    plan: Plan
    seen: Mapping[str, Seen]
    now: datetime
    progress: dict[str, Progress]
    happened: list[Happened] = field(default_factory=list)

    def take(self, host: str, event: Event, reason: str | None = None) -> None:
        after = advance(self.progress[host], event, now=self.now, reason=reason)
        self.progress[host] = after
        self.happened.append(Happened(host=host, event=event, phase=after.phase, reason=reason))


def look(plan: Plan, progress: Mapping[str, Progress], seen: Mapping[str, Seen], *, now: datetime, held: bool) -> Moves:
    """All that follows from what is seen now. `held`: no host begins, those under way go on."""
    turn = _Turn(plan, seen, now, dict(progress))
    while True:
        decision = decide(plan, turn.progress)
        before = len(turn.happened)
        for action in decision.actions:
            host = action.host
            if isinstance(action, Begin):
                if not held:
                    turn.take(host, Event.BEGIN)
            elif isinstance(action, Leave):
                turn.take(host, action.event, action.reason)
            elif (told := _told(action.phase, seen.get(host, Seen()), plan, fresh=turn.progress[host].since == now)) is not None:
                turn.take(host, *told)
        if len(turn.happened) == before:
            trials = tuple(host for host, one in turn.progress.items() if _wants_trial(one, seen.get(host, Seen()), plan))
            return Moves(turn.progress, tuple(turn.happened), trials, decision.over, decision.halted)


Told = tuple[Event, str | None]


def _told(phase: Phase, seen: Seen, plan: Plan, *, fresh: bool) -> Told | None:
    """The event that what is seen is for a host in this phase; None: nothing yet. `fresh`: it came into it only now."""
    report = seen.report
    if phase in {Phase.CONFIRMING, Phase.UNLOCKING}:
        return Event.DONE, None  # the host has confirmed it by itself, and has given its lock back
    if report is not None and (told := _reported(phase, report, seen, plan)) is not None:
        return told
    if fresh or seen.waited <= plan.timeout:
        return None
    return _late(phase, seen, plan)


def _reported(phase: Phase, report: Report, seen: Seen, plan: Plan) -> Told | None:
    stage, reason = report.stage, report.reason
    match phase:
        case Phase.GOING_BACK:
            if stage is Stage.WENT_BACK:
                return Event.WENT_BACK, None  # for the reason that it was asked to
            return (Event.REFUSED, reason) if stage in {Stage.STUCK, Stage.REFUSED} else None
        case Phase.GATING:
            return _gated(report, seen, plan)
    if stage is Stage.REFUSED:
        return Event.REFUSED, reason
    begun = {Phase.LOCKING: Stage.FETCHING, Phase.UPLOADING: Stage.ARMED, Phase.SWITCHING: Stage.WATCHING}[phase]
    return (Event.DONE, None) if _ORDER[stage] >= _ORDER[begun] else None


def _gated(report: Report, seen: Seen, plan: Plan) -> Told | None:
    match report.stage:
        case Stage.WENT_BACK:
            return Event.WENT_BACK, report.reason
        case Stage.STUCK | Stage.REFUSED:
            return Event.SICK, report.reason
    if seen.trial is Trial.FAILED:
        return Event.SICK, seen.trial_reason
    good = report.stage is Stage.GOOD and seen.release == plan.release and seen.trial is Trial.DONE
    return (Event.DONE, report.reason) if good else None


def _late(phase: Phase, seen: Seen, plan: Plan) -> Told:
    limit = f"{plan.timeout.total_seconds():.0f} s"
    if seen.silent:
        return Event.LOST, f"it was not heard of for {limit}; its watcher decides by itself"
    match phase:
        case Phase.LOCKING:
            return Event.REFUSED, f"it has not taken the request up in {limit}"
        case Phase.UPLOADING | Phase.SWITCHING:
            return Event.REFUSED, f"it was not through with that in {limit}"
        case Phase.GOING_BACK:
            return Event.LOST, f"it did not go back in {limit}"
    lacks = seen.report.reason or seen.report.stage if seen.report is not None else "it says nothing"
    return Event.REFUSED, f"not decided in {limit}: {lacks}; its watcher goes on by itself"


def _wants_trial(host: Progress, seen: Seen, plan: Plan) -> bool:
    return (
        host.phase is Phase.GATING
        and seen.trial is Trial.NONE
        and seen.release == plan.release
        and seen.takes_work
        and not seen.silent
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a plan says of a host before it is agreed to: `event` ends it there, for a reason; or it is to be updated."""

    event: Event | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of a node that a rollout may be for. `platform` is what it takes releases for (`cp311-x86_64`), None where it takes
    none; `busy` the rollout that it is in, `outside` why it has no session; `newer`: what it runs is newer than what is to be brought.
    """

    host: str
    release: str | None
    platform: str | None
    silent: bool = False
    cordoned: str | None = None
    outside: str | None = None
    busy: str | None = None
    newer: bool = False


def outlook(node: Candidate, release: str, platforms: tuple[str, ...]) -> Outlook:
    """Whether a release may go onto a node."""
    if node.release == release:
        return Outlook(event=Event.MATCHES)
    if node.cordoned is not None:
        return Outlook(event=Event.EXCLUDE, reason=f"cordoned: {node.cordoned or 'no reason given'}")
    if node.silent:
        return Outlook(event=Event.LOST, reason="it is not heard of")
    if node.outside is not None:
        return Outlook(event=Event.REFUSED, reason=node.outside)
    if node.platform is None:
        why = "takes no releases from the coordinator: it was not installed by `ostler node install` or `ostler fleet install`"
        return Outlook(event=Event.REFUSED, reason=f"it {why}, or with a release of before that")
    if node.platform not in platforms:
        return Outlook(
            event=Event.REFUSED, reason=f"release {release} has nothing for {node.platform}, only {', '.join(platforms)}"
        )
    if node.newer:
        return Outlook(
            event=Event.REFUSED,
            reason=f"release {release} is older than {node.release}, which runs there: hosts take none such from the coordinator",
        )
    if node.busy is not None:
        return Outlook(event=Event.REFUSED, reason=f"rollout {node.busy} is not over there")
    return Outlook()
