"""Encryption of backups: a random key of the repository, wrapped under a passphrase; files in authenticated blocks.

A file is `OSTLERB1 | salt (16) | blocks`; each block is AES-256-GCM under a key that is derived for this file, with a nonce that
counts the blocks and marks the last one: blocks cannot be left out, moved, or taken from another file, and an end cannot be cut off.
"""

import hmac
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ostler.model.errors import Forbidden, InvalidSpec, Rejected

KEY_BYTES = 32
BLOCK = 2**20
MAGIC = b"OSTLERB1"
_TAG, _SALT, _NONCE = 16, 16, 12
_N, _R, _P = 2**16, 8, 1  # 64 MiB and a quarter of a second for each guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """The repository's key under a passphrase, as it stands in the repository. `key` is `nonce | ciphertext and tag`."""

    salt: bytes
    n: int
    r: int
    p: int
    key: bytes


class Readable(Protocol):
    """What can be read piece by piece."""

    def read(self, size: int, /) -> bytes:
        """So many bytes; fewer at the end alone."""
        ...


def encrypted_size(size: int) -> int:
    """How large a content of so many bytes becomes."""
    return len(MAGIC) + _SALT + size + _TAG * max(1, -(-size // BLOCK))


def read_passphrase(file: Path) -> str:
    """The first line of a file. Raises InvalidSpec where there is none."""
    try:
        with file.open("rb") as content:
            return content.readline().decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "its first line is not text in UTF-8"
        raise InvalidSpec(
            f"the passphrase file {file} cannot be read: {why}", hint="its first line is the passphrase of the backups"
        ) from None


def new_key(passphrase: str) -> "tuple[RepositoryKey, Wrapped]":
    """A random key, and the same wrapped."""
    key, salt, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
    wrapped = nonce + AESGCM(_stretched(passphrase, salt, _N, _R, _P)).encrypt(nonce, key, MAGIC)
    return RepositoryKey(key), Wrapped(salt=salt, n=_N, r=_R, p=_P, key=wrapped)


def unwrap(wrapped: Wrapped, passphrase: str) -> "RepositoryKey":
    """The key; raises Forbidden for another passphrase."""
    if wrapped.n > 2**20 or wrapped.r > 32 or wrapped.p > 16:
        raise Rejected("the backups ask for more work on the passphrase than any of this release's would")
    nonce, text = wrapped.key[:_NONCE], wrapped.key[_NONCE:]
    stretched = _stretched(passphrase, wrapped.salt, wrapped.n, wrapped.r, wrapped.p)
    try:
        return RepositoryKey(AESGCM(stretched).decrypt(nonce, text, MAGIC))
    except InvalidTag as exc:
        raise Forbidden("the passphrase does not open these backups") from exc


def _stretched(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=n, r=r, p=p).derive(passphrase.encode())


@dataclass(frozen=True, slots=True)
class RepositoryKey:
    """What opens and makes the files of a repository."""

    key: bytes = field(repr=False)

    def name_of(self, content: str) -> str:
        """What a content (its sha256 in hex) is called: who reads the directory must not learn which contents it holds."""
        return hmac.digest(_derived(self.key, b"names"), content.encode(), sha256).hex()

    def encrypt(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """A file's content as it is stored."""
        salt = secrets.token_bytes(_SALT)
        cipher = AESGCM(_derived(self.key, salt))
        yield MAGIC + salt
        number, waiting = 0, b""
        for block in blocks:
            waiting += block
            while len(waiting) > BLOCK:
                yield cipher.encrypt(_nonce(number, last=False), waiting[:BLOCK], MAGIC)
                number, waiting = number + 1, waiting[BLOCK:]
        yield cipher.encrypt(_nonce(number, last=True), waiting, MAGIC)

    def decrypt(self, file: Readable, what: str) -> Iterator[bytes]:
        """The content again; raises Rejected at the first block that is not as it was written."""
        head = file.read(len(MAGIC) + _SALT)
        if head[: len(MAGIC)] != MAGIC:
            raise Rejected(f"{what} is not an encrypted file of a backup")
        cipher = AESGCM(_derived(self.key, head[len(MAGIC) :]))
        number, block = 0, file.read(BLOCK + _TAG)
        while True:
            following = file.read(BLOCK + _TAG)
            try:
                yield cipher.decrypt(_nonce(number, last=not following), block, MAGIC)
            except InvalidTag as exc:
                raise Rejected(f"{what} is damaged, or was changed") from exc
            if not following:
                return
            number, block = number + 1, following


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">QxxxB", number, last)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"ostler backup v1: " + purpose).derive(key)
