"""Who is ended because of the disk: attempts over their quota, and the largest one when the disk itself is nearly full.

Measuring walks a tree, so it is done in a thread, and only for attempts with a quota or while space is short.
"""

# ruff: noqa: PTH115, PTH116, PTH208 - hidden_mb looks at many paths

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ostler.model.errors import OstlerError
from ostler.node.trees import measure_tree
from ostler.node.workspace import FOLDERS

MB = 1 << 20
EVERY_S = 1.5
# An attempt smaller than this is not what fills a disk: ending it would not help.
WORTH_ENDING_MB = 16
_DELETED = " (deleted)"

Kill = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One living attempt: its workspace, its quota (None: none), and how to end it (given the reason).

    `log_mb` caps its streams where the keeper does not, since they are not those of a process that it started.
    """

    key: str
    root: str
    quota_mb: int | None
    kill: Kill
    log_mb: int | None = None


def decide(uses_mb: dict[str, float], quotas_mb: dict[str, int], *, free_mb: float, min_free_mb: float) -> dict[str, str]:
    """Which attempts are ended and why, from what each has on disk (infinite: it hides some of it from being measured).

    At most one falls to a short disk in one round.
    """
    ended = {
        key: f"disk: {uses_mb[key]:.0f} MB, quota {quota}" for key, quota in quotas_mb.items() if uses_mb.get(key, 0) > quota
    }
    if free_mb < min_free_mb and not ended and uses_mb:
        largest = max(uses_mb, key=lambda key: (uses_mb[key], key))
        if uses_mb[largest] >= WORTH_ENDING_MB:
            ended[largest] = f"disk: {free_mb:.0f} MB free of at least {min_free_mb:.0f}, largest with {uses_mb[largest]:.0f}"
    return ended


class DiskWatch:
    """Looks at the living attempts every 1.5 s while there are any; costs one `statvfs` as long as nobody has a quota."""

    def __init__(self, *, min_free_mb: int, keeper: Callable[[], int], logger: logging.Logger, every_s: float = EVERY_S) -> None:
        """`keeper` tells the pid of the process below which all attempts are."""
        self._keeper = keeper
        self._min_free_mb = min_free_mb
        self._logger = logger
        self._every_s = every_s
        self._watched: dict[str, Watched] = {}
        self._running: asyncio.Task[None] | None = None

    def add(self, one: Watched) -> None:
        """Watch an attempt."""
        self._watched[one.key] = one
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="disk-watch")

    def remove(self, key: str) -> None:
        """It is over."""
        self._watched.pop(key, None)

    async def close(self) -> None:
        """Look no more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            watched = dict(self._watched)
            if not watched:
                self._running = None
                return
            try:
                ended = await asyncio.to_thread(self._look, list(watched.values()))
                for key, reason in ended.items():
                    if key in self._watched:
                        self._logger.warning("disk_limit", extra={"job_id": key.partition("/")[0], "attrs": {"reason": reason}})
                        await watched[key].kill(reason)
            except (OSError, OstlerError) as exc:
                self._logger.warning("disk_watch_failed", extra={"attrs": {"error": str(exc)}})

    def _look(self, watched: Iterable[Watched]) -> dict[str, str]:
        watched = list(watched)
        free = free_mb(watched[0].root)
        short = free is not None and free < self._min_free_mb
        quotas = {one.key: one.quota_mb for one in watched if one.quota_mb is not None}
        measured = [one for one in watched if short or one.key in quotas]
        hidden = hidden_mb([one.root for one in measured], self._keeper())
        uses = {one.key: _use_mb(one.root) + hidden[one.root] for one in measured}
        loud = {one.key: "log" for one in watched if one.log_mb is not None and _log_mb(one.root) > one.log_mb}
        return loud | decide(uses, quotas, free_mb=self._min_free_mb if free is None else free, min_free_mb=self._min_free_mb)


def over_quota(root: str, quota_mb: int) -> str | None:
    """The reason to end an attempt for what it has on the disk, or None; blocks while the tree is walked."""
    return decide({"": _use_mb(root)}, {"": quota_mb}, free_mb=0.0, min_free_mb=0.0).get("")


def _use_mb(root: str) -> float:
    """A later attempt's workspace may lie inside the first one's, so only the folders of this one count."""
    uses = [measure_tree(Path(root) / name) for name in FOLDERS]
    return sum(use.bytes for use in uses) / MB if all(use.complete for use in uses) else float("inf")


def hidden_mb(roots: Collection[str], keeper: int) -> dict[str, float]:
    """What files in these workspaces take on the disk that have no name any more, but are still open or mapped below the keeper.

    A job that unlinks what it goes on writing would hide it from whoever walks its folders. The kernel still tells where such a
    file lay.
    """
    found: dict[str, dict[tuple[int, int], int]] = {root: {} for root in roots}
    for handle in _deleted_files(keeper) if roots else ():
        with contextlib.suppress(OSError):
            name = os.readlink(handle)
            root = next((root for root in roots if name.startswith(f"{root}/")), None)
            if root is not None and name.endswith(_DELETED):
                status = os.stat(handle)
                found[root][status.st_dev, status.st_ino] = 0 if status.st_nlink else status.st_blocks * 512
    return {root: sum(files.values()) / MB for root, files in found.items()}


def _deleted_files(keeper: int) -> Iterator[str]:
    """Links to what may be such files. Maps are many and rarely such: they are looked through only where one is."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(keeper).children(recursive=True):
            places = [f"/proc/{process.pid}/fd"]
            with contextlib.suppress(OSError):
                if _DELETED.encode() in Path(f"/proc/{process.pid}/maps").read_bytes():
                    places.append(f"/proc/{process.pid}/map_files")
            for place in places:
                with contextlib.suppress(OSError):
                    yield from (f"{place}/{name}" for name in os.listdir(place))


def _log_mb(root: str) -> float:
    total = 0
    for stream in ("stdout", "stderr"):
        with contextlib.suppress(OSError):
            total += Path(f"{root}/logs/{stream}.log").lstat().st_size
    return total / MB


def free_mb(path: Path | str) -> float | None:
    """What an ordinary user may still write there; None where the place is gone."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize / MB
