"""What /proc tells about processes; None, empty or zero for one that is gone."""

import os
import time

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_CHUNK = 4000  # small enough for Python's own allocator: larger ones would map memory for each read
_OWN_CHILDREN = "/proc/thread-self/children"  # by name: the keeper is another process once it is in the background


def read(path: str, limit: int = 65536) -> bytes:
    """Return at most `limit` bytes of a file, empty when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = os.read(descriptor, min(limit, _CHUNK))
        part = text
        while part and len(text) < limit:  # /proc hands out less than asked for long before the end
            part = os.read(descriptor, _CHUNK)
            text += part
        return text
    except OSError:
        return b""
    finally:
        os.close(descriptor)


class Stat:
    """The fields of /proc/PID/stat that matter here; `start_time` is in clock ticks since boot (field 22)."""

    __slots__ = ("group", "parent", "session", "start_time", "state")

    def __init__(self, state: str, parent: int, group: int, session: int, start_time: int) -> None:
        self.state = state
        self.parent = parent
        self.group = group
        self.session = session
        self.start_time = start_time

    @property
    def dead(self) -> bool:
        """True for a zombie: it runs no more and only waits to be reaped."""
        return self.state in "ZX"


def glance(path: str) -> bytes:
    """Return the start of a file, at most 4000 bytes, by one read: enough for /proc's short ones."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _CHUNK)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def parse_stat(text: bytes) -> Stat | None:
    """Parse /proc/PID/stat. The name stands in parentheses and may itself hold parentheses and spaces."""
    fields = text[text.rfind(b")") + 1 :].split(None, 20)
    if len(fields) < 20:
        return None
    return Stat(fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def stat(pid: int) -> Stat | None:
    """The process's state, parent, process group, session and start time."""
    return parse_stat(glance(f"/proc/{pid}/stat"))


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process started; 0 when it is gone."""
    found = stat(pid)
    return found.start_time if found else 0


def ticks() -> int:
    """Clock ticks since boot now."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _TICK_NS


def own_children() -> list[int]:
    """The children of this (single-threaded) process, zombies included."""
    return [int(pid) for pid in read(_OWN_CHILDREN, 1 << 22).split()]


def children(pid: int) -> list[int]:
    """The children of all threads of a process, zombies included."""
    directory = f"/proc/{pid}/task"
    try:
        threads = os.listdir(directory)
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        found += [int(child) for child in read(f"{directory}/{thread}/children", 1 << 22).split()]
    return found


def all_pids() -> list[int]:
    """Every process that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> list[bytes]:
    """The `NAME=value` strings that the process was executed with; empty when they may not be read."""
    return read(f"/proc/{pid}/environ", 1 << 21).split(b"\0")


def tasks_of_user(uid: int) -> int:
    """How many threads run under a user id: what RLIMIT_NPROC counts."""
    count = 0
    for pid in all_pids():
        fields = _status(pid)
        if fields.get(b"Uid", b"").split()[:1] == [b"%d" % uid]:
            count += int(fields.get(b"Threads", b"0"))
    return count


def resident_bytes(pids: list[int]) -> int:
    """What a tree holds in memory at most: the sum of private pages and the largest share of shared memory.

    Pages shared after a fork are counted once for each process, so this is an upper bound; `proportional_bytes` is
    exact and dear.
    """
    private = shared = 0
    for pid in pids:
        fields = _status(pid)
        private += _kilobytes(fields, b"RssAnon")
        shared = max(shared, _kilobytes(fields, b"RssShmem"))
    return private + shared


def proportional_bytes(pids: list[int]) -> int:
    """What a tree holds in memory, shared pages divided among their users; walks the page tables (ms per GB)."""
    total = 0
    for pid in pids:
        fields = _colon_fields(glance(f"/proc/{pid}/smaps_rollup"))
        if b"Pss_Anon" in fields:
            total += _kilobytes(fields, b"Pss_Anon") + _kilobytes(fields, b"Pss_Shmem")
        else:  # may not be read, or a kernel before 5.4
            total += _kilobytes(_status(pid), b"RssAnon")
    return total


def _status(pid: int) -> dict[bytes, bytes]:
    return _colon_fields(glance(f"/proc/{pid}/status"))


def _colon_fields(text: bytes) -> dict[bytes, bytes]:
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        fields[name] = value
    return fields


def _kilobytes(fields: dict[bytes, bytes], name: bytes) -> int:
    value = fields.get(name, b"").split()
    return int(value[0]) * 1024 if value else 0
