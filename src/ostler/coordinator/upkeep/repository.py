"""A place of backups: what lies where in it, how files go in and come out, which backups there are, and what none needs any more.

ostler-backups.json     that it is one, and its wrapped key where it is encrypted
objects/ab/cdef…        artifacts and inputs by their sha256 (encrypted: by a keyed hash of it), once for all backups
20260131T200000Z/       one backup: manifest.json, its signature, ostler.db, objects.txt, and keys where asked for

A backup is one from the moment on in which its manifest stands there, which is written last and removed first.
"""

import base64
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from ostler.coordinator.upkeep import crypt
from ostler.coordinator.upkeep.checksums import TableSum
from ostler.coordinator.upkeep.places.opening import open_place
from ostler.coordinator.upkeep.places.port import Hold, Place
from ostler.model.errors import Conflict, Forbidden, InvalidSpec, NotFound, OstlerError, Rejected, UpgradeRequired
from ostler.protocol import codec

FORMAT = 1
MARK = "ostler-backups.json"
# The coordinator's own files that a backup may hold. What stands in a manifest becomes paths, so nothing else is taken from one.
OWN_FILES = ("admin.token", "coordinator.yaml")
OWN_DIRECTORIES = ("keys", "ca")
MANIFEST, SIGNATURE, DATABASE, OBJECTS = "manifest.json", "manifest.sig", "ostler.db", "objects.txt"
BLOCK = 2**20
_BATCH = 1000
_SHELVES = "objects"
_ID = "%Y%m%dT%H%M%SZ"
_SKEW = timedelta(minutes=5)  # by which the clocks of two machines may well differ

_OWN = re.compile(rf"{'|'.join(map(re.escape, OWN_FILES))}|(?:{'|'.join(OWN_DIRECTORIES)})/[A-Za-z0-9_-][A-Za-z0-9._-]*")
_OBJECT = re.compile(rb"[0-9a-f]{64} [0-9]{1,18}")
_SHELVED = re.compile(rf"{_SHELVES}/([0-9a-f]{{2}})/([0-9a-f]{{62}})")
# What this release begins a backup in, and (with a dot) what the first ones did: without a manifest it was left by one that was killed.
_BEGUN = re.compile(r"(\.part-)?[0-9]{8}T[0-9]{6}Z(-[0-9a-f]+)?")
_NAMED = re.compile(r"[0-9][A-Za-z0-9._-]*")

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
    taken_at: Annotated[datetime, Meta(tz=True)]
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

    place: Place
    marked: Marked
    key: crypt.RepositoryKey | None = field(default=None, repr=False)

    # --- opening ---

    @classmethod
    def create(cls, address: str | Path, *, encrypt: bool, passphrase: Passphrase) -> "Repository":
        """Open a repository, making it where there is none: encrypted if asked for, which is settled from then on."""
        place = open_place(address)
        try:
            found = cls._opened(place)
        except NotFound:
            if next(place.names(), None) is not None:
                raise Conflict(
                    f"{place.shown} is not empty, and holds no backups of Ostler",
                    hint="name an empty or a new directory for them",
                ) from None
            key, wrapped = crypt.new_key(passphrase()) if encrypt else (None, None)
            marked = Marked(format=FORMAT, wrapped=wrapped)
            if place.claim(MARK, codec.encode(marked)):
                return cls(place, marked, key)
            found = cls._opened(place)  # somebody else has made it meanwhile
        if encrypt and not found.encrypted:
            raise Conflict(f"the backups in {place.shown} are not encrypted", hint="begin a new directory with --encrypt")
        return found.unlocked(passphrase)

    @classmethod
    def open(cls, address: str | Path) -> "Repository":
        """Open a repository without its key. Raises NotFound, UpgradeRequired."""
        return cls._opened(open_place(address))

    @classmethod
    def _opened(cls, place: Place) -> "Repository":
        try:
            marked = codec.decode(place.read(MARK), Marked, what=f"file {place.shown}/{MARK}")
        except FileNotFoundError as exc:
            raise NotFound(f"there are no backups in {place.shown}", hint="`ostler backup create DIR` makes one") from exc
        if marked.format > FORMAT:
            raise UpgradeRequired(f"the backups in {place.shown} were made by a newer release", hint="pipx upgrade ostler")
        return cls(place, marked)

    @property
    def encrypted(self) -> bool:
        """Whether its files need a key."""
        return self.marked.wrapped is not None

    def unlocked(self, passphrase: Passphrase) -> "Repository":
        """The same with its key where it needs one. Raises Forbidden for another passphrase."""
        if self.marked.wrapped is None or self.key is not None:
            return self
        return Repository(self.place, self.marked, crypt.unwrap(self.marked.wrapped, passphrase()))

    # --- backups ---

    def backups(self) -> list[Manifest]:
        """All whole backups, oldest first."""
        found, wrong = self.listed()
        if wrong:
            raise wrong[0]
        return found

    def listed(self) -> tuple[list[Manifest], list[Rejected]]:
        """Those that can be read alone, and what is wrong with the others."""
        found, wrong = [], []
        for folder in filter(_NAMED.fullmatch, self.place.folders()):
            try:
                found.append(self._manifest(folder))
            except Rejected as exc:
                wrong.append(exc)
            except FileNotFoundError:  # one that is not finished, or that goes
                pass
        return sorted(found, key=lambda one: (one.taken_at, one.backup_id)), wrong

    def find(self, backup_id: str | None, now: datetime) -> Manifest:
        """That backup, or the newest one; its signature and checksum are seen to by `check_signature` and `get`.

        Raises Rejected where the newest one would be of a time to come: which is the newest then only a person can tell.
        """
        if backup_id is None:
            return self._newest(now)
        with contextlib.suppress(FileNotFoundError):
            if _NAMED.fullmatch(backup_id):
                return self._manifest(backup_id)
        raise NotFound(
            f"there is no backup {backup_id!r} in {self.place.shown}", hint=f"see `ostler backup list {self.place.shown}`"
        )

    def _newest(self, now: datetime) -> Manifest:
        if not (found := self.backups()):
            raise NotFound(f"there is no whole backup in {self.place.shown}")
        newest = found[-1]
        if newest.taken_at <= now + _SKEW:
            return newest
        others = [one.backup_id for one in found if one.taken_at <= now + _SKEW]
        raise Rejected(
            f"the backup {newest.backup_id} was taken at {newest.taken_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, which is still to come: "
            "the clock there was ahead, or the one here is behind",
            hint=f"name the one that you mean{f'; the newest of the others is {others[-1]}' if others else ''}",
        )

    def _manifest(self, folder: str) -> Manifest:
        shown, content = f"{self.place.shown}/{folder}", self.place.read(f"{folder}/{MANIFEST}")
        hint = (
            f"`ostler backup list {self.place.shown}` shows the others, which can be named; "
            f"{self.place.removal(folder)} removes this one"
        )
        try:
            found = codec.decode(content, Manifest, what=f"file {shown}/{MANIFEST}")
        except InvalidSpec as exc:
            raise Rejected(f"the backup {shown} is damaged: {MANIFEST} cannot be read", hint=hint) from exc
        if found.format > FORMAT:
            raise UpgradeRequired(f"the backup {shown} was made by a newer release", hint="pipx upgrade ostler")
        wrong = [name for name in found.keys if not is_own(name)]
        wrong += {*found.files} - {DATABASE, OBJECTS, *found.keys}
        wrong += {DATABASE, OBJECTS, *found.keys} - {*found.files}
        if wrong or found.backup_id != folder:
            what = ", ".join(wrong) or repr(found.backup_id)
            raise Rejected(f"the manifest of {shown} is not one of Ostler's: {what}", hint=hint)
        return found

    @contextlib.contextmanager
    def begin(self, now: datetime) -> Iterator["Begun"]:
        """A folder for a new backup, which is none before `finish`; what was left unfinished, now or earlier, is removed."""
        with self.place.hold(prune=False) as hold:
            if hold.alone:
                self._drop_left()
            begun = Begun(self.place.new_folder(now.astimezone(UTC).strftime(_ID)), hold)
            try:
                yield begun
            except BaseException:
                with contextlib.suppress(OstlerError):
                    self._remove(begun.backup_id)
                raise

    def _remove(self, folder: str) -> None:
        self.place.remove([f"{folder}/{MANIFEST}"])  # no backup any more, whatever happens now
        self.place.drop(folder)

    def _drop_left(self) -> None:
        for folder in filter(_BEGUN.fullmatch, self.place.folders()):
            try:
                self.place.read(f"{folder}/{MANIFEST}")
            except FileNotFoundError:
                self.place.drop(folder)

    def finish(self, begun: "Begun", manifest: Manifest, sign: Callable[[bytes], bytes] | None) -> None:
        """Make it a backup: everything is durable before its manifest stands there."""
        folder, content = begun.backup_id, codec.encode(manifest)
        if sign is not None:
            self._write(f"{folder}/{SIGNATURE}", base64.b64encode(sign(content)) + b"\n")
        self.place.settle(_SHELVES)
        self.place.settle(folder)
        if Repository._opened(self.place).marked != self.marked:
            raise Conflict(f"the backups in {self.place.shown} were begun anew meanwhile", hint="take the backup again")
        begun.hold.check()
        self._write(f"{folder}/{MANIFEST}", content)
        self.place.settle(folder)
        begun.hold.check()  # else what it names may have gone just before: then it is none

    def _write(self, name: str, content: bytes) -> None:
        self.place.write(name, [content], len(content))

    def check_signature(self, manifest: Manifest, trusted: bytes | None = None) -> bool:
        """Whether the manifest is signed by the coordinator that it names (or by `trusted`, a raw public key). Raises Forbidden where a
        signature is wrong, or a trusted one is missing."""
        folder, key = manifest.backup_id, trusted or manifest.signing_key
        signature = None
        with contextlib.suppress(FileNotFoundError):
            signature = self.place.read(f"{folder}/{SIGNATURE}")
        if key is None or signature is None:
            if trusted is not None:
                raise Forbidden(f"the backup {folder} is not signed")
            return False
        try:
            signed = self.place.read(f"{folder}/{MANIFEST}")
            Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(signature), signed)
        except (InvalidSignature, ValueError) as exc:
            raise Forbidden(
                f"the manifest of the backup {folder} is not as the coordinator signed it",
                hint="another backup may be whole: see `ostler backup list`",
            ) from exc
        return True

    # --- files ---

    def local(self, begun: "Begun", name: str) -> Path | None:
        """The file on this machine that a file of a backup is, where it is one as it stands."""
        return self.place.local(f"{begun.backup_id}/{name}") if self.key is None else None

    def put(self, begun: "Begun", name: str, blocks: Iterable[bytes], size: int) -> StoredFile:
        """Write one file of a backup, encrypted where the repository is; what is answered is of the file as it lies there."""
        source = _Watched(self.key.encrypt(blocks) if self.key is not None else blocks)
        self.place.write(f"{begun.backup_id}/{name}", source, self._stored_size(size))
        return source.found

    def get(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        """The content of one of a backup's files; raises Rejected where it is not the one that was stored, at its end at the latest."""
        path = f"{manifest.backup_id}/{name}"
        shown = f"{self.place.shown}/{path}"
        source = _Watched(self.place.stream(path))
        try:
            yield from self._decrypted(source, shown)
        except FileNotFoundError as exc:
            raise Rejected(f"{shown} is missing: the backup is not whole") from exc
        if source.found != manifest.files[name]:
            raise Rejected(f"{shown} is not as it was stored", hint="another backup may be whole: see `ostler backup list`")

    def _decrypted(self, source: "_Watched", shown: str) -> Iterator[bytes]:
        if not self.encrypted:
            yield from source
            return
        if self.key is None:
            raise Forbidden("the backup is encrypted", hint="give its passphrase: --passphrase-file FILE")
        yield from self.key.decrypt(source, shown)

    def _stored_size(self, size: int) -> int:
        return size if self.key is None else crypt.encrypted_size(size)

    # --- objects ---

    def _object_name(self, sha256: str) -> str:
        name = sha256 if self.key is None else self.key.name_of(sha256)
        return f"{_SHELVES}/{name[:2]}/{name[2:]}"

    def objects(self) -> "Objects":
        """The contents that stand there now."""
        return Objects(self._object_name, set(filter(None, map(_digest, self.place.names(_SHELVES)))))

    def put_object(self, sha256: str, source: Path) -> int:
        """Store a content: a second name for the same file where that can be, which costs nothing; else a copy. Answers its size.

        Raises FileNotFoundError where there is no source, Rejected where a copy turns out to be other bytes.
        """
        name, size = self._object_name(sha256), source.stat().st_size
        if self.key is None and (place := self.place.local(name)) is not None:
            with contextlib.suppress(OSError):
                os.link(source, place)
                return size
        blocks = _hashed(source, sha256)
        self.place.write(name, self.key.encrypt(blocks) if self.key is not None else blocks, self._stored_size(size))
        return size

    def get_object(self, sha256: str) -> Iterator[bytes]:
        """Its bytes; raises Rejected where it is missing or not what its name says, at its end at the latest."""
        name, digest = self._object_name(sha256), hashlib.sha256()
        shown = f"{self.place.shown}/{name}"
        try:
            for block in self._decrypted(_Watched(self.place.stream(name)), shown):
                digest.update(block)
                yield block
        except FileNotFoundError as exc:
            raise Rejected(f"the content {sha256} is missing in {self.place.shown}") from exc
        if digest.hexdigest() != sha256:
            raise Rejected(f"{shown} is damaged: its bytes are not those of the content {sha256}")

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

    def prune(self, keep: int, now: datetime) -> "Pruned":
        """Remove all but the newest `keep` backups, then the contents that none of those has.

        Wants its key, which tells what the contents are called. Where a backup cannot be read no content goes: it may be that one's.
        """
        with self.place.hold(prune=True) as hold:
            everything, unreadable = self.listed()
            everything.sort(
                key=lambda one: (one.taken_at <= now, one.taken_at, one.backup_id)
            )  # a clock was ahead: those are not the newest
            gone = [one.backup_id for one in everything[:-keep]]
            for folder in gone:
                self._remove(folder)
            if not hold.alone or unreadable:
                return Pruned(tuple(gone), 0, spared=not hold.alone)
            self._drop_left()
            needed = {_digest(self._object_name(sha256)) for one in everything[-keep:] for sha256, _ in self.objects_of(one)}
            unused = [name for name in self.place.names(_SHELVES) if _digest(name) not in needed]
            for start in range(0, len(unused), _BATCH):
                hold.check()
                self.place.remove(unused[start : start + _BATCH])
            return Pruned(tuple(gone), len(unused))


@dataclass(frozen=True, slots=True)
class Begun:
    """A backup that is being made."""

    backup_id: str
    hold: Hold


@dataclass(frozen=True, slots=True)
class Pruned:
    """Which backups went, and how many contents. `spared`: none of those, since another backup was being taken."""

    backups: tuple[str, ...]
    objects: int
    spared: bool = False


@dataclass(frozen=True, slots=True)
class Objects:
    """Contents that stand in a repository."""

    name: Callable[[str], str]
    found: Container[bytes | None]

    def __contains__(self, sha256: str) -> bool:
        return _digest(self.name(sha256)) in self.found


def _digest(name: str) -> bytes | None:
    """A content's name as so few bytes as can be: there may be a million. None where it is no content's."""
    found = _SHELVED.fullmatch(name)
    return None if found is None else bytes.fromhex(found[1] + found[2])


class _Watched:
    """Blocks, which can be read as a file, and what they were in all."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._rest = iter(blocks), b""
        self._digest, self._size = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self._digest.update(block)
            self._size += len(block)
            yield block

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end alone."""
        parts, have = [self._rest], len(self._rest)
        while have < size and (block := next(iter(self), None)) is not None:
            parts.append(block)
            have += len(block)
        content = b"".join(parts)
        self._rest = content[size:]
        return content[:size]

    @property
    def found(self) -> StoredFile:
        """All blocks so far."""
        return StoredFile(size=self._size, sha256=self._digest.hexdigest())


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
