"""One declared service and all that is known of it, and what is told of that."""

from dataclasses import dataclass, field, replace

from ostler.model.service import Desired, Health, Observation, ServiceState, Verb
from ostler.node.config import ServiceConfig
from ostler.node.services.asking import Question
from ostler.node.services.judging import Seen, judge
from ostler.node.services.restarts import Restarts
from ostler.node.services.standing import Standing, overall
from ostler.node.services.units import UnitView
from ostler.node.services.wishes import Wish
from ostler.runtime.clock import Clock


@dataclass(slots=True, eq=False)
class Watched:
    """Times are monotonic seconds. `doing` is whoever has systemd do something with it now, `verb` what. `trouble` says why systemd could
    not be asked, `absent` why its program is of no use, `unasked` why a probe could not be put, `note` what else a person should know;
    `told` is what was told of it last."""

    name: str
    config: ServiceConfig
    wish: Wish
    restarts: Restarts
    questions: list[Question]
    standings: list[Standing]
    asked_at: list[float]
    measured_at: float
    asking: set[int] = field(default_factory=set)
    measuring: bool = False
    doing: object | None = None
    verb: Verb | None = None
    view: UnitView | None = None
    trouble: str = ""
    absent: str | None = None
    started_at: float = 0.0
    note: str = ""
    unasked: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    told: Observation | None = None

    @property
    def desired(self) -> Desired | None:
        """What is wanted, by a person or else by the configuration."""
        return self.wish.desired or self.config.restart.keep

    @property
    def runs(self) -> bool:
        """Whether it can be asked anything."""
        return self.view is not None and self.view.active == "active"


def watched(name: str, config: ServiceConfig, wish: Wish) -> Watched:
    """A service at which nobody has looked."""
    long_ago = float("-inf")
    return Watched(
        name=name,
        config=config,
        wish=wish,
        restarts=Restarts(count=wish.restarts, tries=wish.tries),
        questions=[Question(probe) for probe in config.health],
        standings=[Standing() for _ in config.health],
        asked_at=[long_ago] * len(config.health),
        measured_at=long_ago,
    )


def seen_of(one: Watched) -> Seen:
    """What a verdict on it stands on."""
    health, ill = overall(one.standings) if one.runs else (Health.UNKNOWN, "")
    return Seen(
        unit=one.config.unit,
        view=one.view or UnitView(load="loaded", active="inactive"),
        health=health,
        ill=ill,
        absent=one.absent,
        desired=one.desired,
        doing=one.verb,
    )


def observe(one: Watched, clock: Clock) -> Observation:
    """As it is told now."""
    seen = seen_of(one)
    state, message = judge(seen)
    if one.view is None:
        state, message = ServiceState.MISSING, one.trouble or "it was not looked at yet"
    words = [message, one.trouble if one.view is not None else "", one.unasked, one.note]
    if one.restarts.gave_up:
        words.append(f"started anew {one.restarts.tries} times in vain: a command to start it tries again")
    due, before = one.restarts.due_at, one.told
    return Observation(
        name=one.name,
        state=state,
        health=seen.health,
        desired=one.desired,
        unit=one.config.unit,
        since=before.since if before is not None and before.state is state else clock.now().isoformat(),
        pid=one.view.pid if one.view is not None else None,
        restarts=one.restarts.count,
        retry_s=None if due is None else round(max(0.0, due - clock.monotonic()), 1),
        message="; ".join(word for word in words if word)[:1000],
        metrics=one.metrics,
    )


def gist(seen: Observation | None) -> object:
    """What of an observation is worth a call of its own."""
    return None if seen is None else replace(seen, metrics={}, retry_s=None if seen.retry_s is None else 0.0, since=None)
