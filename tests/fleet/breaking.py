"""What can befall a host, as a context each: done for real, and taken back."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .engine import podman
from .testbed import Host

KEY = "/etc/ssh/ssh_host_ed25519_key"
# Containers have the clock of their machine, and a time namespace has none of its own for the time of day. So each program that is
# started from now on asks this for it; the kernel's own clock, and what runs already, go on as they were.
CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += (OFFSET);
    return failed;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""


@contextlib.contextmanager
def paused(host: Host) -> Iterator[None]:
    """It stands still."""
    host.pause()
    try:
        yield
    finally:
        host.unpause()


@contextlib.contextmanager
def hanging_ssh(host: Host) -> Iterator[None]:
    """sshd and all its sessions stand still: connections are accepted by the kernel, and nobody says a word."""
    host.exec("pkill", "-STOP", "-x", "sshd")
    try:
        yield
    finally:
        host.exec("pkill", "-CONT", "-x", "sshd")


@contextlib.contextmanager
def other_host_key(host: Host) -> Iterator[None]:
    """It shows another key than the known one, as a machine in between would."""
    host.exec("sh", "-c", f"mv {KEY} {KEY}.kept; ssh-keygen -q -t ed25519 -N '' -f {KEY}; systemctl restart ssh")
    try:
        yield
    finally:
        host.exec("sh", "-c", f"mv {KEY}.kept {KEY}; ssh-keygen -y -f {KEY} > {KEY}.pub; systemctl restart ssh")


@contextlib.contextmanager
def read_only(host: Host, path: str) -> Iterator[None]:
    """A directory that nobody can write, not even root."""
    host.exec("sh", "-c", f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")
    try:
        yield
    finally:
        host.exec("umount", path)


@contextlib.contextmanager
def little_room(host: Host, path: str, spare_mb: int) -> Iterator[None]:
    """A directory lies on a file system of its own that has so much left."""
    host.exec(
        "sh", "-ec",
        f"size=$(($(du -sm {path} | cut -f1) * 5 / 4 + {spare_mb})); mount -t tmpfs -o size=${{size}}m little /mnt; "
        f"cp -a {path}/. /mnt; umount -l {path} 2>/dev/null || :; mount --bind /mnt {path}; "
        f"left=$(($(df -m --output=avail {path} | tail -n 1) - {spare_mb})); [ $left -le 0 ] || fallocate -l ${{left}}M {path}/.ballast",
    )  # fmt: skip
    try:
        yield
    finally:
        host.exec("sh", "-c", f"umount {path}; umount /mnt")


@contextlib.contextmanager
def other_clock(host: Host, seconds: int) -> Iterator[None]:
    """Its clock is so much ahead, for every program that is started there."""
    with tempfile.TemporaryDirectory(prefix="ostler-clock-") as scratch:
        source, library = Path(scratch, "clock.c"), Path(scratch, "clock.so")
        source.write_text(CLOCK)
        subprocess.run(["cc", "-shared", "-fPIC", f"-DOFFSET={seconds}", "-o", library, source], check=True)
        podman("cp", str(library), f"{host.container}:/usr/local/lib/other-clock.so")
    host.exec("sh", "-c", "echo /usr/local/lib/other-clock.so > /etc/ld.so.preload")
    try:
        yield
    finally:
        host.exec("rm", "/etc/ld.so.preload")
