"""The audit log's chain of seals: how batches of rows are sealed, and how anyone who has the public key verifies them.

A seal is over the hash of each row of a batch and over the digest of the seal before it, and is signed with the coordinator's Ed25519
key. Whoever noted a digest elsewhere notices, too, when the log ends before it.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ostler.protocol.dsse import pae

COLUMNS = "id, at, principal, token_id, role, action, target, status, peer, request_id, detail"
SEAL_COLUMNS = "first_id, last_id, at, leaves, digest, signature"
SEAL_TYPE = "application/vnd.ostler.audit-seal"
CUT_COLUMNS = "last_id, at, digest, signature"
CUT_TYPE = "application/vnd.ostler.audit-cut"
GENESIS = bytes(32)  # what stands for the digest before the first seal
_LEAF = struct.Struct(">q32s")

AuditRow = Sequence[int | str | bytes | None]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Seal:
    """One seal: of the rows `first_id` to `last_id`; `leaves` holds the id and the hash of each."""

    first_id: int
    last_id: int
    at: int
    leaves: bytes
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The coordinator's word that it removed rows up to `last_id` for their age; their seals stay. `digest` is that of the last one."""

    last_id: int
    at: int
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was sealed; `row` is its id in the log where it is about one row."""

    message: str
    row: int | None = None


def leaf(row: AuditRow) -> bytes:
    """The hash of one row: of each column its kind, its length and its bytes, so that no two rows look alike."""
    parts = []
    for value in row:
        if value is None:
            parts.append(b"n;")
            continue
        kind, text = (
            (b"i", b"%d" % value) if isinstance(value, int) else (b"t", value if isinstance(value, bytes) else value.encode())
        )
        parts.append(b"%b%d:%b;" % (kind, len(text), text))
    return hashlib.sha256(b"".join(parts)).digest()


def _digest(previous: bytes, first_id: int, last_id: int, at: int, leaves: bytes) -> bytes:
    return hashlib.sha256(b"ostler audit 1\n" + previous + struct.pack(">qqq", first_id, last_id, at) + leaves).digest()


def seal(rows: Sequence[AuditRow], *, after: int, previous: bytes, at: int, sign: Sign) -> Seal:
    """Seals rows, first to last, behind the row `after`, whose seal's digest is `previous`."""
    leaves = b"".join(_LEAF.pack(row[0], leaf(row)) for row in rows)
    first_id, last_id = after + 1, rows[-1][0]
    if not isinstance(last_id, int):
        raise TypeError("a row begins with its id")
    digest = _digest(previous, first_id, last_id, at, leaves)
    return Seal(first_id, last_id, at, leaves, digest, sign(pae(SEAL_TYPE, digest)))


def cut(last_id: int, at: int, digest: bytes, sign: Sign) -> Cut:
    """A cut behind the seal that ends at `last_id`."""
    return Cut(last_id, at, digest, sign(pae(CUT_TYPE, _of_cut(last_id, at, digest))))


def _of_cut(last_id: int, at: int, digest: bytes) -> bytes:
    return struct.pack(">qq", last_id, at) + digest


@dataclass(slots=True)
class Verifier:
    """Checks seals one after the other. `last_id` and `previous` are those of the seal before the first one to be checked."""

    keys: Sequence[Ed25519PublicKey]
    last_id: int = 0
    previous: bytes = GENESIS
    rows: int = 0
    seals: int = 0
    digests: set[bytes] = field(default_factory=set)
    removed: Cut | None = None

    def allow(self, one: Cut) -> list[Finding]:
        """Rows that were removed for their age are not missed, where the coordinator's key says so."""
        text = _of_cut(one.last_id, one.at, one.digest)
        if not any(_signed(key, one.signature, CUT_TYPE, text) for key in self.keys):
            return [
                Finding(message=f"the note that rows up to {one.last_id} were removed is not signed by the coordinator's key")
            ]
        self.removed = one
        return []

    def check(self, one: Seal, rows: Iterable[AuditRow]) -> list[Finding]:
        """What is wrong with a seal and its rows: all with ids up to its `last_id`, behind those of the seal before."""
        found = []
        known_previous = one.first_id == self.last_id + 1
        if not known_previous:
            missing = f"{self.last_id + 1} to {one.first_id - 1}"
            found.append(Finding(message=f"the seal of rows {missing} is missing: it was removed, or one beside it was changed"))
        name = f"the seal of rows {one.first_id} to {one.last_id}"
        if known_previous and _digest(self.previous, one.first_id, one.last_id, one.at, one.leaves) != one.digest:
            found.append(Finding(message=f"{name} was changed: its digest is not that of its content and the seal before"))
        if not any(_signed(key, one.signature, SEAL_TYPE, one.digest) for key in self.keys):
            found.append(Finding(message=f"{name} is not signed by the coordinator's key"))
        if self.removed is not None and self.removed.last_id == one.last_id and self.removed.digest != one.digest:
            found.append(Finding(message=f"{name} is another than the one up to which rows were removed"))
        found += self._check_rows(one, rows)
        self.last_id, self.previous = one.last_id, one.digest
        self.seals += 1
        self.digests.add(one.digest)
        return found

    def _check_rows(self, one: Seal, rows: Iterable[AuditRow]) -> list[Finding]:
        whole = len(one.leaves) - len(one.leaves) % _LEAF.size
        sealed = dict(_LEAF.iter_unpack(one.leaves[:whole]))
        found = []
        for row in rows:
            number = row[0]
            if not isinstance(number, int) or self.last_id < number < one.first_id:
                continue  # of a seal that is missing, which was said
            self.rows += 1
            expected = sealed.pop(number, None)
            if expected is None:
                found.append(Finding(row=number, message=f"row {number} was added after the rows around it were sealed"))
            elif leaf(row) != expected:
                found.append(Finding(row=number, message=f"row {number} was changed after it was sealed"))
        kept_after = 0 if self.removed is None else self.removed.last_id
        missed = [number for number in sealed if number > kept_after]
        return found + [Finding(row=number, message=f"row {number} was removed after it was sealed") for number in missed]


def _signed(key: Ed25519PublicKey, signature: bytes, kind: str, text: bytes) -> bool:
    try:
        key.verify(signature, pae(kind, text))
    except InvalidSignature:
        return False
    return True


def head_missing(head: bytes) -> Finding:
    """No seal has the digest that was noted."""
    return Finding(message=f"no seal has the digest {head.hex()}: the log was cut off before it, or written anew")
