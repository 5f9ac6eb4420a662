"""Who this node is: its id, its key, its boot epoch, and the coordinator's key that it pinned."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ostler.node.journal import BOOT_ID, Journal
from ostler.node.signatures import NodeKey
from ostler.protocol.session_key import SessionKey


@dataclass(slots=True)
class Identity:
    """Opened once a life. `boot_epoch` is "<kernel boot id>:<how often the daemon was started>"."""

    node_id: str
    key: NodeKey
    boot_epoch: str
    coordinator_key: Ed25519PublicKey | None
    _journal: Journal
    session: SessionKey | None = None  # that of the session which is open, where both ends agreed on one

    @classmethod
    def open(cls, state: Path, journal: Journal, *, configured: str | None, boot_id: str | None = None) -> "Identity":
        """Read it, or make it: a configured id wins, else the one that was enrolled, else `node-<shortid>`."""
        kept = journal.fact("node_id")
        node_id = configured or (kept.decode() if kept else f"node-{secrets.token_hex(4)}")
        if kept != node_id.encode():
            journal.put_fact("node_id", node_id.encode())
        incarnation = int(journal.fact("incarnation") or b"0") + 1
        journal.put_fact("incarnation", str(incarnation).encode())
        pinned = journal.fact("coordinator_key")
        return cls(
            node_id=node_id,
            key=NodeKey.open(state / "node.key"),
            boot_epoch=f"{boot_id or BOOT_ID.read_text().strip()}:{incarnation}",
            coordinator_key=Ed25519PublicKey.from_public_bytes(pinned) if pinned else None,
            _journal=journal,
        )

    def pin(self, coordinator_key: bytes) -> None:
        """Believe this key from now on, whatever is presented later. Raises ValueError when it is no Ed25519 key."""
        self.coordinator_key = Ed25519PublicKey.from_public_bytes(coordinator_key)
        self._journal.put_fact("coordinator_key", coordinator_key)

    def is_pinned(self, coordinator_key: bytes) -> bool:
        """Whether the presented key is the one that was pinned."""
        return self.coordinator_key is not None and self.coordinator_key.public_bytes_raw() == coordinator_key
