"""What a node tells of its machine: the payload of registration and the load in heartbeats.

The keys `node_id, version, cpu{cores, arch}, memory_mb, disk_free_mb, gpu[{vendor, name, vram_mb, cuda{version,
driver}}], runners, tags` are the original contract; all others are additions with defaults, so that an older node's
payload is understood and a newer node's unknown keys are ignored. MB are 2**20 bytes; None is "not told".
"""

from collections.abc import Collection
from dataclasses import dataclass

from ostler.model.sandbox import SandboxAbilities

_NOT_TOLD = SandboxAbilities()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """`cores` are physical, `threads` those that the node may use; `features` are the few that programs ask for."""

    cores: int
    arch: str
    threads: int = 0
    model: str = ""
    features: tuple[str, ...] = ()
    numa_nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuda:
    """The driver and the newest CUDA version that it can serve."""

    version: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """A kind of instance that a GPU can be cut into, how many it holds and how many more fit now."""

    name: str
    vram_mb: int
    total: int
    free: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """An instance that exists; jobs name it by `uuid` (None where the driver's tools did not tell it)."""

    uuid: str | None
    profile: str
    vram_mb: int
    vram_free_mb: int | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mig:
    """The state of MIG on a GPU that can be cut; with `enabled` only its instances run anything."""

    enabled: bool
    pending: bool | None = None
    profiles: tuple[MigProfile, ...] = ()
    instances: tuple[MigInstance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ecc:
    """Memory errors since the driver was loaded; `repair_pending` waits for a reset, `repair_failed` for a new card."""

    enabled: bool
    corrected: int | None = None
    uncorrected: int | None = None
    repair_pending: bool = False
    repair_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process on a GPU, whoever's: `kind` is compute or graphics."""

    pid: int
    used_mb: int | None = None
    kind: str = "compute"
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `vram_mb` is 0 where it could not be read; `fault` says why the GPU is of no use ("" for a good one).

    `bus_id` is like 0000:65:00.0; `minor` numbers the device node (/dev/nvidia0, /dev/dri/renderD128); `xids` are the
    codes that the kernel logged about it. `cuda` is None for what is not NVIDIA's.
    """

    vendor: str
    name: str
    vram_mb: int
    cuda: Cuda | None = None
    uuid: str | None = None
    index: int | None = None
    minor: int | None = None
    bus_id: str | None = None
    driver: str = ""
    vram_free_mb: int | None = None
    utilisation_pct: int | None = None
    temperature_c: int | None = None
    numa_node: int | None = None
    mig: Mig | None = None
    ecc: Ecc | None = None
    processes: tuple[GpuProcess, ...] = ()
    xids: tuple[int, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system that holds `path`; `free_mb` is what an ordinary user may still fill."""

    path: str
    free_mb: int
    total_mb: int
    free_inodes: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Os:
    """The distribution as in os-release."""

    id: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A container engine: the program and the API socket, each where it is there."""

    name: str
    path: str | None = None
    socket: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthProblem:
    """Something wrong with the machine. With `quarantine` the node takes no new work until it is mended.

    `code` is stable (disk_read_only, disk_full, gpu_fault, gpu_memory, gpu_xid, gpu_unresponsive, gpu_driver),
    `subject` a path or a GPU.
    """

    code: str
    subject: str
    message: str
    quarantine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """All of it. `disk_free_mb` is the free space of the workspaces, which `disks` names first; `release` the one that the daemon was
    installed in, where it was; `services` the names of those that its configuration declares; `updates` the platform (`cp311-x86_64`)
    for which it takes releases from the coordinator, None where it takes none."""

    node_id: str
    version: str
    cpu: Cpu
    memory_mb: int
    disk_free_mb: int
    gpu: tuple[Gpu, ...] = ()
    runners: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    swap_mb: int = 0
    disks: tuple[Disk, ...] = ()
    os: Os = Os()
    kernel: str = ""
    hostname: str = ""
    machine_id: str = ""
    engines: tuple[Engine, ...] = ()
    sandbox: SandboxAbilities = _NOT_TOLD
    health: tuple[HealthProblem, ...] = ()
    release: str | None = None
    services: tuple[str, ...] = ()
    updates: str | None = None

    @property
    def gpu_count(self) -> int:
        """How many GPUs could run something now: good ones, cut or whole."""
        return len(usable_gpus(self.gpu))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The state of a moment, for heartbeats: `load` is the one-minute average, `cpu_load` per cent of all threads.

    `free_mb` is memory that programs could still have; `gpu_free` counts good GPUs on which nothing computes;
    `vram_free_mb` sums over good GPUs.
    """

    load: float
    free_mb: int
    gpu_free: int
    disk_free_mb: int
    cpu_load: float
    vram_free_mb: int


def usable_gpus(gpus: Collection[Gpu]) -> tuple[Gpu, ...]:
    """Those without a fault."""
    return tuple(gpu for gpu in gpus if not gpu.fault)


def idle_gpus(gpus: Collection[Gpu]) -> tuple[Gpu, ...]:
    """Those without a fault on which nothing computes; a desktop's windows do not count."""
    return tuple(gpu for gpu in usable_gpus(gpus) if not any(one.kind == "compute" for one in gpu.processes))


def vram_total_mb(gpus: Collection[Gpu]) -> int:
    """The memory of all good GPUs."""
    return sum(gpu.vram_mb for gpu in usable_gpus(gpus))


def vram_free_mb(gpus: Collection[Gpu]) -> int:
    """The free memory of all good GPUs; one that does not tell counts as full."""
    return sum(gpu.vram_free_mb or 0 for gpu in usable_gpus(gpus))


def foreign_mb(gpu: Gpu, own: Collection[int]) -> int:
    """The memory of a GPU that is taken by others than the processes `own`, the driver's reserve included."""
    if gpu.vram_free_mb is None:
        return gpu.vram_mb
    ours = sum(one.used_mb or 0 for one in gpu.processes if one.pid in own)
    return max(0, gpu.vram_mb - gpu.vram_free_mb - ours)


def quarantined(health: Collection[HealthProblem]) -> tuple[HealthProblem, ...]:
    """The problems for which a node must not take work."""
    return tuple(problem for problem in health if problem.quarantine)
