"""The vault: what attempts are told in confidence, on a memory file system, in a folder that only this user can enter.

Each attempt that names secrets has a box there: its secret files, its raw output, and the values to mask in that. What a workspace
on the disk gets of its output is a masked copy, as long as the true one. A box is wiped with its attempt's end; it outlives the
daemon, so that the next one can go on masking, and not the machine.
"""

import ctypes
import hashlib
import os
import shutil
import stat
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest
from ostler.node.masking import SHORTEST, Masker
from ostler.protocol.messages import LOG_STREAMS, SecretValue
from ostler.protocol.ports import Confidence

_MEMORY = frozenset({"tmpfs", "ramfs"})
_VALUES = "values"
_FILES = "files"
_CHUNK = 1 << 20
_AT_ONCE = 64 << 20  # bytes that are copied in one go while an attempt lives: its output may be holes, which the keeper cuts off
_PAGE = 4096
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)


class Vault:
    """All boxes of one node. Methods block for a few system calls, `copy` for as long as what is new is long."""

    def __init__(self, state: Path, *, places: Sequence[Path] | None = None) -> None:
        """`state` is the node's state directory, which names it; `places` are where memory is looked for."""
        user = os.geteuid()
        self._places = (Path("/run"), Path(f"/run/user/{user}"), Path("/dev/shm")) if places is None else places  # noqa: S108
        self._name = f"ostler-{user}-{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}"
        self._root: Path | None = None
        self._maskers: dict[str, Masker] = {}
        # Who asks for a copy may stop waiting for it: the thread that makes it goes on, and must not meet another one.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    # --- what an attempt is told ---

    def fill(self, key: str, manifest: Manifest, values: Sequence[SecretValue]) -> Confidence | Failure:
        """Make the box of an attempt that is about to start, anew where one is left. The values are those of its `secrets`."""
        env: dict[str, str] = {}
        files: dict[str, bytes] = {}
        for use, given in zip(manifest.secrets, values, strict=False):
            if use.env is not None:
                text = _as_text(given.value)
                if text is None:
                    return Failure(FailureCode.SECRET, f"the secret {use.name} is no text, so it fits no variable; use `file`")
                env[use.env] = text
            elif use.file is not None:
                files[use.file] = given.value
        if len(env) + len(files) != len(manifest.secrets):
            return Failure(FailureCode.SECRET, "the coordinator answered other secrets than the manifest names")
        try:
            box = self._fresh(key)
            _write(box / _VALUES, msgspec.json.encode([one.value for one in values]), 0o600)
            if files:
                (box / _FILES).mkdir(mode=0o700)
                for name, value in files.items():
                    _write(box / _FILES / name, value, 0o400)
        except OSError as exc:
            return Failure(FailureCode.SANDBOX, f"the secrets cannot be kept in memory on this node: {exc.strerror or exc}")
        self._maskers[key] = Masker(one.value for one in values)
        return Confidence(
            env=env,
            values=tuple(one.value for one in values),
            folder=str(box),
            files=str(box / _FILES) if files else None,
        )

    def unmasked(self, values: Iterable[SecretValue]) -> list[str]:
        """The names of those values that are too short to be masked."""
        return sorted({one.name for one in values if len(one.value.strip()) < SHORTEST})

    def raw(self, key: str, stream: str) -> str:
        """Where an attempt's output goes before it is masked."""
        return str(self._box(key) / f"{stream}.log")

    # --- what it says ---

    def text(self, key: str, text: str) -> str | None:
        """A message of an attempt's, masked; None where its values are not known."""
        masker = self._masker(key)
        return None if masker is None else masker.text(text)

    def copy(self, key: str, logs: Path, *, whole: bool) -> None:
        """Bring the masked copies in `logs` up to date; `whole` once nothing more will be written. Raises OSError.

        What is copied is given back to the memory. Output whose values are not known stays where it is.
        """
        with self._locks[key]:
            masker = self._masker(key)
            if masker is None:
                return
            for stream in LOG_STREAMS:
                with suppress(FileNotFoundError):
                    _copy(self.raw(key, stream), f"{logs}/{stream}.log", masker, whole=whole)

    # --- its end ---

    def wipe(self, key: str) -> None:
        """Remove a box; none there is no error."""
        with self._locks[key]:
            self._maskers.pop(key, None)
            shutil.rmtree(self._box(key), ignore_errors=True)
        self._locks.pop(key, None)

    def sweep(self, keep: Collection[str]) -> list[str]:
        """Remove all boxes but these, which an earlier life of the daemon left; answers the names of the folders removed."""
        kept = {_name_of(key) for key in keep}
        root = self._open_root()
        left = [box for box in root.iterdir() if box.name not in kept] if root is not None else []
        for box in left:
            shutil.rmtree(box, ignore_errors=True)
        return [box.name for box in left]

    # --- places ---

    def _fresh(self, key: str) -> Path:
        root = self._open_root(make=True)
        if root is None:
            named = ", ".join(map(str, self._places))
            raise OSError(f"none of {named} is a memory file system that this user can have a folder in")
        box = root / _name_of(key)
        if box.exists():
            shutil.rmtree(box)
        box.mkdir(mode=0o700)
        return box

    def _box(self, key: str) -> Path:
        root = self._root or self._open_root()
        return (root or self._places[-1] / self._name) / _name_of(key)

    def _open_root(self, *, make: bool = False) -> Path | None:
        """The node's own folder, where it is: ours, ours alone, and in memory."""
        if self._root is not None and self._root.is_dir():
            return self._root
        for place in self._places:
            path = place / self._name
            if (make and _is_memory(place) and os.access(place, os.W_OK | os.X_OK)) or path.exists():
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                found = path.lstat()  # another user may have been there first
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077:
                    self._root = path
                    return path
        return None

    def _masker(self, key: str) -> Masker | None:
        found = self._maskers.get(key)
        if found is None:
            with suppress(OSError, msgspec.DecodeError):
                values = msgspec.json.decode((self._box(key) / _VALUES).read_bytes(), type=list[bytes])
                found = self._maskers[key] = Masker(values)
        return found


def _name_of(key: str) -> str:
    return key.replace("/", ".")


def _is_memory(path: Path) -> bool:
    """Whether a path lies on a file system that has no disk."""
    best, kind = "", ""
    real = os.path.realpath(path)
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:  # noqa: PTH123
        for line in mounts:
            before, _, behind = line.partition(" - ")
            point = before.split()[4].encode().decode("unicode_escape")
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                best, kind = point, behind.split()[0]
    return kind in _MEMORY


def _as_text(value: bytes) -> str | None:
    try:
        return value.decode() if b"\0" not in value else None
    except UnicodeDecodeError:
        return None


def _write(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _copy(raw: str, masked: str, masker: Masker, *, whole: bool) -> None:
    source = os.open(raw, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(source).st_size
        with suppress(FileNotFoundError):
            if os.stat(masked).st_size >= size:  # noqa: PTH116 - looked at ten times a second
                return
        target = os.open(masked, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _advance(source, target, masker, size, whole=whole)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _advance(source: int, target: int, masker: Masker, size: int, *, whole: bool) -> None:
    done = os.fstat(target).st_size
    size = size if whole else min(size, done + _AT_ONCE)
    reach = max(0, masker.longest - 1)  # how far before it an occurrence that covers a byte may begin
    while done < size:
        base = max(0, done - reach)
        window = os.pread(source, done - base + _CHUNK, base)
        if whole and base + len(window) >= size:
            fresh = masker.mask_end(window)[done - base :]
        else:
            fresh = masker.mask(window)[done - base : masker.settled(window)]
        if not fresh:
            break
        while fresh:
            taken = os.write(target, fresh)
            fresh, done = fresh[taken:], done + taken
    free = max(0, done - reach) // _PAGE * _PAGE
    if free:
        _libc.fallocate(source, _PUNCH, ctypes.c_long(0), ctypes.c_long(free))  # what it does not give back goes with the box
