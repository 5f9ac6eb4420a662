"""One function that starts a program with everything set before it executes: `spawn(program) -> pid`.

A fork of this small process costs half a millisecond more than vfork would, but vfork leaves Python no room for what
must happen in between: the parent-death signal, hard limits, no_new_privs, seccomp. A small exec helper in C can take
over behind this same function.

What the child does is a list of steps made by the parent. Each memory page that the child touches is a page fault of
1 to 2 µs, and looking up the name of each function there costs more of them than calling it.
"""

import fcntl
import os
import resource
import select

from ostler.node.keeper import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

# How long the child may take from fork to exec; only a hung file system makes it longer.
_EXEC_DEADLINE_MS = 5000
_WARM = 50
_reports = select.poll()


class SpawnError(Exception):
    """The program did not start: `step` is what failed in the child (`exec` for the program itself)."""

    def __init__(self, step: str, number: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.step = step
        self.number = number


class Program:
    """Everything that `spawn` needs, decided and opened beforehand. Sizes, times and ids are final.

    files: (descriptor here, number in the program) pairs, standard streams included; limits: (RLIMIT number, soft,
    hard); tasks: open `tasks` files of version 1 cgroups to join; cgroup: an open directory of a version 2 cgroup to
    start in; io: I/O class and level.
    """

    __slots__ = (
        "argv", "cgroup", "cpus", "cwd", "env", "files", "gid", "io", "limits", "nice", "no_new_privs", "seccomp",
        "tasks", "uid",
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
        self.cgroup: int | None = None
        self.nice: int | None = None
        self.io: tuple[int, int] | None = None
        self.cpus: list[int] | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.no_new_privs = False
        self.seccomp: kernel.SeccompProgram | None = None


class _Steps:
    """What a child does one after the other: (name for the report, function, arguments). A result of -1 is a failure."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []

    def add(self, name: str, function: "Callable[..., object]", *arguments: object) -> None:
        self.steps.append((name, function, arguments))


def _plan(program: Program, files: list[tuple[int, int]]) -> _Steps:  # noqa: PLR0912 - one list in one order
    """The order matters: groups as the user that may; files before the limit on their number; the user before the
    parent-death signal, which it would clear; what cannot be undone and forbids the rest last.
    """
    plan = _Steps()
    plan.add("session", os.setsid)
    for descriptor in program.tasks:
        # "0" in `tasks` moves the writing thread at once; a pid, or `cgroup.procs`, waits 19 ms for an RCU grace period
        plan.add("cgroup", os.write, descriptor, b"0")
    for here, number in files:
        plan.add("files", os.dup2, here, number)
    plan.add("cwd", os.chdir, program.cwd)
    if program.cpus is not None:
        plan.add("cpus", os.sched_setaffinity, 0, program.cpus)
    if program.nice is not None:
        plan.add("nice", os.setpriority, os.PRIO_PROCESS, 0, program.nice)
    if program.io is not None:
        step = kernel.io_priority(*program.io)
        if step is not None:
            plan.add("io_class", *step)
    for which, soft, hard in program.limits:
        plan.add("limits", resource.setrlimit, which, (soft, hard))
    if program.gid is not None or program.uid is not None:
        plan.add("user", os.setgroups, [])
        if program.gid is not None:
            plan.add("user", os.setresgid, program.gid, program.gid, program.gid)
        if program.uid is not None:
            plan.add("user", os.setresuid, program.uid, program.uid, program.uid)
    plan.add("signals", *kernel.UNBLOCK_SIGNALS)
    plan.add("parent", *kernel.DIE_WITH_PARENT)
    plan.add("parent", _demand_parent, os.getpid())
    if program.no_new_privs:
        plan.add("no_new_privs", *kernel.NO_NEW_PRIVILEGES)
    if program.seccomp is not None:
        plan.add("seccomp", *program.seccomp.install)
    paths = _candidates(program.argv[0], program.env)
    if len(paths) == 1:
        plan.add("exec", os.execve, paths[0], program.argv, program.env)
    else:
        plan.add("exec", _execute_first, paths, program.argv, program.env)
    return plan


def _candidates(name: bytes, env: dict[bytes, bytes]) -> list[bytes]:
    """The files to try: the name itself when it has a slash, else the name in each directory of the program's PATH."""
    if b"/" in name:
        return [name]
    path = env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
    return [directory + b"/" + name for directory in path.split(b":") if directory.startswith(b"/")]


def _execute_first(paths: list[bytes], argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Execute the first of some files that can be; a refusal counts for more than a miss, as in a shell."""
    refused: OSError | None = None
    for path in paths:
        try:
            os.execve(path, argv, env)  # noqa: S606 - there is no shell, on purpose
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error
    raise refused or FileNotFoundError(2, os.strerror(2))


def _demand_parent(pid: int) -> None:
    """End at once if the keeper has died before its death could be asked for as a signal."""
    if os.getppid() != pid:
        os._exit(127)


def _carry_out(steps: "list[tuple[str, Callable[..., object], tuple[object, ...]]]", report: int) -> None:
    """Turn the forked child into the program."""
    at = ""
    try:
        for name, function, arguments in steps:
            at = name
            if function(*arguments) == -1:
                _report(report, at, kernel.failed().errno)
                return
    except OSError as error:
        _report(report, at, error.errno)
    except Exception:  # such as ValueError for a limit above the hard one
        _report(report, at, 22)


def _report(report: int, step: str, number: int | None) -> None:
    os.write(report, f"{step} {number or 5}".encode())


def warm() -> None:
    """Let the interpreter specialise what children run, once, here: they would each begin anew."""
    for _ in range(_WARM):
        _carry_out([("", os.getpid, ()), ("", _demand_parent, (os.getppid(),))], -1)


def spawn(program: Program) -> int:
    """Start the program as a child in a session of its own and return its pid once it executes.

    Raises SpawnError; then there is no child.
    """
    files = _out_of_the_way(program.files)
    moved = [here for (here, _), (before, _) in zip(files, program.files, strict=True) if here != before]
    steps = _plan(program, files).steps
    receive, report = os.pipe2(os.O_CLOEXEC)
    if len(files) > 3:
        report = _above(report, max([number for _, number in files]))
    try:
        try:
            pid = kernel.fork(program.cgroup)
        except OSError as error:
            raise SpawnError("fork", error.errno or 11, "no process could be made") from None
        if pid == 0:
            try:
                _carry_out(steps, report)
            finally:  # whatever happens, a child must never go on as a second keeper
                os._exit(127)
        os.close(report)
        report = -1
        failure = _outcome(receive)
        if failure is not None:
            os.kill(pid, kernel.SIGKILL)
            os.waitpid(pid, 0)
            raise failure
        return pid
    finally:
        os.close(receive)
        if report >= 0:
            os.close(report)
        for descriptor in moved:
            os.close(descriptor)


def _out_of_the_way(files: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Move descriptors whose number is another file's number in the program, so that no dup2 closes a later source."""
    if len(files) == 3:
        return files  # standard streams alone: nothing of the keeper's is below 3
    numbers = {number for _, number in files}
    floor = max(numbers) + 1
    return [(fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, floor) if here in numbers else here, number) for here, number in files]


def _above(descriptor: int, highest: int) -> int:
    if descriptor > highest:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, highest + 1)
    os.close(descriptor)
    return moved


def _outcome(receive: int) -> SpawnError | None:
    """Wait for the child's report: end of file when it executed, else the step that failed."""
    _reports.register(receive, select.POLLIN)
    heard = _reports.poll(_EXEC_DEADLINE_MS)
    _reports.unregister(receive)
    if not heard:
        return SpawnError("exec", 110, "the program's file system does not answer")
    text = os.read(receive, 100)
    if not text:
        return None
    step, _, number = text.decode().partition(" ")
    return SpawnError(step, int(number), "the program cannot be executed" if step == "exec" else f"setting {step} failed")
