"""A release as one file: a tar archive of a signed manifest (`release.json`, a DSSE envelope) and of the files that it names.

Nothing is believed before it is checked: the heads by a form of their own (`members`), the signature, then each file's name, size and
hash while it is read. For a host of one platform the files that others need may be left out, and the wheels that it has already.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from ostler.fleet.host import ed25519
from ostler.fleet.host.members import PIECE, Members
from ostler.fleet.host.refusals import Refused

FORMAT = 1
TYPE = "application/vnd.ostler.release+json"
MANIFEST = "release.json"
MAX_MANIFEST = 1 << 20
MAX_KEYS = 64
MAX_FILE = 1 << 30
BLOCK = PIECE

_PART = re.compile(r"(?a)[A-Za-z0-9_][A-Za-z0-9._+@!-]{0,199}")
_VERSION = re.compile(r"(?a)[0-9][A-Za-z0-9.+!-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLATFORM = re.compile(r"(?a)cp3[0-9]{1,2}-[a-z0-9_]{1,20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a release; `platforms` are those that need it (`cp311-x86_64`), none: all. `unpacked` is the digest of what comes out
    of a wheel (`wheels.digest`), None: nobody has said."""

    path: str
    sha256: str
    size: int
    platforms: tuple[str, ...] = ()
    unpacked: str | None = None

    def serves(self, platform: str) -> bool:
        """Whether a host of this platform needs it."""
        return not self.platforms or platform in self.platforms


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a release is. `keys` are the release keys, raw, by their ids, to be trusted from this release on, where `generation` is
    newer than what a host has; `protocol` is the oldest and the newest that it speaks, `schema` the newest that it knows, `made` when
    its commit was made, in seconds since 1970 (0: nobody knows).
    """

    version: str
    commit: str | None
    protocol: tuple[int, int]
    schema: int
    platforms: tuple[str, ...]
    files: Mapping[str, File]
    generation: int
    keys: Mapping[str, bytes]
    digest: str  # sha256 of the manifest's bytes
    signed_by: tuple[str, ...]  # the keys of those above that signed it
    made: int = 0

    @property
    def release(self) -> str:
        """The id: by the content, so that the same id is the same release everywhere."""
        return f"{self.version}-{self.digest[:12]}"

    @property
    def age(self) -> tuple[tuple[int, ...], int]:
        """What says which of two releases is older: the numbers of its version, then when it was made."""
        numbers = re.match(r"(?a)[0-9]{1,9}(\.[0-9]{1,9})*", self.version)
        return tuple(map(int, numbers[0].split("."))) if numbers else (), self.made


def pae(payload: bytes) -> bytes:
    """What is signed of a manifest (source: the DSSE specification, pre-authentication encoding)."""
    return b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE.encode(), len(payload), payload)


def key_id(public: bytes) -> str:
    """A short name of a raw public key."""
    return hashlib.sha256(public).hexdigest()[:16]


def read_manifest(envelope: bytes, trusted: Mapping[str, bytes] | None) -> Manifest:
    """The manifest of an envelope that one of the `trusted` keys signed (None: one of those that it brings). Raises Refused."""
    if len(envelope) > MAX_MANIFEST:
        raise Refused("unfit", f"the bundle's manifest has more than {MAX_MANIFEST} bytes")
    try:
        outer = json.loads(envelope)
        payload = base64.b64decode(outer["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in outer["signatures"][:8]]
        inner = json.loads(payload)
        if outer["payloadType"] != TYPE:
            raise Refused("unfit", f"the bundle's manifest is of the type {outer['payloadType']!r:.80}, not {TYPE}")
        if inner["format"] != FORMAT:
            raise Refused("unfit", f"the bundle has format {inner['format']!r:.80}; this program reads {FORMAT}")
        manifest = _manifest(inner, hashlib.sha256(payload).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise Refused("unfit", f"the bundle's manifest is damaged: {exc!r:.300}") from None
    message = pae(payload)
    keys = manifest.keys if trusted is None else trusted
    signed = [name for name, key in keys.items() if any(ed25519.verify(key, message, one) for one in signatures)]
    if not signed:
        known = ", ".join(sorted(keys)) or "none"
        raise Refused("untrusted", f"release {manifest.release} is signed by no key that is trusted here (trusted: {known})")
    return Manifest(**{**{name: getattr(manifest, name) for name in Manifest.__slots__}, "signed_by": tuple(signed)})


def unsigned(envelope: bytes) -> Manifest:
    """What an envelope says that was checked before, whoever signed it. Raises ValueError."""
    try:
        payload = base64.b64decode(json.loads(envelope)["payload"])
        return _manifest(json.loads(payload), hashlib.sha256(payload).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise ValueError(f"it is damaged: {exc!r:.300}") from None


def _manifest(inner: dict[str, Any], digest: str) -> Manifest:
    files: dict[str, File] = {}
    for one in inner["files"]:
        file = File(
            path=one["path"], sha256=one["sha256"], size=one["size"], platforms=tuple(one.get("platforms", ())),
            unpacked=one.get("unpacked"),
        )  # fmt: skip
        if file.path in files or not _plain(file.path) or not 0 <= file.size <= MAX_FILE:
            raise ValueError(f"the file {file.path!r:.100} cannot be part of a release")
        if file.unpacked is not None and not _DIGEST.fullmatch(file.unpacked):
            raise ValueError(f"what comes out of {file.path!r:.100} has no such digest")
        files[file.path] = file
    if _VERSION.fullmatch(inner["version"]) is None or not all(_PLATFORM.fullmatch(one) for one in inner["platforms"]):
        raise ValueError("version or platforms are not such")
    if not (inner["commit"] is None or isinstance(inner["commit"], str)) or len(inner["keys"]["trusted"]) > MAX_KEYS:
        raise ValueError(f"the commit is none, or there are more than {MAX_KEYS} keys")
    keys = {one["id"]: base64.b64decode(one["public"], validate=True) for one in inner["keys"]["trusted"]}
    for name, key in keys.items():
        if name != key_id(key):
            raise ValueError("a key has another one's id")
        if not ed25519.is_public_key(key):
            raise ValueError(f"the key {name} is no sound Ed25519 public key")
    low, high = inner["protocol"]
    return Manifest(
        version=inner["version"], commit=inner["commit"], protocol=(int(low), int(high)), schema=int(inner["schema"]),
        platforms=tuple(inner["platforms"]), files=files, generation=int(inner["keys"]["generation"]), keys=keys, digest=digest,
        signed_by=(), made=max(0, int(inner.get("made", 0))),
    )  # fmt: skip


def _plain(path: str) -> bool:
    """Whether a path is relative, and of ordinary names alone."""
    parts = path.split("/")
    return path != MANIFEST and len(parts) <= 8 and all(_PART.fullmatch(one) for one in parts)


@contextmanager
def opened(bundle: IO[bytes], trusted: Mapping[str, bytes] | None) -> Iterator[tuple[Manifest, bytes, "Contents"]]:
    """A bundle's manifest, the envelope it stood in, and its files, to be read once as they come. Raises Refused."""
    members = Members(bundle)
    first = members.next()
    if first is None or first[0] != MANIFEST or first[1] > MAX_MANIFEST:
        raise Refused("unfit", f"this is not the bundle of a release: it does not begin with {MANIFEST}")
    envelope = b"".join(iter(members.read, b""))
    manifest = read_manifest(envelope, trusted)
    yield manifest, envelope, Contents(members, manifest)


class Contents:
    """The files of an open bundle, in the archive's order."""

    def __init__(self, members: Members, manifest: Manifest) -> None:
        self._members, self._manifest = members, manifest

    def read(self, platform: str | None = None, *, spared: Collection[str] = ()) -> Iterator[tuple[File, "Checked"]]:
        """Each file, to be read whole before the next. After the last one all were there that the platform needs (None: all files of
        the manifest) but the `spared` paths, and nothing that the manifest does not name. Raises Refused (missing, where one lacks).
        """
        left = dict(self._manifest.files)
        while (member := self._members.next()) is not None:
            name, size = member
            file = left.pop(name, None)
            if file is None or size != file.size:
                raise Refused("unfit", f"the bundle has {name!r}, which its manifest does not name so")
            checked = Checked(file, self._members)
            yield file, checked
            checked.finish()
        self._members.end()
        lacking = [one.path for one in left.values() if (platform is None or one.serves(platform)) and one.path not in spared]
        if lacking:
            raise Refused("missing", f"the bundle lacks {', '.join(sorted(lacking)[:3])}")


class Checked:
    """One file's bytes, hashed as they are read."""

    def __init__(self, file: File, members: Members) -> None:
        self._file, self._members, self._hash = file, members, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        """Its bytes in blocks."""
        while block := self._members.read():
            self._hash.update(block)
            yield block

    def finish(self) -> None:
        """Read what is left; raises Refused where it is not what the manifest names."""
        for _ in self:
            pass
        if self._hash.hexdigest() != self._file.sha256:
            raise Refused("unfit", f"{self._file.path} in the bundle is damaged: its hash is not the manifest's")
