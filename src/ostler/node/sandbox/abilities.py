"""What this host can do for sandboxes: really tried once, and said with the command that mends what is missing."""

import ctypes
import errno
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ostler.model.errors import OstlerError
from ostler.model.sandbox import BUILT_IN, MissingLevel, SandboxAbilities, SandboxLevel
from ostler.node.sandbox.host import Host, look
from ostler.node.sandbox.plans import SandboxPlan, plan

_PATIENCE_S = 2.0
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ASK_VERSION = 444, 1  # the same number on every architecture
_SYSCTLS = (
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "user/max_user_namespaces",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial run ended: its exit code (None: not in time) and the first line that it said."""

    code: int | None
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that `judge` decides from. `bwrap` is the trial as plans are run; `in_userns` one with a namespace of its own; `own` whether
    they were made with this release's program."""

    root: bool
    machine_known: bool
    seccomp: bool
    landlock_abi: int
    userns: bool
    cgroup: str
    bwrap_version: tuple[int, ...] | None
    bwrap: Trial | None = None
    in_userns: Trial | None = None
    own: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)


def observe(state: Path, **more: Any) -> Host:
    """Look at the host (see `host.look`), and try this release's own program; where it does not do, plans use bwrap."""
    host = look(state, **more)
    if host.own is None or _try(host, userns=False).code == 0 or (os.geteuid() == 0 and _try(host, userns=True).code == 0):
        return host
    return replace(host, own=None)


def abilities(host: Host) -> SandboxAbilities:
    """Try the levels on this host as the present user. Takes some 10 ms, at most about 6 s; keep the answer."""
    return judge(gather(host))


def gather(host: Host, *, proc: Path = Path("/proc")) -> Evidence:
    """Make the trials."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.geteuid() == 0
    direct = _try(host, userns=False) if host.wrapper else None
    retry = root and direct is not None and direct.code != 0
    return Evidence(
        root=root,
        machine_known=host.seccomp is not None,
        seccomp=_has_seccomp(libc),
        landlock_abi=max(0, libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_ASK_VERSION)),
        userns=_has_userns(),
        cgroup=parse_cgroup((proc / "self/mountinfo").read_text(errors="replace")),
        bwrap_version=host.bwrap_version if host.bwrap else None,
        bwrap=direct,
        in_userns=_try(host, userns=True) if retry else None,
        own=host.own is not None,
        sysctls={name: text.read_text().strip() for name in _SYSCTLS if (text := proc / "sys" / name).exists()},
    )


def judge(seen: Evidence) -> SandboxAbilities:
    """Which levels there are, and for each other one why not and what mends it."""
    levels: list[SandboxLevel] = [SandboxLevel.NONE]
    missing: list[MissingLevel] = []

    def lack(level: SandboxLevel, reason: str, mend: str) -> None:
        missing.append(MissingLevel(level=level.value, reason=reason, mend=mend))

    if not seen.machine_known:
        lack(SandboxLevel.PROCESS, "there is no system call filter for this architecture", "use x86_64 or aarch64")
    elif not seen.seccomp:
        lack(SandboxLevel.PROCESS, "the kernel has no seccomp filters", "boot a kernel with CONFIG_SECCOMP_FILTER=y")
    else:
        levels.append(SandboxLevel.PROCESS)
    works = [trial for trial in (seen.bwrap, seen.in_userns) if trial is not None and trial.code == 0]
    if works:
        levels.append(SandboxLevel.BWRAP)
    else:
        lack(SandboxLevel.BWRAP, *_why_no_bwrap(seen))
    lack(SandboxLevel.UNIT, "this release does not start jobs as systemd units", "use bwrap")
    lack(SandboxLevel.CONTAINER, "a container wraps an image, not a command", "use the container runner")
    return SandboxAbilities(
        levels=tuple(level.value for level in levels),
        missing=tuple(missing),
        bwrap=BUILT_IN if seen.own else ".".join(map(str, seen.bwrap_version)) if seen.bwrap_version is not None else None,
        bwrap_userns=seen.in_userns is not None and seen.in_userns.code == 0,
        userns=seen.userns,
        seccomp=seen.seccomp,
        landlock_abi=seen.landlock_abi,
        cgroup=seen.cgroup,
    )


def _why_no_bwrap(seen: Evidence) -> tuple[str, str]:
    if seen.bwrap is None:
        return "bubblewrap is not installed", "apt-get install bubblewrap"
    if seen.bwrap.code is None:
        return f"bwrap did not end within {_PATIENCE_S:g} s", "run `bwrap --ro-bind / / true` by hand"
    said = seen.bwrap.said or f"exit code {seen.bwrap.code}"
    if seen.sysctls.get("kernel/unprivileged_userns_clone") == "0" and not seen.root:
        return f"ordinary users may not make namespaces ({said})", "sysctl -w kernel.unprivileged_userns_clone=1"
    if seen.sysctls.get("user/max_user_namespaces") == "0":
        return f"user namespaces are switched off ({said})", "sysctl -w user.max_user_namespaces=15000"
    if seen.sysctls.get("kernel/apparmor_restrict_unprivileged_userns") == "1" and not seen.root:
        return (
            f"AppArmor keeps ordinary users from making namespaces ({said})",
            "give /usr/bin/bwrap a profile with `userns,` in /etc/apparmor.d, or"
            " sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return f"bwrap does not work here ({said})", "in a container: allow it to make namespaces (CAP_SYS_ADMIN)"


def parse_cgroup(mountinfo: str) -> str:
    """v2, v1, hybrid (controllers on v1, an empty v2 beside them) or none, from /proc/self/mountinfo."""
    kinds = set()
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        if separator and before.split()[4:5] and before.split()[4].startswith("/sys/fs/cgroup"):
            kinds.add(after.split()[0])
    if {"cgroup", "cgroup2"} <= kinds:
        return "hybrid"
    return "v2" if "cgroup2" in kinds else "v1" if "cgroup" in kinds else "none"


def _has_seccomp(libc: ctypes.CDLL) -> bool:
    """A null filter is refused for its address by a kernel that has filters, and for the request by one that has not."""
    ctypes.set_errno(0)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() in (errno.EFAULT, errno.EACCES)


def _has_userns() -> bool:
    tool = shutil.which("unshare", path="/usr/bin:/bin")
    if tool is None:
        return False
    try:
        done = subprocess.run([tool, "--user", "true"], capture_output=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _try(host: Host, *, userns: bool) -> Trial:
    with tempfile.TemporaryDirectory(prefix="ostler-sandbox-") as workspace:
        for name in ("input", "work", "output"):
            Path(workspace, name).mkdir()
        try:
            trial = plan(
                SandboxLevel.BWRAP,
                host=host,
                workspace=workspace,
                argv=["/bin/sh", "-c", "exit 0"],
                env={"PATH": "/usr/bin:/bin"},
                userns=userns,
            )
        except OstlerError as error:
            return Trial(-1, error.message)
        with tempfile.TemporaryFile() as said:
            code = _run(trial, said.fileno())
            said.seek(0)
            lines = said.read(4096).decode(errors="replace").strip().splitlines()
    return Trial(code, lines[0] if lines else "")


def _run(trial: SandboxPlan, stderr: int) -> int | None:
    """Carry a plan of level bwrap out; None when it does not end in time."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr, 1),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
        *((os.POSIX_SPAWN_OPEN, int(fd), path, os.O_RDONLY, 0) for fd, path in trial.open_fds.items()),
    ]
    try:
        pid = os.posix_spawn(trial.argv[0], trial.argv, trial.env, file_actions=actions)
    except OSError:
        return -1
    pidfd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        in_time = bool(waiting.poll(_PATIENCE_S * 1000))
        if not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(status) if in_time else None
