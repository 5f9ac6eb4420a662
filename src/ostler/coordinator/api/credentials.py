"""Node tokens and registration challenges: signed with secrets derived from the coordinator's key, so none is stored."""

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ostler.coordinator.keys import Keys
from ostler.model.errors import InvalidSpec, Unauthenticated
from ostler.protocol import codec
from ostler.runtime.clock import Clock

NODE_PREFIX = "ostler_node_"
CHALLENGE_TTL = timedelta(minutes=2)
REMEMBER = 20_000  # node tokens


@dataclass(frozen=True, slots=True)
class NodeToken:
    """What a node token says; `exp` is in seconds since 1970 by the coordinator's clock."""

    node_id: str
    boot_epoch: str
    exp: float
    protocol: int = 1  # that the node speaks; a coordinator of another release may find it outside its window

    @property
    def expires_at(self) -> datetime:
        """When it ends, as aware UTC."""
        return datetime.fromtimestamp(self.exp, UTC)


class Credentials:
    """Mints and verifies what only this coordinator can."""

    def __init__(self, keys: Keys, *, clock: Clock, token_ttl: timedelta) -> None:
        self._token_key = keys.derive("node-token-v1")
        self._challenge_key = keys.derive("register-challenge-v1")
        self._clock = clock
        self._token_ttl = token_ttl
        self._used: dict[str, float] = {}
        self._verified: dict[str, NodeToken] = {}

    def node_token(self, node_id: str, boot_epoch: str, protocol: int) -> str:
        """A token for one node in one boot epoch, which speaks this protocol."""
        exp = self._clock.now().timestamp() + self._token_ttl.total_seconds()
        payload = base64.urlsafe_b64encode(codec.encode(NodeToken(node_id, boot_epoch, exp, protocol))).rstrip(b"=")
        return f"{NODE_PREFIX}{payload.decode()}.{_mac(self._token_key, payload)}"

    def read_node_token(self, token: str) -> NodeToken:
        """What it says; raises Unauthenticated where it is not ours or is over.

        A node shows the same token in every call for half an hour, and the signature costs more than the rest of admitting
        it: tokens found to be ours are remembered. Whether one is over is asked each time.
        """
        said = self._read(token)
        if said.exp <= self._clock.now().timestamp():
            raise Unauthenticated(f"the node token of {said.node_id} has expired", hint="register the node anew")
        return said

    def made(self, token: str) -> bool:
        """Whether this is a node token of ours, over or not."""
        try:
            self._read(token)
        except Unauthenticated:
            return False
        return True

    def _read(self, token: str) -> NodeToken:
        said = self._verified.get(token)
        if said is None:
            said = self._verify(token)
            if len(self._verified) >= REMEMBER:
                self._verified.clear()
            self._verified[token] = said
        return said

    def _verify(self, token: str) -> NodeToken:
        if not token.startswith(NODE_PREFIX):
            raise Unauthenticated("this is no node token")
        payload, _, mac = token.removeprefix(NODE_PREFIX).partition(".")
        raw = payload.encode("ascii", "replace")
        if not hmac.compare_digest(_mac(self._token_key, raw).encode(), mac.encode("ascii", "replace")):
            raise Unauthenticated("the node token was not made by this coordinator", hint="register the node anew")
        try:
            return codec.decode(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)), NodeToken)
        except (InvalidSpec, binascii.Error) as exc:
            raise Unauthenticated("the node token cannot be read", hint="register the node anew") from exc

    def wants_refresh(self, said: NodeToken) -> bool:
        """True in the second half of a token's life."""
        return said.exp - self._clock.now().timestamp() < self._token_ttl.total_seconds() / 2

    def challenge(self) -> str:
        """Something for a node to sign: a nonce and the time, sealed."""
        head = f"{secrets.token_hex(16)}.{int(self._clock.now().timestamp())}"
        return f"{head}.{_mac(self._challenge_key, head.encode())}"

    def challenge_is_good(self, challenge: str) -> bool:
        """Whether it is ours, younger than two minutes, and was not answered yet."""
        head, _, mac = challenge.rpartition(".")
        if not hmac.compare_digest(
            _mac(self._challenge_key, head.encode("utf-8", "replace")).encode(), mac.encode("ascii", "replace")
        ):
            return False
        age = self._clock.now().timestamp() - int(head.rpartition(".")[2])
        return -1 <= age <= CHALLENGE_TTL.total_seconds() and mac not in self._used

    def spend(self, challenge: str) -> bool:
        """After a good answer: who overheard it cannot answer with it again. False where another answer came first, however near.

        Only answered ones are kept, two minutes long.
        """
        now, mac = self._clock.monotonic(), challenge.rpartition(".")[2]
        while self._used and (oldest := next(iter(self._used.items())))[1] <= now:  # they stand in the order of their ends
            del self._used[oldest[0]]
        if mac in self._used:
            return False
        self._used[mac] = now + CHALLENGE_TTL.total_seconds() + 2
        return True


def _mac(key: bytes, message: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key, message, hashlib.sha256)).rstrip(b"=").decode()
