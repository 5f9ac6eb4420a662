"""One task's run inside this process: its streams, folder and environment around it, and nothing of it left behind afterwards."""

# ruff: noqa: PTH104, PTH108, PTH109, PTH123 - this stands on the path of every task, which as a whole may cost a millisecond
import contextlib
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

MAX_MESSAGE = 4000
MAX_RESULT_BYTES = 1 << 20
RESULT = "result.json"
_HERE = os.path.dirname(__file__)  # noqa: PTH120
# By these the keeper knows its own, also those that were detached from this process.
KEEPERS_OWN = ("OSTLER_ATTEMPT_KEY", "OSTLER_KEEPER")
_MB = 1 << 20
_WATCHED_SIGNALS = (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)
_WATCHED_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)


class Order(NamedTuple):
    """One task to run. Paths are absolute; `kill_s` is when the kernel kills this process (0: never).

    Without `stdout` and `stderr` the streams stay as they are. `masks` are secrets (base64) that no word of the record may hold.
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

    @property
    def is_call(self) -> bool:
        """Whether it is a function's call, and no task of the plain form."""
        return self.code is not None or ":" in self.task

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Order":
        """From a message; what a later release adds is ignored."""
        return cls(**{name: value for name, value in fields.items() if name in cls._fields})


class Runner:
    """Runs one order after another and says after each whether the process is still fit for another."""

    def __init__(self, finder: TaskFinder) -> None:
        self._finder = finder
        self._deadline = system.Deadline()
        self._pid = os.getpid()
        self._home = os.getcwd()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._env = dict(os.environ)
        self._kept = {name: value for name, value in self._env.items() if name in KEEPERS_OWN}
        self._path = list(sys.path)
        self._baseline = _leftovers()
        self._streams = _open_streams()

    def run(self, order: Order) -> dict[str, Any]:
        """Run a task to its end. The answer is its record, which stands in `order.record` by then."""
        started = time.monotonic()
        before = measure()
        self._deadline.arm(order.kill_s)
        with self._surroundings(order):
            record = self._call(order)
            system.end_children()
        record |= {"key": order.key, "wall_s": time.monotonic() - started, **_used(before, measure())}
        _write(order.record, record)
        self._deadline.arm(0)
        return record

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
                _keep_result(order, result)
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
        calls.keep_result(order.output, result, pickled=order.params.get("results") == "pickle")

    def _failed_call(self, order: Order, exc: BaseException) -> dict[str, Any]:
        from ostler.node.worker import calls

        with contextlib.suppress(Exception):
            calls.keep_error(order.output, exc, mask=masking(order))
        return _exception(order, exc)

    def _still_the_worker(self, exc: BaseException | None = None) -> None:
        """In a child that the task forked and that came back here: end it, as it would have ended in a program of its own."""
        if os.getpid() != self._pid:
            with contextlib.suppress(Exception):
                _flush()
            os._exit(0 if exc is None else _exit_code(exc) if isinstance(exc, SystemExit) else 1)

    @contextlib.contextmanager
    def _surroundings(self, order: Order) -> Iterator[None]:
        os.environ.clear()
        os.environ.update(order.env | self._kept)
        os.chdir(order.work)
        if order.stdout and order.stderr:
            _redirect(order.stdout, 1)
            _redirect(order.stderr, 2)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = self._streams = _good_streams(self._streams)
            _flush()
            if order.stdout:
                _redirect(os.devnull, 1)
                _redirect(os.devnull, 2)
            os.chdir(self._home)
            os.umask(self._umask)
            os.environ.clear()
            os.environ.update(self._env)
            sys.path[:] = self._path


def masking(order: Order) -> Callable[[str], str]:
    """What goes over each text that leaves the task in its record, before it is cut to a length."""
    if not order.masks:
        return str
    import base64

    from ostler.node.masking import Masker

    return Masker(base64.b64decode(one) for one in order.masks).text


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


def _redirect(path: str, number: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.dup2(handle, number)
    os.close(handle)


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


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk; the evidence is the disk's, not ours
            stream.flush()
    system.flush_c_buffers()


def _keep_result(order: Order, result: Any) -> None:
    """Write what `run` returned to `output/result.json`, if it is JSON of at most 1 MiB and the task wrote no such file."""
    if result is None:
        return
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        content = text.encode()
    except (TypeError, ValueError, RecursionError):
        return
    if len(content) > MAX_RESULT_BYTES:
        return
    try:
        handle = os.open(f"{order.output}/{RESULT}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    with open(handle, "wb") as file:
        file.write(content)


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
        *(signal.getsignal(number) for number in _WATCHED_SIGNALS),
        *(resource.getrlimit(which) for which in _WATCHED_LIMITS),
    )


def measure() -> tuple[float, float, int, int]:
    """CPU seconds (user, system) and bytes (read, written) of this process so far, with the children that it reaped."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    read, written = _io()
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime, read, written


def _used(before: tuple[float, float, int, int], after: tuple[float, float, int, int]) -> dict[str, Any]:
    user, system_s, read, written = (late - early for late, early in zip(after, before, strict=True))
    used = {"cpu_user_s": user, "cpu_system_s": system_s, "read_bytes": read, "written_bytes": written}
    return used | {"peak_memory_mb": _peak()}


def _io() -> tuple[int, int]:
    try:
        with open("/proc/self/io", "rb") as file:
            fields = dict(line.split(b":") for line in file.read().splitlines())
        return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def _peak() -> float:
    """The highest resident size since the last call, of this process alone; then the mark is set anew for the next task."""
    try:
        with open("/proc/self/status", "rb") as file:
            _, _, rest = file.read().partition(b"VmHWM:")
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
        return int(rest.split(None, 1)[0]) * 1024 / _MB
    except (OSError, IndexError, ValueError):
        return 0.0
