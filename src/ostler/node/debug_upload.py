"""A workspace that somebody wants to look into: pinned, packed without following a link, handed to the coordinator."""

import asyncio
import io
import logging
import os
import stat
import tarfile
import tempfile
from pathlib import Path

from ostler.model.errors import OstlerError, Rejected, Unavailable
from ostler.node.loops.sweeper import PINNED
from ostler.node.session import Session
from ostler.node.workspace import ATTEMPT, Found, scan
from ostler.protocol.messages import Held
from ostler.runtime.backoff import Backoff

TRIES = 6
MOST_HOLES = 64 << 20
LEFT_OUT = "LEFT-OUT.txt"


class DebugUploads:
    """One at a time; the directive comes again until the coordinator has the archive."""

    def __init__(self, session: Session, *, root: Path, spool: Path, logger: logging.Logger) -> None:
        self._session = session
        self._root = root
        self._spool = spool
        self._logger = logger
        self._known: set[Held] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Lock()

    def request(self, job_id: str, attempt: int) -> None:
        """Pin it and begin, unless that is under way or done."""
        held = Held(job_id, attempt)
        if held in self._known:
            return
        self._known.add(held)
        task = asyncio.get_running_loop().create_task(self._serve(held), name="debug-upload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """The next daemon is asked again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, held: Held) -> None:
        attrs: dict[str, object] = {"attempt": held.attempt}
        try:
            found = await asyncio.to_thread(_find, self._root, held)
            if found is None:
                self._logger.warning("workspace_gone", extra={"job_id": held.job_id, "attrs": attrs})
                return
            await asyncio.to_thread((found.path / PINNED).touch)
            async with self._gate:
                await self._upload(held, found)
        except (OSError, OstlerError, tarfile.TarError) as exc:
            self._known.discard(held)
            self._logger.warning("workspace_not_uploaded", extra={"job_id": held.job_id, "attrs": {**attrs, "error": str(exc)}})
        else:
            self._logger.info("workspace_uploaded", extra={"job_id": held.job_id, "attrs": attrs})

    async def _upload(self, held: Held, found: Found) -> None:
        backoff = Backoff(min_s=1.0, max_s=30.0)
        await asyncio.to_thread(self._spool.mkdir, mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._spool) as folder:
            archive = Path(folder) / "workspace.tar.gz"
            await asyncio.to_thread(pack, found.path, archive)
            for left in reversed(range(TRIES)):
                try:
                    await self._session.link.upload_workspace(held, archive)
                except Rejected:
                    raise
                except Unavailable:
                    if not left:
                        raise
                    await asyncio.sleep(backoff.next_s())
                else:
                    return


def pack(workspace: Path, archive: Path) -> None:
    """A tar.gz of what is there: links as links, no FIFO, device or socket, no other attempt, no file of another file system.

    What is left out for its holes stands in LEFT-OUT.txt.
    """
    device = workspace.lstat().st_dev
    left_out: list[str] = []
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=False) as tar:
        for folder, names, files in os.walk(workspace, followlinks=False):
            here = Path(folder)
            if here == workspace:
                names[:] = [name for name in names if not ATTEMPT.fullmatch(name)]
            names[:] = [name for name in names if (here / name).lstat().st_dev == device]
            for name in sorted([*names, *files]):
                inside = str((here / name).relative_to(workspace))
                if not _add(tar, here / name, inside):
                    left_out.append(inside)
        if left_out:
            content = "".join(f"{name!r} is mostly holes\n" for name in left_out).encode()
            info = tarfile.TarInfo(LEFT_OUT)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _add(tar: tarfile.TarFile, path: Path, name: str) -> bool:
    """False for a file that takes next to nothing on the disk and would be packed as what it claims to be, such as a terabyte."""
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            return True
        if stat.S_ISREG(status.st_mode) and status.st_size - status.st_blocks * 512 > MOST_HOLES:
            return False
        info = tar.gettarinfo(str(path), arcname=name)
        if not stat.S_ISREG(status.st_mode):
            tar.addfile(info)
            return True
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            info.size = os.fstat(handle).st_size
            if info.islnk():  # a second name of a file: its bytes, so that the archive needs no link to be whole
                info.type = tarfile.REGTYPE
                info.linkname = ""
            tar.addfile(info, stream)
    except (FileNotFoundError, PermissionError):
        pass  # it went away meanwhile, or the job made it unreadable
    return True


def _find(root: Path, held: Held) -> Found | None:
    found = [one for one in scan(root) if (one.job_id, one.attempt) == (held.job_id, held.attempt)]
    return max(found, key=lambda one: str(one.facts.get("at") or ""), default=None)
