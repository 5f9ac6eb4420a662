"""What a host says of an update that was asked of it."""

from dataclasses import dataclass

from ostler.model.enumeration import Word


class Stage(Word):
    """How far a host is with what was asked of it, by its own word."""

    FETCHING = "fetching"  # the daemon downloads the bundle
    ASKED = "asked"  # it lies where root looks
    INSTALLING = "installing"
    ARMED = "armed"  # the watcher is, and the switch begins
    WATCHING = "watching"
    HOLDING = "holding"  # good in itself, and no coordinator
    GOOD = "good"
    WENT_BACK = "went_back"
    STUCK = "stuck"
    REFUSED = "refused"  # nothing was changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a host says of one update. `update_id` is the rollout that asked for it; `reason` says why it is so, `detail` what the unit of
    a release that was no good wrote last."""

    update_id: str
    release: str
    stage: Stage
    reason: str | None = None
    detail: str | None = None
