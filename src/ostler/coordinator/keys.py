"""The coordinator's own secrets: the Ed25519 key that signs assignments, and the secret behind node tokens and challenges."""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ostler.model.errors import InvalidSpec
from ostler.protocol.dsse import key_id

KEY_BYTES = 32
MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Keys:
    """What only this coordinator has. `public` is the raw Ed25519 key that nodes pin; secrets never show in a repr."""

    signing: Ed25519PrivateKey = field(repr=False)
    secret: bytes = field(repr=False)
    public: bytes
    keyid: str

    @classmethod
    def of(cls, seed: bytes, secret: bytes) -> "Keys":
        """Keys from a raw 32-byte Ed25519 seed and a 32-byte secret."""
        signing = Ed25519PrivateKey.from_private_bytes(seed)
        public = signing.public_key().public_bytes_raw()
        return cls(signing, secret, public, key_id(public))

    def derive(self, purpose: str) -> bytes:
        """A secret for one purpose, so that what is made for one can never be shown for another."""
        return hmac.digest(self.secret, purpose.encode(), hashlib.sha256)


def open_keys(directory: Path) -> Keys:
    """Reads the keys, making them at the first start; raises InvalidSpec where others could read them or they are damaged."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        raise InvalidSpec(f"others can reach the keys in {directory}", hint=f"chmod 700 {directory}")
    return Keys.of(_key_file(directory / "signing.key"), _key_file(directory / "hmac.key"))


def _key_file(path: Path) -> bytes:
    content = read_secret(path, lambda: secrets.token_bytes(KEY_BYTES))
    if len(content) != KEY_BYTES:
        raise InvalidSpec(
            f"the key {path} does not hold {KEY_BYTES} bytes",
            hint="restore it from a backup; a new one makes every node join anew",
        )
    return content


def read_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """A secret's file, made 0600 where there is none; raises InvalidSpec where others can read it."""
    if not path.exists():
        _create(path, make())
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise InvalidSpec(f"others can read {path}", hint=f"chmod 600 {path}")
        return file.read(MAX_BYTES)


def _create(path: Path, content: bytes) -> None:
    """A whole file or none, 0600 from its first byte; where two processes start at once, the first one's key stands."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
