"""A rollout's journal on the operator's disk: what was agreed to, and each thing that happened, before the next one begins."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ostler.model.errors import Conflict, InvalidSpec, NotFound
from ostler.model.rollout.plan import Plan, Share
from ostler.model.rollout.progress import TERMINAL, Event, Phase, Progress, advance


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event of one host; `detail` is more than a line, such as a unit's last words."""

    at: datetime
    host: str
    event: Event
    phase: Phase
    reason: str | None = None
    detail: str | None = None

    def plain(self) -> dict[str, Any]:
        """For the journal and for `--json`."""
        return {**asdict(self), "at": self.at.isoformat(), "event": self.event.value, "phase": self.phase.value}


class Journal:
    """An open journal; one process at a time. Use `create` or `resume`, and close it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path, plan: Plan, *, extra: Mapping[str, Any]) -> "Journal":
        """Begin a rollout's journal; `extra` is what the one who resumes must know beside the plan."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = cls._open(folder / f"{plan.rollout_id}.jsonl", os.O_CREAT | os.O_EXCL)
        journal._write({"plan": _plain(plan), "extra": dict(extra)})
        return journal

    @classmethod
    def resume(cls, folder: Path, rollout_id: str) -> "tuple[Journal, Plan, dict[str, Progress], dict[str, Any]]":
        """Open it again: the plan, how far each host is, and `extra`. A host that was under way begins anew; every step finds what is
        done already. Raises NotFound, Conflict where another process has it, InvalidSpec where it cannot be read."""
        path = folder / f"{rollout_id}.jsonl"
        if not path.is_file():
            known = ", ".join(rollouts(folder)[-5:]) or "none"
            raise NotFound(f"there is no journal of a rollout {rollout_id!r} in {folder} (known: {known})")
        journal = cls._open(path, 0)
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line that a crash cut off never happened
        try:
            plan, progress, extra = _read(path)
        except (ValueError, KeyError, TypeError) as exc:
            journal.close()
            raise InvalidSpec(f"{path} is no journal that this release reads: {exc}") from exc
        journal._write({"resumed": True})
        return journal, plan, _anew(progress), extra

    @classmethod
    def _open(cls, path: Path, flags: int) -> "Journal":
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(f"another process carries out the rollout of {path}") from None
        return cls(path, descriptor)

    def note(self, happened: Happened) -> None:
        """On the disk before this returns."""
        self._write(happened.plain())

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(self._descriptor)


def rollouts(folder: Path) -> list[str]:
    """The ids of all rollouts that have a journal, the oldest first."""
    found = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime) if folder.is_dir() else []
    return [file.stem for file in found]


def unfinished(folder: Path) -> str | None:
    """The newest rollout whose hosts have not all come to an end."""
    for rollout_id in reversed(rollouts(folder)):
        try:
            _, progress, _ = _read(folder / f"{rollout_id}.jsonl")
        except (ValueError, KeyError, TypeError):
            continue
        if any(one.phase not in TERMINAL for one in progress.values()):
            return rollout_id
    return None


def under_way(folder: Path, rollout_id: str) -> bool:
    """Whether a living process has its journal."""
    try:
        Journal._open(folder / f"{rollout_id}.jsonl", 0).close()
    except Conflict:
        return True
    return False


def is_over(folder: Path, rollout_id: str) -> bool:
    """Whether this is a rollout of this machine whose hosts have all come to an end."""
    try:
        _, progress, _ = _read(folder / f"{rollout_id}.jsonl")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(one.phase in TERMINAL for one in progress.values())


def found_bad(folder: Path, release: str) -> Progress | None:
    """The first host where the newest rollout of a release found it no good; None where it did not, or there was none."""
    for rollout_id in reversed(rollouts(folder)):
        try:
            plan, progress, _ = _read(folder / f"{rollout_id}.jsonl")
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if plan.release == release:
            return next((one for one in progress.values() if one.phase is Phase.UNHEALTHY), None)
    return None


def _read(path: Path) -> tuple[Plan, dict[str, Progress], dict[str, Any]]:
    lines = _lines(path)
    head = next(lines, None)
    if head is None:
        raise ValueError("it is empty")
    plan = _parse_plan(head["plan"])
    progress = {host: Progress(host=host) for host in plan.hosts}
    for line in lines:
        if "resumed" in line:
            progress = _anew(progress)
            continue
        host, at = str(line["host"]), datetime.fromisoformat(line["at"])
        progress[host] = advance(progress[host], Event(line["event"]), now=at, reason=line.get("reason"))
    return plan, progress, head["extra"]


def _anew(progress: Mapping[str, Progress]) -> dict[str, Progress]:
    """What is left to do after an interruption: hosts that were under way begin anew."""
    return {name: one if one.phase in TERMINAL else Progress(host=name) for name, one in progress.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole ones alone."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def _plain(plan: Plan) -> dict[str, Any]:
    return {
        **asdict(replace(plan, excluded=dict(plan.excluded))),
        "serial": None if plan.serial is None else str(plan.serial),
        "max_failures": str(plan.max_failures),
        **{name: getattr(plan, name).total_seconds() for name in ("canary_window", "window", "timeout")},
    }


def _parse_plan(told: Mapping[str, Any]) -> Plan:
    return Plan(
        rollout_id=told["rollout_id"],
        release=told["release"],
        hosts=tuple(told["hosts"]),
        excluded=told["excluded"],
        canary=told["canary"],
        serial=None if told["serial"] is None else Share.parse(told["serial"]),
        max_failures=Share.parse(told["max_failures"]),
        **{name: timedelta(seconds=told[name]) for name in ("canary_window", "window", "timeout")},
    )
