"""Sealing: what the store keeps of secrets is AES-256-GCM ciphertext, bound to what it belongs to, under a key that is not in the store.

A sealed value is `1 | key id (8) | nonce (12) | ciphertext and tag`. Each purpose has a key of its own, derived from the one that
lies in `DATA/keys/secrets.key`, or that a command (of a key management service) prints at each start.
"""

import base64
import binascii
import os
import secrets
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ostler.coordinator.keys import read_secret
from ostler.model.errors import InvalidSpec, Unsealable

KEY_BYTES = 32
COMMAND_TIMEOUT = timedelta(seconds=30)
_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEAD = 1 + _ID_BYTES
_SAID = 300


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens under one key. `context` says what a value belongs to (owner, name, version, …): it opens for that alone."""

    key: bytes = field(repr=False)
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise InvalidSpec(f"the key of secrets must have {KEY_BYTES} bytes, not {len(self.key)}")
        object.__setattr__(self, "key_id", _derive(self.key, "key-id")[:_ID_BYTES])

    def seal(self, purpose: str, context: Sequence[str], plaintext: bytes) -> bytes:
        """The sealed value; two of the same plaintext differ."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = _VERSION + self.key_id
        return head + nonce + AESGCM(_derive(self.key, purpose)).encrypt(nonce, plaintext, _bound(head, purpose, context))

    def open(self, purpose: str, context: Sequence[str], sealed: bytes) -> bytes:
        """The plaintext; raises Unsealable, which tells nothing of the value."""
        head, nonce, text = sealed[:_HEAD], sealed[_HEAD : _HEAD + _NONCE_BYTES], sealed[_HEAD + _NONCE_BYTES :]
        if head[:1] != _VERSION or len(nonce) != _NONCE_BYTES:
            raise Unsealable(f"a {purpose} in the store is of a form that this release does not know")
        if head[1:] != self.key_id:
            raise Unsealable(
                f"a {purpose} in the store was sealed with the key {head[1:].hex()}; this coordinator has {self.key_id.hex()}",
                hint="start it with the key that sealed it, or set the value anew",
            )
        try:
            return AESGCM(_derive(self.key, purpose)).decrypt(nonce, text, _bound(head, purpose, context))
        except InvalidTag as exc:
            raise Unsealable(f"a {purpose} in the store is damaged, or belongs to something else", hint="set it anew") from exc


def open_sealer(directory: Path, command: Sequence[str] = (), *, timeout: timedelta = COMMAND_TIMEOUT) -> Sealer:
    """The sealer of a coordinator whose keys lie in `directory`: its key from `secrets.key`, made at the first start, or from what
    `command` prints. Blocks. Raises InvalidSpec where others could read the file, it is damaged, or the command fails.
    """
    if command:
        return Sealer(_ask(command, timeout))
    path = directory / "secrets.key"
    key = read_secret(path, lambda: secrets.token_bytes(KEY_BYTES))
    if len(key) != KEY_BYTES:
        raise InvalidSpec(
            f"the key {path} does not hold {KEY_BYTES} bytes",
            hint="restore it from a backup; with a new one every secret must be set anew",
        )
    return Sealer(key)


def _ask(command: Sequence[str], timeout: timedelta) -> bytes:
    """What the command prints, as a key. Neither that nor anything of it stands in an error."""
    what = f"the command that tells the key of secrets ({command[0]})"
    try:
        process = subprocess.Popen(  # the operator's own command, executed as it is, without a shell
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as exc:
        raise InvalidSpec(
            f"{what} cannot be started: {exc.strerror}", hint="see `secrets.key_command` in the configuration"
        ) from exc
    try:
        out, err = process.communicate(timeout=timeout.total_seconds())
    except subprocess.TimeoutExpired as exc:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise InvalidSpec(f"{what} did not end within {timeout.total_seconds():g} s and was killed") from exc
    if process.returncode != 0:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        lines = err.decode(errors="replace").strip().splitlines()
        raise InvalidSpec(f"{what} failed with {how}: {lines[-1][:_SAID] if lines else 'it said nothing'}")
    key = _key_of(out)
    if key is None:
        raise InvalidSpec(
            f"{what} printed {len(out)} bytes that are no key", hint="it must print 32 raw bytes, or those as base64"
        )
    return key


def _key_of(printed: bytes) -> bytes | None:
    if len(printed) == KEY_BYTES:
        return printed
    try:
        key = base64.b64decode(printed.strip().translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"ostler seal v1: {purpose}".encode()).derive(key)


def _bound(head: bytes, purpose: str, context: Sequence[str]) -> bytes:
    return head + msgspec.json.encode([purpose, *context])
