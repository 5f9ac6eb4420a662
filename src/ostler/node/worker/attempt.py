"""One task's run inside this process: its streams, folder and environment around it, and nothing of it left behind afterwards."""

# ruff: noqa: PTH104, PTH108, PTH109, PTH123 - this stands on the path of every task, which as a whole may cost a millisecond
import _signal  # type: ignore[import-not-found]  # the built-in beneath `signal`
import contextlib
import errno
import io
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any, NamedTuple

from ostler.node.worker import system
from ostler.node.worker.finder import TaskFinder, TaskRefused
from ostler.node.worker.place import Place, redirect

MAX_MESSAGE = 4000
MAX_RESULT_BYTES = 1 << 20
MAX_CARRIED_BYTES = 16 * 1024  # a smaller result goes with the record, and no file is made for it
RESULT = "result.json"
RECORD = "task.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_PICKLE = "result.pkl"  # no text, so it cannot go with a record
_HERE = os.path.dirname(__file__)  # noqa: PTH120
# By these the keeper knows its own, also those that were detached from this process.
KEEPERS_OWN = ("OSTLER_ATTEMPT_KEY", "OSTLER_KEEPER")
_BLOCK_BYTES = 512  # in which the kernel counts what goes to and from disks
_PEAK_SLACK_KB = 4096
_WATCHED_SIGNALS = (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)
_getsignal = _signal.getsignal  # without the names that `signal` gives to what it finds
_WATCHED_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)


class Order(NamedTuple):
    """One task to run. Paths are absolute; `kill_s` is when the kernel kills this process (0: never).

    With a number `at` it can be taken back until it has begun. With a `root` its workspace is lent: it is made there, and gone again if
    the task left nothing; the results that it `wants` go with the record then. Without `stdout` and `stderr` the streams stay as they
    are. `masks` are secrets (base64) that no word of the record may hold.
    """

    key: str
    task: str
    params: dict[str, Any]
    work: str
    output: str
    record: str
    env: dict[str, str]
    stdout: str | None = None
    stderr: str | None = None
    kill_s: float = 0.0
    masks: tuple[str, ...] = ()
    code: dict[str, Any] | None = None
    root: str | None = None
    wants: tuple[str, ...] = ()
    at: int = 0

    @property
    def is_call(self) -> bool:
        """Whether it is a function's call, and no task of the plain form."""
        return self.code is not None or ":" in self.task

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Order":
        """From a message; what a later release adds is ignored."""
        if root := fields.get("root"):
            fields |= {"work": f"{root}/work", "output": f"{root}/output", "record": f"{root}/{RECORD}"}
        return cls(**{name: value for name, value in fields.items() if name in cls._fields})


class Runner:
    """Runs one order after another and says after each whether the process is still fit for another."""

    def __init__(self, finder: TaskFinder, place: Place | None = None) -> None:
        self._finder = finder
        self._place = place
        self._deadline = system.Deadline()
        self._pid = os.getpid()
        self._home = os.getcwd()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._kept = {name: value for name, value in os.environ.items() if name in KEEPERS_OWN}
        self._worn, self._worn_raw = dict(os.environ), dict(os.environ._data)  # type: ignore[attr-defined]
        self._path = list(sys.path)
        self._baseline = _leftovers()
        self._streams = _open_streams()
        self._carried: dict[str, tuple[bytes, bool]] = {}
        self.measured = measure()
        self._peak_kb = self.measured.peak_kb

    def run(self, order: Order) -> dict[str, Any]:
        """Run a task to its end. The answer is its record, which stands in `order.record` by then, unless it is `lent`."""
        started = time.monotonic()
        before = self.measured
        self._deadline.arm(order.kill_s)
        self._carried = {}
        if order.root is not None and self._place is not None:
            record = self._run_lent(order, order.root, self._place, started)
        else:
            record = self._run_alone(order)
        self.measured = measure()
        record |= {"key": order.key, "wall_s": time.monotonic() - started, **_used(before, self.measured)}
        if not record.get("lent"):
            with contextlib.suppress(OSError):  # of a full disk; whoever waits is told all the same
                _write(order.record, record)
            self.rest()
        if self.measured.peak_kb > self._peak_kb + _PEAK_SLACK_KB:
            self._peak_kb = _new_peak()
        return record

    def _run_alone(self, order: Order) -> dict[str, Any]:
        with contextlib.ExitStack() as around:
            try:
                around.enter_context(self._surroundings(order))
            except OSError as exc:
                return _no_place(exc, "opening the workspace")
            record = self._call(order)
            system.end_children()
        return record

    def _run_lent(self, order: Order, root: str, place: Place, started: float) -> dict[str, Any]:
        try:
            place.take(root)
        except OSError as exc:
            return _no_place(exc, "making the workspace") | {"lent": True}
        self._dress(order.env)
        record = self._call(order)
        system.end_children()
        self._undress()
        if time.monotonic() - started < place.lasting_s and place.give_back():
            return record | {"lent": True, "files": {name: content.decode() for name, (content, _) in self._carried.items()}}
        place.let_go()
        try:
            for name, (content, over) in self._carried.items():
                _put(f"{order.output}/{name}", content, over=over)
        except OSError as exc:
            return _exception(order, exc)
        return record

    def rest(self) -> None:
        """No task follows at once."""
        self._deadline.arm(0)
        if self._place is not None:
            self._place.park()

    def fit(self) -> bool:
        """Whether the last task left this process as it was: no thread, no signal handler, no limit of its own."""
        return _leftovers() == self._baseline

    def _call(self, order: Order) -> dict[str, Any]:
        try:
            if order.is_call:
                self._call_function(order)
            else:
                result = _started(self._finder.find(order.task), order)
                if isinstance(result, CoroutineType):
                    import asyncio  # as long to load as all the rest

                    result = asyncio.run(result)
                self._still_the_worker()
                if (content := _json(result)) is not None:
                    self._keep(order, RESULT, content, over=False)
        except TaskRefused as exc:
            return {"outcome": "refused", "code": exc.code, "message": masking(order)(str(exc))[:MAX_MESSAGE]}
        except SystemExit as exc:
            self._still_the_worker(exc)
            if order.is_call:  # to who waits for a result this is an exception like any other
                return self._failed_call(order, exc)
            return {"outcome": "exit", "exit_code": _exit_code(exc)}
        except BaseException as exc:
            with contextlib.suppress(Exception):
                exc.__traceback__ = _of_the_task(exc)
                traceback.print_exception(exc)
            self._still_the_worker(exc)
            if order.is_call:
                return self._failed_call(order, exc)
            return _exception(order, exc)
        return {"outcome": "done"}

    def _call_function(self, order: Order) -> None:
        from ostler.node.worker import calls  # only where there are any

        result = calls.result_of(self._finder, order.task, order.params, order.code)
        self._still_the_worker()
        self._keep(order, *calls.content_of(result, pickled=order.params.get("results") == "pickle"), over=True)

    def _failed_call(self, order: Order, exc: BaseException) -> dict[str, Any]:
        from ostler.node.worker import calls

        with contextlib.suppress(Exception):
            self._keep(order, calls.ERROR, calls.error_of(exc, mask=masking(order)), over=True)
        return _exception(order, exc)

    def _keep(self, order: Order, name: str, content: bytes, *, over: bool) -> None:
        """Have a result delivered: it lies in the output folder, where it replaces the task's own file only if it is `over` it."""
        if name in order.wants and len(content) <= MAX_CARRIED_BYTES and name != _PICKLE:
            self._carried[name] = (content, over)
        else:
            _put(f"{order.output}/{name}", content, over=over)

    def _still_the_worker(self, exc: BaseException | None = None) -> None:
        """In a child that the task forked and that came back here: end it, as it would have ended in a program of its own."""
        if os.getpid() != self._pid:
            with contextlib.suppress(Exception):
                _flush()
            os._exit(0 if exc is None else _exit_code(exc) if isinstance(exc, SystemExit) else 1)

    @contextlib.contextmanager
    def _surroundings(self, order: Order) -> Iterator[None]:
        try:
            self._dress(order.env)
            os.chdir(order.work)
            if order.stdout and order.stderr:
                redirect(order.stdout, 1)
                redirect(order.stderr, 2)
            yield
        finally:
            self._undress()
            if order.stdout:
                redirect(os.devnull, 1)
                redirect(os.devnull, 2)
            os.chdir(self._home)

    def _dress(self, env: dict[str, str]) -> None:
        """What differs from the last task's environment: to set all of it anew would take longer."""
        wanted, current = env | self._kept, os.environ
        raw = current._data  # type: ignore[attr-defined]  # each look through the front of it codes or decodes a name and a value
        worn = self._worn if raw == self._worn_raw else dict(current)
        for name in worn.keys() - wanted.keys():
            del current[name]
        for name, value in wanted.items():
            if worn.get(name) != value:
                current[name] = value
        self._worn, self._worn_raw = wanted, dict(raw)

    def _undress(self) -> None:
        sys.stdout, sys.stderr = self._streams = _good_streams(self._streams)
        if not _flush():  # what a full disk did not take must not end up in the next task's log
            for number in (1, 2):
                redirect(os.devnull, number)
            _flush()
        os.umask(self._umask)
        sys.path[:] = self._path


def masking(order: Order) -> Callable[[str], str]:
    """What goes over each text that leaves the task in its record, before it is cut to a length."""
    if not order.masks:
        return str
    import base64

    from ostler.node.masking import Masker

    return Masker(base64.b64decode(one) for one in order.masks).text


def _no_place(exc: OSError, doing: str) -> dict[str, Any]:
    """The record of a task that was not begun, for want of its files."""
    return {"outcome": "refused", "code": "E_DISK" if exc.errno in _FULL else "E_INTERNAL", "message": f"{doing}: {exc.strerror}"}


def _exception(order: Order, exc: BaseException) -> dict[str, Any]:
    return {"outcome": "exception", "type": _name(exc), "message": masking(order)(_text(exc))[:MAX_MESSAGE]}


def _started(run: Callable[..., Any], order: Order) -> Any:
    """Call the task. A TypeError that comes from the call itself, and not from within, says that the parameters do not fit."""
    try:
        return run(**order.params)
    except TypeError as exc:
        if exc.__traceback__ is None or exc.__traceback__.tb_next is not None:
            raise
        raise TaskRefused("E_SPEC", f"the parameters do not fit the task {order.task}: {exc}") from None


def _open_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    out, err = (_open_stream(number) for number in (1, 2))
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = out, err  # type: ignore[misc]
    return out, err


def _open_stream(number: int) -> io.TextIOWrapper:
    """Written line by line, so that a log can be followed; what is not text becomes an escape rather than an error."""
    return open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _good_streams(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    for replaced in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the task's own object, closed or not a file at all
            replaced.flush()
    return streams if not any(stream.closed for stream in streams) else _open_streams()


def _flush() -> bool:
    """Whether nothing is left that was printed and not written."""
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk; the evidence is the disk's, not ours
            whole = False
    return system.flush_c_buffers() and whole


def _json(result: Any) -> bytes | None:
    """What `run` returned, for `output/result.json`: where it is JSON of at most 1 MiB."""
    if result is None:
        return None
    try:
        content = json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return None
    return content if len(content) <= MAX_RESULT_BYTES else None


def _put(path: str, content: bytes, *, over: bool) -> None:
    """Write a file whole, never through a link that the task left; `over` whatever stands there, else only where nothing does."""
    fresh = f"{path}.new"
    for name in (fresh, path) if over else (fresh,):
        if os.path.lexists(name):
            os.unlink(name)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(handle, "wb") as file:
        file.write(content)
    if not over and os.path.lexists(path):
        os.unlink(fresh)
    else:
        os.rename(fresh, path)


def _write(path: str, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    fresh = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        file.write(json.dumps(record).encode())
    os.rename(fresh, path)


def _exit_code(exc: SystemExit) -> int:
    """As the interpreter does it: None is 0, a number itself, anything else is printed and 1."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    with contextlib.suppress(Exception):
        print(exc.code, file=sys.stderr)  # noqa: T201 - to the task's own stderr
    return 1


def _of_the_task(exc: BaseException) -> Any:
    """The traceback from the task's own frames on."""
    trace = exc.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == _HERE:  # noqa: PTH120
        trace = trace.tb_next
    return trace or exc.__traceback__


def _name(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "(its message cannot be shown)"


def _leftovers() -> tuple[Any, ...]:
    return (
        threading.active_count(),
        *[_getsignal(number) for number in _WATCHED_SIGNALS],
        *[resource.getrlimit(which) for which in _WATCHED_LIMITS],
    )


class Measured(NamedTuple):
    """CPU seconds and bytes of this process so far, with the children that it reaped, and its own highest resident size."""

    cpu_user_s: float
    cpu_system_s: float
    read_bytes: int
    written_bytes: int
    peak_kb: int


def measure() -> Measured:
    """All in two system calls: the files of /proc that say the same take ten times as long."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(
        own.ru_utime + children.ru_utime,
        own.ru_stime + children.ru_stime,
        (own.ru_inblock + children.ru_inblock) * _BLOCK_BYTES,
        (own.ru_oublock + children.ru_oublock) * _BLOCK_BYTES,
        own.ru_maxrss,
    )


def _used(before: Measured, after: Measured) -> dict[str, Any]:
    return {
        "cpu_user_s": after.cpu_user_s - before.cpu_user_s,
        "cpu_system_s": after.cpu_system_s - before.cpu_system_s,
        "read_bytes": after.read_bytes - before.read_bytes,
        "written_bytes": after.written_bytes - before.written_bytes,
        "peak_memory_mb": after.peak_kb / 1024,
    }


def _new_peak() -> int:
    """Set the mark of the highest resident size anew, and say where it stands then. It is not done after each task, so the next
    ones may seem to have used what an earlier one did, up to _PEAK_SLACK_KB."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")
    return measure().peak_kb
