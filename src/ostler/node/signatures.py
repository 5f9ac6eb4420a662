"""Whom a node believes: its own key, the coordinator's pinned one, and the verdict on each assignment."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ostler.model.errors import InvalidSpec
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import codec, dsse
from ostler.protocol.messages import Assignment, register_message
from ostler.protocol.session_key import SessionKey


class NodeKey:
    """The node's Ed25519 key, which never leaves it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public: bytes = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def open(cls, path: Path) -> "NodeKey":
        """Read it, or make it (0600). Raises InvalidSpec for a file that is not such a key, or that others may read."""
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            return cls._make(path)
        if path.stat().st_mode & 0o077:
            raise InvalidSpec(f"the node's key {path} can be read by others", hint=f"chmod 600 {path}")
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise InvalidSpec(
                f"the node's key {path} cannot be read: {exc}", hint="restore it, or remove it and join anew"
            ) from exc
        if not isinstance(private, Ed25519PrivateKey):
            raise InvalidSpec(f"the node's key {path} is not an Ed25519 key", hint="restore it, or remove it and join anew")
        return cls(private)

    @classmethod
    def _make(cls, path: Path) -> "NodeKey":
        private = Ed25519PrivateKey.generate()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # an enrolled key that a power cut takes away would need a new join token
        finally:
            os.close(folder)
        return cls(private)

    def sign(self, message: bytes) -> bytes:
        """A signature over a message that says for what it is."""
        return self._private.sign(message)

    def prove(self, challenge: str, node_id: str, boot_epoch: str) -> bytes:
        """The signature that opens a session."""
        return self._private.sign(register_message(challenge, node_id, boot_epoch))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is assigned, as far as that can be read, and why it is not believed (None: it is)."""

    assignment: Assignment | None
    failure: Failure | None = None


def judge(envelope: dsse.Envelope, trusted: Ed25519PublicKey, node_id: str, session: SessionKey | None = None) -> list[Verdict]:
    """Believe assignments for this node that the pinned key signed, or that bear the MAC of the session's key, and nothing else; one
    verdict for each in the envelope."""
    many = envelope.payloadType == dsse.ASSIGNMENTS_TYPE
    kind = dsse.ASSIGNMENTS_TYPE if many else dsse.ASSIGNMENT_TYPE
    signed = session is not None and dsse.is_sealed(envelope, kind, session.secret, session.keyid)
    signed = signed or dsse.verify(envelope, kind, trusted) is not None
    try:
        each = (
            codec.decode(envelope.payload, tuple[msgspec.Raw, ...], what="list of assignments") if many else (envelope.payload,)
        )
    except InvalidSpec as exc:
        return [_unreadable(exc)]
    return [_verdict(one, signed, node_id) for one in each]


def _verdict(payload: bytes | msgspec.Raw, signed: bool, node_id: str) -> Verdict:
    try:
        assignment = codec.decode(payload, Assignment, what="assignment")
    except InvalidSpec as exc:
        return _unreadable(exc)
    if not signed:
        return Verdict(assignment, Failure(FailureCode.SIGNATURE, "the assignment is not signed by the coordinator's pinned key"))
    if assignment.node_id != node_id:
        message = f"the assignment is for node {assignment.node_id}, this is {node_id}"
        return Verdict(assignment, Failure(FailureCode.SIGNATURE, message))
    return Verdict(assignment)


def _unreadable(exc: InvalidSpec) -> Verdict:
    return Verdict(None, Failure(FailureCode.SIGNATURE, f"an assignment cannot be read: {exc}"))
