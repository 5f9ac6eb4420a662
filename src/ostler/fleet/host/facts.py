"""What a host says of itself before anything is changed: one JSON object."""

import errno
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ostler.fleet.host import access, belongings, binaries, daemon, reusing, systemd, unit_files, wholeness
from ostler.fleet.host.places import FIREWALL_UNIT, UNIT_FILES, UNITS, Places, digest, read_json, shown
from ostler.fleet.host.refusals import Refused

MOST_FILES = 500
MOST_OF_ENTRY = 256 << 10  # the node reads no larger one
MOST_OF_ENTRIES = 512 << 10  # of all, as they are told: an answer has a MiB
LARGE = 16 << 20  # bytes: no file that an installation put there


def gather(
    places: Places, wanted: tuple[binaries.Binary, ...] = (), *, with_config: bool = False, thorough: bool = False
) -> dict[str, Any]:
    """All of it; changes nothing. `with_config`: the configuration itself, too, which may hold a secret. `thorough`: the allowlist's
    entries, too, and what was altered of the release in force, which takes a fifth of a second of CPU."""
    releases = sorted(places.releases.iterdir()) if places.releases.is_dir() else []
    releases = [one for one in releases if not one.name.startswith(".") and one.suffix != ".partial"]
    programs = [(one, binaries.find(one, places)) for one in wanted]
    return {
        "hostname": platform.node(),
        "os": _os(places.root / "etc/os-release"),
        "arch": platform.machine(),
        "abi": f"cp{sys.version_info.major}{sys.version_info.minor}",
        "now": time.time(),
        "disk_free_mb": shutil.disk_usage(_there(places.releases)).free >> 20,
        "has_key": places.key.exists(),
        "refused": _refused(places) | belongings.foreign(places),
        "current": places.in_force(),
        "previous": (read_json(places.update) or read_json(places.last) or {}).get("previous"),
        "releases": [one.name for one in releases],
        "wheels": reusing.claimed(releases),
        "units": _units(places),
        "config_sha256": digest(places.config),
        "applied_sha256": digest(places.applied),
        "permits_sha256": _as_written(places.permits),
        "permitted_sha256": digest(places.permitted),
        "config": _text(places.config) if with_config else None,
        "beside": _beside(places.config.parent),
        "access": access.wrong(places),
        "entries": _entries(places) if thorough else {},
        "altered": wholeness.altered(places.releases / force) if thorough and (force := places.in_force()) else [],
        "health": daemon.ask(places.door, "GET", "/healthz"),
        "lock": read_json(places.lock),
        "update": read_json(places.update),
        "last": read_json(places.last),
        "links": {one.expected: found.link_to for one, found in programs if found.link_to},
        "unfinished": places.start_due.exists(),
        "warnings": [found.warning for _, found in programs if found.warning],
    }


def _as_written(path: Path) -> str | None:
    """The same of a file that others must be able to read: a link, or another mode or owner than it is written with, is another file."""
    if not os.path.lexists(path):
        return None
    found = digest(path)
    return found if unit_files.is_plain(path) else f"{found}, not plain"


def _entries(places: Places) -> dict[str, str | None]:
    """The allowlist's texts by file name; not all where they are too much for an answer."""
    found: dict[str, str | None] = {}
    room = MOST_OF_ENTRIES
    for path in places.entries()[:MOST_FILES]:
        text = _entry(path)
        room -= len(json.dumps(text))
        if room < 0:
            break
        found[shown(path.name)] = text
    return found


def _entry(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST_OF_ENTRY)
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _beside(folder: Path) -> dict[str, str | None]:
    """What stands beside the configuration, and one directory deeper: each file's sha256 by its path there."""
    files = sorted(one for pattern in ("*", "*/*") for one in folder.glob(pattern) if one.is_file())
    small = [one for one in files if one.stat().st_size <= LARGE]
    return {shown(str(one.relative_to(folder))): digest(one) for one in small[:MOST_FILES]}


def _os(file: Path) -> str:
    try:
        lines = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    except OSError:
        return "unknown"
    return " ".join(lines.get(name, "").strip('"') for name in ("ID", "VERSION_ID")).strip()


def _units(places: Places) -> dict[str, dict[str, Any]]:
    """Daemon and keeper, what else of units the release in force has, and the firewall's where there are rules."""
    wanted = {name: digest(places.current / "units" / name) for name in UNIT_FILES}
    names = [name for name in UNIT_FILES if name in UNITS or wanted[name] is not None]
    names += [FIREWALL_UNIT] if places.rules.exists() else []
    try:
        shown = systemd.show_all(names, "ActiveState", "NRestarts", "NeedDaemonReload")
    except Refused:
        shown = {}
    return {name: _unit(places, name, wanted.get(name), shown.get(name, {})) for name in names}


def _unit(places: Places, name: str, wanted: str | None, shown: dict[str, str]) -> dict[str, Any]:
    restarts = shown.get("NRestarts", "")
    return {
        "state": shown.get("ActiveState") or "unknown",
        "restarts": int(restarts) if restarts.isdecimal() else 0,
        "sha256": _as_written(places.units / name),
        "wanted": wanted,
        "at_boot": unit_files.starts_at_boot(places, name),
        "stale": shown.get("NeedDaemonReload") == "yes",
        "drop_ins": unit_files.drop_ins(places, name),
    }


def _refused(places: Places) -> dict[str, str]:
    """Directories that cannot be written, with the system's word why."""
    found = {}
    for directory in (places.releases, places.units, places.updates):
        there = _there(directory)
        probe = there / f".ostler-probe-{os.getpid()}"
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            probe.unlink()
        except OSError as exc:
            found[str(directory)] = "no space left" if exc.errno == errno.ENOSPC else (exc.strerror or str(exc)).lower()
    return found


def _there(directory: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    return next(one for one in (directory, *directory.parents) if one.is_dir())
