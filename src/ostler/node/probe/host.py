"""The host itself: processor, memory, disks, distribution, engines. Small parsers over /proc, /sys and /etc."""

import contextlib
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from ostler.model.capabilities import Cpu, Disk, Engine, Os

_MB = 2**20

# Those by which programs choose their code paths; names as in /proc/cpuinfo.
_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx_vnni", "amx_tile", "aes", "sha_ni", "asimd", "asimddp", "sve", "sve2", "bf16", "i8mm", "sha2", "atomics"),
)
_ENGINE_PROGRAMS = "/usr/bin:/usr/local/bin:/bin"


def cpu(*, root: Path = Path("/")) -> Cpu:
    """The processor; `threads` are those that this process may run on."""
    model, features = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    threads = len(os.sched_getaffinity(0))
    return Cpu(
        cores=psutil.cpu_count(logical=False) or threads,
        arch=platform.machine(),
        threads=threads,
        model=model,
        features=features,
        numa_nodes=max(1, count_ranges(_read(root / "sys/devices/system/node/online"))),
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model and features from /proc/cpuinfo; ARM kernels name no model there."""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return model[1].strip() if model else "", tuple(name for name in _FEATURES if name in present)


def count_ranges(text: str) -> int:
    """How many numbers `0-3,8` names."""
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            total += int(last or first) - int(first) + 1
    return total


def memory_mb() -> tuple[int, int]:
    """All memory and all swap, in MB."""
    return psutil.virtual_memory().total // _MB, psutil.swap_memory().total // _MB


def disks(paths: Iterable[str]) -> tuple[Disk, ...]:
    """The file systems of some paths, in their order; a path that is not there yet is judged by the directory above."""
    return tuple(found for path in paths if (found := disk(path)) is not None)


def disk(path: str) -> Disk | None:
    """The file system of one path; None where even that cannot be read."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        info = os.statvfs(place)
    except OSError:
        return None
    return Disk(
        path=path,
        free_mb=info.f_bavail * info.f_frsize // _MB,
        total_mb=info.f_blocks * info.f_frsize // _MB,
        free_inodes=info.f_favail if info.f_files else None,  # btrfs and others do not count them
        read_only=bool(info.f_flag & os.ST_RDONLY),
    )


def distribution(*, root: Path = Path("/")) -> Os:
    """The distribution by os-release."""
    return parse_os_release(_read(root / "etc/os-release") or _read(root / "usr/lib/os-release"))


def parse_os_release(text: str) -> Os:
    """ID and VERSION_ID, unquoted."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip().strip("\"'")
    return Os(id=values.get("ID", "linux"), version=values.get("VERSION_ID", ""))


def machine_id(*, root: Path = Path("/")) -> str:
    """systemd's machine id, or the older one of D-Bus; empty where there is neither."""
    return (_read(root / "etc/machine-id") or _read(root / "var/lib/dbus/machine-id")).strip()


def engines(*, root: Path = Path("/"), uid: int | None = None, programs: str = _ENGINE_PROGRAMS) -> tuple[Engine, ...]:
    """The container engines of which the program or the API socket is there, for the user `uid` (this process')."""
    return tuple(_engines(root, os.getuid() if uid is None else uid, programs))


def _engines(root: Path, uid: int, programs: str) -> Iterator[Engine]:
    own = root / f"run/user/{uid}"
    sockets = {
        "podman": (own / "podman/podman.sock", root / "run/podman/podman.sock"),
        "docker": (own / "docker.sock", root / "run/docker.sock", root / "var/run/docker.sock"),
    }
    for name, places in sockets.items():
        path = shutil.which(name, path=programs)
        socket = next((str(place) for place in places if _is_socket(place)), None)
        if path or socket:
            yield Engine(name=name, path=path, socket=socket)


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(path.stat().st_mode)
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
