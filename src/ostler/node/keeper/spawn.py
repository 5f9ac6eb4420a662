"""How a program is started with everything set before it executes: `begin(program)` makes the child and returns its `Birth`.

What the child does is a list of steps made here beforehand, each one system call. A helper in C (`_spawn.c`) carries them out in a
child that shares this process's memory until it executes, while this process goes on. Where that was not built, a fork does: its
child is Python, and the copies of the pages that it touches cost more than all the rest, about a millisecond.
"""

import ctypes
import fcntl
import os
import select
import time

from ostler.node.keeper import kernel
from ostler.node.keeper.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

    _Step = tuple[str, Callable[..., object], tuple[object, ...]]

# How long the child may take from fork to exec; only a hung file system makes it longer.
_EXEC_DEADLINE_S = 5
_KILL_S = 1.0
_KILL_LOOK_S = 0.001
_BIRTHS = 64  # of _spawn.c
_SIGNAL_SET_BYTES = 8  # as the kernel counts them
_TIMED_OUT = 110
_ROOM_TO_EXECUTE_MB = 16
_MISSES = (2, 20)  # ENOENT, ENOTDIR
_ZERO = ctypes.create_string_buffer(b"0")
_PADDING = [[0] * (6 - used) for used in range(7)]
_reports = select.poll()


class SpawnError(Exception):
    """The program did not start: `step` is what failed in the child (`exec` for the program itself)."""

    def __init__(self, step: str, number: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.step = step
        self.number = number


class Program:
    """Everything that `begin` needs, decided and opened beforehand. Sizes, times and ids are final.

    files: (descriptor here, number in the program) pairs, standard streams included; limits: (RLIMIT number, soft,
    hard); tasks: open `tasks` files of version 1 cgroups to join; cgroup: an open directory of a version 2 cgroup to
    start in; io: I/O class and level; memory_mb: the limit of the cgroup.
    """

    __slots__ = (
        "argv", "cgroup", "cpus", "cwd", "env", "files", "gid", "io", "limits", "memory_mb", "nice", "no_new_privs",
        "seccomp", "tasks", "uid",
    )  # fmt: skip

    def __init__(
        self,
        *,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        files: list[tuple[int, int]],
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.files = files
        self.limits: list[tuple[int, int, int]] = []
        self.tasks: list[int] = []
        self.memory_mb: float | None = None
        self.cgroup: int | None = None
        self.nice: int | None = None
        self.io: tuple[int, int] | None = None
        self.cpus: list[int] | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.no_new_privs = False
        self.seccomp: kernel.SeccompProgram | None = None


class _Plan:
    """What a child does one after the other: (name for the report, function, arguments); -1 is a failure.

    Before the step `late` it sees whether its parent lives; from `execute` on one step after the other is tried until one
    succeeds.
    """

    __slots__ = ("execute", "late", "steps")

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.late = self.execute = 0

    def add(self, name: str, function: "Callable[..., object]", *arguments: object) -> None:
        self.steps.append((name, function, arguments))


def _plan(program: Program, files: list[tuple[int, int]]) -> _Plan:  # noqa: PLR0912 - one list in one order
    """The order matters: groups as the user that may; files before the limit on their number; the user before the
    parent-death signal, which it would clear; what cannot be undone and forbids the rest last.
    """
    plan = _Plan()
    plan.add("session", libc.setsid)
    for descriptor in program.tasks:
        # "0" in `tasks` moves the writing thread at once; a pid, or `cgroup.procs`, waits 19 ms for an RCU grace period
        plan.add("cgroup", libc.write, descriptor, _ZERO, 1)
    for here, number in files:
        plan.add("files", libc.dup2, here, number)
    plan.add("cwd", libc.chdir, _text(program.cwd))
    if program.cpus is not None:
        mask = (ctypes.c_ubyte * 128)()
        for cpu in program.cpus:
            mask[cpu // 8] |= 1 << (cpu % 8)
        plan.add("cpus", libc.sched_setaffinity, 0, 128, mask)
    if program.nice is not None:
        plan.add("nice", libc.setpriority, os.PRIO_PROCESS, 0, program.nice)
    if program.io is not None:
        step = kernel.io_priority(*program.io)
        if step is not None:
            plan.add("io_class", *step)
    for which, soft, hard in program.limits:
        plan.add("limits", libc.setrlimit, which, (ctypes.c_ulong * 2)(soft, hard))
    if program.gid is not None or program.uid is not None:
        plan.add("user", libc.setgroups, 0, 0)
        if program.gid is not None:
            plan.add("user", libc.setresgid, program.gid, program.gid, program.gid)
        if program.uid is not None:
            plan.add("user", libc.setresuid, program.uid, program.uid, program.uid)
    plan.add("signals", *kernel.UNBLOCK_SIGNALS)
    plan.add("parent", *kernel.DIE_WITH_PARENT)
    plan.late = len(plan.steps)
    if program.no_new_privs:
        plan.add("no_new_privs", *kernel.NO_NEW_PRIVILEGES)
    if program.seccomp is not None:
        plan.add("seccomp", *program.seccomp.install)
    plan.execute = len(plan.steps)
    argv = _texts(program.argv)
    env = _texts([name + b"=" + value for name, value in program.env.items()])
    for path in _candidates(program.argv[0], program.env):
        plan.add("exec", libc.execve, _text(path), argv, env)
    return plan


def _text(value: bytes) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(value)


def _texts(values: list[bytes]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * (len(values) + 1))(*values)


def _candidates(name: bytes, env: dict[bytes, bytes]) -> list[bytes]:
    """The files to try: the name itself when it has a slash, else the name in each directory of the program's PATH."""
    if b"/" in name:
        return [name]
    path = env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
    return [directory + b"/" + name for directory in path.split(b":") if directory.startswith(b"/")]


_stuck: "list[Birth]" = []


class Birth:
    """A child on its way to execute its program. Everything that it reads lives here until it does."""

    __slots__ = ("_born_by", "_kept", "_order", "_plan", "_told", "pid")

    def __init__(self, pid: int, plan: _Plan, told: "tuple[int, int] | None", order: "_Order | None", kept: object) -> None:
        """`told` is the step that failed (-1: none) and its errno, where that is known; else `order` will tell."""
        self.pid = pid
        self._plan = plan
        self._told = told
        self._order = order
        self._kept = kept
        self._born_by = time.monotonic() + _EXEC_DEADLINE_S

    def over(self, now: float) -> bool:
        """Whether it executes or has failed, or takes too long: `settle` does not wait then."""
        return self._told is not None or not (self._order and self._order.shared) or now >= self._born_by

    def settle(self) -> None:
        """Return once it executes; raises SpawnError where it does not, and then there is no child."""
        failed, number = self._told or self._outcome()
        if failed >= 0 and not self._ended():
            _stuck.append(self)  # it may still read all of this, one day
        elif self._order is not None and _helper is not None:
            _helper.free.append(self._order.place)
        if failed < 0:
            return
        step = self._plan.steps[failed][0]
        if number == _TIMED_OUT:
            raise SpawnError(step, number, "the program's file system does not answer")
        raise SpawnError(step, number, "the program cannot be executed" if step == "exec" else f"setting {step} failed")

    def _ended(self) -> bool:
        """Whether it could be killed; on a file system that hangs for good not even that works."""
        os.kill(self.pid, kernel.SIGKILL)
        until = time.monotonic() + _KILL_S
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= until:
                return False
            time.sleep(_KILL_LOOK_S)
        return True

    def _outcome(self) -> tuple[int, int]:
        order = self._order
        assert order is not None  # noqa: S101
        assert _helper is not None  # noqa: S101
        left_ms = max(0, int((self._born_by - time.monotonic()) * 1000))
        if _helper.wait(ctypes.byref(order), left_ms):
            return self._plan.execute, _TIMED_OUT
        return order.failed, order.error


def is_full() -> bool:
    """Whether so many children are on their way that one of them must be settled before `begin`."""
    return _helper is not None and not _helper.free


def begin(program: Program) -> Birth:
    """Make a child in a session of its own that executes the program. Raises SpawnError where none can be made.

    The descriptors of the program may be closed as soon as this returns.
    """
    files = _out_of_the_way(program.files)
    moved = [here for (here, _), (before, _) in zip(files, program.files, strict=True) if here != before]
    plan = _plan(program, files)
    try:
        if not plan.steps[plan.execute :]:
            raise SpawnError("exec", 2, "the program cannot be executed")
        # only clone3 can start a child in a version 2 cgroup, and it gives no child a stack in a way that C could use
        if _helper is not None and _helper.free and program.cgroup is None and not _could_run_out(program):
            return _shared(_helper, plan, program)
        floor = 0 if len(files) == 3 else 1 + max([number for _, number in files])
        pid, *told = _forked(plan, floor, program.cgroup)
        return Birth(pid, plan, (told[0], told[1]), None, None)
    finally:
        for descriptor in moved:
            os.close(descriptor)


def _could_run_out(program: Program) -> bool:
    """Whether what the kernel copies to execute (argv and env, 6 MiB at most) may not fit into the program's cgroup.

    Then the kernel kills the child, and with it whoever shares its memory.
    """
    return program.memory_mb is not None and program.memory_mb < _ROOM_TO_EXECUTE_MB


def _no_process(number: int) -> SpawnError:
    return SpawnError("fork", number, "no process could be made")


# with the helper in C


class _Order(ctypes.Structure):
    """`struct order` of `_spawn.c`."""

    _fields_ = [
        *[(name, ctypes.c_long) for name in ("steps", "late", "exec", "count", "parent", "place", "failed", "error")],
        ("shared", ctypes.c_int),
    ]


class _Helper:
    """The library, the numbers of system calls, and the stacks that no child has."""

    __slots__ = ("begin", "free", "numbers", "wait")

    def __init__(self, library: ctypes.PyDLL, numbers: dict[str, int]) -> None:
        self.begin: Callable[..., int] = library.ostler_begin
        self.wait: Callable[..., int] = library.ostler_wait
        self.numbers = numbers
        self.free = list(range(_BIRTHS))


# By the name of the C library's function, whose arguments are those of the system call but where `_shared` says otherwise.
_NUMBERS = {
    "x86_64": {
        "setsid": 112, "write": 1, "dup2": 33, "chdir": 80, "sched_setaffinity": 203, "setpriority": 141, "setrlimit": 160,
        "setgroups": 116, "setresgid": 119, "setresuid": 117, "sigprocmask": 14, "prctl": 157, "execve": 59,
    },
    "aarch64": {
        "setsid": 157, "write": 64, "dup2": 24, "chdir": 49, "sched_setaffinity": 122, "setpriority": 140, "setrlimit": 164,
        "setgroups": 159, "setresgid": 149, "setresuid": 147, "sigprocmask": 135, "prctl": 167, "execve": 221,
    },
}  # fmt: skip


def _load_helper() -> _Helper | None:
    try:
        return _Helper(ctypes.PyDLL(os.path.dirname(__file__) + "/_spawn.so"), _NUMBERS[os.uname().machine])
    except (OSError, AttributeError, KeyError):
        return None


_helper = _load_helper()


def fork_only() -> None:
    """Do without the helper in C, as where it was not built."""
    global _helper  # noqa: PLW0603 - a choice for the life of the process
    _helper = None


def _shared(helper: _Helper, plan: _Plan, program: Program) -> Birth:
    """A child that carries out the plan as system calls."""
    words: list[int] = []
    for _name, function, arguments in plan.steps:
        name = function.__name__
        given = [value if isinstance(value, int) else ctypes.addressof(value) for value in arguments]  # type: ignore[arg-type]
        if name == "syscall":
            number, *given = given
        else:
            number = helper.numbers[name]
            if name == "sigprocmask":
                given.append(_SIGNAL_SET_BYTES)
        words.append(number)
        words += given
        words += _PADDING[len(given)]
    steps = (ctypes.c_long * len(words))(*words)
    order = _Order(
        steps=ctypes.addressof(steps),
        late=plan.late,
        exec=plan.execute,
        count=len(plan.steps),
        parent=os.getpid(),
        place=helper.free[-1],
    )
    pid = helper.begin(ctypes.byref(order))
    if pid < 0:
        raise _no_process(-pid)
    helper.free.pop()
    return Birth(pid, plan, None, order, (steps, program))


# with a fork


def _forked(plan: _Plan, floor: int, cgroup: int | None) -> tuple[int, int, int]:
    """The same, with a child that has a copy of this process."""
    parent = os.getpid()
    receive, report = os.pipe2(os.O_CLOEXEC)
    try:
        report = _above(report, floor)
        try:
            pid = kernel.fork(cgroup)
        except OSError as error:
            raise _no_process(error.errno or 11) from None
        if pid == 0:
            try:
                _carry_out(plan, report, parent)
            finally:  # whatever happens, a child must never go on as a second keeper
                os._exit(127)
        os.close(report)
        report = -1
        return (pid, *_outcome(plan, receive))
    finally:
        os.close(receive)
        if report >= 0:
            os.close(report)


def _carry_out(plan: _Plan, report: int, parent: int) -> None:
    """Turn the forked child into the program."""
    at = number = refused = 0
    for _name, function, arguments in plan.steps:
        if at == plan.late and os.getppid() != parent:
            return  # it died before its death could be asked for as a signal
        if function(*arguments) == -1:
            number = kernel.failed().errno or 5
            if at < plan.execute:
                os.write(report, b"%d %d" % (at, number))
                return
            if number not in _MISSES:  # counts for more than a miss, as in a shell
                refused = number
        at += 1  # noqa: SIM113 - `enumerate` would be one thing more for the child to touch
    os.write(report, b"%d %d" % (plan.execute, refused or number))


def _outcome(plan: _Plan, receive: int) -> tuple[int, int]:
    """Wait for the child's report: end of file when it executed, else the step that failed and its errno."""
    _reports.register(receive, select.POLLIN)
    heard = _reports.poll(_EXEC_DEADLINE_S * 1000)
    _reports.unregister(receive)
    if not heard:
        return plan.execute, _TIMED_OUT
    text = os.read(receive, 100)
    if not text:
        return -1, 0
    step, _, number = text.partition(b" ")
    return int(step), int(number)


def _out_of_the_way(files: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Move descriptors whose number is another file's number in the program, so that no dup2 closes a later source."""
    if len(files) == 3:
        return files  # standard streams alone: nothing of the keeper's is below 3
    numbers = {number for _, number in files}
    floor = max(numbers) + 1
    return [(fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, floor) if here in numbers else here, number) for here, number in files]


def _above(descriptor: int, floor: int) -> int:
    if descriptor >= floor:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, floor)
    os.close(descriptor)
    return moved
