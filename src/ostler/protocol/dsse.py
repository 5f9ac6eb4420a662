"""Signed envelopes: DSSE v1 with Ed25519 (source: the Dead Simple Signing Envelope specification).

What runs is an immutable byte string, the spec; what the coordinator adds is the assignment. One envelope covers both, and for a
caller that can read that, all that one poll brings: a signature costs more than anything else in it (0.03 ms to make, 0.1 to verify;
0.1 and 0.2 where nothing was to be done for a while). What is handed out in a session may bear a MAC instead (`session_key`).
"""

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ASSIGNMENT_TYPE = "application/vnd.ostler.assignment+json"
ASSIGNMENTS_TYPE = "application/vnd.ostler.assignments+json"  # a list of them
MAC_BYTES = 32
_P = 2**255 - 19
_Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022  # of a point of order 8
_SMALL = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: `keyid` hints at the key, `sig` holds the raw bytes (base64 in JSON)."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its type and signatures; field names as the DSSE specification spells them."""

    payload: bytes
    payloadType: str  # noqa: N815 - the specification's name
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(public_key: bytes) -> str:
    """A short name of a raw 32-byte Ed25519 public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def is_public_key(raw: bytes) -> bool:
    """Whether these bytes may stand for who signs (source: RFC 8032, sections 5.1.3 and 8.4).

    Not where they hold the y of one of the eight points of small order, for which anybody makes signatures that the library finds good;
    nor where they are a second way to write a key.
    """
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    return len(raw) == 32 and y < _P and y not in _SMALL


def sign(payload: bytes, payload_type: str, key: Ed25519PrivateKey, keyid: str) -> Envelope:
    """An envelope with one signature."""
    return Envelope(payload, payload_type, (Signature(keyid, key.sign(pae(payload_type, payload))),))


def seal(payload: bytes, payload_type: str, secret: bytes, keyid: str) -> Envelope:
    """An envelope that whoever shares the secret made: with a MAC in the place of a signature (keyed BLAKE2b, source: RFC 7693)."""
    return Envelope(payload, payload_type, (Signature(keyid, _mac(secret, pae(payload_type, payload))),))


def _mac(secret: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=secret, digest_size=MAC_BYTES).digest()


def is_sealed(envelope: Envelope, payload_type: str, secret: bytes, keyid: str) -> bool:
    """Whether its type is the expected one, and it was made with this secret."""
    if envelope.payloadType != payload_type or len(envelope.signatures) != 1 or envelope.signatures[0].keyid != keyid:
        return False
    return hmac.compare_digest(envelope.signatures[0].sig, _mac(secret, pae(payload_type, envelope.payload)))


def verify(envelope: Envelope, payload_type: str, trusted: Ed25519PublicKey) -> bytes | None:
    """The payload when its type is the expected one and a signature is by the trusted key, else None."""
    if envelope.payloadType != payload_type:
        return None
    message = pae(payload_type, envelope.payload)
    for signature in envelope.signatures[:8]:
        try:
            trusted.verify(signature.sig, message)
        except InvalidSignature:
            continue
        return envelope.payload
    return None
