"""System calls that the standard library does not wrap: subreaper, C's buffers, a timer that no task can disarm by accident."""

import ctypes
import os
import signal

_PR_SET_CHILD_SUBREAPER = 36
_SIGEV_SIGNAL = 0
_CLOCK_BOOTTIME = 7

_libc = ctypes.CDLL(None, use_errno=True)


class _SignalEvent(ctypes.Structure):
    """`struct sigevent`: 64 bytes, of which a signal needs the first three fields."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("_rest", ctypes.c_char * 48),
    )


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`, flat."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


class Deadline:
    """A kernel timer that kills this process with SIGKILL. ITIMER_REAL is left to the task, whose libraries may use it.

    It is the last resort while no daemon lives, or for a task whose C code never returns; nothing in the process can ignore it.
    """

    def __init__(self) -> None:
        library = _libc if hasattr(_libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)  # glibc before 2.34
        self._settime = library.timer_settime
        self._settime.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        event = _SignalEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        if library.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            raise _failed()

    def arm(self, seconds: float) -> None:
        """Kill in so many seconds; 0 disarms."""
        nanoseconds = max(0, int(seconds * 1e9))
        spec = _TimerSpec(value_s=nanoseconds // 10**9, value_ns=nanoseconds % 10**9)
        if self._settime(self._timer, 0, ctypes.byref(spec), None) != 0:
            raise _failed()


def become_subreaper() -> None:
    """Have descendants whose parent died become children of this process."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise _failed()


def flush_c_buffers() -> bool:
    """Write out what C code printed and `stdio` still holds: it would end up in the next task's log. False where some of it is left."""
    return bool(_libc.fflush(None) == 0)


def end_children() -> None:
    """Kill every descendant of this process and reap it. Those of a killed child come to us, as its subreaper.

    What runs as another user (a setuid program) cannot be killed from here; the keeper does when this process ends.
    """
    while _has_children():
        killed = 0
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
            killed += 1
        if not killed:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # wait for the next one without spinning
        except ChildProcessError:
            return


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    """The children of all threads; read from every process's parent where the kernel has no `children` file."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:  # noqa: PTH123
                found.extend(int(pid) for pid in file.read().split())
        return found
    except OSError:
        me = os.getpid()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == me]  # noqa: PTH208


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
