"""A job in the foreground: sent, followed and fetched by threads, while the main one attends to signals and the terminal alone.

A signal handler that raises does so in the middle of anything, a connection's bookkeeping included; here it only wakes a wait.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from ostler.assembly.targets import safe_target
from ostler.cli import exits, output, watch
from ostler.cli.follow import Follower
from ostler.cli.session import FOLLOW_PATIENCE_S, SUBMIT_PATIENCE_S, Session
from ostler.protocol import routes
from ostler.protocol.messages import JobView

CANCEL_PATIENCE_S = 30.0
_DRAIN_S = 15.0
_ECHO_S = 1.0  # `timeout` sends its signal to the process, and at once again to its group: one wish, not two
_WORK = 0  # the byte that says that a thread has come to its end; a signal is its own number


class Choice(Enum):
    """What a person wants of a job after Ctrl-C."""

    CANCEL = "cancel"
    GO_ON = "go on"
    DETACH = "detach"


class Attention:
    """What the main thread waits for: SIGINT and SIGTERM, threads that come to their end, and a line of the terminal."""

    def __init__(self) -> None:
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._heard: list[int] = []

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """In here the signals only wake `wait`."""
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(bell)
            for number, handler in before.items():
                signal.signal(number, handler)

    def ring(self) -> None:
        """A thread has come to its end."""
        with contextlib.suppress(BlockingIOError):
            self._bell.send(bytes([_WORK]))

    def wait(self, done: Callable[[], bool], *, timeout_s: float | None = None, terminal: bool = False) -> int | str | None:
        """The number of a signal, a line from the terminal (where asked for), or None once it is done or the time is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._heard:
                return self._heard.pop(0)
            if done():
                return None
            rest = None if deadline is None else deadline - time.monotonic()
            if rest is not None and rest <= 0:
                return None
            ready, _, _ = select.select([self._ear, *([sys.stdin] if terminal else [])], [], [], rest)
            if self._ear in ready:
                self._heard += [number for number in self._ear.recv(256) if number in (signal.SIGINT, signal.SIGTERM)]
            elif ready:
                answer = _read_line(sys.stdin.fileno())
                if answer is not None:
                    return answer


def _read_line(descriptor: int) -> str | None:
    """What was typed, or None where a Ctrl-C flushed it from the terminal after it was seen there: a plain read would then wait."""
    try:
        # opened anew: the mode of an inherited descriptor is shared with the shell
        terminal = os.open(os.ttyname(descriptor), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return os.read(descriptor, 4096).decode("utf-8", "replace")
    try:
        return os.read(terminal, 4096).decode("utf-8", "replace")
    except BlockingIOError:
        return None
    finally:
        os.close(terminal)


class Work(threading.Thread):
    """Something done beside the main thread; `result` answers its value, or raises what ended it."""

    def __init__(self, attention: Attention, act: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._attention, self._act = attention, act
        self._value: Any = None
        self._failure: Exception | None = None
        self.over = False

    def run(self) -> None:
        """Act, and ring."""
        try:
            self._value = self._act()
        except Exception as exc:
            self._failure = exc
        finally:
            self.over = True
            self._attention.ring()

    def result(self) -> Any:
        """Only once it is over."""
        if self._failure is not None:
            raise self._failure
        return self._value


class Foreground:
    """One job. `carry_out` answers the exit code."""

    def __init__(self, session: Session, manifest: dict[str, Any], files: Sequence[Path]) -> None:
        self.session, self.manifest, self.files = session, manifest, files
        self.job_id: str = manifest["job_id"]
        self.interactive = sys.stdin.isatty() and sys.stderr.isatty()
        self.attention = Attention()
        self.followers: list[Follower] = []
        self.lost = False  # some of the output did not come to its place
        self._sent = False

    def carry_out(self) -> int:
        """Send, follow, wait, fetch."""
        with self.attention.signals():
            sending = self._begin(self._send)
            signalled = self.attention.wait(lambda: sending.over)
            if isinstance(signalled, int):
                return self._cancel(signalled, sending) if self._sent else exits.SIGNALLED + signalled
            sending.result()
            return self._attend()

    def _begin(self, act: Callable[[], Any]) -> Work:
        work = Work(self.attention, act)
        work.start()
        return work

    # --- in threads ---

    def _send(self) -> None:
        blobs = [(file.name, self.session.send_file(file)) for file in self.files]
        if blobs:
            self.manifest["input"] = {"files": [{"name": name, "sha256": blob.sha256, "size": blob.size} for name, blob in blobs]}
        self._sent = True
        for warning in self.session.call(routes.SUBMIT, self.manifest, patience_s=SUBMIT_PATIENCE_S).warnings:
            output.note(f"warning: {warning}")

    def _wait(self) -> JobView | None:
        view = watch.Watch(self.session, self.job_id, patience_s=FOLLOW_PATIENCE_S).until_over()
        return view if isinstance(view, JobView) else None

    # --- in the main thread ---

    def _attend(self) -> int:
        if self.interactive:
            output.note(f"job {self.job_id}")
        descriptors = (("stdout", sys.stdout.fileno()), ("stderr", sys.stderr.fileno()))
        self.followers = [Follower(self.session, self.job_id, stream, descriptor) for stream, descriptor in descriptors]
        for follower in self.followers:
            follower.start()
        waiting = self._begin(self._wait)
        asked = False
        while True:
            signalled = self.attention.wait(lambda: waiting.over)
            if not isinstance(signalled, int):
                return self._finish(waiting.result())
            if signalled == signal.SIGTERM or not self.interactive:
                return self._cancel(signalled, waiting)
            choice = Choice.DETACH if asked else self._ask(waiting)
            asked = True
            if choice is Choice.DETACH:
                return self._detach()
            if choice is Choice.CANCEL:
                return self._cancel(signalled, waiting)

    def _ask(self, waiting: Work) -> Choice:
        """Another Ctrl-C is an answer too; a job that ends meanwhile needs none."""
        sys.stderr.write(f"\nCancel job {self.job_id}? [y/N] (Ctrl-C again leaves it running) ")
        sys.stderr.flush()
        answer = self.attention.wait(lambda: waiting.over, terminal=True)
        if isinstance(answer, int):
            return Choice.DETACH
        if answer is None:
            sys.stderr.write("\n")
            return Choice.GO_ON
        return Choice.CANCEL if answer.strip().lower() in {"y", "yes"} else Choice.GO_ON

    def _cancel(self, number: int, waiting: Work) -> int:
        """Cancel the job and wait a while for its end."""
        name = signal.Signals(number).name
        output.note(f"cancelling {self.job_id} ({name})")

        def ask() -> None:
            if not self.followers:  # it is just being sent: there is nothing to cancel before that is over
                waiting.join(CANCEL_PATIENCE_S)
            watch.cancel(self.session, self.job_id, f"ostler run got {name}")

        began = time.monotonic()
        asking = self._begin(ask)
        while True:
            again = self.attention.wait(lambda: asking.over and waiting.over, timeout_s=CANCEL_PATIENCE_S)
            if self.interactive or again != number or time.monotonic() - began > _ECHO_S:
                break
        if isinstance(again, int):
            return self._detach()
        if asking.over:
            asking.result()
        if not (asking.over and waiting.over):
            output.note(f"{self.job_id} has not ended yet; see `ostler job show {self.job_id}`")
        else:
            self._drain()
        return exits.SIGNALLED + number

    def _detach(self) -> int:
        for follower in self.followers:
            follower.stop()
        output.note(
            f"\nleft {self.job_id} running; come back with\n  ostler job logs -f {self.job_id}\n  ostler job wait {self.job_id}"
        )
        return exits.INTERRUPTED

    def _drain(self) -> None:
        """Let the followers bring what is still on its way, but not for ever."""
        deadline = time.monotonic() + _DRAIN_S
        for follower in self.followers:
            follower.join(max(0.0, deadline - time.monotonic()))
            if follower.failure is not None:
                self.lost = True
                output.note(f"{follower.stream} was not followed to its end: {follower.failure.message}")
            elif follower.is_alive():
                output.note(f"the rest of {follower.stream} is missing here; see `ostler job logs {self.job_id}`")
                follower.stop()

    def _finish(self, view: JobView) -> int:
        self._drain()
        fetching = self._begin(lambda: self._fetch(view))
        signalled = self.attention.wait(lambda: fetching.over)
        if isinstance(signalled, int):
            output.note(f"the job is over; its files are still there: ostler job artifacts {self.job_id} --download .")
            return exits.SIGNALLED + signalled
        watch.tell_end(view)
        fetching.result()
        return watch.exit_code(view) or (exits.FAILED if self.lost else 0)

    def _fetch(self, view: JobView) -> None:
        wanted = {artifact["path"] for artifact in self.manifest.get("artifacts", ())}
        for entry in view.artifacts:
            if entry.path not in wanted:
                continue
            target = safe_target(Path.cwd(), entry.path)
            replaced = target.exists()
            self.session.fetch_artifact(self.job_id, entry, target)
            if replaced:
                output.note(f"replaced {entry.path}")
