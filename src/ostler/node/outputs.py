"""Outputs of a job (N5): the declared artifacts, found without following a link out of the workspace, measured and hashed.

Called when all processes of the job are gone. What they left is hostile all the same: links to anywhere, FIFOs that block who
opens them, devices, hard links to files of others.
"""

import asyncio
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import EACCES, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, EPERM, ESTALE
from pathlib import Path

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Artifact, unsafe_path
from ostler.node.workspace import disk_failure

MB = 1 << 20
MAX_LINKS = 40
MAX_DEPTH = 64
PLACES = ("output", "work")  # where a declared path is looked for, in this order
_SEEN_BY_JOB = frozenset({"input", "work", "output"})
_BLOCK = 1 << 20
_LISTED = 5
_OURS = frozenset({EIO, EMFILE, ENFILE, ENOMEM, ESTALE})  # trouble of the machine, not of the job's making
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Output:
    """One artifact that is there: its declared path and type, size in bytes, sha256 in hex, and the file itself (no link; None: it is
    nowhere but in its outcome)."""

    path: str
    type: str
    size: int
    sha256: str
    file: Path | None


class _Refused(Exception):
    """Why an artifact is not taken, as the end of the sentence "the artifact X …"."""


class _Missing(Exception):
    """No entry of that name."""


async def collect(artifacts: Sequence[Artifact], root: Path, *, max_total_mb: int = 1 << 20) -> Failure | tuple[Output, ...]:
    """All declared artifacts below the workspace `root` in their order, or why not (E_OUTPUT, E_DISK).

    Sizes in MB (2**20 bytes). An absent optional one is left out. The disk work is done in a thread.
    """
    if not artifacts:
        return ()
    return await asyncio.to_thread(collect_now, artifacts, root, max_total_mb=max_total_mb)


def carried(artifacts: Sequence[Artifact], contents: Mapping[str, bytes]) -> tuple[Output, ...]:
    """Those artifacts whose bytes are at hand, and in no file."""
    return tuple(
        Output(one.path, one.type, len(data), hashlib.sha256(data).hexdigest(), None)
        for one in artifacts
        if (data := contents.get(one.path)) is not None
    )


def read(some: Sequence[Output]) -> dict[str, bytes] | None:
    """The bytes of small artifacts by path; None where one is not what it was. Blocks."""
    contents = {}
    for one in some:
        try:
            handle = os.open(one.file or "", _FILE)
            with open(handle, "rb") as file:  # noqa: PTH123 - opened so that no link is followed
                data = file.read(one.size + 1)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != one.sha256:
            return None
        contents[one.path] = data
    return contents


def collect_now(artifacts: Sequence[Artifact], root: Path, *, max_total_mb: int = 1 << 20) -> Failure | tuple[Output, ...]:
    """The same, blocking."""
    outputs: list[Output] = []
    total = 0
    try:
        top = os.open(root, _FOLDER)
    except OSError as exc:
        return disk_failure(exc, f"opening the workspace {root}")
    try:
        owner = _owner(top)
        for artifact in artifacts:
            try:
                output = _take(artifact, root, top, owner)
            except _Missing:
                if artifact.optional:
                    continue
                return _failure(artifact, f"is missing; {_listing(root, top, artifact)}")
            except _Refused as exc:
                return _failure(artifact, str(exc))
            total += output.size
            if total > max_total_mb * MB:
                return _failure(artifact, f"is one too many: all artifacts together are larger than {max_total_mb} MB")
            outputs.append(output)
    except OSError as exc:
        return disk_failure(exc, "reading the artifacts")
    finally:
        os.close(top)
    return tuple(outputs)


def _failure(artifact: Artifact, why: str) -> Failure:
    return Failure(FailureCode.OUTPUT, f"the artifact {artifact.path[:200]!r} {why}")


def _owner(top: int) -> int:
    try:
        return os.stat("work", dir_fd=top, follow_symlinks=False).st_uid
    except FileNotFoundError:  # a job without a sandbox may remove its own folders
        return os.fstat(top).st_uid


def _take(artifact: Artifact, root: Path, top: int, owner: int) -> Output:
    try:
        why = unsafe_path(artifact.path)
    except UnicodeEncodeError:
        why = "is not valid Unicode"
    if why:
        raise _Refused(why)
    for place in PLACES:
        try:
            handle, where = _Walk(root, top).open(f"{place}/{artifact.path}")
        except _Missing:
            if place is PLACES[-1]:
                raise
            continue
        break
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _Refused(f"is {_kind(status.st_mode)}, not a regular file")
        if status.st_nlink > 1 and status.st_uid != owner:
            raise _Refused(f"is a hard link to a file of user {status.st_uid}, not of the job")
        limit = artifact.max_mb * MB
        if status.st_size > limit:
            raise _Refused(f"has {status.st_size} bytes, more than its max_mb of {artifact.max_mb}")
        size, sha256 = _hash(handle, status.st_size)
    finally:
        os.close(handle)
    return Output(artifact.path, artifact.type, size, sha256, root / where)


def _hash(handle: int, expected: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK, expected + 1)))
    size = 0
    while count := os.readv(handle, [block]):
        size += count
        if size > expected:
            break
        digest.update(block[:count])
    if size != expected:
        raise _Refused("changed while it was read; something still writes to it")
    return size, digest.hexdigest()


class _Walk:
    """Opens a path below the workspace step by step; a link is read and its target walked in the same way, from the inside.

    Each step is relative to an open folder and follows nothing, so no link, however made, leads out.
    """

    def __init__(self, root: Path, top: int) -> None:
        self._root = root
        self._folders: list[tuple[str, int]] = [("", top)]
        self._links = 0
        self._via: str | None = None

    def open(self, path: str) -> tuple[int, str]:
        """An open descriptor of the regular file, and its path without links. Raises _Missing, _Refused."""
        ahead = path.split("/")[::-1]
        try:
            while ahead:
                step = ahead.pop()
                if step in {"", "."}:
                    continue
                if step == "..":
                    self._up()
                    continue
                status = self._look(step)
                if stat.S_ISLNK(status.st_mode):
                    self._follow(step, ahead)
                elif any(one not in {"", "."} for one in ahead):
                    self._down(step, status)
                else:
                    return self._file(step, status)
            raise _Refused(f"is {self._named()}a folder, not a regular file")
        finally:
            for _, folder in self._folders[1:]:
                os.close(folder)

    def _look(self, step: str) -> os.stat_result:
        if len(self._folders) == 1 and step not in _SEEN_BY_JOB:
            raise self._outside()
        try:
            return os.stat(step, dir_fd=self._folders[-1][1], follow_symlinks=False)
        except OSError as exc:
            raise self._explained(exc) from exc

    def _up(self) -> None:
        if len(self._folders) == 1:
            raise self._outside()
        os.close(self._folders.pop()[1])

    def _down(self, step: str, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode):
            raise self._explained(OSError(ENOTDIR, ""))
        if len(self._folders) > MAX_DEPTH:
            raise _Refused(f"lies deeper than {MAX_DEPTH} folders")
        try:
            self._folders.append((step, os.open(step, _FOLDER, dir_fd=self._folders[-1][1])))
        except OSError as exc:
            raise self._explained(exc) from exc

    def _follow(self, step: str, ahead: list[str]) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise _Refused("is a loop of links")
        target = os.readlink(step, dir_fd=self._folders[-1][1])
        self._via = target
        if target.startswith("/"):
            inside = f"{self._root}/"
            if not target.startswith(inside):
                raise self._outside()
            target = target[len(inside) :]
            while len(self._folders) > 1:
                os.close(self._folders.pop()[1])
        ahead.extend(target.split("/")[::-1])

    def _file(self, step: str, status: os.stat_result) -> tuple[int, str]:
        if not stat.S_ISREG(status.st_mode):  # looked at before it is opened: to open a device may do something
            raise _Refused(f"is {self._named()}{_kind(status.st_mode)}, not a regular file")
        try:
            handle = os.open(step, _FILE, dir_fd=self._folders[-1][1])
        except OSError as exc:
            raise self._explained(exc) from exc
        return handle, "/".join([*(name for name, _ in self._folders[1:]), step])

    def _outside(self) -> _Refused:
        return _Refused(f"is a link to {self._via!r:.200}, which is outside of the job's folders")

    def _named(self) -> str:
        return "" if self._via is None else f"a link to {self._via!r:.200}, "

    def _explained(self, exc: OSError) -> Exception:
        if exc.errno in {ENOENT, ENOTDIR}:
            return _Missing() if self._via is None else _Refused(f"is a link to {self._via!r:.200}, which is not there")
        if exc.errno in {EACCES, EPERM}:
            return _Refused(f"is {self._named()}not readable: {exc.strerror}")
        if exc.errno in _OURS:
            return exc
        return _Refused(f"cannot be opened: {exc.strerror}")


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")


def _listing(root: Path, top: int, artifact: Artifact) -> str:
    """The first few names of what is there instead."""
    parts = []
    for place in PLACES:
        try:
            folder = os.open(place, _FOLDER, dir_fd=top)
        except OSError:
            continue
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for _, entry in zip(range(_LISTED + 1), entries, strict=False)]
        finally:
            os.close(folder)
        shown = ", ".join(f"{name[:80]!r}" for name in names[:_LISTED])
        parts.append(f"{place}/ holds {shown or 'nothing'}{', …' * (len(names) > _LISTED)}")
    return " and ".join(parts)
