"""The release keys of an operator: those that sign what is built, and the public ones that hosts trust from then on.

One directory: `trusted.json` (no secret) and a file `ID.key` (0600, the raw Ed25519 seed) for each key that signs. Rotation with
overlap: a new key signs beside the old one; once every host runs a release that both signed, the old one is retired.
"""

import base64
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ostler.fleet.host.archive import TYPE, key_id
from ostler.model.errors import InvalidSpec, NotFound, Rejected
from ostler.protocol import dsse

_SEED = 32
_LIST = "trusted.json"


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """`trusted` are raw public keys by id; `generation` counts the changes of that set; `signing` are those that are kept here."""

    directory: Path
    generation: int = 0
    trusted: Mapping[str, bytes] = field(default_factory=dict)
    signing: Mapping[str, Ed25519PrivateKey] = field(default_factory=dict, repr=False)

    def envelope(self, payload: bytes) -> bytes:
        """The signed manifest as it stands in a bundle: by all keys that sign. Raises Rejected without one."""
        if not self.signing:
            raise Rejected(f"{self.directory} has no key that signs releases", hint="make one: ostler release key new")
        parts = [dsse.sign(payload, TYPE, key, name).signatures[0] for name, key in sorted(self.signing.items())]
        outer = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": TYPE,
            "signatures": [{"keyid": one.keyid, "sig": base64.b64encode(one.sig).decode()} for one in parts],
        }
        return json.dumps(outer, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def with_new(self) -> "ReleaseKeys":
        """A new key, which signs from now on beside those that are there. It is on the disk before this returns."""
        seed = secrets.token_bytes(_SEED)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        public = key.public_key().public_bytes_raw()
        name = key_id(public)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.directory / f"{name}.key", seed)
        changed = replace(
            self, generation=self.generation + 1, trusted={**self.trusted, name: public}, signing={**self.signing, name: key}
        )
        changed._save()
        return changed

    def without(self, name: str) -> "ReleaseKeys":
        """A key is retired: it signs no more, and hosts forget it with the next release. Raises NotFound, Rejected."""
        if name not in self.trusted:
            raise NotFound(f"there is no release key {name}", hint="ostler release key list")
        if set(self.signing) <= {name}:
            raise Rejected(
                f"{name} is the only key that signs",
                hint="make its successor first, and bring a release to all hosts that both signed",
            )
        changed = replace(
            self,
            generation=self.generation + 1,
            trusted={one: key for one, key in self.trusted.items() if one != name},
            signing={one: key for one, key in self.signing.items() if one != name},
        )
        changed._save()
        (self.directory / f"{name}.key").unlink(missing_ok=True)
        return changed

    def _save(self) -> None:
        keys = [{"id": name, "public": base64.b64encode(key).decode()} for name, key in sorted(self.trusted.items())]
        _write(self.directory / _LIST, json.dumps({"generation": self.generation, "trusted": keys}, indent=1).encode() + b"\n")


def open_keys(directory: Path) -> ReleaseKeys:
    """What a directory has; none where there is none. Raises InvalidSpec where others can read a key, or something is damaged."""
    if not directory.exists():
        return ReleaseKeys(directory)
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        raise InvalidSpec(f"others can reach the release keys in {directory}", hint=f"chmod 700 {directory}")
    try:
        found: dict[str, Any] = json.loads((directory / _LIST).read_text())
        trusted = {one["id"]: base64.b64decode(one["public"], validate=True) for one in found["trusted"]}
        generation = int(found["generation"])
    except FileNotFoundError:
        return ReleaseKeys(directory)
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidSpec(f"{directory / _LIST} is damaged: {exc!r}", hint="restore it from a backup") from None
    if weak := [name for name, key in trusted.items() if not dsse.is_public_key(key)]:
        raise InvalidSpec(
            f"{directory / _LIST} names {', '.join(weak)}, which is no sound Ed25519 public key: anybody could sign for it",
            hint="take it out of the file, or restore the file from a backup",
        )
    return ReleaseKeys(
        directory, generation, trusted, {name: _read(directory, name) for name in trusted if _has(directory, name)}
    )


def _has(directory: Path, name: str) -> bool:
    return (directory / f"{name}.key").exists()


def _read(directory: Path, name: str) -> Ed25519PrivateKey:
    path = directory / f"{name}.key"
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            raise InvalidSpec(f"others can read {path}", hint=f"chmod 600 {path}")
        seed = file.read(_SEED + 1)
    if len(seed) != _SEED:
        raise InvalidSpec(f"{path} does not hold {_SEED} bytes", hint="restore it from a backup")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    if key_id(key.public_key().public_bytes_raw()) != name:
        raise InvalidSpec(f"{path} is another key than its name says", hint="restore it from a backup")
    return key


def _write(path: Path, content: bytes) -> None:
    """A file of our own alone, whole or not at all, on the disk before this returns."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
