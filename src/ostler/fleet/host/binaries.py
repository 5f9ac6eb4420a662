"""Programs that the host's services expect: where they really are, and the link that makes them be where a unit looks for them."""

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostler.fleet.host.places import Places, point
from ostler.fleet.host.traces import Traces

VERSION_S = 5.0


@dataclass(frozen=True, slots=True)
class Binary:
    """One program of a service: the path that its unit expects, and other places where it may be. `version` is a pattern for what
    it says of itself."""

    service: str
    expected: str
    candidates: tuple[str, ...]
    version: str | None = None

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Binary":
        """As the updater sends it."""
        return cls(str(told["service"]), str(told["expected"]), tuple(map(str, told.get("candidates", ()))), told.get("version"))


@dataclass(frozen=True, slots=True)
class Found:
    """`link_to` is what the expected path is to refer to (None: nothing is to be done), `warning` why the service will not work."""

    service: str
    link_to: str | None = None
    warning: str | None = None


def find(binary: Binary, places: Places) -> Found:
    """Look, and change nothing."""
    expected = places.root / binary.expected.lstrip("/")
    if os.path.lexists(expected) and not expected.is_symlink():
        return Found(binary.service, warning=_unfit(expected, binary))  # its owner put it there: left alone, whatever it is
    if expected.is_symlink():
        target = Path(binary.expected).parent / expected.readlink()
        if _unfit(places.root / str(target).lstrip("/"), binary) is None:
            return Found(binary.service)
    reasons = []
    for candidate in binary.candidates:
        place = places.root / candidate.lstrip("/")
        if candidate == binary.expected or not place.exists():
            continue
        why = _unfit(place, binary)
        if why is None:
            return Found(binary.service, link_to=candidate)
        reasons.append(why)
    what = binary.service if not reasons else f"{binary.service}: {'; '.join(reasons)}"
    return Found(
        binary.service,
        warning=f"{what} not found, its service will not work" if not reasons else f"{what}; its service will not work",
    )


def link(binary: Binary, places: Places, traces: Traces) -> Found:
    """Make the link where one is needed, and write down what was there; a file that stands in its place is left alone."""
    found = find(binary, places)
    if found.link_to is not None:
        expected = places.root / binary.expected.lstrip("/")
        traces.directory(expected.parent, mode=0o755)
        traces.expect(expected)
        point(expected, found.link_to)
    return found


def _unfit(place: Path, binary: Binary) -> str | None:
    """Why root would not execute this file."""
    try:
        real = place.resolve(strict=True)
        status = real.stat()
    except OSError as exc:
        return f"{place}: {exc.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{place} is no regular file"
    if status.st_uid != 0:
        return f"{place} does not belong to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{place} may be written by others than root"
    if not status.st_mode & stat.S_IXUSR:
        return f"{place} is not executable"
    return _wrong_version(real, binary.version) if binary.version else None


def _wrong_version(place: Path, pattern: str) -> str | None:
    try:
        done = subprocess.run(
            [str(place), "--version"], capture_output=True, text=True, errors="replace", timeout=VERSION_S, check=False,
            stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{place} --version: {type(exc).__name__}"
    said = (done.stdout + done.stderr)[:4096]
    return (
        None
        if re.search(pattern, said)
        else f"{place} --version says {said.strip().splitlines()[:1] or 'nothing'}, not {pattern}"
    )
