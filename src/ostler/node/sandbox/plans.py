"""How an attempt's command is wrapped: a level, a workspace and a command in, a plan out, and nothing is run here.

The node's keeper carries plans out. Of bwrap, and of `_enter.c` in its place (ADR 31), it must know three things:

- It ends with the command's exit code, and with 128 + n when the command died of signal n.
- It is two processes around the command (a monitor outside, a reaper as pid 1 inside). A signal to the monitor does
  not reach the command but kills the whole sandbox at once: to ask for an end, signal the command itself.
- It takes the environment that it is started with into the sandbox. What would act on bwrap itself, which runs before
  there is a sandbox, is passed as an option instead (`_LOADER`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ostler.model.errors import InvalidSpec
from ostler.model.sandbox import SandboxLevel
from ostler.node.sandbox.host import Host

_FILTER_FD = 9

# Variables that glibc or the loader of a program obeys (glibc's "unsecure" ones): with them in bwrap's own
# environment, a job could run its code outside of the sandbox.
_LOADER = ("LD_", "MALLOC_", "GLIBC_", "GCONV_PATH", "GETCONF_DIR", "LOCPATH", "NLSPATH", "NIS_PATH", "TZDIR", "TMPDIR")
_RESOLVER = ("HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "RESOLV_HOST_CONF")

# Never shown whole: each holds what is not the job's. Of those in `_SEALED` no part is shown either: /proc/1/root is
# the host, and the sandbox has its own /etc.
_NEVER = ("/", "/dev", "/root", "/home", "/var", "/run", "/tmp", "/boot")  # noqa: S108  # refused, not used
_SEALED = ("/proc", "/etc")

# Where CUDA, ROCm and libdrm read how devices lie; shown with devices only. Not the whole of /sys: below it lie the
# host's cgroups and debugging file systems.
_TOPOLOGY = ("/sys/bus", "/sys/class", "/sys/dev", "/sys/devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPlan:
    """What to execute, and what to do in the child between fork and exec, in this order:

    open each file of `open_fds` (number as text → path, read-only, the fd stays open over exec); chdir to `cwd`;
    a session of its own if `new_session`; become `gid` and `uid` if set (no further groups); `no_new_privs`; install
    the filter in the file `seccomp`; exec `argv` with exactly `env`.
    """

    level: SandboxLevel
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    open_fds: Mapping[str, str] = field(default_factory=dict)
    seccomp: str | None = None
    no_new_privs: bool = False
    new_session: bool = True
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A network gate around a command: `outer` starts bwrap and leaves the gate beside it, `inner` starts the command inside.

    `sync` is a descriptor that bwrap keeps open while there is a sandbox. `paths` are what `inner` needs to see.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    sync: int
    paths: tuple[str, ...] = ()


def plan(
    level: SandboxLevel,
    *,
    host: Host,
    workspace: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None = None,
    read_only_paths: Iterable[str] = (),
    writable_paths: Iterable[str] = (),
    devices: Iterable[str] = (),
    network: bool = False,
    gate: Gate | None = None,
    hostname: str = "sandbox",
    tmp_mb: int = 1024,
    uid: int | None = None,
    gid: int | None = None,
    userns: bool = False,
) -> SandboxPlan:
    """The plan for a command at a level.

    `workspace` is the attempt's directory: its `input/` is shown read-only, `work/` and `output/` writable, all at
    their own absolute paths; the rest of it is not shown. `cwd` is `work/` by default. `read_only_paths` are what the
    command itself needs outside of the system's directories (see `binaries.needed`), `devices` device nodes such as
    /dev/nvidia0. `network` keeps the host's network; `gate` leads out of the sandbox's own. `tmp_mb` limits /tmp and
    /dev/shm each. `uid` and `gid` are for the executor to become before it executes anything. `userns` asks for a user
    namespace though the caller is root (abilities say whether this host needs it).

    Raises InvalidSpec for a path that would undo the sandbox and for levels that are not set up by wrapping a command.
    """
    if not argv or not argv[0].startswith("/"):
        raise InvalidSpec(f"the command must be an absolute path, not {argv[0] if argv else 'nothing'!r}")
    workspace = _plain(workspace)
    if workspace in _NEVER or any(_within(workspace, sealed) for sealed in _SEALED):
        raise InvalidSpec(f"{workspace} cannot be a workspace")
    folder = _plain(cwd) if cwd else f"{workspace}/work"
    if gate is not None and level is not SandboxLevel.BWRAP:
        raise InvalidSpec(f"the sandbox level {level.value} has no network of its own that could be gated", hint="use bwrap")
    if level is SandboxLevel.NONE:
        return SandboxPlan(level=level, argv=tuple(argv), env=dict(env), cwd=folder, uid=uid, gid=gid)
    if level is SandboxLevel.PROCESS:
        return SandboxPlan(
            level=level,
            argv=tuple(argv),
            env=dict(env),
            cwd=folder,
            seccomp=_made(host.seccomp),
            no_new_privs=True,
            uid=uid,
            gid=gid,
        )
    if level is not SandboxLevel.BWRAP:
        raise InvalidSpec(
            f"the sandbox level {level.value} is not set up by wrapping a command",
            hint="use bwrap, or the container runner for containers",
        )
    nodes = sorted(set(devices))
    inside = {name: value for name, value in env.items() if name.startswith(_LOADER) or name in _RESOLVER}
    options = [
        *_namespaces(network=network, hostname=hostname, userns=userns),
        *_system(host, tmp_mb=tmp_mb, network=network),
        *_proc(host, names_threads=bool(nodes)),
        *_devices(nodes),
        *_extra("--ro-bind", _worth_showing((*read_only_paths, *(gate.paths if gate else ())), host, workspace)),
        *_extra("--bind", (_permitted(path, workspace) for path in writable_paths)),
        *("--ro-bind", f"{workspace}/input", f"{workspace}/input"),
        *("--bind", f"{workspace}/work", f"{workspace}/work"),
        *("--bind", f"{workspace}/output", f"{workspace}/output"),
        *("--remount-ro", "/dev", "--remount-ro", "/"),  # else they are places for unlimited bytes in memory
        *("--chdir", folder),
        *(part for name, value in inside.items() for part in ("--setenv", name, value)),
        *("--seccomp", str(_FILTER_FD)),
        *(("--sync-fd", str(gate.sync)) if gate else ()),
    ]
    outer, inner = (gate.outer, gate.inner) if gate else ((), ())
    return SandboxPlan(
        level=level,
        argv=(*outer, _made(host.wrapper), *options, "--", *inner, *argv),
        env={name: value for name, value in env.items() if name not in inside},
        cwd="/",
        open_fds={str(_FILTER_FD): _made(host.seccomp)},
        # bwrap sets it itself; set earlier it would break a setuid bwrap, which some hosts without user namespaces have
        no_new_privs=False,
        uid=uid,
        gid=gid,
    )


def _namespaces(*, network: bool, hostname: str, userns: bool) -> list[str]:
    """As root no user namespace is asked for: it would add nothing to `--cap-drop ALL`, and some hosts have none.

    An ordinary user gets one from bwrap unasked.
    """
    return [
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *(() if network else ("--unshare-net",)),
        *(("--unshare-user",) if userns else ()),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", hostname[:64]),
    ]


def _system(host: Host, *, tmp_mb: int, network: bool) -> list[str]:
    size = ("--size", str(tmp_mb * 2**20)) if host.own or host.bwrap_version >= (0, 7) else ()
    return [
        *_extra("--ro-bind", host.places),
        *(part for name, target in host.links for part in ("--symlink", target, name)),
        *("--ro-bind", _made(host.etc), "/etc"),
        *(("--ro-bind", host.resolv_conf, "/etc/resolv.conf") if network and host.resolv_conf else ()),
        *("--dev", "/dev"),
        *("--perms", "1777", *size, "--tmpfs", "/dev/shm"),  # noqa: S108  # places inside, not files of ours
        *("--perms", "1777", *size, "--tmpfs", "/tmp"),  # noqa: S108
        *("--symlink", "../tmp", "/var/tmp"),  # noqa: S108
    ]


def _proc(host: Host, *, names_threads: bool) -> list[str]:
    """As root, without any capability, a job could still write /proc/sys (core_pattern: code as root outside).

    CUDA names its threads by /proc/self/task/N/comm and takes a refusal for a broken system (error 304): for its sake what is
    the processes' own stays writable, and all else is covered one by one.
    """
    return ["--proc", "/proc", *(_extra("--ro-bind", host.kernel) if names_threads else ("--remount-ro", "/proc"))]


def _devices(wanted: Iterable[str]) -> list[str]:
    for path in wanted:
        if not _plain(path).startswith("/dev/"):
            raise InvalidSpec(f"{path} is not a device below /dev")
    nodes = [part for path in wanted for part in ("--dev-bind", path, path)]
    return [*nodes, *_extra("--ro-bind", _TOPOLOGY)] if nodes else []


def _extra(option: str, paths: Iterable[str]) -> list[str]:
    return [part for path in paths for part in (option, path, path)]


def _worth_showing(paths: Iterable[str], host: Host, workspace: str) -> list[str]:
    """Without what is shown anyway: each mount costs every job."""
    shown = list(host.places)
    chosen = []
    for path in sorted({_permitted(path, workspace) for path in paths}, key=len):
        if not any(_within(path, place) for place in shown):
            shown.append(path)
            chosen.append(path)
    return chosen


def _permitted(path: str, workspace: str) -> str:
    path = _plain(path)
    if path in _NEVER or any(_within(path, sealed) for sealed in _SEALED):
        raise InvalidSpec(f"{path} cannot be shown to a sandbox: name what the command needs of it")
    if _within(workspace, path):
        raise InvalidSpec(f"{path} cannot be shown to a sandbox: it holds the workspace, and other jobs' with it")
    return path


def _within(path: str, place: str) -> bool:
    """Both plain. Here and in `_plain` text does, at an eighth of the cost: they stand in the way of every job."""
    return path == place or path.startswith(place if place == "/" else f"{place}/")


def _plain(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidSpec(f"{path!r} is not a plain absolute path")
    if "//" in path or "/." in path or path.endswith("/"):
        return str(PurePosixPath(path))
    return path


def _made(path: str | None) -> str:
    if path is None:
        raise InvalidSpec("this host has no bwrap or its sandbox files were not made", hint="see `ostler doctor`")
    return path
