"""Podman with the settings that hosts need, and what a machine must have for it."""

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path.home() / ".cache" / "ostler" / "testbed"
PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "iptables", "mmdebstrap", "zstd", "kmod")
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")


class Unable(Exception):
    """This machine cannot have a testbed; says why."""


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """One process at a time does `what`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def settings() -> dict[str, str]:
    """The environment in which Podman is called. Installs what is missing where that is possible. Raises Unable."""
    if os.geteuid() != 0:
        raise Unable("a testbed of real hosts needs root (containers with systemd, own addresses and enforced limits)")
    with alone("packages"):
        subprocess.run([ROOT / "tools" / "system-packages", "-q", *PACKAGES], check=True)
    if lacks := [tool for tool in ("podman", "mmdebstrap", "zstd") if shutil.which(tool) is None]:
        raise Unable(f"a testbed of real hosts needs {', '.join(lacks)}: apt-get install {' '.join(PACKAGES)}")
    # crun refuses hybrid control groups, and the default number of open files needs a capability that not every machine has
    runtime = '[engine]\nruntime = "runc"\n' if legacy() else "[engine]\n"
    conf = CACHE / "containers.conf"
    text = (
        '[containers]\ndefault_ulimits = ["nofile=1024:20000", "nproc=1024:1024"]\n'
        f'{runtime}cgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    if not conf.exists() or conf.read_text() != text:  # others may be reading it
        conf.write_text(text)
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


def legacy() -> bool:
    """Whether this machine's control groups are of the first version."""
    return not (CGROUPS / "cgroup.controllers").exists()


def podman(*args: str, check: bool = True, stdin: str | None = None, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """One call; raises RuntimeError with what Podman said."""
    done = subprocess.run(
        ["podman", *args], env=settings(), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        raise RuntimeError(f"podman {args[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def flags() -> list[str]:
    """Of `podman run`: those by which the limits and the hardening of units are enforced in a host, and not passed over."""
    mounts = []
    if legacy():  # each controller alone: to mount their parent would make the machine's own read-only
        mounts = [f"--volume={CGROUPS / one}:{CGROUPS / one}:rw" for one in CONTROLLERS if (CGROUPS / one).exists()]
    return ["--systemd=always", "--cap-add=SYS_ADMIN,NET_ADMIN", "--security-opt=unmask=ALL", *mounts]


def make_room_for_watchers() -> None:
    """Each systemd watches many files; for ten hosts together the kernel's default number of watchers is too small."""
    if int(INOTIFY_INSTANCES.read_text()) < 1024:
        print("==> setting fs.inotify.max_user_instances to 1024 until the next boot of this machine", flush=True)
        INOTIFY_INSTANCES.write_text("1024\n")
