"""One host's way through a rollout: phases, events, and the only legal changes between them."""

from dataclasses import dataclass, replace
from datetime import datetime

from ostler.model.enumeration import Word
from ostler.model.errors import InvalidTransition


class Phase(Word):
    """Where a host stands in a rollout. The ones from `current` on are ends."""

    PLANNED = "planned"
    LOCKING = "locking"
    UPLOADING = "uploading"
    SWITCHING = "switching"
    GATING = "gating"
    CONFIRMING = "confirming"
    GOING_BACK = "going_back"
    UNLOCKING = "unlocking"
    CURRENT = "current"
    UPDATED = "updated"
    FAILED = "failed"
    UNHEALTHY = "unhealthy"
    UNREACHABLE = "unreachable"
    EXCLUDED = "excluded"
    HELD = "held"


class Event(Word):
    """What can happen to a host in a rollout."""

    BEGIN = "begin"
    DONE = "done"
    REFUSED = "refused"
    SICK = "sick"
    WENT_BACK = "went_back"
    LOST = "lost"
    MATCHES = "matches"
    EXCLUDE = "exclude"
    HOLD = "hold"


_P, _E = Phase, Event

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (_P.PLANNED, _E.MATCHES): _P.CURRENT,  # it has this release, these units and this configuration already
    (_P.PLANNED, _E.EXCLUDE): _P.EXCLUDED,  # paused, or known to be broken: said, never counted as a failure
    (_P.PLANNED, _E.HOLD): _P.HELD,  # the budget was spent, or a canary failed, before its turn
    (_P.PLANNED, _E.REFUSED): _P.FAILED,  # preflight: nothing was changed
    (_P.PLANNED, _E.LOST): _P.UNREACHABLE,
    (_P.PLANNED, _E.BEGIN): _P.LOCKING,
    (_P.LOCKING, _E.DONE): _P.UPLOADING,
    (_P.LOCKING, _E.REFUSED): _P.FAILED,  # somebody else holds the lock: there is nothing of ours to unlock
    (_P.UPLOADING, _E.DONE): _P.SWITCHING,
    (_P.UPLOADING, _E.REFUSED): _P.UNLOCKING,  # no space, a bad signature: nothing was switched
    (_P.SWITCHING, _E.DONE): _P.GATING,
    (_P.SWITCHING, _E.REFUSED): _P.UNLOCKING,  # refused before anything was switched
    (_P.SWITCHING, _E.SICK): _P.GOING_BACK,  # the unit did not come up
    (_P.GATING, _E.DONE): _P.CONFIRMING,  # good for the whole window
    (_P.GATING, _E.SICK): _P.GOING_BACK,
    (_P.GATING, _E.WENT_BACK): _P.UNLOCKING,  # the host's own watcher was faster
    (_P.GATING, _E.REFUSED): _P.UNLOCKING,  # not decided in time: its watcher goes on, and lets no other update in
    (_P.CONFIRMING, _E.DONE): _P.UNLOCKING,
    (_P.CONFIRMING, _E.WENT_BACK): _P.UNLOCKING,
    (_P.CONFIRMING, _E.SICK): _P.GOING_BACK,
    (_P.GOING_BACK, _E.DONE): _P.UNLOCKING,
    (_P.GOING_BACK, _E.WENT_BACK): _P.UNLOCKING,
    (_P.GOING_BACK, _E.REFUSED): _P.UNHEALTHY,  # it keeps its lock: a person must look
    (_P.UNLOCKING, _E.DONE): _P.UPDATED,  # or what `outcome` says, see `advance`
    (_P.UNLOCKING, _E.REFUSED): _P.UPDATED,  # a lock that is left goes stale; the host itself is as it should be
    (_P.UNLOCKING, _E.LOST): _P.UPDATED,
    **{
        (phase, _E.LOST): _P.UNREACHABLE  # the line is gone for good; the watcher on the host decides by itself
        for phase in (_P.LOCKING, _P.UPLOADING, _P.SWITCHING, _P.GATING, _P.CONFIRMING, _P.GOING_BACK)
    },
}

TERMINAL = frozenset(Phase) - {phase for phase, _ in TRANSITIONS}
IN_FLIGHT = frozenset(Phase) - TERMINAL - {Phase.PLANNED}
FAILURES = frozenset({Phase.FAILED, Phase.UNHEALTHY, Phase.UNREACHABLE})

_FATE = {  # (the phase that a host leaves for `unlocking`, the event) -> its end
    (_P.UPLOADING, _E.REFUSED): _P.FAILED,
    (_P.SWITCHING, _E.REFUSED): _P.FAILED,
    (_P.GATING, _E.WENT_BACK): _P.UNHEALTHY,
    (_P.GATING, _E.REFUSED): _P.UNREACHABLE,
    (_P.CONFIRMING, _E.WENT_BACK): _P.UNHEALTHY,
    (_P.GOING_BACK, _E.DONE): _P.UNHEALTHY,
    (_P.GOING_BACK, _E.WENT_BACK): _P.UNHEALTHY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one host is. `reason` says why it failed, `fate` is where it ends once it is unlocked; `since` is when its phase began."""

    host: str
    phase: Phase = Phase.PLANNED
    reason: str | None = None
    fate: Phase = Phase.UPDATED
    began_at: datetime | None = None
    since: datetime | None = None
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it counts against the budget; while it goes back it does already."""
        return (
            self.phase in FAILURES or self.phase is Phase.GOING_BACK or (self.phase is Phase.UNLOCKING and self.fate in FAILURES)
        )


def advance(progress: Progress, event: Event, *, now: datetime, reason: str | None = None) -> Progress:
    """The only way to change a host's phase; raises InvalidTransition where the table has no edge."""
    phase = TRANSITIONS.get((progress.phase, event))
    if phase is None:
        raise InvalidTransition(f"host {progress.host} is {progress.phase} in this rollout: {event} is not possible")
    fate = _FATE.get((progress.phase, event), progress.fate)
    if progress.phase is Phase.UNLOCKING:
        phase = progress.fate
    return replace(
        progress,
        phase=phase,
        fate=fate,
        reason=progress.reason if progress.phase is Phase.UNLOCKING else reason or progress.reason,
        began_at=now if event is Event.BEGIN else progress.began_at,
        since=now,
    )
