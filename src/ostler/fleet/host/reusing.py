"""What a release on this host has unpacked already is linked into the next one instead of being unpacked again: whole wheels, and of
those that changed the files that did not.

Nothing is believed of what lies there. The signed manifest names, for each wheel, one digest of all that comes out of it; what is
linked has been read whole and is exactly that, or the wheel comes out of the bundle and is compared with what lies there file by file.
The byte code beside a file is linked where it is still what was made here from files that were checked: root's record of that lies
beside the keys that say whom to believe.
"""

import base64
import contextlib
import csv
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ostler.fleet.host import wheels
from ostler.fleet.host.archive import MANIFEST, MAX_FILE, MAX_MANIFEST
from ostler.fleet.host.refusals import Refused

SUFFIX = ".whl"
MAX_RECORD = 16 << 20
CACHE = "__pycache__"
_NO_LINKS = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # then it is copied
_IDENTITY = ("st_dev", "st_ino", "st_size", "st_mode", "st_uid", "st_mtime_ns")


@dataclass(frozen=True, slots=True)
class Standing:
    """A release that is here: its packages, and the sha256 of the byte code that was made of them, by the paths there."""

    packages: Path
    compiled: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that was read whole, by its path below the packages."""

    path: str
    facts: os.stat_result
    sha256: str


def claimed(releases: Iterable[Path]) -> list[str]:
    """The sha256 of each wheel that these releases of this host say they were made of; what became of it is looked at when it is needed."""
    found: set[str] = set()
    for home in releases:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            inner = json.loads(base64.b64decode(json.loads(read(home, MANIFEST, most=MAX_MANIFEST)[1])["payload"]))
            found.update(str(one["sha256"]) for one in inner["files"] if one["path"].endswith(SUFFIX))
    return sorted(found)


def link(name: str, unpacked: str, before: Iterable[Standing], packages: Path) -> bool:
    """Whether the files of the wheel `name`, which have the digest `unpacked`, are in `packages` now: linked from the first of the
    releases `before` where they are so, copied where links cannot be made. Where not, nothing was made. Raises Refused, OSError.
    """
    for there in before:
        found = _files(there.packages, wheels.information(name))
        if found and _digest(found) == unpacked:
            for folder in {os.path.dirname(one.path) for one in found}:  # noqa: PTH120 - once for each of some thousand files
                (packages / folder).mkdir(parents=True, exist_ok=True)
            linked = [one.path for one in found if _bring(there.packages, one, packages)]
            _link_compiled(there, linked, packages)
            return True
    return False


class Pieces:
    """The files of wheels that come out of the bundle, linked from one of the releases `before` where it has the very same."""

    def __init__(self, before: Sequence[Standing], packages: Path) -> None:
        self._before, self._packages = before, packages
        self._linked: list[list[str]] = [[] for _ in before]

    def take(self, path: str, mode: int, content: bytes) -> bool:
        """Whether the file is in the packages now; its directory is there. Raises Refused, OSError."""
        for there, linked in zip(self._before, self._linked, strict=True):
            try:
                found, now = read(there.packages, path, size=len(content), mode=mode)
            except (OSError, ValueError):
                continue
            if now == content:
                try:
                    if _bring(there.packages, found, self._packages):
                        linked.append(path)
                except Refused:  # it was changed meanwhile, or a link is another file here
                    (self._packages / path).unlink()
                    return False
                return True
        return False

    def link_compiled(self) -> None:
        """The byte code of all that were linked."""
        for there, linked in zip(self._before, self._linked, strict=True):
            _link_compiled(there, linked, self._packages)


def compiled(packages: Path) -> dict[str, str]:
    """What byte code there is, as `Standing` has it; to be asked where all of it was made by this installation, or linked by it."""
    found = {}
    for folder, _, names in os.walk(packages):
        if os.path.basename(folder) == CACHE:  # noqa: PTH119
            for name in names:
                path = os.path.relpath(f"{folder}/{name}", packages)
                found[path] = read(packages, path)[0].sha256
    return found


def compare(packages: Path, unpacked: Mapping[str, str | None]) -> tuple[set[str], set[str]]:
    """What is not as these wheels, each with its digest, were unpacked (files that were edited or are gone), and all files that they name;
    both by the paths in `packages`."""
    found: set[str] = set()
    named: set[str] = set()
    for wheel, wanted in unpacked.items():
        information = wheels.information(wheel)
        there = _files(packages, information)
        named.update(one.path for one in there)
        if wanted is None or (there and _digest(there) == wanted):
            continue
        try:
            record = _record(packages, information)
        except (OSError, ValueError, csv.Error, Refused):
            record = {}
        named |= record.keys()
        wrong = {path for path, sha256 in record.items() if not is_so(packages, path, sha256)}
        found |= wrong or {f"{information}/{wheels.RECORD}"}
    return found, named


def is_so(folder: Path, path: str, sha256: str) -> bool:
    """Whether a plain file there is this one; an empty `sha256`, as a wheel's record has it of itself, says nothing."""
    try:
        found, _ = read(folder, path)
    except (OSError, ValueError):
        return False
    return stat.S_IMODE(found.facts.st_mode) in (0o644, 0o755) and sha256 in ("", found.sha256)


def _digest(files: Iterable[_Read]) -> str:
    return wheels.digest((one.path, stat.S_IMODE(one.facts.st_mode), one.sha256) for one in files)


def _files(packages: Path, information: str) -> list[_Read]:
    """The files that a wheel's own record names; none where one is not as it was unpacked."""
    try:
        return [read(packages, name)[0] for name in sorted(_record(packages, information))]
    except (OSError, ValueError, csv.Error, Refused):
        return []


def _record(packages: Path, information: str) -> dict[str, str]:
    """What a wheel's own record says: each file's sha256 in hex, an empty text where it has none. Raises OSError, ValueError, csv.Error,
    Refused."""
    text = read(packages, f"{information}/{wheels.RECORD}", most=MAX_RECORD)[1].decode()
    rows = [row for row in csv.reader(text.splitlines()) if row]
    return {str(place): _hex(*row[1:2]) for row in rows if (place := wheels.target(row[0])) is not None}


def _hex(said: str = "") -> str:
    """Of a hash as records have it (source: the core metadata of installed projects, PEP 376 and 427)."""
    kind, _, value = said.partition("=")
    return base64.urlsafe_b64decode(f"{value}==").hex() if kind == "sha256" else ""


def _link_compiled(there: Standing, sources: list[str], packages: Path) -> None:
    """The byte code of files that were linked. Python looks only whether it is of a file of that time and size, so it is compared here."""
    made: set[str] = set()
    for source in sources:
        folder, name = os.path.split(source)
        path = os.path.join(folder, CACHE, f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc")  # noqa: PTH118
        if name.endswith(".py") and path in there.compiled:
            with contextlib.suppress(OSError, ValueError):
                found, _ = read(there.packages, path)
                if found.sha256 == there.compiled[path] and stat.S_IMODE(found.facts.st_mode) == 0o644:
                    if folder not in made:
                        (packages / folder / CACHE).mkdir(exist_ok=True)
                        made.add(folder)
                    _bring(there.packages, found, packages)


def read(
    packages: Path, path: str, *, size: int | None = None, mode: int | None = None, most: int = MAX_FILE
) -> tuple[_Read, bytes]:
    """A plain file of whoever installs (of this size and mode, where they are given), and its content, of at most `most` bytes. Raises
    OSError, ValueError."""
    descriptor = os.open(f"{packages}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise ValueError(f"{path} is not as it was unpacked")
        if facts.st_size > most or size not in (None, facts.st_size) or mode not in (None, stat.S_IMODE(facts.st_mode)):
            raise ValueError(f"{path} is another file")
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            content = file.readall()
    finally:
        os.close(descriptor)
    return _Read(path, facts, hashlib.sha256(content).hexdigest()), content


def _bring(before: Path, found: _Read, packages: Path) -> bool:
    """Whether it was linked; else it was copied. Raises Refused where it is not what was read any more."""
    source, into = f"{before}/{found.path}", f"{packages}/{found.path}"
    try:
        os.link(source, into, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(ValueError):
            now, content = read(before, found.path)
            if now.sha256 == found.sha256:
                with open(into, "xb") as file:  # noqa: PTH123
                    file.write(content)
                    os.fchmod(file.fileno(), stat.S_IMODE(found.facts.st_mode))
                return False
    else:
        is_now = os.lstat(into)
        if all(getattr(is_now, part) == getattr(found.facts, part) for part in _IDENTITY):
            return True
    raise Refused("missing", f"{source} was changed while it was linked")
