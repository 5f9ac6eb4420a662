"""Child processes that are kept alive: started, watched, started again with growing waits, and stopped in good order."""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ostler.model.errors import OstlerError, Rejected
from ostler.runtime.backoff import Backoff

ROTATE_BYTES = 50 * 1000 * 1000
STEADY_S = 60.0  # who lived so long has earned a short first wait again
_TAIL = 4000
MUTE_BYTES = 16 * 1024  # with less than that free a reason may not have found its way into the log


@dataclass(frozen=True, slots=True)
class Launch:
    """How a child is started: its arguments, the environment, and descriptors that it inherits (closed here afterwards)."""

    command: Sequence[str]
    env: dict[str, str] | None = None
    descriptors: tuple[int, ...] = ()


@dataclass(slots=True)
class Child:
    """One process that shall live. `plan` is asked anew at each start; `log` takes its output."""

    name: str
    plan: Callable[[], Launch]
    log: Path
    patience_s: float = 30.0
    process: subprocess.Popen[bytes] | None = None
    due_at: float | None = None
    ready: bytes = b""
    _stdout: int = -1
    _pidfd: int = -1
    _started_at: float = 0.0
    _log_from: int = 0
    _backoff: Backoff = field(default_factory=lambda: Backoff(min_s=0.5, max_s=30.0))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it now; raises OstlerError where its plan cannot be made."""
        launch = self.plan()
        rotate(self.log)
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        with self.log.open("ab") as stream:
            self._log_from = stream.tell()
            # A session of its own: Ctrl-C in the terminal must reach this process alone, which stops the others in order.
            self.process = subprocess.Popen(
                launch.command,
                env=launch.env,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=stream,
                pass_fds=launch.descriptors,
                start_new_session=True,
                cwd=self.log.parent,
            )
        for descriptor in (writing, *launch.descriptors):
            os.close(descriptor)
        self.ready, self._stdout = b"", reading
        self._pidfd = os.pidfd_open(self.process.pid)
        self._started_at, self.due_at = time.monotonic(), None

    def read(self) -> None:
        """Take what it said on standard output; only the first line matters."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._stdout, 4096):
                self.ready = (self.ready + piece)[:4096]
            os.close(self._stdout)
            self._stdout = -1

    def said(self, word: bytes) -> str | None:
        """The rest of the first line, once that begins with a word."""
        line, newline, _ = self.ready.partition(b"\n")
        return line[len(word) :].decode().strip() if newline and line.startswith(word) else None

    def tail(self) -> str:
        """The last lines that it wrote since it was started."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(self._log_from, stream.tell() - _TAIL))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        if not lines and self._is_mute():
            return f"  it could write nothing: the disk is full (df -h {self.log.parent})"
        return "\n".join(f"  {line}" for line in lines[-12:])

    def _is_mute(self) -> bool:
        with contextlib.suppress(OSError):
            disk = os.statvfs(self.log.parent)
            return disk.f_bavail * disk.f_frsize < MUTE_BYTES or (disk.f_files > 0 and disk.f_favail == 0)
        return False

    def bury(self) -> int:
        """It ended: its exit code. It is due again after a wait that grows."""
        if self.process is None:
            return 0
        code = self.process.wait()
        self._close()
        if time.monotonic() - self._started_at > STEADY_S:
            self._backoff.reset()
        self.postpone()
        return code

    def postpone(self) -> None:
        """Due again, later than last time."""
        self.due_at = time.monotonic() + self._backoff.next_s()

    def stop(self, *, kill: bool = False) -> None:
        """SIGTERM, its patience, SIGKILL; returns when it is gone."""
        self.due_at = None
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                self.process.wait(self.patience_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._close()

    def _close(self) -> None:
        self.process = None
        for descriptor in (self._stdout, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._stdout = self._pidfd = -1

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have a selector look at it."""
        for descriptor in (self._stdout, self._pidfd):
            if descriptor >= 0:
                selector.register(descriptor, selectors.EVENT_READ, self)


class Stopped(Exception):
    """A signal asked for the end."""


class Nursery:
    """All children, and the signals that this process gets. `SIGHUP` goes to `on_hangup`."""

    def __init__(self, tell: Callable[[str], None], *, on_start: Callable[[], None]) -> None:
        self.children: list[Child] = []
        self.on_start = on_start
        self.on_hangup: Callable[[], None] = lambda: None
        self.tell = tell
        self.stopping: int | None = None
        self._awake, self._waker = socket.socketpair()
        for one in (self._awake, self._waker):
            one.setblocking(False)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the waits in here with Stopped; a second one kills what is being stopped."""
        caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {one: signal.signal(one, self._caught) for one in caught}
        waker = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for one, handler in before.items():
                signal.signal(one, handler)
            self._awake.close()
            self._waker.close()

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.on_hangup()
        elif self.stopping is None:
            self.stopping = number
        else:
            for child in self.children:
                if child.process is not None:
                    child.process.kill()

    def start(self, child: Child) -> None:
        """Start a child and tell of it."""
        child.start()
        self.on_start()

    def until(self, found: Callable[[], str | None], child: Child, *, timeout_s: float) -> str:
        """Wait until `found` answers, looking whenever something happens and every 50 ms.

        Raises Stopped on a signal, and Rejected with the end of its log where the child ended or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.look(0.0)
            if (value := found()) is not None:
                return value
            if not child.alive:
                code = child.bury()
                raise Rejected(
                    f"{child.name} ended with code {code} before it was ready:\n{child.tail()}", hint=f"see {child.log}"
                )
            if time.monotonic() > deadline:
                raise Rejected(f"{child.name} was not ready in {timeout_s:g} s:\n{child.tail()}", hint=f"see {child.log}")
            self.look(0.05)

    def look(self, timeout_s: float | None) -> None:
        """Wait for a signal, for output, or for the end of a child; raises Stopped."""
        if self.stopping is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._awake, selectors.EVENT_READ)
                for child in self.children:
                    child.register(selector)
                events = selector.select(timeout_s)
            with contextlib.suppress(BlockingIOError):
                while self._awake.recv(64):
                    pass
            for child in {id(key.data): key.data for key, _ in events if key.data is not None}.values():
                if child._stdout >= 0:
                    child.read()
        if self.stopping is not None:
            raise Stopped

    def keep_alive(self) -> None:
        """Until Stopped: start again what ended, after its wait."""
        while True:
            now = time.monotonic()
            for child in self.children:
                if child.process is not None and not child.alive:
                    code = child.bury()
                    self.tell(f"{child.name} ended with code {code}; it is started again (see {child.log})")
                if child.due_at is not None and child.due_at <= now:
                    try:
                        self.start(child)
                    except (OstlerError, OSError) as exc:
                        child.postpone()
                        self.tell(f"{child.name} cannot be started, and is tried again: {exc}")
            due = [child.due_at for child in self.children if child.due_at is not None]
            self.look(max(0.0, min(due) - time.monotonic()) if due else None)


def rotate(log: Path) -> None:
    """Keep one old log of a child that writes to its standard error."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > ROTATE_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
