"""The worker's life: listen on a socket, run what the daemon sends, one task at a time, and outlive the daemon for a while.

Messages are JSON lines. The daemon sends {"run": …}; the worker answers {"hello": …} on each new connection, {"progress": …} and
{"done": …}. There are no threads: while a task runs nobody reads, and a task stuck in C code changes nothing. Which task runs is
told by the status file, one fixed-size record that is overwritten in place: who looks at it needs no answer from here. How a task
ended stands in its workspace or, if it left none, as a line of the ledger.

Orders with a number (`at`) may lie here before it is their turn, and are taken back by a number that the daemon writes behind the
status: none up to it may begin. The worker writes down what it begins and then looks at that number, the daemon writes the number and
then looks at what was begun; so at least one of them sees the other. Nobody who has lost its daemon begins an order with a number.
"""

# ruff: noqa: PTH104, PTH108, PTH119, PTH120, PTH123 - as in attempt.py
import contextlib
import json
import os
import select
import socket
import sys
import time
from typing import Any

from ostler import task as task_side
from ostler.node.worker import system
from ostler.node.worker.attempt import Order, Runner, masking
from ostler.node.worker.finder import TaskFinder
from ostler.node.worker.place import Place

PROTOCOL = 1
STATUS_BYTES = 512
NUMBER_BYTES = 8  # of the number behind the status, little-endian
PROGRESS_EVERY_S = 1.0
REST_AFTER_S = 0.2
MAX_NOTE = 1000
HELD = 8  # so many ends go in one message while more is to be done,
SHORT_S = 0.002  # if each took less than this
_BLOCK = 1 << 16
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def main(text: str) -> None:
    """Run by `__main__` with the settings as JSON: `once` (a descriptor with one order), or `socket`, `status` and the rest."""
    settings: dict[str, Any] = json.loads(text)
    system.become_subreaper()
    finder = TaskFinder(settings["task_paths"])
    if "once" in settings:
        raise SystemExit(run_once(settings["once"], finder))
    Service(settings, finder).serve()


def run_once(descriptor: int, finder: TaskFinder) -> int:
    """Run the one order that stands in an open file; the exit code is the task's, 1 after an exception."""
    with open(descriptor, "rb") as file:
        order = Order.read(json.loads(file.read()))
    progress = f"{order.record}.progress"
    last = [float("-inf")]
    mask = masking(order)

    def report(pct: float | None, note: str | None) -> None:
        now = time.monotonic()
        if now - last[0] >= PROGRESS_EVERY_S:
            last[0] = now
            with contextlib.suppress(OSError):
                with open(f"{progress}.new", "w", encoding="utf-8") as file:
                    json.dump({"pct": pct, "note": None if note is None else mask(note)[:MAX_NOTE]}, file)
                os.rename(f"{progress}.new", progress)

    task_side.report_to(report)
    record = Runner(finder).run(order)
    return int(record.get("exit_code", 0 if record["outcome"] == "done" else 1))


class Service:
    """One warm worker."""

    def __init__(self, settings: dict[str, Any], finder: TaskFinder) -> None:
        self._began = time.monotonic()
        self._begun = 0  # the number of the last order that was begun
        self._void = 0  # of the last one that was taken back after that
        self._noted = False  # the status names a task that is over, which the ledger tells, too
        self._idle_s: float = settings.get("idle_s", 60.0)
        self._left: int = settings.get("max_tasks", 1000)
        self._status = os.open(settings["status"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._note(None)
        self._finder = finder
        self._place = Place(settings["spare"], settings["lasting_s"]) if "spare" in settings else None
        self._runner = Runner(finder, self._place)
        self._ledger = os.open(settings["ledger"], _APPEND, 0o600) if "ledger" in settings else -1
        self._socket_path: str = settings["socket"]
        self._listener = _listen(self._socket_path)
        self._daemon: socket.socket | None = None
        self._buffer = bytearray()
        self._alarm = select.poll()
        self._busy: str | None = None
        self._held: list[bytes] = []
        self._reported_at = float("-inf")
        task_side.report_to(self._progress)

    def serve(self) -> None:
        """Until nobody wants it any more, its number of tasks is done, or a task left something behind."""
        while self._left > 0:
            if self._daemon is None and not self._accept(self._idle_s):
                break
            line = self._next_line()
            if line is None:
                self._hang_up()
                self._settle()
                continue
            message = json.loads(line)
            if "run" in message:
                self._run(Order.read(message["run"]))
            elif "stop" in message:
                break
        self._leave()

    def _run(self, order: Order) -> None:
        if order.at and (self._is_alone() or self._is_taken_back(order)):
            return
        if self._finder.stale():
            self._left = 0
            self._send({"stale": {"key": order.key}})
            return
        self._busy, before = order.key, self._begun
        self._reported_at = float("-inf")
        self._note(order)
        if order.at and self._is_taken_back(order):  # between the two looks
            self._busy, self._void, self._begun = None, order.at, before
            self._note(None)
            self._send({"void": order.at})
            return
        record = self._runner.run(order)
        text = json.dumps(record).encode()
        self._noted = False
        if record.get("lent"):
            with contextlib.suppress(OSError):  # a full disk; the daemon is told all the same
                self._noted = os.write(self._ledger, text + b"\n") > len(text)
        self._left = self._left - 1 if self._runner.fit() else 0
        self._busy = None
        if not self._noted:
            self._note(None)
        self._held.append(b'{"last": %s, "done": %s}' % (b"false" if self._left > 0 else b"true", text))
        if len(self._held) >= HELD or record["wall_s"] >= SHORT_S or not self._left:
            self._tell()

    def _is_alone(self) -> bool:
        """Whether the daemon that sent this is gone. The next one gives out anew what was not begun."""
        return self._daemon is None or bool(self._alarm.poll(0))

    def _is_taken_back(self, order: Order) -> bool:
        return order.at <= int.from_bytes(os.pread(self._status, NUMBER_BYTES, STATUS_BYTES), "little")

    def _note(self, order: Order | None) -> None:
        """Say in the status file what runs, and where this process's age and counters stand before it."""
        status: dict[str, Any] = {"begun": self._begun}
        if order is not None:
            self._begun = order.at or self._begun
            used = self._runner.measured
            status = {
                "begun": self._begun,
                "key": order.key,
                "kill_s": order.kill_s,
                "age_s": time.monotonic() - self._began,
                "cpu_user_s": used.cpu_user_s,
                "cpu_system_s": used.cpu_system_s,
                "read_bytes": used.read_bytes,
                "written_bytes": used.written_bytes,
            }
        os.pwrite(self._status, json.dumps(status).encode().ljust(STATUS_BYTES - 1) + b"\n", 0)

    def _settle(self) -> None:
        """Before nothing is done for a while."""
        self._tell()
        if self._noted:
            self._noted = False
            self._note(None)

    def _tell(self) -> None:
        """Of several ends at once: whoever misses one sees it in the ledger. What is told to have left nothing has no folder by then."""
        self._runner.rest()
        self._send_held()

    def _send_held(self) -> None:
        if self._held:
            text, self._held = b"\n".join(self._held), []
            self._send_text(text)

    def _progress(self, pct: float | None, note: str | None) -> None:
        now = time.monotonic()
        if self._busy is None or now - self._reported_at < PROGRESS_EVERY_S:
            return
        if self._daemon is None:
            self._accept(0)
        if self._daemon is not None:
            self._reported_at = now
            self._send({"progress": {"key": self._busy, "pct": pct, "note": note and note[:MAX_NOTE]}})

    def _accept(self, wait_s: float) -> bool:
        self._listener.settimeout(wait_s)
        try:
            self._daemon, _ = self._listener.accept()
        except (TimeoutError, BlockingIOError):
            return False
        self._daemon.setblocking(True)
        self._alarm = select.poll()
        self._alarm.register(self._daemon, _GONE)
        self._buffer = bytearray()
        hello = {"protocol": PROTOCOL, "pid": os.getpid(), "left": self._left, "busy": self._busy, "void": self._void}
        self._send({"hello": hello})
        return True

    def _next_line(self) -> bytes | None:
        """The next message, or None when the daemon is gone."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                block = self._receive()
            except OSError:
                return None
            if not block:
                return None
            self._buffer += block
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _receive(self) -> bytes:
        daemon = self._daemon
        if daemon is None:
            return b""
        with contextlib.suppress(BlockingIOError):
            return daemon.recv(_BLOCK, socket.MSG_DONTWAIT)
        self._settle()
        if self._place is not None:
            daemon.settimeout(REST_AFTER_S)
            try:
                return daemon.recv(_BLOCK)
            except TimeoutError:
                self._place.rest()
            finally:
                daemon.settimeout(None)
        return daemon.recv(_BLOCK)

    def _send(self, message: dict[str, Any]) -> None:
        self._send_held()
        self._send_text(json.dumps(message).encode())

    def _send_text(self, text: bytes) -> None:
        """What cannot be delivered is not lost: the record stands on the disk, and progress is not worth a wait."""
        if self._daemon is None:
            return
        try:
            self._daemon.sendall(text + b"\n")
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None
            self._held = []  # they stand in the ledger

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._socket_path)
        self._hang_up()
        if self._place is not None:
            self._place.rest()
        sys.stdout.flush()
        os._exit(0)  # threads that a task left must not keep this process


def _listen(path: str) -> socket.socket:
    """A socket that only this user may connect to. Longer paths than an address holds go through the folder's descriptor."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    old = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.umask(old)
        os.close(folder)
    listener.listen(4)
    return listener
