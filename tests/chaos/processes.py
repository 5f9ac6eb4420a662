"""Processes of a run: those that are kept alive as systemd would, and whatever else belongs to the run's directory."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
AGAIN_S = 0.3


@dataclass(frozen=True, slots=True)
class Seen:
    """One living process that has to do with a directory."""

    pid: int
    parent: int
    command: str
    cwd: str
    environ: str

    @property
    def job(self) -> str | None:
        """The attempt in whose environment it was started, as JOB/NUMBER."""
        told = dict(one.partition("=")[::2] for one in self.environ.split("\0"))
        job = told.get("OSTLER_JOB_ID")
        return None if job is None else f"{job}/{told.get('OSTLER_ATTEMPT', '?')}"


def seen(mark: str) -> Iterator[Seen]:
    """All processes whose command, working directory or environment names this directory; never this process or its ancestors."""
    own = set(_ancestors())
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cwd = os.readlink(entry / "cwd")
            environ = (entry / "environ").read_bytes().decode(errors="replace")
            if mark in command or mark in cwd or mark in environ:
                yield Seen(int(entry.name), int(parent), command, cwd, environ)


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        with contextlib.suppress(OSError):
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            continue
        return


class Kept:
    """A process that shall live: started again after it ended, unless a fault holds it down."""

    def __init__(self, name: str, command: Callable[[], list[str]], *, env: Mapping[str, str], log: Path) -> None:
        self.name, self.env, self.log = name, dict(env), log
        self._command = command
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self._down = 0
        self._wanted = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_up: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it alive."""
        self._wanted = True
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=self.name)

    async def stop(self, patience_s: float = 30.0) -> int | None:
        """End it in good order; its exit code, None where it had to be killed."""
        self._wanted = False
        self._changed.set()
        process = self.process
        code = None
        if process is not None and process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(patience_s):
                    code = await process.wait()
            except TimeoutError:
                self.signal(signal.SIGKILL)
                await process.wait()
        if self._task is not None:
            await self._task
        return code

    def abandon(self) -> None:
        """Start it no more, and end it at once."""
        self._wanted = False
        self.signal(signal.SIGKILL)
        if self._task is not None:
            self._task.cancel()

    def signal(self, number: int) -> None:
        """Send a signal to the living one."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def hold(self) -> None:
        """Not to be started for now."""
        self._down += 1

    def let(self) -> None:
        """One reason less to stay down."""
        self._down -= 1
        self._changed.set()

    async def ended(self) -> None:
        """Returns once the one that lives now does not any more."""
        if self.process is not None:
            await self.process.wait()

    async def _keep(self) -> None:
        while self._wanted:
            if self._down:
                self._changed.clear()
                await self._changed.wait()
                continue
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self._command(), env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, cwd=self.log.parent,
                )  # fmt: skip
            self.starts += 1
            self.on_up()
            await self.process.wait()
            if self._wanted and not self._down:
                await asyncio.sleep(AGAIN_S)
