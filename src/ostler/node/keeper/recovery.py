"""What a new keeper does about the attempts of one that was killed: kill what is left of them and write their records."""

import os
import time

from ostler.node.keeper import cgroups, kernel, proc, wire
from ostler.node.keeper.attempt import lost_record
from ostler.node.keeper.tree import KEEPER_MARKER, MARKER, send

_PASSES = 50
_DEATH_S = 2.0
_POLL_S = 0.005


def replay(entries: list[dict[str, object]]) -> tuple[dict[str, dict[str, object]], dict[str, dict[str, object]]]:
    """Return (key → start line of attempts without an end, key → exit record of those not forgotten) from a journal."""
    started: dict[str, dict[str, object]] = {}
    ended: dict[str, dict[str, object]] = {}
    for entry in entries:
        start, end, forgotten = entry.get("start"), entry.get("end"), entry.get("forget")
        if isinstance(start, dict) and isinstance(start.get("key"), str):
            ended.pop(start["key"], None)
            started[start["key"]] = start
        elif isinstance(end, dict) and isinstance(end.get("key"), str) and {"pid", "start_time", "started_at"} <= set(end):
            started.pop(end["key"], None)
            ended[end["key"]] = end
        elif isinstance(forgotten, str):
            ended.pop(forgotten, None)
    return started, ended


def written_record(start: dict[str, object]) -> dict[str, object] | None:
    """The exit record that the old keeper wrote of this very process just before it could note that in its journal."""
    path = start.get("record")
    if not isinstance(path, str):
        return None
    try:
        record = wire.decode(proc.read(path))
    except ValueError:
        return None
    if not isinstance(record, dict) or any(record.get(name) != start.get(name) for name in ("key", "pid", "start_time")):
        return None
    return record if "started_at" in record else None


class Leftovers:
    """Processes of a dead keeper's attempts: in their cgroups, below their roots, in their sessions, or marked as its own.

    None of them is a child of this keeper any more, and the roots died with their parent (its parent-death signal).
    """

    def __init__(self, *, keeper_id: str, boot_id: str, starts: list[dict[str, object]], groups: list[str]) -> None:
        self._keeper_marker = KEEPER_MARKER + b"=" + keeper_id.encode()
        self._above = _ancestry(os.getpid())  # this keeper may have been started by such a process
        self._groups: dict[str, str | None] = dict.fromkeys(groups)
        self._roots: dict[int, tuple[int, str]] = {}
        for start in starts:
            key, pid, start_time = start.get("key"), start.get("pid"), start.get("start_time")
            if start.get("boot_id") != boot_id or type(pid) is not int or type(start_time) is not int:
                continue
            self._roots[pid] = (start_time, str(key))
            named = start.get("groups")
            self._groups.update({str(path): str(key) for path in (named if isinstance(named, list) else [])})

    def kill(self) -> dict[str, int]:
        """Kill all, in passes until none is left; returns key → how many were killed (under '' those of no known key)."""
        counts: dict[str, int] = {}
        killed: set[tuple[int, int]] = set()
        deadline = time.monotonic() + _DEATH_S
        for _ in range(_PASSES):
            found = self._find()
            for pid, key in found.items():
                identity = (pid, proc.start_time(pid))
                if identity not in killed:
                    killed.add(identity)
                    counts[key] = counts.get(key, 0) + 1
                send(pid, kernel.SIGKILL)
            if not found or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        for group in self._groups:
            cgroups.remove(group)
        return counts

    def _find(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for directory, key in self._groups.items():
            for pid in cgroups.members(directory):
                found[pid] = key or ""
        for pid in proc.all_pids():
            if pid in self._above or pid in found:
                continue
            seen = proc.stat(pid)
            if seen is None or seen.dead:
                continue
            key = self._key_by_session(pid, seen)
            if key is None:
                key = self._key_by_marker(pid)
            if key is not None:
                found[pid] = key
        for pid, key in list(found.items()):
            waiting = [pid]
            for parent in waiting:  # grows while it is read
                for child in proc.children(parent):
                    if child not in found:
                        found[child] = key
                        waiting.append(child)
        return {pid: key for pid, key in found.items() if pid not in self._above and not _dead(pid)}

    def _key_by_session(self, pid: int, seen: proc.Stat) -> str | None:
        """A root is the leader of its session; the session's number cannot be another's while it has members."""
        root = self._roots.get(seen.session)
        if root is None or seen.start_time < root[0]:
            return None
        leader = seen.start_time if pid == seen.session else proc.start_time(seen.session)
        return root[1] if leader in (0, root[0]) else None

    def _key_by_marker(self, pid: int) -> str | None:
        environment = proc.environment(pid)
        if self._keeper_marker not in environment:
            return None
        return next((entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(MARKER + b"=")), "")


def _ancestry(pid: int) -> set[int]:
    """A process and all above it."""
    above = set()
    while pid and pid not in above:
        above.add(pid)
        seen = proc.stat(pid)
        pid = seen.parent if seen else 0
    return above


def _dead(pid: int) -> bool:
    seen = proc.stat(pid)
    return seen is None or seen.dead


def lost_records(starts: list[dict[str, object]], counts: dict[str, int]) -> list[dict[str, object]]:
    """The exit records of attempts whose keeper died with them."""
    now = time.time()
    records = []
    for start in starts:
        record = lost_record(start, now)
        record["leftovers_killed"] = counts.get(str(start.get("key")), 0)
        records.append(record)
    return records
