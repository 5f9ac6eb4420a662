"""Between people and coordinator: releases onto nodes that call in."""

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct, field

from ostler.model.rollout.progress import Phase
from ostler.model.rollout.state import RolloutState


class RolloutRequest(Struct, frozen=True, kw_only=True):
    """A release for nodes: those named, or all that are in `pool` and have all of `tags`. `serial` and `max_failures` are a number (`3`)
    or a share (`25%`); `canary_window_s` absent: three times `window_s`; `timeout_s` is for each phase of a node.
    """

    release: str
    nodes: tuple[str, ...] | None = None
    pool: str | None = None
    tags: tuple[str, ...] = ()
    canary: int = 1
    serial: str | None = None
    max_failures: str = "0"
    window_s: float = 15.0
    canary_window_s: float | None = None
    timeout_s: float = 600.0
    message: str | None = None


class RolloutHost(Struct, frozen=True, kw_only=True):
    """One node in a rollout: how far it is, why, and the release that its daemon runs now. `canary`: it goes first. `job_id` is its canary
    job, `detail` what the unit of a release that was no good wrote last."""

    node_id: str
    phase: Phase
    reason: str | None = None
    release: str | None = None
    canary: bool = False
    began_at: datetime | None = None
    since: datetime | None = None
    job_id: str | None = None
    detail: str | None = None


class RolloutView(Struct, frozen=True, kw_only=True):
    """One rollout. `revision` grows with each decision about it and is its ETag; `reason` says why it is held, failed or aborted;
    `counts` tells how many nodes are in each phase; a list has no `hosts`."""

    rollout_id: str
    release: str
    state: RolloutState
    revision: int
    canary: int
    serial: str | None
    max_failures: str
    window_s: float
    canary_window_s: float
    timeout_s: float
    created_at: datetime
    created_by: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None
    message: str | None = None
    counts: Mapping[Phase, int] = field(default_factory=dict)
    hosts: tuple[RolloutHost, ...] = ()


class RolloutPage(Struct, frozen=True, kw_only=True):
    """Rollouts, the newest first."""

    items: tuple[RolloutView, ...]
    next_cursor: str | None = None
