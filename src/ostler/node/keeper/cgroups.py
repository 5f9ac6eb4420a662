"""Control groups, version 1 and 2: which of them the keeper may use, and one group per attempt.

A group tells reliably which processes belong to an attempt, counts what the kernel's memory killer did in it, and
carries the limits on memory, CPU and number of processes that nothing else can set for a whole tree.
"""

import os

from ostler.node.keeper import kernel, proc

_MB = 1024 * 1024
_CPU_PERIOD_US = 100_000
# Which version 1 hierarchy tells the members of a group, best first: only `pids` can also forbid further forks.
_V1_TRACKING = ("pids", "freezer", "memory")
_V1_USED = ("pids", "freezer", "memory", "cpu")
_SPARE = 64  # groups of each kind
_KINDS = 4  # numbers of processes; jobs that ask for others have groups of their own


class CgroupError(Exception):
    """A group that should be there could not be made; the message names the file."""


def parse_mounts(mountinfo: str) -> list[tuple[str, str, str, str]]:
    """Return (kind, root, mount point, options) for each cgroup mount in /proc/self/mountinfo."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, rest = after.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            fields = before.split(" ")
            mounts.append((kind, fields[3], fields[4].replace("\\040", " "), rest.split(" ")[-1]))
    return mounts


def parse_own(cgroup: str) -> dict[str, str]:
    """Return controller → path from /proc/self/cgroup; the version 2 hierarchy has the name ''."""
    own = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return own


def below(mount_root: str, mount_point: str, path: str) -> str:
    """Return the directory of the cgroup `path`, of a hierarchy of which `mount_root` is mounted at `mount_point`."""
    if mount_root != "/" and (path == mount_root or path.startswith(mount_root + "/")):
        path = path[len(mount_root) :]
    return (mount_point + path).rstrip("/")


def find(mountinfo: str, cgroup: str) -> tuple[dict[str, str], str | None]:
    """Return the keeper's own directories: controller → directory for version 1, and the version 2 one if mounted."""
    own = parse_own(cgroup)
    v1: dict[str, str] = {}
    v2 = None
    for kind, root, point, options in parse_mounts(mountinfo):
        if kind == "cgroup2":
            v2 = below(root, point, own.get("", "/"))
            continue
        for controller in options.split(","):
            if controller in _V1_USED and controller in own:
                v1[controller] = below(root, point, own[controller])
    return v1, v2


def write(path: str, value: str) -> None:
    """Write to a file of a cgroup; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _try_write(path: str, value: str) -> bool:
    try:
        write(path, value)
    except OSError:
        return False
    return True


def _number(path: str) -> int:
    text = proc.glance(path).strip()
    return int(text) if text.isdigit() else 0


def _named_number(path: str, name: bytes) -> int:
    """Return the number after `name` in a file of `name number` lines."""
    for line in proc.glance(path).splitlines():
        word, _, value = line.partition(b" ")
        if word == name and value.isdigit():
            return int(value)
    return 0


def members(directory: str) -> list[int]:
    """The processes of a group and of groups that its own processes may have made below it."""
    found = [int(pid) for pid in proc.read(directory + "/cgroup.procs", 1 << 22).split()]
    try:
        if os.stat(directory).st_nlink > 2:
            for name in os.listdir(directory):
                if os.path.isdir(directory + "/" + name):
                    found += members(directory + "/" + name)
    except OSError:
        pass
    return found


def _is_bare(directory: str) -> bool:
    """Whether nobody has made groups below it."""
    try:
        return os.stat(directory).st_nlink == 2
    except OSError:
        return False


def remove(directory: str) -> bool:
    """Remove a group and what is below it; False while processes are in it. A group that is gone is removed."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        try:
            nested = [name for name in os.listdir(directory) if os.path.isdir(directory + "/" + name)]
        except OSError:
            return False
        if not nested or not all(remove(directory + "/" + name) for name in nested):
            return False
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return True


class Group:
    """The groups of one attempt, one directory per hierarchy; `directories[0]` tells who its members are.

    One that is `plain` counts nothing, and limits at most the number of `processes`: the next attempt with the same limit may have it.
    """

    __slots__ = ("_cpu", "_entrance", "_memory", "_pids", "directories", "plain", "processes", "source", "v2")

    def __init__(self, directories: list[str], *, v2: bool, memory: str | None, pids: str | None, cpu: str | None) -> None:
        self.directories = directories
        self.v2 = v2
        self._memory = memory
        self._pids = pids
        self._cpu = cpu
        self.plain = False
        self.processes: int | None = None
        self._entrance: list[int] = []
        self.source = "cgroup-v2" if v2 else "cgroup-v1"

    @property
    def limits_memory(self) -> bool:
        """True when the kernel enforces this attempt's memory limit."""
        return self._memory is not None

    @property
    def limits_cpu(self) -> bool:
        """True when the kernel enforces this attempt's share of the CPUs."""
        return self._cpu is not None

    @property
    def limits_processes(self) -> bool:
        """True when the group can count processes."""
        return self._pids is not None

    def open(self) -> tuple[int | None, list[int]]:
        """Open what a process enters by: a directory to fork into (version 2), or `tasks` files to write "0" to. `shut` closes it."""
        if self.v2:
            self._entrance = [os.open(self.directories[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
            return self._entrance[0], []
        if not self._entrance:
            self._entrance = [os.open(directory + "/tasks", os.O_WRONLY | os.O_CLOEXEC) for directory in self.directories]
        return None, self._entrance

    def shut(self) -> None:
        """Let go of what `open` has opened."""
        while self._entrance:
            os.close(self._entrance.pop())

    def members(self) -> list[int]:
        """The pids in it; zombies have left."""
        return members(self.directories[0])

    def limit(self, *, memory_mb: float | None, cpu_pct: float | None, processes: int | None) -> None:
        """Set the limits for which there is a group; raises CgroupError."""
        try:
            if self._memory is not None and memory_mb is not None:
                limit = str(int(memory_mb * _MB))
                if self.v2:
                    write(self._memory + "/memory.max", limit)
                    _try_write(self._memory + "/memory.swap.max", "0")
                    _try_write(self._memory + "/memory.oom.group", "1")
                else:
                    write(self._memory + "/memory.limit_in_bytes", limit)
                    _try_write(self._memory + "/memory.memsw.limit_in_bytes", limit)
            if self._cpu is not None and cpu_pct is not None:
                quota = max(1000, int(cpu_pct * _CPU_PERIOD_US / 100))
                if self.v2:
                    write(self._cpu + "/cpu.max", f"{quota} {_CPU_PERIOD_US}")
                else:
                    write(self._cpu + "/cpu.cfs_period_us", str(_CPU_PERIOD_US))
                    write(self._cpu + "/cpu.cfs_quota_us", str(quota))
            if self._pids is not None and processes is not None:
                write(self._pids + "/pids.max", str(processes))
        except OSError as error:
            raise CgroupError(f"a limit could not be set in {self.directories[0]}: {error.strerror}") from None

    def forbid_forks(self) -> None:
        """Let no member make another process, so that a kill can be complete."""
        self.plain = False
        if self._pids is not None:
            _try_write(self._pids + "/pids.max", "0")

    def kill_at_once(self) -> bool:
        """Kill all members in one step, new ones included; False where the kernel has no such thing (before 5.14)."""
        return self.v2 and _try_write(self.directories[0] + "/cgroup.kill", "1")

    def memory_kills(self) -> int:
        """How many members the kernel's memory killer has killed."""
        if self._memory is None:
            return 0
        if self.v2:
            return _named_number(self._memory + "/memory.events", b"oom_kill")
        return _named_number(self._memory + "/memory.oom_control", b"oom_kill")

    def peak_bytes(self) -> int:
        """The most memory that was charged to the group at any time, file cache included; 0 when it is not known."""
        if self._memory is None:
            return 0
        return _number(self._memory + ("/memory.peak" if self.v2 else "/memory.max_usage_in_bytes"))

    def remove(self) -> list[str]:
        """Remove the directories; returns those that could not be removed yet."""
        self.shut()
        return [directory for directory in self.directories if not remove(directory)]


class Cgroups:
    """Where this keeper makes its attempts' groups. `version` is v1, v2 or none; `controllers` are those in use."""

    def __init__(self, version: str, parents: dict[str, str]) -> None:
        self.version = version
        self.controllers = sorted(controller for controller in parents if controller)
        self._parents = parents
        self._v2_parent = parents.get("")
        self._tracking = next((name for name in _V1_TRACKING if name in parents), None)
        self._serial = 0
        self._spare: dict[int | None, list[Group]] = {}

    @property
    def parents(self) -> list[str]:
        """The directories below which attempts' groups lie."""
        return sorted(set(self._parents.values()))

    def take(self, key: str, *, memory_mb: float | None, cpu_pct: float | None, processes: int | None) -> Group | None:
        """An attempt's group: one that is there already where at most the number of processes is limited, else a new one (`create`)."""
        plain = self.version == "v1" and memory_mb is None and cpu_pct is None
        spare = self._spare.get(processes) if plain else None
        while spare:
            group = spare.pop()
            if _is_bare(group.directories[0]):
                return group
            group.shut()  # somebody tidied up
        made = self.create("any" if plain else key, memory_mb=memory_mb, cpu_pct=cpu_pct, processes=processes)
        if made is not None:
            made.plain, made.processes = plain, processes
        return made

    def release(self, group: Group, *, empty: bool) -> list[str]:
        """Take a group back from an attempt that is over, for the next one; or remove it. Returns what could not be removed yet."""
        if not group.plain:
            return group.remove()
        spare = self._spare.setdefault(group.processes, []) if group.processes in self._spare or len(self._spare) < _KINDS else ()
        if isinstance(spare, list) and empty and len(spare) < _SPARE and _is_bare(group.directories[0]):
            spare.append(group)
            return []
        return group.remove()

    def create(self, key: str, *, memory_mb: float | None, cpu_pct: float | None, processes: int | None) -> Group | None:
        """Make an attempt's group with its limits set; None where there are no cgroups. Raises CgroupError."""
        if self.version == "none":
            return None
        self._serial += 1
        safe = "".join([c if c.isalnum() or c in "._-" else "_" for c in key])[:100]
        name = f"/{os.getpid()}.{self._serial}-{safe}"
        if self._v2_parent is not None:
            directory = self._v2_parent + name
            group = Group(
                [directory],
                v2=True,
                memory=directory if memory_mb is not None and "memory" in self._parents else None,
                pids=directory if "pids" in self._parents else None,
                cpu=directory if cpu_pct is not None and "cpu" in self._parents else None,
            )
        else:
            wanted = [self._tracking]
            if memory_mb is not None and "memory" in self._parents:
                wanted.append("memory")
            if cpu_pct is not None and "cpu" in self._parents:
                wanted.append("cpu")
            made = {controller: self._parents[controller] + name for controller in wanted if controller is not None}
            group = Group(
                list(made.values()),
                v2=False,
                memory=made.get("memory") if memory_mb is not None else None,
                pids=made.get("pids"),
                cpu=made.get("cpu"),
            )
        try:
            for directory in group.directories:
                try:
                    os.mkdir(directory, 0o755)
                except FileNotFoundError:  # somebody tidied up the empty directory that holds the groups
                    os.makedirs(directory, 0o755)
            group.limit(memory_mb=memory_mb, cpu_pct=cpu_pct, processes=processes)
        except OSError as error:
            group.remove()
            raise CgroupError(f"{error.filename}: {error.strerror}") from None
        except CgroupError:
            group.remove()
            raise
        return group

    def leftovers(self) -> list[str]:
        """Groups of attempts that are there now; at the start these are of a keeper that was killed."""
        found = []
        for parent in self.parents:
            try:
                found += [f"{parent}/{name}" for name in os.listdir(parent) if name[0].isdigit()]
            except OSError:
                continue
        return found

    def close(self) -> None:
        """Remove the spare groups and the directories that held the groups, where they are empty."""
        for group in [group for spare in self._spare.values() for group in spare]:
            group.remove()
        for parent in self.parents:
            remove(parent)


def detect(name: str, wanted: str = "auto") -> Cgroups:
    """Find out, by making them, which groups this process may have below its own; `wanted` may name v1, v2 or none."""
    if wanted == "none":
        return Cgroups("none", {})
    v1, v2 = find(
        proc.read("/proc/self/mountinfo", 1 << 20).decode("utf-8", "replace"),
        proc.read("/proc/self/cgroup", 1 << 16).decode("utf-8", "replace"),
    )
    found = Cgroups("none", {})
    if wanted in ("auto", "v1") and v1:
        found = _claim_v1(name, v1)
    if found.version == "none" and wanted in ("auto", "v2") and v2 is not None:
        found = _claim_v2(name, v2)
    return found


def _claim_v1(name: str, own: dict[str, str]) -> Cgroups:
    parents = {}
    for controller in _V1_USED:
        if controller not in own or (controller == "freezer" and "pids" in parents):
            continue
        directory = own[controller]
        parent = f"{directory}/{name}"
        try:
            os.makedirs(parent, 0o755, exist_ok=True)
        except OSError:
            continue
        if not os.access(parent + "/tasks", os.W_OK):
            remove(parent)
            continue
        if controller == "memory":
            _try_write(parent + "/memory.use_hierarchy", "1")  # the default since Linux 5.11
        parents[controller] = parent
    if not any(controller in parents for controller in _V1_TRACKING):
        for parent in parents.values():
            remove(parent)
        return Cgroups("none", {})
    return Cgroups("v1", parents)


def _claim_v2(name: str, own: str) -> Cgroups:
    """Make OWN/NAME for the attempts and, so that controllers can be handed down, OWN/NAME.self for the keeper.

    A cgroup that holds processes can hand no controllers to its children. Where others live in the keeper's cgroup too
    (a shell's session), attempts are still tracked, but not limited, by theirs.
    """
    parent = f"{own}/{name}"
    try:
        os.makedirs(parent, 0o755, exist_ok=True)
        probe = f"{parent}/0-probe"
        os.mkdir(probe)
    except OSError:
        return Cgroups("none", {})
    usable = _may_enter(probe)
    remove(probe)
    if not usable:
        remove(parent)
        return Cgroups("none", {})
    offered = proc.read(own + "/cgroup.controllers", 4096).decode().split()
    wanted = [controller for controller in ("memory", "pids", "cpu") if controller in offered]
    parents = {"": parent}
    if wanted:
        own_leaf = f"{own}/{name}.self"
        try:
            os.makedirs(own_leaf, 0o755, exist_ok=True)
            write(own_leaf + "/cgroup.procs", str(os.getpid()))
        except OSError:
            remove(own_leaf)
        for controller in wanted:
            if _try_write(own + "/cgroup.subtree_control", f"+{controller}") and _try_write(
                parent + "/cgroup.subtree_control", f"+{controller}"
            ):
                parents[controller] = parent
    return Cgroups("v2", parents)


def _may_enter(directory: str) -> bool:
    """Try a fork into a group: it needs the right to write to the common ancestor too, and a kernel that can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        pid = kernel.fork(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True
