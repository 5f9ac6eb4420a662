"""Whether the program of an allowlist entry is the one its owner put there (N6): looked at before each start.

Everything on the way to it (folders, symbolic links, the file) belongs to root, or to the node's own user where the config
allows that, and nobody else can write to any of it. So nobody else can change it between this look and the start.
"""

import hashlib
import os
import stat
from pathlib import Path

from ostler.model.errors import Problem
from ostler.node.allowlist import Entry

MAX_LINKS = 40
MAX_CACHED = 256
_BLOCK = 1 << 20

_Identity = tuple[int, int, int, int, int]


class BinaryCheck:
    """Verifies programs; remembers their hashes by (device, inode, size, mtime, ctime)."""

    def __init__(self, *, allow_own_binaries: bool = False) -> None:
        self._trusted = frozenset({0, os.geteuid()}) if allow_own_binaries else frozenset({0})
        self._hashes: dict[_Identity, str] = {}

    def verify(self, entry: Entry) -> Problem | None:
        """Why the entry's program must not be started, or None. Reads the whole file when its hash is asked and not known."""
        found = self._walk(entry.path)
        if isinstance(found, str):
            return Problem("command.path", f"{entry.path}: {found}", entry.file)
        if entry.sha256 is None:
            return None
        try:
            actual = self.sha256(entry.path)
        except OSError as exc:
            return Problem("command.path", f"{entry.path}: cannot be read to check its sha256: {exc.strerror}", entry.file)
        if actual != entry.sha256:
            message = f"{entry.path} has sha256 {actual}, not the {entry.sha256} of the entry; was it upgraded?"
            return Problem("command.sha256", message, entry.file)
        return None

    def sha256(self, path: str) -> str:
        """The file's hash; from memory while the file is unchanged. Blocks while it reads; raises OSError."""
        with Path(path).open("rb", buffering=0) as stream:
            identity = _identity(os.fstat(stream.fileno()))
            known = self._hashes.get(identity)
            if known is not None:
                return known
            digest = hashlib.sha256()
            block = memoryview(bytearray(_BLOCK))
            while count := stream.readinto(block):
                digest.update(block[:count])
            if _identity(os.fstat(stream.fileno())) == identity:
                if len(self._hashes) >= MAX_CACHED:
                    self._hashes.clear()
                self._hashes[identity] = digest.hexdigest()
            return digest.hexdigest()

    def _walk(self, path: str) -> os.stat_result | str:
        """Go to the program step by step, through links too; the reason as a text where something is amiss."""
        ahead = path.split("/")[::-1]
        here = "/"
        links = 0
        try:
            status = os.lstat(here)
            if amiss := self._amiss(here, status):
                return amiss
            while ahead:
                step = ahead.pop()
                if step in {"", "."}:
                    continue
                if step == "..":
                    here = here.rpartition("/")[0] or "/"
                    continue
                following = f"{here}{step}" if here == "/" else f"{here}/{step}"
                status = os.lstat(following)
                if amiss := self._amiss(following, status):
                    return amiss
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > MAX_LINKS:
                        return "is a loop of links"
                    target = str(Path(following).readlink())
                    ahead.extend(target.split("/")[::-1])
                    here = "/" if target.startswith("/") else here
                elif stat.S_ISDIR(status.st_mode) or not any(one not in {"", "."} for one in ahead):
                    here = following
                else:
                    return f"{following} is not a folder"
        except OSError as exc:
            return f"cannot be found: {exc.strerror}" if not exc.filename else f"{exc.filename}: {exc.strerror}"
        if not stat.S_ISREG(status.st_mode) or not path.startswith("/"):
            return "is not a regular file at an absolute path"
        if not os.access(here, os.X_OK):
            return "is not executable"
        return status

    def _amiss(self, path: str, status: os.stat_result) -> str | None:
        mode = status.st_mode
        if status.st_uid not in self._trusted:
            allowed = " or ".join(f"user {uid}" if uid else "root" for uid in sorted(self._trusted))
            return f"{path} belongs to user {status.st_uid}; only {allowed} may own an allowed program and the way to it"
        if stat.S_ISLNK(mode):
            return None  # a link's own mode means nothing
        if stat.S_ISDIR(mode):
            # A sticky folder lets nobody replace what is another's, and what lies in it was checked for its owner.
            others = mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid != 0)
            writable = bool(others) and not mode & stat.S_ISVTX
        else:
            writable = bool(mode & (stat.S_IWOTH | stat.S_IWGRP))
        return f"{path} can be written to by others (mode {stat.S_IMODE(mode):04o}); chmod go-w {path}" if writable else None


def _identity(status: os.stat_result) -> _Identity:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
