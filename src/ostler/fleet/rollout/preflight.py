"""What a host says of itself before anything is changed, and whether a rollout may begin there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ostler.fleet.host.access import STRANGE
from ostler.fleet.node_config import Own, declares_services, differences, node_id_of
from ostler.model.words import many

NODE_UNIT = "ostler-node.service"
KEEPER_UNIT = "ostler-keeper.service"
WATCH_UNIT = "ostler-watch.service"
UPDATE_PATH = "ostler-update.path"
FIREWALL_UNIT = "ostler-firewall.service"
RUNNING = (NODE_UNIT, KEEPER_UNIT, UPDATE_PATH)  # always, and from each boot on
SKEW = timedelta(seconds=30)
LOCK_STALE = timedelta(minutes=5)
RETIRED = "its node was retired: to use the host again, `ostler fleet uninstall` and `ostler fleet install`"
ENDS = "ends again and again"
NOT_ENROLLED = "not enrolled:"  # how a daemon begins that says so of itself
ROOM = 3  # an unpacked release takes about three times its bundle, and the bundle is there beside it for a moment


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """One systemd unit as the host sees it. `sha256` is of the unit's file (None: there is none), `wanted` of the one in the release
    that is in force; `restarts` counts since it was started by hand; `at_boot`: the host starts it; `stale`: systemd has not read its files
    as they are now; `drop_ins` are files of others that change it."""

    state: str
    sha256: str | None = None
    wanted: str | None = None
    restarts: int = 0
    at_boot: bool = True
    stale: bool = False
    drop_ins: tuple[str, ...] = ()


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """Who deploys to this host. Times are seconds since the epoch, by the host's clock."""

    owner: str
    rollout_id: str
    message: str
    taken_at: float
    beat_at: float


class OpenUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An update whose window is not over; `release` is the new one, `previous` the one to go back to, `state` what the watcher
    makes of it."""

    update_id: str
    release: str
    previous: str | None
    state: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the host program's `facts`. `abi` is Python's (`cp311`), `now` seconds since the epoch, `refused` why a directory
    cannot be written. `config` is there where it was asked for, and is shown to nobody: it may hold a secret; `beside` are the hashes of
    what stands beside it, `access` says by path where others than root could change any of that, or the node cannot read it; `entries` are
    the texts of the allowlist's files by name (None: it cannot be read), `altered` the files of the release in force that are not as it
    brought them, both where they were asked for; `wheels` are the sha256 of those that its releases were made of; `links` are those that
    programs of services need, with what they are to refer to; `unfinished`: it was being made a node when that was cut off; `has_key`: the
    node's own key is on its disk."""

    hostname: str
    os: str
    arch: str
    abi: str
    now: float
    disk_free_mb: int
    refused: Mapping[str, str] = {}
    current: str | None = None
    previous: str | None = None
    releases: tuple[str, ...] = ()
    wheels: frozenset[str] = frozenset()
    units: Mapping[str, Unit] = {}
    config_sha256: str | None = None
    applied_sha256: str | None = None
    permits_sha256: str | None = None
    permitted_sha256: str | None = None
    config: str | None = None
    beside: Mapping[str, str | None] = {}
    access: Mapping[str, str] = {}
    entries: Mapping[str, str | None] = {}
    altered: tuple[str, ...] = ()
    health: Mapping[str, Any] | None = None
    lock: Lock | None = None
    update: OpenUpdate | None = None
    links: Mapping[str, str] = {}
    unfinished: bool = False
    has_key: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def platform(self) -> str:
        """As releases name it."""
        return f"{self.abi}-{self.arch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the rollout brings: the release with the platforms that it has (`cp311-x86_64`) and its size, and what is the host's own
    (None: the configuration that was put in force last)."""

    rollout_id: str
    release: str
    platforms: Collection[str]
    bundle_mb: int
    own: Own | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`refusal` says why nothing may begin on this host; else `drift` lists what the rollout changes there (empty: nothing),
    `warnings` what it will not mend."""

    refusal: str | None = None
    drift: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(facts: Facts, wanted: Wanted, *, asked_at: datetime, answered_at: datetime) -> Verdict:
    """Whether `wanted` may go onto a host with these `facts`, which it gave between the two times on our clock."""
    refusal = _refusal(facts, wanted, asked_at, answered_at)
    return Verdict(
        refusal=refusal, drift=() if refusal else drift(facts, wanted), warnings=(*facts.warnings, *strange(facts).values())
    )


def skew(facts: Facts, asked_at: datetime, answered_at: datetime) -> timedelta:
    """By how much the host's clock is surely wrong, ahead positive: the time that the answer took is in the host's favour."""
    there = datetime.fromtimestamp(facts.now, UTC)
    return min(there - asked_at, timedelta()) + max(there - answered_at, timedelta())


def drift(facts: Facts, wanted: Wanted) -> tuple[str, ...]:
    """What is not there as `wanted` has it, one line each."""
    lines = [] if facts.current == wanted.release else [f"release {facts.current or 'none'} → {wanted.release}"]
    lines += edited(facts, wanted.own) + unlinked(facts)
    if facts.current == wanted.release:
        lines += not_running(facts)
    return tuple(lines)


def is_retired(facts: Facts) -> bool:
    """Whether somebody retired the node: its key opens nothing any more."""
    return (facts.health or {}).get("retired") is True


def edited(facts: Facts, own: Own | None) -> list[str]:
    """What is not as it was put in force, or, of a host's own that is known here, not as it should be."""
    lines = []
    for name, unit in sorted(facts.units.items()):
        if unit.sha256 is None and name != FIREWALL_UNIT:  # which no release brings
            lines.append(f"{name} is missing")
        elif unit.wanted is not None and unit.sha256 != unit.wanted:
            lines.append(f"{name} was edited")
    lines += [f"{name} does not start with the host" for name in RUNNING if name in facts.units and not facts.units[name].at_boot]
    lines += [f"{path} {why}" for path, why in sorted(facts.access.items()) if not why.endswith(STRANGE)]
    if facts.permitted_sha256 is not None and facts.permits_sha256 != facts.permitted_sha256:
        lines.append("what polkit permits was edited" if facts.permits_sha256 else "what polkit permits is missing")
    elif facts.permitted_sha256 is None and declares_services(facts.config):  # such as by a release that knew no services
        lines.append("what polkit permits is missing")
    if own is not None:
        there = facts.config if facts.config_sha256 is not None else None
        return [*lines, *differences(own, config=there, applied_sha256=facts.applied_sha256, beside=facts.beside)]
    if facts.applied_sha256 is not None and facts.config_sha256 != facts.applied_sha256:
        lines.append("the configuration was edited" if facts.config_sha256 else "the configuration is missing")
    return lines


def strange(facts: Facts) -> dict[str, str]:
    """What others could change and no installation wrote, a line by its path: no command makes it root's."""
    return {path: f"{path} {why}" for path, why in sorted(facts.access.items()) if why.endswith(STRANGE)}


def unlinked(facts: Facts) -> list[str]:
    """Where a service expects a program that is somewhere else."""
    return [f"{there} is missing, the program is at {target}" for there, target in sorted(facts.links.items())]


def not_running(facts: Facts) -> list[str]:
    """Where the daemon is not what is in force, or something does not run that always should."""
    running = (facts.health or {}).get("release")
    lines = [f"the daemon still runs {running}"] if running is not None and running != facts.current else []
    return [
        *lines,
        *(f"{name} {_standing(unit)}" for name in RUNNING if (unit := facts.units.get(name)) and unit.state != "active"),
    ]


def _standing(unit: Unit) -> str:
    """One that systemd starts again and again is mostly seen while it waits for the next time."""
    if unit.state == "activating" and unit.restarts:
        return f"{ENDS}: systemd has restarted it {many(unit.restarts, 'time')}"
    return f"is {unit.state}"


def _refusal(facts: Facts, wanted: Wanted, asked_at: datetime, answered_at: datetime) -> str | None:
    for directory, why in facts.refused.items():
        return f"cannot write to {directory}: {why}"
    if NODE_UNIT not in facts.units or facts.units[NODE_UNIT].sha256 is None:
        return "the service is not installed: run `ostler fleet install` first"
    if is_retired(facts):
        return RETIRED
    if facts.current == wanted.release and (facts.health or {}).get("enrolled") is False:  # installing brings no other release
        return "not enrolled: the coordinator refuses this node's key; run `ostler fleet install` first"
    if (other := _another_node(facts, wanted.own)) is not None:
        return other
    platform = facts.platform
    if platform not in wanted.platforms:
        has = ", ".join(sorted(wanted.platforms))
        return (
            f"release {wanted.release} has nothing for {platform} ({facts.os}), only {has}; "
            f"build it with `ostler release build --platform {platform}`"
        )
    need = wanted.bundle_mb * (1 + ROOM)
    if wanted.release not in facts.releases and facts.disk_free_mb < need:
        return f"{facts.disk_free_mb} MB are free for releases, {need} are needed; `ostler fleet prune --keep 1` removes old releases"
    wrong = skew(facts, asked_at, answered_at)
    if abs(wrong) > SKEW:
        side = "ahead" if wrong > timedelta() else "behind"
        return f"its clock is {_span(abs(wrong))} {side}; `timedatectl set-ntp true` on the host mends that"
    if (lock := facts.lock) is not None and lock.rollout_id != wanted.rollout_id:
        return _locked(lock, facts.now)
    if (update := facts.update) is not None and update.update_id != wanted.rollout_id:
        return f"update {update.update_id} to {update.release} is still being watched ({update.state}); try again when its window is over"
    return None


def _another_node(facts: Facts, own: Own | None) -> str | None:
    """A configuration for another node than the one that was enrolled there would put it out of its coordinator's reach."""
    now = (facts.health or {}).get("node_id") or node_id_of(facts.config)
    then = node_id_of(own.config) if own is not None else None
    if now is None or then is None or now == then:
        return None
    return (
        f"its node is {now}, and the inventory makes it {then}: say `vars: {{node: {{node_id: {now}}}}}` there, or --keep-config"
    )


def _locked(lock: Lock, now: float) -> str:
    silent = timedelta(seconds=max(0.0, now - lock.beat_at))
    age = _span(timedelta(seconds=max(0.0, now - lock.taken_at)))
    if silent > LOCK_STALE:
        more = f", silent for {_span(silent)}: `ostler fleet lock break --why …` if it is dead"
    else:
        more = f"; after {_span(LOCK_STALE)} of silence it is stale, see `ostler fleet lock status` and `lock break`"
    return f"locked by {lock.owner} for {age} ({lock.message}){more}"


def _span(time: timedelta) -> str:
    seconds = round(time.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"
