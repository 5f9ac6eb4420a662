"""Who calls: bearer tokens to callers, and the check of a caller against a route's audience."""

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from starlette.types import Scope

from ostler.coordinator.api import window
from ostler.coordinator.api.credentials import NODE_PREFIX, Credentials, NodeToken
from ostler.coordinator.api.rates import Rates, network_of
from ostler.coordinator.operations.sessions import retired
from ostler.coordinator.operations.tokens import ApiToken
from ostler.coordinator.store.times import micros
from ostler.model.access import Grants, Role
from ostler.model.enumeration import Word
from ostler.model.errors import Forbidden, Unauthenticated
from ostler.protocol.routes import Audience, Route
from ostler.runtime.clock import Clock

API_PREFIX = "ostler_api_"
JOIN_PREFIX = "ostler_join_"
MAX_TOKEN = 1024
REMEMBER_S = 0.5  # how long a replica may honour an API token that another one has revoked: a revocation bites within a second
REMEMBER_ALONE_S = 60.0  # where no other coordinator can revoke one
REMEMBER = 1024
LOCAL_ROUTES = frozenset({"metrics", "healthz", "readyz"})  # open to this machine; others show an API token


class CallerKind(Word):
    """What a caller has shown."""

    NOBODY = "nobody"
    CLIENT = "client"
    NODE = "node"
    JOINER = "joiner"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `token` is the node token's content for nodes, `secret` a join token's text.

    A client has the id, role and principal of its API token, and the token itself, for calls that stay open to be checked again.
    """

    kind: CallerKind
    token: NodeToken | None = None
    secret: str | None = field(default=None, repr=False)
    token_id: str | None = None
    role: Role | None = None
    principal: str | None = None
    expires_at: int | None = None


NOBODY = Caller(CallerKind.NOBODY)

_ADMITTED = {
    Audience.PUBLIC: frozenset(CallerKind),
    Audience.ENROL: frozenset({CallerKind.NOBODY, CallerKind.JOINER}),
    Audience.NODE: frozenset({CallerKind.NODE}),
    Audience.CLIENT: frozenset({CallerKind.CLIENT}),
    Audience.MEMBER: frozenset({CallerKind.NODE, CallerKind.CLIENT}),
}
_WANTED = {
    Audience.ENROL: "a join token, or a signed challenge and no token",
    Audience.NODE: "a node token",
    Audience.CLIENT: "an API token",
    Audience.MEMBER: "a node token or an API token",
}


class TokenCheck(Protocol):
    """Looks an API token up: who shows it, or Unauthenticated."""

    async def __call__(self, token: str) -> ApiToken:
        """What the token says."""
        ...


class NewestSession(Protocol):
    """Looks up which session of a node is the newest."""

    async def __call__(self, node_id: str) -> str | None:
        """Its boot epoch; None where there is no such node."""
        ...


class Doorkeeper:
    """Admits callers, as often as `rates` lets them. API tokens that were found good are remembered for moments, and forgotten at once
    when one is revoked."""

    def __init__(
        self, credentials: Credentials, check: TokenCheck, newest: NewestSession, *, clock: Clock, rates: Rates, shared: bool = True
    ) -> None:  # fmt: skip
        """`shared`: whether there may be other coordinators, who revoke tokens and begin sessions, too."""
        self._credentials = credentials
        self._newest = newest
        self._check = check
        self._rates = rates
        self._clock = clock
        self._remember_s = REMEMBER_S if shared else REMEMBER_ALONE_S
        # By the token itself. No time tells how much of one is right: a dict compares texts only where 64 bits of a keyed hash agree.
        self._good: dict[str, tuple[Caller, float]] = {}
        self._revocations = 0
        self._epochs: dict[str, str] = {}
        self._retired: set[str] = set()

    def note_session(self, node_id: str, boot_epoch: str) -> None:
        """From now on tokens of the node's earlier sessions open nothing."""
        self._epochs[node_id] = boot_epoch
        self._retired.discard(node_id)

    def retire(self, *node_ids: str) -> None:
        """From now on these nodes' tokens open nothing, until a node of that name is enrolled anew."""
        self._retired.update(node_ids)

    def know_retired(self, node_ids: Iterable[str]) -> None:
        """These and no others are retired."""
        self._retired = set(node_ids)

    def forget(self, token_id: str) -> None:
        """A token was revoked: no remembered check of it counts, nor one that is under way."""
        self._revocations += 1
        self._good = {token: known for token, known in self._good.items() if known[0].token_id != token_id}

    async def admit(self, route: Route, scope: Scope, known: list[Caller]) -> tuple[Caller, str]:
        """The caller, if the route is for such, and the key under which the call is open until `leave`; raises Unauthenticated,
        Forbidden, or NoCapacity where it is one call too many. `known` gets who is known to call, refused or not."""
        address, shown = _address(scope), [value for name, value in scope["headers"] if name == b"authorization"]
        if shown:
            self._rates.check_address(address, _token_in(shown[0]), self._is_a_node)
        try:
            caller = await self._admit(route, scope, shown, known)
        except Unauthenticated:
            if shown:
                self._rates.failed(address)
            raise
        key = caller.token_id or (caller.token.node_id if caller.token is not None else network_of(address))
        key = f"{caller.kind.value}:{key}"
        self._rates.enter(key)
        return caller, key

    def _is_a_node(self, token: bytes) -> bool:
        """Whether one of our nodes calls, good or not: nobody guesses a signature, and a node whose token was just renewed must not lose
        its jobs because somebody else at its address guesses."""
        return len(token) <= MAX_TOKEN and token.isascii() and self._credentials.made(token.decode())

    def command(self, service: str, principal: str | None) -> None:
        """Somebody commands a service; raises NoCapacity where that was too often."""
        self._rates.command(service, principal or "nobody")

    def leave(self, key: str) -> None:
        """The call is over."""
        self._rates.leave(key)

    def failed(self, scope: Scope) -> None:
        """A credential that only the endpoint can check is not good."""
        self._rates.failed(_address(scope))

    async def _admit(self, route: Route, scope: Scope, shown: list[bytes], known: list[Caller]) -> Caller:
        audience = route.audience
        if route.name in LOCAL_ROUTES:
            if _is_local(scope):
                return NOBODY
            audience = Audience.CLIENT
        elif audience is Audience.PUBLIC:
            return NOBODY
        token = _bearer(shown)
        if token is None:
            if audience is Audience.ENROL:
                return NOBODY
            raise Unauthenticated(f"this needs {_WANTED[audience]}: Authorization: Bearer …")
        caller = await self._caller(token)
        known.append(caller)
        if caller.kind not in _ADMITTED[audience]:
            raise Forbidden(f"this needs {_WANTED[audience]}; the one shown is for a {caller.kind.value}")
        if caller.role is not None and caller.role not in route.grants:
            raise Forbidden(
                f"{route.name} is for {_listed(route.grants)}; the token shown is of the role {caller.role.value}",
                hint="an admin makes tokens: `ostler token create --role ROLE --name NAME`",
            )
        return caller

    async def readmit(self, caller: Caller) -> None:
        """Check again who has a call open: raises Unauthenticated once the token is revoked or over, or its node's session."""
        if caller.kind is CallerKind.CLIENT and caller.secret is not None:
            await self._client(caller.secret)
        elif caller.token is not None:
            await self._check_session(caller.token)

    async def _caller(self, token: str) -> Caller:
        if token.startswith(NODE_PREFIX):
            said = self._credentials.read_node_token(token)
            await self._check_session(said)
            return Caller(CallerKind.NODE, token=said)
        if token.startswith(API_PREFIX):
            return await self._client(token)
        if token.startswith(JOIN_PREFIX):
            return Caller(CallerKind.JOINER, secret=token)
        raise Unauthenticated("the token is of no kind that Ostler makes", hint="see `ostler token list`")

    async def _check_session(self, said: NodeToken) -> None:
        if said.node_id in self._retired:
            raise retired(said.node_id)
        window.check(said.protocol, said.node_id)  # it was given by an earlier release of this coordinator
        if self._epochs.get(said.node_id, said.boot_epoch) == said.boot_epoch:
            return
        newest = await self._newest(said.node_id)  # it may have begun at another coordinator
        if newest is not None:
            self._epochs[said.node_id] = newest
        if newest != said.boot_epoch:
            raise Unauthenticated(f"the node {said.node_id} has begun a newer session since", hint="register the node anew")

    async def _client(self, token: str) -> Caller:
        known = self._good.get(token)
        if known is not None and known[1] > self._clock.monotonic():
            return known[0]
        before = self._revocations
        said = await self._check(token)
        caller = Caller(
            CallerKind.CLIENT, secret=token, token_id=said.token_id, role=said.role, principal=said.principal,
            expires_at=said.expires_at,
        )  # fmt: skip
        self._rates.know(hashlib.sha256(token.encode()).digest())
        if before == self._revocations:
            if len(self._good) >= REMEMBER:
                self._good.clear()
            left_s = inf if said.expires_at is None else (said.expires_at - micros(self._clock.now())) / 1e6
            self._good[token] = (caller, self._clock.monotonic() + min(self._remember_s, left_s))
        return caller


def _listed(grants: Grants) -> str:
    *most, last = (role.value for role in Role if role in grants)
    return f"{', '.join(most)} and {last}" if most else last


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return "" if client is None else str(client[0])


def _token_in(header: bytes) -> bytes:
    return header.partition(b" ")[2].strip()


def _bearer(shown: list[bytes]) -> str | None:
    if not shown:
        return None
    scheme, _, token = shown[0].partition(b" ")
    token = token.strip()
    if len(shown) > 1 or scheme.lower() != b"bearer" or not 0 < len(token) <= MAX_TOKEN or not token.isascii():
        raise Unauthenticated("the Authorization header must be one `Bearer TOKEN`")
    return bytes(token).decode("ascii")


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    if client is None:  # a unix socket
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
