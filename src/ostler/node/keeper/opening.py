"""From a start request to a program ready to be forked: its files opened, its limits worked out."""

import os
import resource
import stat
import time

from ostler.node.keeper import kernel, proc
from ostler.node.keeper.cgroups import Group
from ostler.node.keeper.requests import Limits, Refusal, Start, raw
from ostler.node.keeper.spawn import Program

_MB = 1024 * 1024
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_INPUT_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # non-blocking: a FIFO must not hold us up
_TASKS_COUNTED_FOR_S = 1.0
_FILTERS_KEPT = 8


class Files:
    """The descriptors opened for one program, closed together."""

    __slots__ = ("_open", "_shared", "pairs")

    def __init__(self, null: int) -> None:
        self.pairs: list[tuple[int, int]] = []
        self._open: list[int] = []
        self._shared = null

    def add(self, descriptor: int, number: int) -> None:
        """Count a descriptor in, to become `number` in the program."""
        if descriptor != self._shared:
            self._open.append(descriptor)
        self.pairs.append((descriptor, number))

    def take_logs(self) -> list[int]:
        """Hand over the descriptors of standard output and error; they are not closed here any more."""
        logs = [descriptor for descriptor, number in self.pairs if number in (1, 2)]
        self._open = [descriptor for descriptor in self._open if descriptor not in logs]
        return logs

    def close(self) -> None:
        """Close what is left."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []


class Openings:
    """What is the same for many programs: /dev/null, seccomp filters, the limits that the keeper itself has."""

    def __init__(self) -> None:
        self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._filters: dict[str, tuple[tuple[int, int, int, int], kernel.SeccompProgram]] = {}
        self._own_files, self._most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._tasks = (0.0, 0)
        self._least_nice = _least_nice()
        # The keeper holds two files for each attempt with a capped log; attempts get back the limit found here.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._most_files, self._most_files))

    def open(self, request: Start) -> Files:
        """Open standard streams and further files; raises Refusal, and then nothing is left open."""
        files = Files(self._null)
        try:
            files.add(self._null if request.stdin is None else _open_input(request.stdin), 0)
            files.add(_open_log(request.stdout), 1)
            files.add(_open_log(request.stderr), 2)
            for number, path in request.open:
                files.add(_open_input(path), number)
        except Refusal:
            files.close()
            raise
        return files

    def program(self, request: Start, files: Files, group: Group | None) -> Program:
        """Put together what `begin` needs; raises Refusal."""
        limits = request.limits
        program = Program(argv=request.argv, env=request.env, cwd=raw(request.cwd), files=files.pairs)
        program.limits = self._limits(limits, group, own_user=request.uid is None or request.uid == os.getuid())
        program.nice = None if limits.nice is None else max(limits.nice, self._least_nice)
        program.io = limits.io
        program.cpus = limits.cpus
        program.uid = request.uid
        program.gid = request.gid
        program.no_new_privs = request.no_new_privs
        program.seccomp = None if request.seccomp is None else self._filter(request.seccomp)
        if group is not None:
            program.memory_mb = limits.memory_mb
            try:
                program.cgroup, program.tasks = group.open()
            except OSError as error:
                raise Refusal("cgroup", f"{error.filename}: {error.strerror}", number=error.errno) from None
        return program

    def _limits(self, limits: Limits, group: Group | None, *, own_user: bool) -> list[tuple[int, int, int]]:
        """The (RLIMIT number, soft, hard) triples to set; none is above what the keeper itself may have."""
        chosen = []
        if limits.open_files is not None:
            chosen.append(_both(resource.RLIMIT_NOFILE, limits.open_files))
        elif self._own_files != self._most_files:
            chosen.append((resource.RLIMIT_NOFILE, self._own_files, self._most_files))
        if limits.file_mb is not None:
            chosen.append(_both(resource.RLIMIT_FSIZE, int(limits.file_mb * _MB)))
        if limits.address_space_mb is not None:
            chosen.append(_both(resource.RLIMIT_AS, int(limits.address_space_mb * _MB)))
        if limits.processes is not None and (group is None or not group.limits_processes):
            # RLIMIT_NPROC counts all threads of the user, the daemon's and other attempts' too
            others = self._tasks_of_this_user() if own_user else 0
            chosen.append(_both(resource.RLIMIT_NPROC, limits.processes + others))
        return chosen

    def _tasks_of_this_user(self) -> int:
        counted_at, count = self._tasks
        now = time.monotonic()
        if not counted_at or now - counted_at > _TASKS_COUNTED_FOR_S:
            count = proc.tasks_of_user(os.getuid())
            self._tasks = (now, count)
        return count

    def _filter(self, path: str) -> kernel.SeccompProgram:
        """Read a seccomp filter, or take the one that was read from the same file before."""
        try:
            found = os.stat(path)
            identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._filters.get(path)
            if known is not None and known[0] == identity:
                return known[1]
            descriptor = _open_input(path)
            try:
                program = kernel.SeccompProgram(os.read(descriptor, 65536))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Refusal("open", f"{path}: {error.strerror}", number=error.errno) from None
        except ValueError as error:
            raise Refusal("invalid", f"seccomp: {path}: {error}") from None
        if len(self._filters) >= _FILTERS_KEPT:
            self._filters.clear()
        self._filters[path] = (identity, program)
        return program


def _both(which: int, value: int) -> tuple[int, int, int]:
    _, most = resource.getrlimit(which)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    return (which, value, value)


def _open_input(path: str) -> int:
    """Open for reading, made to block again; directories and sockets are refused."""
    try:
        descriptor = os.open(path, _INPUT_FLAGS)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(21, os.strerror(21))
        os.set_blocking(descriptor, True)
    except OSError as error:
        raise Refusal("open", f"{path}: {error.strerror}", number=error.errno) from None
    return descriptor


def _open_log(path: str) -> int:
    """Open for appending; only a regular file or a device, since a FIFO's reader could hold the program up."""
    try:
        descriptor = os.open(path, _LOG_FLAGS, 0o600)
    except OSError as error:
        raise Refusal("open", f"{path}: {error.strerror}", number=error.errno) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        os.close(descriptor)
        raise Refusal("open", f"{path}: neither a regular file nor a device")
    return descriptor


def unenforced_limits(request: Start, group: Group | None) -> list[str]:
    """The limits that nobody keeps: unknown ones, and those that need a cgroup controller which is not here."""
    limits = request.limits
    names = [*limits.unknown]
    if limits.cpu_pct is not None and (group is None or not group.limits_cpu):
        names.append("cpu_pct")
    user = os.getuid() if request.uid is None else request.uid
    if limits.processes is not None and user == 0 and (group is None or not group.limits_processes):
        names.append("processes")  # RLIMIT_NPROC does not bind root
    return names


def _least_nice() -> int:
    """The lowest niceness that this process may give to another: with privileges any, without them its own, or what RLIMIT_NICE grants."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        return min(own, 20 - resource.getrlimit(resource.RLIMIT_NICE)[0])
    os.setpriority(os.PRIO_PROCESS, 0, own)
    return -20
