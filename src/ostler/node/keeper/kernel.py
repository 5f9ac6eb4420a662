"""System calls that the standard library does not wrap, and the few numbers they need (Linux alone).

The constants stand here because the `signal` and `socket` modules import `enum` for them, which costs this process
an eighth of its memory.
"""

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGCONT, SIGSTOP, SIGXFSZ = 1, 2, 9, 13, 15, 17, 18, 19, 25

IO_CLASSES = {"realtime": 1, "best-effort": 2, "idle": 3}
_IOPRIO_SET = {
    "x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "armv7l": 314, "armv6l": 314, "i686": 289,
    "ppc64le": 273, "s390x": 282,
}  # fmt: skip
_io_priority = _IOPRIO_SET.get(os.uname().machine)
_CLONE3 = 435  # the same number on every architecture
_CLONE_INTO_CGROUP = 0x2_0000_0000

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SIG_BLOCK, _SIG_SETMASK = 0, 2

# PyDLL: there is one thread, so the interpreter lock need not be dropped around calls of a microsecond, and must not
# be around clone3, whose child would have to take it again. Neither argument types nor ctypes' copy of errno are used:
# in a forked child both touch 45 shared pages more, 0.1 ms.
libc = ctypes.PyDLL(None)
_prctl = libc.prctl
_sigprocmask = libc.sigprocmask
_syscall = libc.syscall
_errno_location = libc.__errno_location
_errno_location.restype = ctypes.c_void_p

# Steps of a child, a function of the C library and its arguments each (numbers, and arrays for pointers); -1 is a failure.
# SIGKILL when the parent ends; cleared by a change of user and by executing a setuid file:
DIE_WITH_PARENT = (_prctl, _PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
NO_NEW_PRIVILEGES = (_prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
UNBLOCK_SIGNALS = (_sigprocmask, _SIG_SETMASK, ctypes.create_string_buffer(128), 0)

_SignalSet = ctypes.c_ulong * 16  # 1024 bits, as glibc and musl have it


class _CloneArguments(ctypes.Structure):
    """`struct clone_args` of clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    ]  # fmt: skip


_CLONE_BYTES = ctypes.sizeof(_CloneArguments)


class _ProgramHeader(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class SeccompProgram:
    """A BPF program as `bwrap --seccomp` takes it (an array of `struct sock_filter`), ready to be installed.

    Built before the fork: `install` is a step of a child, the function and its arguments, that filters the child's
    system calls from then on. Raises ValueError on a bad length.
    """

    __slots__ = ("_buffer", "install")

    def __init__(self, program: bytes) -> None:
        if not program or len(program) % 8 or len(program) // 8 > 4096:
            raise ValueError(f"a seccomp program is 1 to 4096 instructions of 8 bytes; this one has {len(program)} bytes")
        self._buffer = ctypes.create_string_buffer(program, len(program))
        header = (_ProgramHeader * 1)(_ProgramHeader(len(program) // 8, ctypes.addressof(self._buffer)))
        self.install = (_prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)


def failed() -> OSError:
    """Return the error of the system call that has just answered -1."""
    number = ctypes.c_int.from_address(_errno_location()).value
    return OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process instead of PID 1's."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise failed()


def io_priority(io_class: int, level: int) -> "tuple[Callable[..., object], int, int, int, int] | None":
    """The step of a child that sets its I/O class (see IO_CLASSES) and level (0 high to 7 low); None on a machine whose
    number for the system call is not known.
    """
    return None if _io_priority is None else (_syscall, _io_priority, 1, 0, (io_class << 13) | level)


def block_signals() -> None:
    """Hold back, for this process, the signals that `signal_descriptor` reads and those that must not end it.

    They are blocked rather than ignored or handled: an ignored signal would stay ignored in what a child executes,
    and a handler could run in a child between fork and exec. Python starts with SIGPIPE and SIGXFSZ ignored and
    SIGINT handled; for the same reason they go back to the default and are blocked.
    """
    for number in (SIGINT, SIGPIPE, SIGXFSZ):
        libc.signal(number, None)
    chosen = _signal_set(SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGCHLD, SIGXFSZ)
    if _sigprocmask(_SIG_BLOCK, ctypes.byref(chosen), None) != 0:
        raise failed()


def signal_descriptor() -> int:
    """Open a descriptor that becomes readable on SIGCHLD, SIGTERM, SIGINT and SIGHUP (signalfd(2), 128-byte records)."""
    chosen = _signal_set(SIGHUP, SIGINT, SIGTERM, SIGCHLD)
    descriptor: int = libc.signalfd(-1, ctypes.byref(chosen), os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise failed()
    return descriptor


def _signal_set(*numbers: int) -> "ctypes.Array[ctypes.c_ulong]":
    chosen = _SignalSet()
    for number in numbers:
        libc.sigaddset(ctypes.byref(chosen), number)
    return chosen


def fork(cgroup: int | None = None) -> int:
    """Fork; returns 0 in the child, which may only prepare and execute: Python's own fork hooks do not run in it.

    With an open directory of a version 2 cgroup the child starts in that (CLONE_INTO_CGROUP, Linux 5.7). Moving it
    there afterwards waits for an RCU grace period: 19 ms on an idle machine.

    clone3 is called as it is, without CLONE_VM: the child has its own copy of everything, and with one thread no lock
    can be held in it. `os.fork` does the same and 0.05 ms of mending that an executing child has no use for.
    """
    if cgroup is None:
        arguments = _CloneArguments(exit_signal=SIGCHLD)
    else:
        arguments = _CloneArguments(flags=_CLONE_INTO_CGROUP, exit_signal=SIGCHLD, cgroup=cgroup)
    pid: int = _syscall(_CLONE3, ctypes.byref(arguments), _CLONE_BYTES)
    if pid >= 0:
        return pid
    error = failed()
    if cgroup is None and error.errno in (1, 38):  # an old kernel, or a container's filter that refuses clone3
        return os.fork()
    raise error
