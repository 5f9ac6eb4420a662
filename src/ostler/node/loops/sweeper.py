"""Sweeper: removes workspaces that nobody needs any more, by age, and earlier when the disk is short."""

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ostler.model.attempt import SOURCE_WORDS, AttemptState
from ostler.node.attempts import AttemptTable
from ostler.node.config import WorkspaceConfig
from ostler.node.runners.watch import free_mb
from ostler.node.workspace import Found, Workspace, made_by_node, scan
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EVERY_S = 60.0
BLANK_AGE = timedelta(minutes=5)  # a younger one may be about to become an attempt's
PINNED = ".pinned"
_GOOD = SOURCE_WORDS[AttemptState.DONE]
_NEVER = datetime.max.replace(tzinfo=UTC)
_BAD = SOURCE_WORDS[AttemptState.FAILED]


@dataclass(frozen=True, slots=True)
class Remains:
    """A workspace whose attempt the coordinator has: how it ended and when."""

    found: Found
    good: bool
    ended_at: datetime


def decide(
    remains: Sequence[Remains], *, now: datetime, keep_success: timedelta, keep_failed: timedelta
) -> tuple[list[Remains], list[Remains]]:
    """Those that are due by age, and the others in the order in which a short disk takes them: oldest success first."""
    due = [one for one in remains if now - one.ended_at >= (keep_success if one.good else keep_failed)]
    rest = [one for one in remains if one not in due]
    rest.sort(key=lambda one: (not one.good, one.ended_at))
    return due, rest


class Sweeper(Loop):
    """All its disk work is done in a thread. What is pinned, undelivered, or not a workspace is never touched."""

    name = "sweeper"

    def __init__(
        self,
        *,
        config: Callable[[], WorkspaceConfig],
        table: AttemptTable,
        short: Callable[[bool], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`short` is told after each turn whether the disk is still too full to start anything."""
        super().__init__(clock=clock, interval_s=EVERY_S, logger=logger)
        self._config = config
        self._table = table
        self._short = short
        self._strange: set[Path] = set()
        self._over: set[tuple[str, int]] = set()
        self.removed = 0

    def over(self, job_id: str, attempt: int) -> None:
        """What failed for the disk is delivered and may go at once, the next job should not have to wait for it; also where the disk took
        not even the word that it ended."""
        self._over.add((job_id, attempt))
        self.wake()

    async def turn(self) -> float | None:
        """Sweep once."""
        config = self._config()
        held = {(live.job_id, live.attempt) for live in self._table}
        self.removed += await asyncio.to_thread(self._sweep, config, held)
        free = await asyncio.to_thread(free_mb, config.root)
        self._short(free is not None and free < config.min_free_mb)
        return None

    def _sweep(self, config: WorkspaceConfig, held: Collection[tuple[str, int]]) -> int:
        now = self.clock.now()
        remains = []
        for found in scan(config.root):
            if (found.job_id, found.attempt) in held:
                continue
            if found.problem is not None and found.state is None and not (found.blank and made_by_node(found.path)):
                self._report(found)
            elif (one := self._judge(found, now)) is not None:
                remains.append(one)
        due, rest = decide(remains, now=now, keep_success=config.keep_success, keep_failed=config.keep_failed)
        count = sum(self._remove(one, "age") for one in due)
        for one in rest:
            free = free_mb(config.root)
            if free is None or free >= config.min_free_mb:
                break
            count += self._remove(one, "disk pressure")
        return count

    def _judge(self, found: Found, now: datetime) -> Remains | None:
        """None for what is pinned, or is no remains yet: the workspace of an attempt that is just being made."""
        if (found.path / PINNED).exists():
            return None
        if found.blank:
            return self._judge_blank(found, now)
        try:
            ended_at = datetime.fromisoformat(str(found.facts.get("at")))
        except ValueError:
            return None
        ended_at = self._not_ahead(found.path, ended_at if ended_at.tzinfo is not None else _NEVER, now)
        if found.state not in {_GOOD, _BAD}:
            # Nobody holds it and it never ended: left by a life of the node whose journal is gone.
            return Remains(found, good=False, ended_at=ended_at)
        return Remains(found, good=found.state == _GOOD, ended_at=ended_at)

    def _judge_blank(self, found: Found, now: datetime) -> Remains | None:
        """The daemon died, or the disk was full, before the last word on its attempt was written."""
        try:
            touched_at = datetime.fromtimestamp(found.path.stat().st_mtime, UTC)
        except OSError:
            return None
        touched_at = self._not_ahead(found.path, touched_at, now)
        if now - touched_at < BLANK_AGE and (found.job_id, found.attempt) not in self._over:
            return None
        return Remains(found, good=False, ended_at=touched_at)

    @staticmethod
    def _not_ahead(path: Path, at: datetime, now: datetime) -> datetime:
        """A clock that was ahead, and is set right, must not keep it: its age is then counted from when it was seen first, which
        stands in the folder's own time, so that it outlives the daemon."""
        if at <= now:
            return at
        try:
            seen_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            if seen_at > now:
                os.utime(path, (now.timestamp(), now.timestamp()))
        except OSError:
            return now
        return min(seen_at, now)

    def _remove(self, one: Remains, why: str) -> bool:
        found = one.found
        try:
            Workspace(str(found.path), found.job_id, found.attempt).remove()
        except OSError as exc:
            attrs = {"path": str(found.path), "error": str(exc)}
            self.logger.warning("workspace_not_removed", extra={"job_id": found.job_id, "attrs": attrs})
            return False
        self._over.discard((found.job_id, found.attempt))
        outcome: dict[str, object] = {"attempt": found.attempt, "why": why}
        self.logger.info("workspace_removed", extra={"job_id": found.job_id, "attrs": outcome})
        return True

    def _report(self, found: Found) -> None:
        if found.path not in self._strange:
            self._strange.add(found.path)
            attrs = {"path": str(found.path), "problem": found.problem}
            self.logger.warning("strange_folder_left_alone", extra={"attrs": attrs})
