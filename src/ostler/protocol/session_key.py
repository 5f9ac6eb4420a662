"""A session's key: what a coordinator hands out in a session bears a MAC instead of a signature, at a fifth of the cost (ADR 46).

Both sides make an X25519 key for the session and no other one, and derive from them what they share (sources: RFC 7748, RFC 5869). The
node believes the coordinator's half because the key that it pinned signed it, together with the node's own half.
"""

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from ostler.model.errors import InvalidSpec
from ostler.protocol import codec, dsse

TYPE = "application/vnd.ostler.session-key+json"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What both ends know: `keyid` names it, `secret` (32 bytes) never shows."""

    keyid: str
    secret: bytes = field(repr=False)


class Agreement(Struct, frozen=True, kw_only=True):
    """The signed payload: whose session it is, and both public halves (raw X25519)."""

    node_id: str
    boot_epoch: str
    node_key: bytes
    coordinator_key: bytes


def agree(
    node_id: str, boot_epoch: str, node_key: bytes, signing: Ed25519PrivateKey, keyid: str
) -> tuple[SessionKey, dsse.Envelope]:
    """The coordinator's part: the key, and what tells the node. Raises ValueError where the node's half is none."""
    own = X25519PrivateKey.generate()
    said = Agreement(
        node_id=node_id, boot_epoch=boot_epoch, node_key=node_key, coordinator_key=own.public_key().public_bytes_raw()
    )
    payload = codec.encode(said)
    return _derived(own, node_key, payload), dsse.sign(payload, TYPE, signing, keyid)


def accept(
    envelope: dsse.Envelope, own: X25519PrivateKey, trusted: Ed25519PublicKey, *, node_id: str, boot_epoch: str
) -> SessionKey | None:
    """The node's part; None for what the trusted key did not sign for this session and this half."""
    payload = dsse.verify(envelope, TYPE, trusted)
    if payload is None:
        return None
    try:
        said = codec.decode(payload, Agreement, what="agreement on a session's key")
        if (said.node_id, said.boot_epoch, said.node_key) != (node_id, boot_epoch, own.public_key().public_bytes_raw()):
            return None
        return _derived(own, said.coordinator_key, payload)
    except (InvalidSpec, ValueError):
        return None


def _derived(own: X25519PrivateKey, other: bytes, payload: bytes) -> SessionKey:
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))  # ValueError where the other half is no sound one
    secret = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=dsse.pae(TYPE, payload)).derive(shared)
    return SessionKey(f"session-{hashlib.sha256(payload).hexdigest()[:16]}", secret)
