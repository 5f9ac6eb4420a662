"""One release for another, and back: link, units and configuration change together, and each step may be cut off anywhere."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ostler.fleet.host import access, accounts, binaries, daemon, fitting, floor, services, systemd
from ostler.fleet.host.lock import guarded
from ostler.fleet.host.places import (
    AT_BOOT,
    KEEPER_UNIT,
    LATER_UNITS,
    NODE_UNIT,
    UNIT_FILES,
    UNITS,
    UPDATE_PATH,
    WATCH_UNIT,
    Places,
    point,
    read_json,
    sync,
    write,
    write_json,
)
from ostler.fleet.host.publishing import MAX_DETAIL, publish
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told
from ostler.fleet.host.traces import Traces
from ostler.fleet.host.unit_files import WANTS, is_as_written, starts_at_boot

SPARE = 1 << 20  # what a way back may need on a disk that has been filled since
PATIENCE_S = 120.0  # for the switch of an updater that was killed, and whose host went on: the next one goes on behind it
SWITCH = "switch"  # the guard that a switch, or a way back, holds for as long as it works


def switch(
    places: Places,
    *,
    rollout: str,
    release: str,
    window_s: float,
    program: bytes,
    told: Told = Told(),  # noqa: B008 - a value
    asked: bool = False,
) -> dict[str, Any]:
    """Put `release` in force and have it watched for `window_s`; again for the same rollout, it goes on where it was.

    `program` is this program's own file; `told` brings the node's configuration (None: as it is) and files beside it. Raises Refused, also
    for a configuration that the release cannot read, and for an open update to another release or by the other way; what it refuses has
    changed nothing. After a failed restart the update is open
    nevertheless: the watcher decides. `asked`: the daemon asked for it, and not whoever has root.
    """
    with guarded(places, SWITCH, wait_s=0.0 if asked else PATIENCE_S):
        update = read_json(places.update)
        if update is not None and (update["update_id"], update["release"], bool(update.get("asked"))) != (
            rollout,
            release,
            asked,
        ):
            raise Refused(
                "busy", f"update {update['update_id']} to {update['release']} is still being watched ({update['state']})"
            )
        _check(places, release, rollout)
        if update is None:
            fitting.check(places, release, told)
            update = _open(
                places, rollout=rollout, release=release, window_s=window_s, program=program, files=told.files, asked=asked
            )
        if update["state"] == "armed":
            _at_boot(places, WATCH_UNIT, starts=True)
            systemd.read_anew(WATCH_UNIT)
            systemd.act("restart", WATCH_UNIT)  # also where whoever opened the update was cut off before this
            daemon.ask(places.door, "POST", "/drain")
            applied = apply(places, release, told)
            failure = _restart()
            if failure is None and places.start_due.exists() and places.start_due.read_text() == release:
                places.start_due.unlink()  # it was brought anew, and what was due was this start
            write_json(
                places.update,
                update | {"state": "watching", "began": time.clock_gettime(time.CLOCK_BOOTTIME), "boot_id": boot_id()},
            )
            publish(places, update, "watching", None)
            return {"state": "watching", **_told(failure), "warnings": applied.warnings}
    return {"state": update["state"], **_told(None), "warnings": []}


def go_back(places: Places, reason: str, *, rollout: str | None = None) -> dict[str, Any]:
    """Put back what was in force before the open update, or before this rollout's, which the watcher has let stay: the coordinator may
    think worse of it. Raises Refused where there is nothing to go back from."""
    with guarded(places, SWITCH):
        update = read_json(places.update)
        if update is None:
            last = read_json(places.last) or {}
            if last.get("state") == "went_back":
                return last
            if rollout is not None and last.get("update_id") == rollout and last.get("release") == places.in_force():
                return _go_back(places, last, reason)
            raise Refused("missing", "there is no open update on this host")
        return _go_back(places, update, reason)


def keep(places: Places, reason: str | None = None) -> dict[str, Any]:
    """The open update is over, and its release stays."""
    with guarded(places, SWITCH):
        update = read_json(places.update)
        return close(places, update, "good", reason) if update is not None else (read_json(places.last) or {})


def is_abandoned(places: Places) -> bool:
    """Whether the open update's switch was cut off: it is armed, and nobody works on it. The watcher then goes back."""
    try:
        with guarded(places, SWITCH, wait_s=0.0):
            update = read_json(places.update)
            return update is not None and update["state"] == "armed"
    except Refused:
        return False


def apply(places: Places, release: str, told: Told) -> services.Outcome:
    """Link, units, configuration of a release and what stands beside that, and what its services need; nothing is restarted. Each step is
    whole, and may be done again.

    Without a configuration: the one that was put in force last, or the one that is there where none was.
    """
    home = places.release(release)
    traces = Traces(places)
    access.mend(places, traces)  # before anything is written there
    for name, text in told.files.items():
        beside = places.config.parent / name
        traces.directory(beside.parent, mode=0o755)
        traces.file(beside, text.encode())
    config = told.config
    if config is None and places.applied.exists():
        config = places.applied.read_text()  # what was edited since is drift
    if config is not None and (not places.config.exists() or places.config.read_text() != config):
        places.config.parent.mkdir(parents=True, exist_ok=True)
        write(places.config, config.encode(), mode=0o644)
    if places.config.exists():
        write(places.applied, places.config.read_bytes(), mode=0o600)
    traces.directory(places.units / WANTS, mode=0o755)
    for name in UNITS:
        _write_unit(places, name, home)
        traces.expect(places.units / WANTS / name)
    _write_later_units(places, traces, home)
    point(places.current, f"releases/{release}")
    systemd.read_anew(*UNIT_FILES)
    for name in AT_BOOT:
        if (places.units / name).exists():
            _at_boot(places, name, starts=True)
    if (places.units / UPDATE_PATH).exists():
        systemd.act("start", UPDATE_PATH)
    return services.apply(places, traces, home, user=accounts.NAME)


def config_before(places: Places) -> Path:
    """The configuration of before the open update as a file of its own, which names what stood beside it then."""
    if not places.kept.exists():
        return places.config
    config = places.kept.read_text()
    for name, content in (read_json(places.kept_files) or {}).items():
        beside = places.before / name
        config = config.replace(str(places.config.parent / name), str(beside))
        if content is not None:
            beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(beside, content.encode(), mode=0o600)
    places.before.mkdir(mode=0o700, exist_ok=True)
    write(places.before / places.config.name, config.encode(), mode=0o600)
    return places.before / places.config.name


def _at_boot(places: Places, unit: str, *, starts: bool) -> None:
    """Whether it starts with the host: the link that `systemctl enable` makes, which systemd looks at only then."""
    link = places.units / WANTS / unit
    if starts:
        link.parent.mkdir(mode=0o755, exist_ok=True)
        if not starts_at_boot(places, unit):
            point(link, str(places.units / unit))
    elif link.is_symlink():
        link.unlink()
        sync(link.parent)


def _write_unit(places: Places, name: str, home: Path) -> None:
    content, there = (home / "units" / name).read_bytes(), places.units / name
    if not is_as_written(there, content):
        write(there, content, mode=0o644)


def _write_later_units(places: Places, traces: Traces, home: Path) -> None:
    """Those by which the daemon may ask for a release; taken away again on the way back to a release that has none."""
    for name in LATER_UNITS:
        unit, there = home / "units" / name, places.units / name
        if unit.is_file():
            if name == UPDATE_PATH:
                traces.expect(places.units / WANTS / name)
            traces.file(there, unit.read_bytes())
        elif there.exists():
            if name == UPDATE_PATH:
                systemd.act("stop", name)
                systemd.act("disable", name)
            there.unlink()


def close(places: Places, update: dict[str, Any], state: str, reason: str | None, journal: str | None = None) -> dict[str, Any]:
    """Write down how an update ended, and stop watching. What was kept for the way back stays: the coordinator may yet want it. `journal`
    has the last words of the release that was no good: later the unit's last words are those of another."""
    journal = journal and journal[-MAX_DETAIL:]
    ended = update | {"state": state, "reason": reason, "journal": journal, "ended_at": time.time()}
    write_json(places.last, ended)
    places.update.unlink(missing_ok=True)
    publish(places, ended, state, reason, journal)
    if state == "good":
        floor.settle(places, update.get("release"), lower=not update.get("asked"))
    elif state == "went_back":
        floor.settle(places, update.get("previous"), lower=True)
    for left in spares(places):
        left.unlink(missing_ok=True)
    shutil.rmtree(places.before, ignore_errors=True)
    sync(places.updates)
    with contextlib.suppress(OSError):  # its condition fails from now on anyway
        _at_boot(places, WATCH_UNIT, starts=False)
    return ended


def boot_id() -> str:
    """The kernel's name for this boot: a clock that counts from it says nothing in another one."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        return file.read().strip()


def _check(places: Places, release: str, rollout: str) -> None:
    try:
        home = places.release(release)
    except ValueError as exc:
        raise Refused("usage", str(exc)) from None
    lock = read_json(places.lock)
    if lock is None or lock.get("rollout_id") != rollout:
        raise Refused("locked", "this rollout does not hold the host's lock")
    missing = [name for name in UNITS if not (home / "units" / name).is_file()]
    if missing:
        raise Refused(
            "missing",
            f"release {release} is not on this host" if not home.is_dir() else f"release {release} lacks {', '.join(missing)}",
        )


def _open(
    places: Places, *, rollout: str, release: str, window_s: float, program: bytes, files: Iterable[str], asked: bool
) -> dict[str, Any]:
    """Arm the watcher before anything is changed; what is to be changed is kept for the way back."""
    update = {
        "update_id": rollout,
        "release": release,
        "previous": places.in_force(),
        "window_s": window_s,
        "state": "armed",
        "restarts": _restarts(),
        "drained": bool((daemon.ask(places.door, "GET", "/healthz") or {}).get("draining")),
        "opened_at": time.time(),
        "asked": asked,
    }
    places.kept.unlink(missing_ok=True)
    if places.config.exists():
        write(places.kept, places.config.read_bytes(), mode=0o600)
    write_json(places.kept_files, {name: _content(places.config.parent / name) for name in files})
    write(places.program, program, mode=0o600)
    _write_unit(places, WATCH_UNIT, places.release(release))
    for spare in spares(places):
        write(spare, bytes(SPARE), mode=0o600)
    _at_boot(places, WATCH_UNIT, starts=True)  # before there is an update: its condition fails until then
    write_json(places.update, update)
    publish(places, update, "armed", None)
    return update


def _told(failure: Refused | None) -> dict[str, Any]:
    return {"failure": None, "details": None} if failure is None else {"failure": failure.message, "details": failure.details}


def _restart() -> Refused | None:
    """Restart the daemon, and start the keeper where none runs; what systemd said where that failed."""
    try:
        systemd.act("start", KEEPER_UNIT)
        systemd.act("restart", NODE_UNIT)
    except Refused as exc:
        return exc
    return None


def _content(path: Path) -> str | None:
    return path.read_text(errors="replace") if path.is_file() else None


def spares(places: Places) -> tuple[Path, ...]:
    """Room that is held on each file system that a way back writes to."""
    return (places.updates / ".spare", places.ostler / ".spare", places.units / ".ostler-spare")


def _go_back(places: Places, update: dict[str, Any], reason: str) -> dict[str, Any]:
    for spare in spares(places):
        spare.unlink(missing_ok=True)
    journal = systemd.journal(NODE_UNIT)
    previous = update.get("previous")
    if previous is None:
        return close(places, update, "stuck", f"{reason}; there is no release before it to go back to", journal)
    files = read_json(places.kept_files) or {}
    config = places.kept.read_text() if places.kept.exists() else None
    apply(places, previous, Told(config, files={name: content for name, content in files.items() if content is not None}))
    for name, content in files.items():
        if content is None:
            (places.config.parent / name).unlink(missing_ok=True)
    failure = _restart()
    ended = close(
        places,
        update,
        "went_back" if failure is None else "stuck",
        reason if failure is None else f"{reason}; {failure.message}",
        journal,
    )
    if not update.get("drained"):
        resume(places)
    return ended


def resume(places: Places, *, patience_s: float = 20.0) -> bool:
    """Have the daemon take work again, once it answers."""
    until = time.monotonic() + patience_s
    while daemon.ask(places.door, "POST", "/resume") is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.25)
    return True


def _restarts() -> int:
    count = systemd.show(NODE_UNIT, "NRestarts")["NRestarts"]
    return int(count) if count.isdecimal() else 0


def read_services(text: str) -> tuple[binaries.Binary, ...]:
    """The services' programs as the updater sends them."""
    return tuple(binaries.Binary.of(one) for one in json.loads(text))
