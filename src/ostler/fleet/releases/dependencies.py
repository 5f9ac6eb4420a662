"""The libraries of a release: wheels by the hashes of the lock file, for platforms that need not be this machine's.

Where they come from is this machine's own pip configuration; what was fetched once is kept, and no host ever asks a registry.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from ostler.fleet.releases.sources import regular_bytes
from ostler.model.errors import InvalidSpec, Unavailable

GLIBC = (36, 5)  # 2.36 is the oldest that a supported host has (Debian 12); wheels for older ones run there, too
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^\s;]+)\s*(;(?P<marker>.*))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_PLATFORM = re.compile(r"(?a)cp3([0-9]{1,2})-(x86_64|aarch64)")
DEFAULTS = ("cp311-x86_64", "cp312-x86_64", "cp313-x86_64")  # Debian 12, Ubuntu 24.04, Debian 13
FETCH_S = 900


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """A kind of host: CPython 3.`minor` on Linux with glibc."""

    minor: int
    machine: str

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """From `cp311-x86_64`; raises InvalidSpec."""
        match = _PLATFORM.fullmatch(text)
        if match is None or int(match[1]) < 11:
            raise InvalidSpec(
                f"{text!r} is not a platform",
                hint="a platform is cp311 (Debian 12), cp312 (Ubuntu 24.04) or cp313 (Debian 13), a dash, and x86_64 or aarch64",
            )
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"cp3{self.minor}-{self.machine}"

    def names(self) -> list[str]:
        """What this platform is called in the names of wheels, the newest first."""
        found = []
        for minor in range(GLIBC[0], GLIBC[1] - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _OLD_NAMES:
                found.append(f"{_OLD_NAMES[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    def tags(self) -> list[Tag]:
        """Which wheels run here, the best first."""
        version = (3, self.minor)
        return [*cpython_tags(version, platforms=self.names()), *compatible_tags(version, f"cp3{self.minor}", self.names())]

    def environment(self) -> dict[str, str]:
        """What markers are judged by (source: PEP 508)."""
        return {
            "python_version": f"3.{self.minor}", "python_full_version": f"3.{self.minor}.0", "implementation_version": f"3.{self.minor}.0",
            "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
            "sys_platform": "linux", "platform_system": "Linux", "platform_machine": self.machine, "platform_release": "",
            "platform_version": "", "extra": "",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of a lock file."""

    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]

    def needed_on(self, platform: Platform) -> bool:
        """Whether the line's marker holds there."""
        return self.marker is None or self.marker.evaluate(dict(platform.environment()))

    def __str__(self) -> str:
        return " ".join((f"{self.name}=={self.version}", *(f"--hash=sha256:{one}" for one in sorted(self.hashes))))


def read_lock(text: str) -> list[Pin]:
    """The pins of a hashed lock file. Raises InvalidSpec on what is not pinned by version and hash."""
    found = []
    lines = (line.partition("#")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    for line in filter(None, lines):
        match = _PIN.fullmatch(_HASH.sub("", line).strip())
        hashes = frozenset(_HASH.findall(line))
        if match is None or not hashes:
            raise InvalidSpec(f"the lock file has a line that pins nothing by version and hash: {line[:80]}")
        marker = Marker(match["marker"]) if match["marker"] else None
        found.append(Pin(canonicalize_name(match["name"]), match["version"], marker, hashes))
    return found


def collect(pins: Iterable[Pin], platforms: Iterable[Platform], cache: Path) -> Mapping[Platform, list[Path]]:
    """The wheels that each platform needs, in `cache`, where those that are missing are fetched to first.

    Raises Unavailable where they cannot be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    pins = list(pins)
    found = {}
    for platform in platforms:
        wanted = [pin for pin in pins if pin.needed_on(platform)]
        missing = [pin for pin in wanted if _cached(pin, platform, cache) is None]
        if missing:
            _fetch(missing, platform, cache)
        wheels = {pin: _cached(pin, platform, cache) for pin in wanted}
        if lacking := [str(pin).split()[0] for pin, wheel in wheels.items() if wheel is None]:
            raise Unavailable(f"no wheel for {platform} of {', '.join(lacking)}")
        found[platform] = [wheel for wheel in wheels.values() if wheel is not None]
    return found


def _cached(pin: Pin, platform: Platform, cache: Path) -> Path | None:
    """The best wheel in the cache that fits, and is what the lock file pins."""
    ranks = {tag: rank for rank, tag in enumerate(platform.tags())}
    fits = []
    for wheel, tags in _wheels_of(pin, cache):
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if rank is not None:
            fits.append((rank, wheel.name))
    for _, name in sorted(fits):
        if hashlib.sha256(regular_bytes(cache / name)).hexdigest() in pin.hashes:
            return cache / name
    return None


def _wheels_of(pin: Pin, cache: Path) -> Iterator[tuple[Path, frozenset[Tag]]]:
    for wheel in cache.iterdir():
        try:
            name, version, _, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        if name == pin.name and str(version) == pin.version:
            yield wheel, tags


def _fetch(pins: list[Pin], platform: Platform, cache: Path) -> None:
    """By this machine's pip, as it is configured, and by hash."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        wanted, into = Path(scratch) / "wanted.txt", Path(scratch) / "wheels"
        wanted.write_text("".join(f"{pin}\n" for pin in pins))
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
            "--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version=3.{platform.minor}",
            f"--abi=cp3{platform.minor}", "--abi=abi3", "--abi=none", *(f"--platform={name}" for name in platform.names()),
            f"--dest={into}", f"--requirement={wanted}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=FETCH_S, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
            raise Unavailable(
                f"the libraries for {platform} could not be fetched: {(said or done.stderr.splitlines() or ['pip failed'])[-1]}",
                hint=f"`{sys.executable} -m pip download` must work here; hosts need no registry, this machine needs one once",
            )
        for wheel in into.iterdir():
            wheel.replace(cache / wheel.name)
