"""A bare host becomes a node under systemd, and one becomes a bare host again. Whatever is done may be cut off and done again."""

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ostler.fleet.host import access, accounts, belongings, daemon, fitting, services, switching, systemd, unit_files
from ostler.fleet.host.lock import guarded
from ostler.fleet.host.places import (
    AT_BOOT,
    FIREWALL_UNIT,
    KEEPER_UNIT,
    LATER_UNITS,
    NODE_UNIT,
    UNITS,
    UPDATE_PATH,
    UPDATE_UNIT,
    WATCH_UNIT,
    Places,
    half,
    read_json,
)
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told
from ostler.fleet.host.traces import Traces

ENROL_S = 60.0
CONTACT_S = 45.0
LOOK_S = 0.25
_SAID = 400


def set_up(places: Places, release: str, told: Told, *, wait_s: float) -> dict[str, Any]:
    """Put a release that is on this host in force for the first time, and start it; again, it changes what is not so yet.

    Answers what was changed and the daemon's health, once that says that it can run a job and has a coordinator, within `wait_s`.
    Raises Refused; a configuration or an allowlist that the release does not accept has changed nothing.
    """
    require(places)
    with alone(places):
        home = _check(places, release, told)
        fitting.check(places, release, told)
        traces = Traces(places)
        due = places.start_due  # one that was cut off may have changed what the daemon has not read
        cut_off = due.exists()
        due.write_text("")
        changed = [f"user {accounts.NAME}"] if accounts.make(places) else []
        changed += _write(places, traces, home, told)
        anew, wanted = _apply(places, traces, release, told)
        changed += [*anew, *wanted.changed]
        if _enrol(places, home, told.token):
            changed.append("enrolment")
        _start(anew=cut_off or bool(changed))
        due.unlink()
        _verify(places, home)
        health = _await_health(places, wait_s)
        warnings = [*_warnings(), *wanted.warnings, *_unpermitted(wanted.units)]
    return {"release": release, "changed": changed, "health": health, "warnings": warnings}


def uninstall(places: Places, *, keep_state: bool, end_jobs: bool) -> dict[str, Any]:
    """Stop everything and take back all that was made; what stays is named in the answer. Raises Refused while jobs run, unless told
    to end them.
    """
    require(places)
    there = [one for one in (places.ostler, *(() if keep_state else (places.updates,))) if one.is_dir()]
    with alone(places):
        health = daemon.ask(places.door, "GET", "/healthz")
        if not end_jobs:
            _refuse_jobs(health)
        traces = Traces(places)
        _stop(places, traces)
        state, logs = places.state, places.logs
        left = [logs] if logs.is_dir() and any(logs.iterdir()) else []
        keep = (state, *left) if keep_state else tuple(left)
        _wipe_memory()
        removed, restored = traces.take_back(keep=keep)
        for spare in switching.spares(places):  # of a switch that was cut off before its update was written down
            for one in (spare, half(spare)):
                one.unlink(missing_ok=True)
        systemd.act("daemon-reload")
        with contextlib.suppress(Refused):
            systemd.act("reset-failed", *UNITS, WATCH_UNIT, *LATER_UNITS)
        if keep_state:
            left.append(state)
        elif accounts.remove(places):
            removed.append(f"user {accounts.NAME}")
        removed += map(str, there)
        for own in (places.ostler, *(() if keep_state else (places.updates,))):  # the guard itself lies in the last one
            if own.is_dir():
                shutil.rmtree(own)
    left += [Path(one) for one in unit_files.all_drop_ins(places)]  # their owner's
    journals = f"the journal of {', '.join((*UNITS, WATCH_UNIT))}"
    node_id = (health or {}).get("node_id")
    return {"removed": removed, "restored": restored, "left": [*map(str, left), journals], "node_id": node_id}


def require(places: Places) -> None:
    """Root, on a host with systemd; raises Refused."""
    if os.geteuid() != 0:
        raise Refused("unfit", "this needs root: it makes a user and installs units")
    if not (places.root / "run/systemd/system").is_dir():
        with open("/proc/1/comm") as file:  # noqa: PTH123
            first = file.read().strip()
        raise Refused(
            "unfit", f"systemd is not the service manager of this host (process 1 is {first}); run keeper and daemon by yours: "
            "ostler node keeper, ostler node --await-keeper"
        )  # fmt: skip


@contextlib.contextmanager
def alone(places: Places) -> Iterator[None]:
    """No switch, no rollout and no open update beside this."""
    with guarded(places, switching.SWITCH, wait_s=0.0):
        if (held := read_json(places.lock)) is not None:
            raise Refused("locked", f"locked by {held.get('owner')} ({held.get('message')})")
        if (update := read_json(places.update)) is not None:
            raise Refused("busy", f"update {update['update_id']} to {update['release']} is still being watched")
        yield


def _check(places: Places, release: str, told: Told) -> Path:
    home = places.release(release)
    missing = [one for one in ("bin/ostler", *(f"units/{name}" for name in (*UNITS, WATCH_UNIT))) if not (home / one).is_file()]
    if missing:
        raise Refused("missing", f"release {release} is not on this host, or lacks {', '.join(missing)}")
    force = places.in_force()
    if force not in {None, release}:
        raise Refused("busy", f"release {force} is installed here; `ostler fleet update` brings another one")
    if told.config is None and not places.config.is_file():
        raise Refused("missing", f"there is no {places.config} on this host, and none was sent")
    if told.token is None and not places.key.exists():
        raise Refused("missing", "this host was never enrolled, and no join token was sent")
    for path, why in belongings.foreign(places).items():
        raise Refused("unfit", f"cannot write to {path}: {why}")
    return home


def _write(places: Places, traces: Traces, home: Path, told: Told) -> list[str]:
    """Directories and files beside the release; answers those that changed."""
    user = accounts.identity()
    if user is None:
        raise Refused("unfit", f"the user {accounts.NAME} was made and is not there")
    changed = []
    folders = [
        (places.config.parent, 0o755, (0, 0)),
        (places.allowlist, 0o755, (0, 0)),
        (places.state, 0o711, user),
        (places.logs, 0o755, user),
    ]
    for path, mode, owner in folders:
        if owner == user and belongings.may_take_over(path):
            traces.take_over(path)
        if traces.directory(path, mode=mode, owner=owner):
            changed.append(str(path))
    changed += access.mend(places, traces)  # before anything is written there
    files = {places.config.parent / name: content for name, content in told.files.items()}
    if told.config is not None:
        files[places.config] = told.config
    for path, content in files.items():
        traces.directory(path.parent, mode=0o755)
        if traces.file(path, content.encode()):
            changed.append(str(path))
    if traces.file(places.units / WATCH_UNIT, (home / "units" / WATCH_UNIT).read_bytes()):
        changed.append(WATCH_UNIT)
    return changed


def _apply(places: Places, traces: Traces, release: str, told: Told) -> tuple[list[str], services.Outcome]:
    """Units, link and what services need, as a switch writes them; and which of the first two were not so yet."""
    units = places.release(release) / "units"
    there = [name for name in (*UNITS, *LATER_UNITS) if (units / name).is_file()]
    changed = [] if places.in_force() == release else [f"release {release}"]
    changed += [name for name in there if not unit_files.is_as_written(places.units / name, (units / name).read_bytes())]
    changed += [f"{name} at boot" for name in there if name in AT_BOOT and not unit_files.starts_at_boot(places, name)]
    for name in UNITS:
        traces.expect(places.units / name)
    return changed, switching.apply(places, release, Told(config=told.config))


def _enrol(places: Places, home: Path, token: str | None) -> bool:
    """Join with the token; not where the coordinator knows the node's key already. A key file alone says nothing."""
    if token is None:
        return False
    try:
        if places.key.exists() and _as_node(places, home, "reach").returncode == 0:
            return False
        done = _as_node(places, home, "enrol", said=f"{token}\n")
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused("unit", f"the node was not enrolled: {exc}") from None
    if done.returncode:
        raise Refused("unit", f"the node was not enrolled: {done.stderr.strip()[-_SAID:]}")
    return True


def _as_node(places: Places, home: Path, verb: str, *, said: str = "") -> subprocess.CompletedProcess[str]:
    """`ostler node VERB` of a release, as the node's own user. Raises OSError, TimeoutExpired."""
    uid, gid = accounts.identity() or (0, 0)
    return subprocess.run(
        [str(home / "bin/ostler"), "node", verb, "--config", str(places.config)], input=said, text=True,
        errors="replace", capture_output=True, check=False, timeout=ENROL_S, user=uid, group=gid, extra_groups=[], umask=0o077,
        cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
    )  # fmt: skip


def _start(*, anew: bool) -> None:
    systemd.act("start", KEEPER_UNIT)
    systemd.act("restart" if anew else "start", NODE_UNIT)


def _verify(places: Places, home: Path) -> None:
    """What systemd goes by is what was written."""
    for name in (*UNITS, *((UPDATE_PATH,) if (home / "units" / UPDATE_PATH).is_file() else ())):
        shown = systemd.show(name, "FragmentPath", "NeedDaemonReload", "LoadState")
        there = places.units / name
        wrong = [
            f"{what} is {found or 'unknown'}, not {wanted}"
            for what, found, wanted in (
                ("its file", shown["FragmentPath"], str(there)),
                ("a reload needed", shown["NeedDaemonReload"], "no"),
                ("it", shown["LoadState"], "loaded"),
            )
            if found != wanted
        ]
        if there.read_bytes() != (home / "units" / name).read_bytes():
            wrong.append("its file is not the release's")
        if not unit_files.starts_at_boot(places, name):  # systemd's own word on that may be of before
            wrong.append("it does not start with the host")
        if wrong:
            raise Refused("unit", f"{name}: {'; '.join(wrong)}")


def _warnings() -> list[str]:
    found = []
    for name in UNITS:
        if drop_ins := systemd.show(name, "DropInPaths")["DropInPaths"]:
            found.append(f"{name} is changed by {drop_ins}")
    return found


def _unpermitted(units: tuple[str, ...]) -> list[str]:
    """What polkit, asked about the daemon that runs, does not permit."""
    user, pid = accounts.identity(), systemd.show(NODE_UNIT, "MainPID")["MainPID"]
    return services.refused(int(pid), user[0], units) if units and user is not None and pid.isdecimal() else []


def _await_health(places: Places, wait_s: float) -> dict[str, Any]:
    """Until the daemon is good. Raises Refused with what it lacks, and its journal."""
    until = time.monotonic() + wait_s
    while True:
        health = daemon.ask(places.door, "GET", "/healthz")
        check = str((health or {}).get("self_check", ""))
        if health is not None and check == "ok" and _in_contact(health):
            return health
        if check.startswith("failed"):
            raise Refused("unit", f"the daemon cannot run a job: {check.removeprefix('failed').lstrip(': ')}")
        if time.monotonic() > until:
            lacks = (
                "does not answer"
                if health is None
                else "reaches no coordinator"
                if check == "ok"
                else "is not through its self-check"
            )
            raise Refused("unit", f"after {wait_s:.0f} s the daemon {lacks}", details=systemd.journal(NODE_UNIT))
        time.sleep(LOOK_S)


def _in_contact(health: dict[str, Any] | None) -> bool:
    contact = (health or {}).get("last_contact_s")
    if (health or {}).get("enrolled") is False or (health or {}).get("retired") is True:
        return False
    return isinstance(contact, int | float) and contact <= CONTACT_S


def _refuse_jobs(health: dict[str, Any] | None) -> None:
    if health is None:
        if systemd.show(KEEPER_UNIT, "ActiveState")["ActiveState"] == "active":
            raise Refused("busy", "the daemon does not answer, so jobs may run under the keeper; say --end-jobs to end them")
        return
    if running := health.get("running"):
        raise Refused(
            "busy",
            f"{running} {'job runs' if running == 1 else 'jobs run'} on this host: drain it first, or say --end-jobs to end them",
        )


def _stop(places: Places, traces: Traces) -> None:
    """The daemon first, which then reports no job's end as a failure; the keeper ends what runs. A unit that was put back already is
    somebody else's."""
    for name in (UPDATE_PATH, UPDATE_UNIT, WATCH_UNIT, NODE_UNIT, KEEPER_UNIT, FIREWALL_UNIT):
        if not traces.is_back(places.units / name) and systemd.show(name, "LoadState")["LoadState"] == "loaded":
            systemd.act("stop", name)
            systemd.act("disable", name)


def _wipe_memory() -> None:
    """What jobs were told in confidence lies in folders of the node's own user on memory file systems."""
    user = accounts.identity()
    for place in (Path("/run"), Path("/dev/shm")):  # noqa: S108
        for folder in place.glob(f"{accounts.NAME}-{user[0]}-*") if user is not None else ():
            if folder.lstat().st_uid == pwd.getpwnam(accounts.NAME).pw_uid:
                shutil.rmtree(folder, ignore_errors=True)
