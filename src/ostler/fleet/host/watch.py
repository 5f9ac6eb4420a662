"""Whether a release that was just switched to stays: decided on the host itself, without the updater and without network.

Standard library only, as all of the host program.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

CRASHES = 2  # ends of the daemon in one window: one may be chance, two are a loop
START_S = 60.0  # the daemon must have shown itself good by then
CONTACT_S = 45.0  # without an answer of the coordinator for so long it counts as unreachable
MAX_REASON = 1000  # of what may be the daemon's own words
HOLD_S = 3600.0  # a release that is good in itself is kept after an hour without a coordinator


class State(StrEnum):
    """What the watcher makes of an update. The last three are ends."""

    WATCHING = "watching"
    HOLDING = "holding"
    GOOD = "good"
    WENT_BACK = "went_back"
    STUCK = "stuck"


CLOSED = frozenset({State.GOOD, State.WENT_BACK, State.STUCK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """An update under watch. Times are seconds on a clock that goes on over reboots of the watcher alone (boot time of the kernel).

    `restarts` is the unit's counter when the switch was made, `ended` how often the daemon ended since. `bad_since`,
    `alone_since` and `good_since` say when it began to be unbroken that the daemon is not good in itself (at the switch it is
    not), is good and has no coordinator, or is good in all. `retried`: it was started anew since the release before reached the
    coordinator, so that it tries at once.
    """

    update_id: str
    release: str
    previous: str | None
    window_s: float
    began: float
    restarts: int = 0
    ended: int = 0
    bad_since: float | None = None
    good_since: float | None = None
    alone_since: float | None = None
    resumed: bool = False
    retried: bool = False
    state: State = State.WATCHING
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look at the daemon: its unit, and its `/healthz` (None: no answer).

    `predecessor_reaches` says whether the release before gets an answer of the coordinator; None: it was not asked.
    """

    active: str
    restarts: int
    health: dict[str, Any] | None
    predecessor_reaches: bool | None = None


class Verdict(StrEnum):
    """What is to be done now."""

    WAIT = "wait"
    ASK_PREDECESSOR = "ask_predecessor"
    TRY_ANEW = "try_anew"
    RESUME = "resume"
    KEEP = "keep"
    GO_BACK = "go_back"


def judge(watch: Watch, sight: Sight, now: float) -> tuple[Watch, Verdict]:
    """The watch after this look, and what to do. A reason to go back stands in `reason`."""
    watch = replace(watch, restarts=min(watch.restarts, sight.restarts))  # a restart by hand sets the unit's counter to zero
    ended = sight.restarts - watch.restarts
    if ended != watch.ended:  # seen or not: between two looks it was gone, and what it was good for begins anew
        watch = replace(watch, ended=ended, good_since=None)
    if ended >= CRASHES:
        return _back(watch, f"the daemon ended {ended} times in {now - watch.began:.0f} s")
    if sight.active == "failed":
        return _back(watch, "the daemon's unit failed")
    health = sight.health if sight.active == "active" else None
    own = health is not None and health.get("release") == watch.release
    check = str(health.get("self_check", "")) if own and health else ""
    if check.startswith("failed"):
        return _back(watch, f"it cannot run a job: {check.removeprefix('failed').lstrip(': ')}")
    if not own or check != "ok":
        return _not_yet(watch, sight, now)
    return _itself_good(watch, sight, health or {}, now)


def _not_yet(watch: Watch, sight: Sight, now: float) -> tuple[Watch, Verdict]:
    """Its unit is up or coming up, and it does not say that it is good."""
    since = now if watch.bad_since is None else watch.bad_since
    watch = replace(watch, bad_since=since, good_since=None, alone_since=None)
    if now - since <= START_S:
        return watch, Verdict.WAIT
    if sight.health is None:
        what = "does not answer /healthz"
    elif sight.health.get("release") != watch.release:
        what = f"answers /healthz as release {sight.health.get('release')}"
    else:
        what = "does not finish its self-check"
    return _back(watch, f"for {START_S:.0f} s the daemon {what} (its unit is {sight.active})")


def _itself_good(watch: Watch, sight: Sight, health: dict[str, Any], now: float) -> tuple[Watch, Verdict]:
    watch = replace(watch, bad_since=None)
    contact = health.get("last_contact_s") if health.get("session") else None  # one that sends it away is no contact
    if isinstance(contact, int | float) and contact <= CONTACT_S:
        since = now if watch.good_since is None else watch.good_since
        watch = replace(watch, state=State.WATCHING, good_since=since, alone_since=None, reason=None, retried=False)
        if now - since >= watch.window_s:
            return replace(watch, state=State.GOOD), Verdict.KEEP
        return (watch, Verdict.WAIT) if watch.resumed else (replace(watch, resumed=True), Verdict.RESUME)
    alone = now if watch.alone_since is None else watch.alone_since
    watch = replace(watch, alone_since=alone, good_since=None)
    if now - alone < CONTACT_S:
        return watch, Verdict.WAIT
    if sight.predecessor_reaches and not watch.retried:  # perhaps it has just come back, and the daemon waits before its next try
        told = f"the coordinator answers {watch.previous}: the daemon is started anew, to see whether it is let in"
        return replace(watch, state=State.HOLDING, reason=told, retried=True, alone_since=None), Verdict.TRY_ANEW
    if sight.predecessor_reaches:
        return _back(watch, f"the coordinator does not let it in, and still answers {watch.previous}")
    if sight.predecessor_reaches is False:
        watch = replace(watch, retried=False)
    if now - alone >= HOLD_S:
        return replace(watch, state=State.GOOD, reason="kept without a coordinator: none was reached for an hour"), Verdict.KEEP
    held = replace(watch, state=State.HOLDING, reason="the coordinator is reached neither by this release nor by the one before")
    return held, Verdict.WAIT if watch.previous is None or sight.predecessor_reaches is False else Verdict.ASK_PREDECESSOR


def _back(watch: Watch, reason: str) -> tuple[Watch, Verdict]:
    return replace(watch, reason=reason[:MAX_REASON]), Verdict.GO_BACK
