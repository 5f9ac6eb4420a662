"""A directory of backups: what lies where in it, how files go in and come out, which backups there are, and what none needs any more.

ostler-backups.json     that it is one, and its wrapped key where it is encrypted
objects/ab/cdef…        artifacts and inputs by their sha256 (encrypted: by a keyed hash of it), once for all backups
20260131T200000Z/       one backup: manifest.json, its signature, ostler.db, objects.txt, and keys where asked for
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ostler.coordinator.upkeep import crypt
from ostler.coordinator.upkeep.checksums import TableSum
from ostler.coordinator.upkeep.copying import disk_of, sync
from ostler.model.errors import (
    Conflict,
    Forbidden,
    InvalidSpec,
    NotFound,
    OperationInFlight,
    Rejected,
    StoreBusy,
    UpgradeRequired,
)
from ostler.protocol import codec

FORMAT = 1
MARK = "ostler-backups.json"
# The coordinator's own files that a backup may hold. What stands in a manifest becomes paths, so nothing else is taken from one.
OWN_FILES = ("admin.token", "coordinator.yaml")
OWN_DIRECTORIES = ("keys", "ca")
MANIFEST, SIGNATURE, DATABASE, OBJECTS = "manifest.json", "manifest.sig", "ostler.db", "objects.txt"
BLOCK = 2**20
_PART = ".part-"
_ID = "%Y%m%dT%H%M%SZ"

_OWN = re.compile(rf"{'|'.join(map(re.escape, OWN_FILES))}|(?:{'|'.join(OWN_DIRECTORIES)})/[A-Za-z0-9_-][A-Za-z0-9._-]*")
_OBJECT = re.compile(rb"[0-9a-f]{64} [0-9]{1,18}")

Passphrase = Callable[[], str]  # asked for only where it is needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The repository's own file."""

    format: int
    wrapped: crypt.Wrapped | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a backup, as it lies there: size in bytes, sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup is of, and the checksum of everything in it. `objects` of `object_bytes` bytes in all are named in a file of its
    own; so many as `missing` says were named by the database and not in the artifact store. `keys` are the files of the coordinator's
    own that are in it, `signing_key` its public key, `secrets_key` the id of the key under which its secrets are sealed."""

    format: int
    backup_id: str
    taken_at: datetime
    release: str
    schema: int
    store: str
    tables: Mapping[str, TableSum]
    files: Mapping[str, StoredFile]
    objects: int
    object_bytes: int
    missing: int = 0
    keys: tuple[str, ...] = ()
    signing_key: bytes | None = None
    secrets_key: str | None = None
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Repository:
    """An open repository; `key` is there where it is encrypted and was unlocked."""

    root: Path
    marked: Marked
    key: crypt.RepositoryKey | None = field(default=None, repr=False)

    # --- opening ---

    @classmethod
    def create(cls, root: Path, *, encrypt: bool, passphrase: Passphrase) -> "Repository":
        """Open a repository, making it where there is none: encrypted if asked for, which is settled from then on."""
        if not (root / MARK).exists():
            if root.exists() and any(root.iterdir()):
                raise Conflict(
                    f"{root} is not empty, and holds no backups of Ostler", hint="name an empty or a new directory for them"
                )
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            key, wrapped = crypt.new_key(passphrase()) if encrypt else (None, None)
            marked = Marked(format=FORMAT, wrapped=wrapped)
            write_file(root / MARK, [codec.encode(marked)])
            sync(root)
            return cls(root, marked, key)
        found = cls.open(root).unlocked(passphrase)
        if encrypt and not found.encrypted:
            raise Conflict(f"the backups in {root} are not encrypted", hint="begin a new directory with --encrypt")
        return found

    @classmethod
    def open(cls, root: Path) -> "Repository":
        """Open a repository without its key. Raises NotFound, UpgradeRequired."""
        try:
            marked = codec.decode((root / MARK).read_bytes(), Marked, what=f"file {root / MARK}")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NotFound(f"there are no backups in {root}", hint="`ostler backup create DIR` makes one") from exc
        if marked.format > FORMAT:
            raise UpgradeRequired(f"the backups in {root} were made by a newer release", hint="pipx upgrade ostler")
        return cls(root, marked)

    @property
    def encrypted(self) -> bool:
        """Whether its files need a key."""
        return self.marked.wrapped is not None

    def unlocked(self, passphrase: Passphrase) -> "Repository":
        """The same with its key where it needs one. Raises Forbidden for another passphrase."""
        if self.marked.wrapped is None or self.key is not None:
            return self
        return Repository(self.root, self.marked, crypt.unwrap(self.marked.wrapped, passphrase()))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In here nobody else changes it. Raises OperationInFlight."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as exc:
            raise OperationInFlight(f"another backup works on {self.root}", hint="wait until it is over") from exc
        finally:
            os.close(descriptor)

    # --- backups ---

    def backups(self) -> list[Manifest]:
        """All whole backups, oldest first."""
        found = [self._manifest(path.parent) for path in sorted(self.root.glob(f"[0-9]*/{MANIFEST}"))]
        return sorted(found, key=lambda one: (one.taken_at, one.backup_id))

    def listed(self) -> tuple[list[Manifest], list[Rejected]]:
        """The same with those that can be read alone, and what is wrong with the others."""
        found, wrong = [], []
        for path in sorted(self.root.glob(f"[0-9]*/{MANIFEST}")):
            try:
                found.append(self._manifest(path.parent))
            except Rejected as exc:
                wrong.append(exc)
        return sorted(found, key=lambda one: (one.taken_at, one.backup_id)), wrong

    def find(self, backup_id: str | None) -> Manifest:
        """That backup, or the newest one; its signature and checksum are seen to by `check_signature` and `check_files`."""
        if backup_id is None:
            if not (found := self.backups()):
                raise NotFound(f"there is no whole backup in {self.root}")
            return found[-1]
        place = self.root / backup_id
        if place.parent != self.root or not (place / MANIFEST).is_file():
            raise NotFound(f"there is no backup {backup_id!r} in {self.root}", hint=f"see `ostler backup list {self.root}`")
        return self._manifest(place)

    def _manifest(self, place: Path) -> Manifest:
        try:
            found = codec.decode((place / MANIFEST).read_bytes(), Manifest, what=f"file {place / MANIFEST}")
        except InvalidSpec as exc:
            raise Rejected(
                f"the backup {place} is damaged: {MANIFEST} cannot be read",
                hint=f"`ostler backup list {self.root}` shows the others, which can be named; rm -r {place} removes this one",
            ) from exc
        if found.format > FORMAT:
            raise UpgradeRequired(f"the backup {place} was made by a newer release", hint="pipx upgrade ostler")
        wrong = [name for name in found.keys if not is_own(name)]
        wrong += {*found.files} - {DATABASE, OBJECTS, *found.keys}
        wrong += {DATABASE, OBJECTS, *found.keys} - {*found.files}
        if wrong or found.backup_id != place.name:
            raise Rejected(
                f"the manifest of {place} is not one of Ostler's: {', '.join(wrong) or found.backup_id!r}",
                hint=f"`ostler backup list {self.root}` shows the others, which can be named; rm -r {place} removes this one",
            )
        return found

    def place(self, backup_id: str) -> Path:
        """A backup's own directory."""
        return self.root / backup_id

    @contextlib.contextmanager
    def begin(self, now: datetime) -> Iterator[Path]:
        """A directory for a new backup, which is none before `finish`; what was left unfinished, now or earlier, is removed."""
        for left in self.root.glob(f"{_PART}*"):
            shutil.rmtree(left)
        name = first = now.astimezone(UTC).strftime(_ID)
        count = 1
        while (self.root / name).exists():
            count += 1
            name = f"{first}-{count}"
        part = self.root / f"{_PART}{name}"
        part.mkdir(mode=0o700)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)  # by now it has another name, or is none

    def id_of(self, part: Path) -> str:
        """What a backup that was begun will be called."""
        return part.name.removeprefix(_PART)

    def finish(self, part: Path, manifest: Manifest, sign: Callable[[bytes], bytes] | None) -> None:
        """Make it a backup: everything is durable before its directory has its name."""
        content = codec.encode(manifest)
        write_file(part / MANIFEST, [content])
        if sign is not None:
            write_file(part / SIGNATURE, [base64.b64encode(sign(content)) + b"\n"])
        sync(part)
        part.rename(self.place(manifest.backup_id))
        sync(self.root)

    def check_signature(self, manifest: Manifest, trusted: bytes | None = None) -> bool:
        """Whether the manifest is signed by the coordinator that it names (or by `trusted`, a raw public key). Raises Forbidden where a
        signature is wrong, or a trusted one is missing."""
        place = self.place(manifest.backup_id)
        key = trusted or manifest.signing_key
        if key is None or not (place / SIGNATURE).is_file():
            if trusted is not None:
                raise Forbidden(f"the backup {manifest.backup_id} is not signed")
            return False
        try:
            signature = base64.b64decode((place / SIGNATURE).read_bytes())
            Ed25519PublicKey.from_public_bytes(key).verify(signature, (place / MANIFEST).read_bytes())
        except (InvalidSignature, ValueError) as exc:
            raise Forbidden(
                f"the manifest of the backup {manifest.backup_id} is not as the coordinator signed it",
                hint="another backup may be whole: see `ostler backup list`",
            ) from exc
        return True

    # --- files ---

    def put(self, target: Path, blocks: Iterable[bytes]) -> StoredFile:
        """Write one file of a backup, encrypted where the repository is; what is answered is of the file as it lies there."""
        digest, size = hashlib.sha256(), 0

        def watched() -> Iterator[bytes]:
            nonlocal size
            for block in self.key.encrypt(blocks) if self.key is not None else blocks:
                digest.update(block)
                size += len(block)
                yield block

        write_file(target, watched())
        return StoredFile(size=size, sha256=digest.hexdigest())

    def get(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        """The content of one of a backup's files; raises Rejected where it is not the one that was stored, at its end at the latest."""
        path, wanted = self.place(manifest.backup_id) / name, manifest.files[name]
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                if self.encrypted:
                    if self.key is None:
                        raise Forbidden("the backup is encrypted", hint="give its passphrase: --passphrase-file FILE")
                    yield from self.key.decrypt(file, str(path))
                    return
                while block := file.read(BLOCK):
                    digest.update(block)
                    yield block
        except FileNotFoundError as exc:
            raise Rejected(f"{path} is missing: the backup is not whole") from exc
        if digest.hexdigest() != wanted.sha256:
            raise Rejected(f"{path} is not as it was stored", hint="another backup may be whole: see `ostler backup list`")

    # --- objects ---

    def object_place(self, sha256: str) -> Path:
        """Where a content stands."""
        name = sha256 if self.key is None else self.key.name_of(sha256)
        return self.root / "objects" / name[:2] / name[2:]

    def has_object(self, sha256: str) -> bool:
        """Whether it stands there."""
        return self.object_place(sha256).is_file()

    def put_object(self, sha256: str, source: Path) -> int:
        """Store a content: a second name for the same file where that can be, which costs nothing; else a copy. Answers its size.

        Raises FileNotFoundError where there is no source, Rejected where a copy turns out to be other bytes.
        """
        place = self.object_place(sha256)
        if not place.parent.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(place.parent.parent)
        if self.key is None:
            with contextlib.suppress(OSError):
                os.link(source, place)
                return source.stat().st_size
        write_file(place, self.key.encrypt(_hashed(source, sha256)) if self.key is not None else _hashed(source, sha256))
        return source.stat().st_size

    def get_object(self, sha256: str) -> Iterator[bytes]:
        """Its bytes; raises Rejected where it is missing or not what its name says, at its end at the latest."""
        place, digest = self.object_place(sha256), hashlib.sha256()
        try:
            with place.open("rb") as file:
                for block in self.key.decrypt(file, str(place)) if self.key is not None else iter(lambda: file.read(BLOCK), b""):
                    digest.update(block)
                    yield block
        except FileNotFoundError as exc:
            raise Rejected(f"the content {sha256} is missing in {self.root}") from exc
        if digest.hexdigest() != sha256:
            raise Rejected(f"{place} is damaged: its bytes are not those of the content {sha256}")

    def objects_of(self, manifest: Manifest) -> Iterator[tuple[str, int]]:
        """The contents that belong to a backup, with their sizes."""
        rest = b""
        for block in self.get(manifest, OBJECTS):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if not _OBJECT.fullmatch(line):
                    raise Rejected(f"the list of contents of the backup {manifest.backup_id} is damaged: {line[:100]!r}")
                yield line[:64].decode(), int(line[65:])

    # --- ageing ---

    def prune(self, keep: int, now: datetime) -> tuple[list[str], int]:
        """Remove all but the newest `keep` backups, then the contents that none of those has: which, and how many contents.

        Wants its key, which tells what the contents are called. Where a backup cannot be read no content goes: it may be that one's.
        """
        everything, unreadable = self.listed()
        everything.sort(
            key=lambda one: (one.taken_at <= now, one.taken_at, one.backup_id)
        )  # a clock was ahead: those are not the newest
        gone = everything[:-keep]
        for one in gone:
            place = self.place(one.backup_id)
            dying = self.root / f"{_PART}{one.backup_id}"  # no backup any more, whatever happens now
            place.rename(dying)
            shutil.rmtree(dying)
        if not gone or unreadable:
            return [one.backup_id for one in gone], 0
        needed = {self.object_place(sha256) for one in everything[-keep:] for sha256, _ in self.objects_of(one)}
        unused = [path for path in (self.root / "objects").glob("??/*") if path not in needed]
        for path in unused:
            path.unlink()
        return [one.backup_id for one in gone], len(unused)


def is_own(name: str) -> bool:
    """Whether a file of this name, below the data directory, may be part of a backup."""
    return _OWN.fullmatch(name) is not None


def _hashed(source: Path, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            yield block
    if digest.hexdigest() != sha256:
        raise Rejected(f"the artifact store is damaged: {source} does not hold the content {sha256}")


def write_file(path: Path, blocks: Iterable[bytes]) -> None:
    """A whole file or none, 0600, durable but for its name. Raises StoreBusy where the disk does not let us."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StoreBusy(f"{path} cannot be written: {exc.strerror}", hint=f"df -h {disk_of(path)}") from exc
    finally:
        part.unlink(missing_ok=True)
