"""The node's configuration: the source's section 4, with what this product adds, as frozen values (loaded and checked elsewhere)."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from ostler.model.sandbox import SandboxLevel
from ostler.model.service import Desired
from ostler.protocol.trust import Trust

STRICT = {"extra": "forbid", "arbitrary_types_allowed": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorAddress:
    """Where the coordinator is. `auth_token` is the join token (or what a plain section 8 coordinator wants); `env:NAME` reads it
    from the environment. `ca_file` pins a private CA: it alone is believed. `client_cert` and `client_key` are shown to a coordinator
    that asks for a certificate. `tls_verify: false` believes anybody, and is said loudly at each start. `allow_unsigned` accepts
    manifests without a signature from a coordinator that offers no key even when it is not on loopback."""

    __pydantic_config__ = STRICT

    base_url: str
    auth_token: str | None = field(default=None, repr=False)
    tls_verify: bool = True
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    timeout_s: float = 20.0
    allow_unsigned: bool = False

    @property
    def trust(self) -> Trust:
        """Whom the node believes on an https:// address, and what it shows of itself."""
        return Trust(verify=self.tls_verify, ca_file=self.ca_file, client_cert=self.client_cert, client_key=self.client_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffBounds:
    """Shortest and longest wait after failures, in seconds."""

    __pydantic_config__ = STRICT

    min_s: float = 5.0
    max_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How often to beat where the coordinator does not say, and how to back off."""

    __pydantic_config__ = STRICT

    interval_s: float = 15.0
    jitter_pct: float = 10.0
    backoff: BackoffBounds = field(default_factory=BackoffBounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CliRunnerConfig:
    """Allowlisted commands. `allow_own_binaries` accepts files owned by the node's own user beside root's."""

    __pydantic_config__ = STRICT

    enable: bool = True
    allowlist_files: tuple[Path, ...] = ()
    allowlist_dir: Path | None = None
    allow_own_binaries: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonRunnerConfig:
    """Trusted task modules `tasks.<name>` from `task_paths`; `warm_workers` keeps one started per slot (false: one process per task;
    in `bwrap` always).
    `by_value` also runs functions that a submitter sends: anybody's code, each in a process of its own within the sandbox."""

    __pydantic_config__ = STRICT

    enable: bool = True
    task_paths: tuple[Path, ...] = ()
    venv: Path | None = None
    warm_workers: bool = True
    max_tasks_per_worker: int = 1000
    by_value: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Runners:
    """Which runners this node offers."""

    __pydantic_config__ = STRICT

    cli: CliRunnerConfig = field(default_factory=CliRunnerConfig)
    python: PythonRunnerConfig = field(default_factory=lambda: PythonRunnerConfig(enable=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Slots, and what each attempt may use unless its manifest asks for less. `mem_soft_mb` caps the memory of one attempt."""

    __pydantic_config__ = STRICT

    max_concurrent_cpu: int = 2
    max_concurrent_gpu: int = 1
    cpu_nice: int = 10
    io_class: str = "best-effort"
    io_level: int = 6
    mem_soft_mb: int | None = None
    processes: int = 4096
    open_files: int = 1024
    disk_mb: int | None = None
    log_mb: int = 256
    grace_s: float = 10.0
    prefetch: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceConfig:
    """Where attempts live on disk and for how long. Below `min_free_mb` of free disk nothing new is started."""

    __pydantic_config__ = STRICT

    root: Path = Path("/var/lib/ostler/jobs")
    keep_success: timedelta = timedelta(hours=24)
    keep_failed: timedelta = timedelta(days=7)
    min_free_mb: int = 256
    cache_mb: int = 4096
    max_input_mb: int = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """`path` absent: standard error."""

    __pydantic_config__ = STRICT

    level: str = "info"
    json: bool = True
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """The level at which jobs run unless they demand a stronger one. `process` is the explicit opt-in for hosts without bubblewrap."""

    __pydantic_config__ = STRICT

    level: SandboxLevel = SandboxLevel.BWRAP


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The hosts that jobs may be granted, as `HOST[:PORT]`: names, `*.NAME`, `*` for the public internet, addresses, ranges. Empty:
    none, so that a job that asks for any is refused. Addresses that are not public are reached only where they stand here as such."""

    __pydantic_config__ = STRICT

    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """Where `/healthz` and `/metrics` listen; "off" for nowhere."""

    __pydantic_config__ = STRICT

    listen: str = "127.0.0.1:7481"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """One question to a service that runs, asked each `interval`: exactly one of `http` (a URL on this machine that is to answer with a
    status below 400), `tcp` (HOST:PORT on this machine that is to accept), `command` (an absolute path and its arguments, executed as the
    node's own user; exit code 0 is good) and `log` (a pattern; a line of the unit's journal that matches it is trouble).

    After so many `failures` in a row the service is unhealthy, after so many `successes` healthy again."""

    __pydantic_config__ = STRICT

    http: str | None = None
    tcp: str | None = None
    command: tuple[str, ...] = ()
    log: str | None = None
    interval: timedelta = timedelta(seconds=10)
    timeout: timedelta = timedelta(seconds=5)
    failures: int = 3
    successes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Numbers that a service tells of itself: `url` is one on this machine that answers with JSON, `values` names what to take of it, as
    `name: path` with paths like `hashrate.total[0]`."""

    __pydantic_config__ = STRICT

    url: str
    values: dict[str, str]
    interval: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartConfig:
    """Which services are started anew: one that crashed, where it is wanted running; with `unhealthy` also one that runs and is not
    healthy. It waits 10 s, doubled each time up to 5 minutes, and begins afresh after 10 minutes of health; after `limit` times without
    that it gives up until a person asks. `keep` is what is wanted while nobody has asked for anything."""

    __pydantic_config__ = STRICT

    unhealthy: bool = False
    limit: int = 10
    keep: Desired | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """A systemd unit of this host that commands may start and stop. `binary` is the program that the unit expects; where it is at one of
    `candidates` instead, `ostler node install` and updates link it. What it answers to `--version` is to match `version`. While it has
    run for less than `grace`, probes that fail do not count."""

    __pydantic_config__ = STRICT

    unit: str
    binary: Path | None = None
    candidates: tuple[Path, ...] = ()
    version: str | None = None
    grace: timedelta = timedelta(seconds=30)
    health: tuple[ProbeConfig, ...] = ()
    metrics: MetricsConfig | None = None
    restart: RestartConfig = field(default_factory=RestartConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """One node. `state_dir` holds its key, journal, keeper socket and caches; beside the workspace root by default. `services` are those
    of the host that commands may touch, by the name that commands give them."""

    __pydantic_config__ = STRICT

    coordinator: CoordinatorAddress
    node_id: str | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    runners: Runners = field(default_factory=Runners)
    resources: ResourceLimits = field(default_factory=ResourceLimits)
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    services: dict[str, ServiceConfig] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    state_dir: Path | None = None

    @property
    def state(self) -> Path:
        """The state directory in force."""
        return self.state_dir or self.workspace.root.parent / "node"
