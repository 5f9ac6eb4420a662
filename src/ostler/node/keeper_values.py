"""What the daemon and the keeper tell each other about attempts: what to start, what was started, how it ended."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field


class Limits(Struct, frozen=True, kw_only=True):
    """What an attempt may use; None is no limit. MB are MiB; `memory_mb` and `cpu_pct` (100 is one CPU) are of the whole tree.

    `io_class`: realtime, best-effort or idle; `file_mb`: of each file; `log_mb`: of standard output and error together;
    `grace_s`: between SIGTERM and SIGKILL.
    """

    nice: int | None = None
    io_class: str | None = None
    io_level: int | None = None
    memory_mb: float | None = None
    address_space_mb: float | None = None
    cpu_pct: float | None = None
    cpus: tuple[int, ...] | None = None
    open_files: int | None = None
    processes: int | None = None
    file_mb: float | None = None
    wall_s: float | None = None
    grace_s: float | None = None
    log_mb: float | None = None


class StartSpec(Struct, frozen=True, kw_only=True):
    """An attempt to start. All paths are absolute; streams are appended to; `env` is the whole environment, but for two names
    that mark the attempt's processes (OSTLER_ATTEMPT_KEY, OSTLER_KEEPER).

    `open`: descriptor number as text → file that the program finds open for reading. `record`: where the exit record goes. `wipe`:
    a folder of files that is removed with the attempt's end.
    `wrapper`: the program does not pass SIGTERM on but takes what it started down with it, so that those are asked to end in
    its stead; by default where its name is bwrap.
    `room`: the start waits until fewer than so many attempts run that were started with a room, `first` before others that wait. One
    that is killed or withdrawn meanwhile is refused (withdrawn), and one whose connection is lost is forgotten. Not every keeper can
    do that (see `Hello.waits`).
    """

    key: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    stdin: str | None = None
    record: str | None = None
    wipe: str | None = None
    open: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    no_new_privs: bool = False
    seccomp: str | None = None
    uid: int | None = None
    gid: int | None = None
    wrapper: bool | None = None
    room: int | None = None
    first: bool = False


class Started(Struct, frozen=True, kw_only=True):
    """A program that executes. `start_time` is in clock ticks since boot; `unenforced` names limits that nobody keeps here."""

    pid: int
    start_time: int
    unenforced: tuple[str, ...] = ()


class OutOfMemory(Struct, frozen=True, kw_only=True):
    """Evidence of a kill for memory: the kernel's counter (cgroup-v1, cgroup-v2) or the keeper's own doing (watchdog)."""

    source: str
    limit_mb: float | None = None
    peak_mb: float = 0.0


class ExitRecord(Struct, frozen=True, kw_only=True):
    """How an attempt ended. Exit code and signal are its root process's; both are None where nobody saw it end.

    `killed`: None, timeout, memory, log, keeper-lost, shutdown, or the reason given with `kill`. Times are unix seconds.
    CPU and bytes (of storage) are of the root with all that it, or the keeper, reaped. `leftovers_killed`: processes that
    lived on after the root. `stuck_pids`: those that not even SIGKILL has ended.
    """

    key: str
    pid: int
    start_time: int
    boot_id: str
    exit_code: int | None
    signal: int | None
    killed: str | None
    oom: OutOfMemory | None
    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    peak_memory_mb: float
    read_bytes: int
    written_bytes: int
    leftovers_killed: int
    started_at: float
    ended_at: float
    stuck_pids: tuple[int, ...] = ()


class Child(Struct, frozen=True, kw_only=True):
    """An attempt in the keeper's list; `record` is there once it is over."""

    key: str
    pid: int
    start_time: int
    started_at: float
    running: bool
    record: ExitRecord | None = None


class Hello(Struct, frozen=True, kw_only=True):
    """What a keeper says of itself on each connection; `keeper` is the protocol's number, `cgroup` v1, v2 or none."""

    keeper: int
    version: str
    pid: int
    boot_id: str
    cgroup: str
    cgroup_controllers: tuple[str, ...] = ()
    waits: bool = False
    many: bool = False


def read_record(path: Path, key: str) -> ExitRecord | None:
    """The exit record in a file; None where there is none, or another attempt's."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=ExitRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if record.key == key else None
