"""One attempt as the keeper knows it, and the record of its end."""

import os

from ostler.node.keeper import proc
from ostler.node.keeper.cgroups import Group
from ostler.node.keeper.requests import Limits
from ostler.node.keeper.tree import GroupTree, WalkedTree

TYPE_CHECKING = False
if TYPE_CHECKING:  # a module for a type's name costs memory
    import resource

_MB = 1024 * 1024
NEVER = float("inf")
_LOG_EVERY_S = 0.5
_MEMORY_EVERY_S = 0.25
_MEMORY_CLOSE_EVERY_S = 0.05
_MEMORY_CLOSE = 0.7  # of the limit
_FIRST_LOOK_INSIDE_S = 0.003
_FIRST_LOOK_S = 0.1  # what is over by then needs no look


class End:
    """How the root process ended: `exit_code` or `signal`."""

    __slots__ = ("at", "exit_code", "monotonic", "signal")

    def __init__(self, *, exit_code: int | None, signal: int | None, at: float, monotonic: float) -> None:
        self.exit_code = exit_code
        self.signal = signal
        self.at = at
        self.monotonic = monotonic


class Attempt:
    """A started program: who it is, what it may use, what is being done about it. Times are monotonic, but `*_at` unix.

    `killed` is why the keeper ends it; `kill_due` when SIGTERM's grace is over; `give_up` when waiting for processes
    that SIGKILL does not end is over; `look` when to look at it next.
    """

    __slots__ = (
        "began", "cpu_system_s", "cpu_user_s", "deadline", "end", "give_up", "group", "inner", "journal_line", "key",
        "kill_due", "killed", "leftovers", "limits", "log_files", "look", "look_inner", "look_log", "look_memory", "look_tree",
        "memory_limit", "over_memory", "owned", "peak_bytes", "pid", "read_bytes", "record", "roomed", "signalled", "start_time",
        "started_at", "termed", "tree", "wipe", "wrapper", "written_bytes",
    )  # fmt: skip

    def __init__(
        self,
        *,
        key: str,
        pid: int,
        start_time: int,
        started_at: float,
        began: float,
        limits: Limits,
        record: str | None,
        wipe: str | None,
        wrapper: bool,
        hasty: bool,
        group: Group | None,
        tree: GroupTree | WalkedTree,
        log_files: list[int],
        roomed: bool,
    ) -> None:
        self.key = key
        self.pid = pid
        self.start_time = start_time
        self.started_at = started_at
        self.began = began
        self.limits = limits
        self.record = record
        self.wipe = wipe
        self.wrapper = wrapper
        self.group = group
        self.tree = tree
        self.log_files = log_files
        self.roomed = roomed
        self.journal_line = ""
        self.deadline = NEVER if limits.wall_s is None else began + limits.wall_s
        # watched here only where the kernel does not
        self.memory_limit: int | None = None
        if limits.memory_mb is not None and (group is None or not group.limits_memory):
            self.memory_limit = int(limits.memory_mb * _MB)
        self.look_log = began + _FIRST_LOOK_S if log_files else NEVER
        self.look_memory = NEVER if self.memory_limit is None else began + _FIRST_LOOK_S
        self.look_tree = NEVER if isinstance(tree, GroupTree) else began + _FIRST_LOOK_S
        self.look_inner = began + _FIRST_LOOK_INSIDE_S if hasty else NEVER
        self.inner: set[int] = set()
        self.look = began
        self.kill_due = NEVER
        self.give_up = NEVER
        self.termed = False
        self.killed: str | None = None
        self.over_memory = 0
        self.peak_bytes = 0
        self.signalled: set[int] = set()
        self.owned: set[int] = set()
        self.leftovers = 0
        self.end: End | None = None
        self.cpu_user_s = self.cpu_system_s = 0.0
        self.read_bytes = self.written_bytes = 0

    def add_usage(self, used: "resource.struct_rusage") -> None:
        """Add what one of its processes used, and what that one had reaped itself."""
        self.cpu_user_s += used.ru_utime
        self.cpu_system_s += used.ru_stime
        self.peak_bytes = max(self.peak_bytes, used.ru_maxrss * 1024)
        # the same numbers as in /proc/PID/io, which an ordinary user cannot read once the process is a zombie
        self.read_bytes += used.ru_inblock * 512
        self.written_bytes += used.ru_oublock * 512

    def next_look(self) -> float:
        """When one of its times is due."""
        looks = (self.look_log, self.look_memory, self.look_tree, self.look_inner)
        return min(self.deadline, self.kill_due, self.give_up, *looks)

    def too_much_log(self, now: float) -> bool:
        """True once standard output and standard error together are larger than allowed."""
        self.look_log = now + _LOG_EVERY_S
        files = {(found.st_dev, found.st_ino): found.st_size for found in map(os.fstat, self.log_files)}
        if sum(files.values()) <= (self.limits.log_mb or 0) * _MB:
            return False
        self.look_log = NEVER
        return True

    def too_much_memory(self, now: float) -> bool:
        """True once the tree holds more than allowed: a cheap upper bound first, the truth where that is over."""
        limit = self.memory_limit or 0
        members = self.tree.living()
        used = proc.resident_bytes(members)
        self.look_memory = now + (_MEMORY_CLOSE_EVERY_S if limit * _MEMORY_CLOSE < used <= limit else _MEMORY_EVERY_S)
        if used > limit:
            used = proc.proportional_bytes(members)
        self.peak_bytes = max(self.peak_bytes, used)
        if used <= limit:
            return False
        self.look_memory = NEVER
        if self.killed is None:
            self.over_memory = used
        return True

    def close_logs(self) -> None:
        """Let go of the log files, none of which stays larger than allowed.

        Between two looks a program can make a terabyte of holes, which somebody would copy.
        """
        most = int((self.limits.log_mb or 0) * _MB)
        for descriptor in self.log_files:
            try:
                if os.fstat(descriptor).st_size > most:
                    os.ftruncate(descriptor, most)
            except OSError:
                pass  # it was no file, or only opened for reading
            os.close(descriptor)
        self.log_files = []

    def record_of_end(self, boot_id: str, now: float, monotonic: float, stuck: list[int]) -> dict[str, object]:
        """The exit record. Where the root itself is stuck (not even SIGKILL ended it), exit code and signal are null."""
        end = self.end
        peak = self.peak_bytes
        oom = None
        if self.killed == "memory":
            oom = {"source": "watchdog", "limit_mb": self.limits.memory_mb, "peak_mb": megabytes(self.over_memory)}
        if self.group is not None and self.group.limits_memory:
            peak = max(peak, self.group.peak_bytes())
            if self.group.memory_kills():
                oom = {"source": self.group.source, "limit_mb": self.limits.memory_mb, "peak_mb": megabytes(peak)}
        record: dict[str, object] = {
            "key": self.key,
            "pid": self.pid,
            "start_time": self.start_time,
            "boot_id": boot_id,
            "exit_code": end.exit_code if end else None,
            "signal": end.signal if end else None,
            "killed": self.killed,
            "oom": oom,
            "wall_s": round((end.monotonic if end else monotonic) - self.began, 6),
            "cpu_user_s": round(self.cpu_user_s, 6),
            "cpu_system_s": round(self.cpu_system_s, 6),
            "peak_memory_mb": megabytes(peak),
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "leftovers_killed": self.leftovers,
            "started_at": self.started_at,
            "ended_at": end.at if end else now,
        }
        if stuck:
            record["stuck_pids"] = stuck[:100]
        return record


def wipe(path: object) -> None:
    """Remove a folder of files that only a living attempt may read; what is not there is removed already."""
    if not isinstance(path, str):
        return
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except OSError:
        return  # the daemon removes the rest with all that it keeps for the attempt


def megabytes(count: int) -> float:
    """Bytes as MiB with one decimal."""
    return round(count / _MB, 1)


def lost_record(start: dict[str, object], now: float) -> dict[str, object]:
    """The exit record of an attempt whose keeper died with it: what the journal knew, and no more."""
    started_at = start.get("started_at")
    began = float(started_at) if isinstance(started_at, int | float) else now
    return {
        "key": start.get("key"),
        "pid": start.get("pid"),
        "start_time": start.get("start_time"),
        "boot_id": start.get("boot_id"),
        "exit_code": None,
        "signal": None,
        "killed": "keeper-lost",
        "oom": None,
        "wall_s": round(max(0.0, now - began), 6),
        "cpu_user_s": 0.0,
        "cpu_system_s": 0.0,
        "peak_memory_mb": 0.0,
        "read_bytes": 0,
        "written_bytes": 0,
        "leftovers_killed": 0,
        "started_at": began,
        "ended_at": now,
    }
