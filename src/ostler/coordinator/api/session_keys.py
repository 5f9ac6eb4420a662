"""The keys of sessions that were opened here, in memory alone: whoever lacks one signs, as after a start or at another coordinator."""

from collections import OrderedDict

from ostler.coordinator.keys import Keys
from ostler.protocol import session_key
from ostler.protocol.dsse import Envelope
from ostler.protocol.session_key import SessionKey

KEPT = 100_000  # nodes; the one that registered longest ago is forgotten first


class SessionKeys:
    """One for each node, that of its newest session."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._of: OrderedDict[str, SessionKey] = OrderedDict()

    def agree(self, node_id: str, boot_epoch: str, node_key: bytes) -> Envelope:
        """A new one, and what tells the node of it. Raises ValueError for what is no X25519 key."""
        key, envelope = session_key.agree(node_id, boot_epoch, node_key, self._keys.signing, self._keys.keyid)
        self._of.pop(node_id, None)
        self._of[node_id] = key
        if len(self._of) > KEPT:
            self._of.popitem(last=False)
        return envelope

    def find(self, node_id: str, keyid: str | None) -> SessionKey | None:
        """The one of this name, if it is the node's newest."""
        key = self._of.get(node_id) if keyid is not None else None
        return key if key is not None and key.keyid == keyid else None
