"""The node's session with its coordinator: registration, the token in memory, and every call that the loops make.

Two dialects are spoken. A coordinator that knows registration gets the whole protocol; one that answers it with 404 and to
which this node was never enrolled is taken for the plain coordinator of the source's section 8, see `dialect`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ostler import __version__
from ostler.model.capabilities import Capabilities
from ostler.model.errors import (
    AlreadyExists,
    CoordinatorUnreachable,
    Forbidden,
    InvalidSpec,
    NodeRetired,
    NotFound,
    Rejected,
    Unauthenticated,
    Unavailable,
    UpgradeRequired,
)
from ostler.node.config import CoordinatorAddress
from ostler.node.identity import Identity
from ostler.node.links.link import Link
from ostler.protocol import messages as m
from ostler.protocol import routes, session_key
from ostler.protocol.client import AsyncClient
from ostler.protocol.session_key import SessionKey
from ostler.runtime.clock import Clock

T = TypeVar("T")

REOPEN_S = 15.0  # how long a call that met a dead session waits for a new one


class Dialect(Enum):
    """What the coordinator speaks."""

    OSTLER = "ostler"
    SOURCE = "source"  # section 8 of the source, as its mock in section 16 speaks it


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfDescription:
    """What this node says of itself when it registers."""

    capabilities: Capabilities
    cpu_slots: int
    gpu_slots: int
    held: tuple[m.Held, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The intervals to live by, set by the coordinator where it sets them. Seconds."""

    heartbeat_s: float
    lease_s: float
    pull_wait_s: float
    inline_bytes: int = 0  # of artifacts, in an outcome


class Session:
    """Opened by the registrar, used by everybody. `contact_at` is the monotonic time of the last answer of any kind."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        identity: Identity,
        address: CoordinatorAddress,
        heartbeat_s: float,
        describe: Callable[[], SelfDescription],
        on_open: Callable[[m.RegisterResponse], None],
        on_return: Callable[[], None],
        on_renewal: Callable[[tuple[m.Held, ...], float, float], None],
        on_retired: Callable[[str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        self.client = client
        self.identity = identity
        self.address = address
        self.terms = Terms(heartbeat_s=heartbeat_s, lease_s=3 * heartbeat_s, pull_wait_s=30.0)
        self.dialect: Dialect | None = None
        self.links: Mapping[Dialect, Link] = {}
        self.contact_at: float | None = None
        self.barred: str | None = None  # why this coordinator wants no session with this node as it is
        self.outside = False  # it is that they have no protocol in common
        self.unknown = False  # it is that the coordinator does not know this node by its key
        self.retired = False  # it is that somebody retired this node
        self.wake_registrar: Callable[[], None] = lambda: None
        self._describe = describe
        self._on_open = on_open
        self._on_return = on_return
        self._on_renewal = on_renewal
        self._on_retired = on_retired
        self._away = False
        self._clock = clock
        self._logger = logger
        self._token: str | None = None
        self._half: X25519PrivateKey | None = None  # of the key of the session that is asked for
        self._opened = asyncio.Event()

    @property
    def holds(self) -> bool:
        """Whether this node has attempts, which the coordinator keeps for it as long as it is heard of."""
        return bool(self._describe().held)

    @property
    def is_open(self) -> bool:
        """Whether there is a session to call in."""
        return self._opened.is_set()

    async def opened(self, timeout_s: float | None = None) -> bool:
        """Wait for a session; False when there is none in time."""
        if self._opened.is_set():
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """The session is no longer good; the registrar opens another."""
        self._token = None
        if self._opened.is_set():
            self._opened.clear()
        self.wake_registrar()

    @property
    def token(self) -> str | None:
        """The token of the session, for a call whose answer is a stream."""
        return self._token

    def refresh(self, token: str) -> None:
        """A new token for the same session."""
        self._token = token

    # --- calls ---

    @property
    def link(self) -> Link:
        """How to talk to this coordinator."""
        return self.links[self.dialect or Dialect.OSTLER]

    async def within(self, make: Callable[[str | None], Awaitable[T]]) -> T:
        """Make a call in the session (`make` gets the token); one that met a dead session is made again in a new one, once.

        Raises the error tree: Unavailable (try again later) or Rejected.
        """
        for last in (False, True):
            if not self.is_open and not (last and await self.opened(REOPEN_S)):
                raise CoordinatorUnreachable(self.barred or "there is no session with the coordinator")
            token = self._token
            try:
                answer = await make(token)
            except Unauthenticated as exc:
                self._heard()
                if token == self._token:
                    self._logger.info("session_ended", extra={"attrs": {"reason": str(exc)}})
                    self.close()
                if last:
                    raise Unavailable(f"the coordinator refuses the session: {exc}") from exc
            except (UpgradeRequired, NodeRetired) as exc:
                self._heard()
                if self.is_open and isinstance(exc, UpgradeRequired):
                    self.wake_registrar()  # from now on it is registrations that renew leases
                self._bar(exc)
                raise Unavailable(str(exc)) from exc
            except Rejected:
                self._heard()
                raise
            except Unavailable:
                self._away = True
                raise
            else:
                self._heard()
                if self._away:
                    self._away = False
                    self._on_return()
                return answer
        raise AssertionError("unreachable")

    def _heard(self) -> None:
        self.contact_at = self._clock.monotonic()

    def _bar(self, exc: UpgradeRequired | NodeRetired) -> None:
        """Idle, say why once, and ask again now and then; only a person can mend it."""
        message = f"{exc}; {exc.hint}" if exc.hint else str(exc)
        if self.barred != message:
            self._logger.error(exc.code, extra={"attrs": {"message": message}})
        self.barred = message
        self.outside, self.unknown, self.retired = isinstance(exc, UpgradeRequired), False, isinstance(exc, NodeRetired)
        self._opened.clear()
        if isinstance(exc, NodeRetired):
            self._on_retired(exc.message)

    # --- registration ---

    async def register(self) -> None:
        """Open a session. Raises Unavailable, or Rejected with what to do; either way the registrar tries again."""
        try:
            answer = await self._introduce()
        except (UpgradeRequired, NodeRetired) as exc:
            self._heard()
            self._bar(exc)
            raise
        except NotFound:
            self._heard()
            self._settle_for_source()
            return
        except (Unauthenticated, AlreadyExists) as exc:
            self._heard()
            self.barred = f"not enrolled: the coordinator refuses this node's key ({exc.message})"
            self.outside, self.unknown, self.retired = False, True, False
            raise
        except Rejected:
            self._heard()
            raise
        self._heard()
        self._accept(answer)

    async def _introduce(self) -> m.RegisterResponse:
        """A node that the coordinator has no protocol in common with proves who it is all the same: that renews its leases."""
        try:
            return await self._present()
        except UpgradeRequired as refused:
            if refused.challenge is None or self.identity.coordinator_key is None:
                raise
            sent_at, held = self._clock.monotonic(), self._describe().held
            try:
                return await self._register(challenge=refused.challenge)
            except UpgradeRequired as known:
                if known.lease_s is not None:
                    self._on_renewal(held, sent_at, known.lease_s)
                raise

    async def _present(self) -> m.RegisterResponse:
        """With the join token the first time, by signing a challenge later; and by the other way where one is refused."""
        identity, joining = self.identity, self.address.auth_token
        refused: Rejected | None = None
        if identity.coordinator_key is None and joining is not None:
            try:
                return await self._register(token=joining)
            except NodeRetired:
                raise
            except (Unauthenticated, AlreadyExists, Forbidden) as exc:
                refused = exc  # perhaps it enrolled and the answer was lost
        challenge = await self._challenge(refused)
        if challenge is not None:
            try:
                return await self._register(challenge=challenge)
            except (Unauthenticated, NotFound) as exc:
                refused = refused or exc
        if identity.coordinator_key is not None and joining is not None:
            return await self._register(token=joining)  # a coordinator that lost its database and kept its keys
        if refused is not None:
            raise refused
        raise Unauthenticated("the coordinator does not know this node", hint="set coordinator.auth_token to a join token")

    async def _challenge(self, refused: Rejected | None) -> str | None:
        if isinstance(refused, Unauthenticated) and refused.challenge is not None:
            return refused.challenge
        try:
            await self._register()
        except Unauthenticated as exc:
            return exc.challenge
        return None

    async def _register(self, *, token: str | None = None, challenge: str | None = None) -> m.RegisterResponse:
        identity, about = self.identity, self._describe()
        signature = None if challenge is None else identity.key.prove(challenge, identity.node_id, identity.boot_epoch)
        half = self._half = X25519PrivateKey.generate()
        request = m.RegisterRequest(
            node_id=identity.node_id,
            version=__version__,
            protocol=m.PROTOCOL,
            boot_epoch=identity.boot_epoch,
            public_key=identity.key.public,
            capabilities=about.capabilities,
            cpu_slots=about.cpu_slots,
            gpu_slots=about.gpu_slots,
            held=about.held,
            challenge=challenge,
            signature=signature,
            session_key=half.public_key().public_bytes_raw(),
        )
        answer: m.RegisterResponse = await self.client.call(
            routes.REGISTER, request, token=token, timeout_s=self.address.timeout_s
        )
        return answer

    def _accept(self, answer: m.RegisterResponse) -> None:
        identity = self.identity
        if identity.coordinator_key is None:
            try:
                identity.pin(answer.coordinator_key)
            except ValueError as exc:
                raise InvalidSpec("the coordinator presented a key that is not an Ed25519 key") from exc
            self._logger.info("enrolled", extra={"attrs": {"node_id": identity.node_id, "coordinator": self.address.base_url}})
        elif not identity.is_pinned(answer.coordinator_key):
            self._logger.critical("coordinator_key_changed", extra={"attrs": {"coordinator": self.address.base_url}})
            raise Forbidden(
                "the coordinator presents another signing key than the one pinned when this node was enrolled; it is not obeyed",
                hint="if the coordinator was set up anew on purpose, remove the node's state directory and join again",
            )
        identity.session = self._agreed(answer)
        self.dialect = Dialect.OSTLER
        self.barred = None
        self.outside = self.unknown = self.retired = False
        self.terms = Terms(
            heartbeat_s=answer.heartbeat_s,
            lease_s=answer.lease_s,
            pull_wait_s=answer.pull_wait_s,
            inline_bytes=min(answer.inline_bytes, m.INLINE_BYTES),
        )
        self._token = answer.node_token
        self._on_open(answer)
        self._opened.set()
        self._logger.info(
            "registered", extra={"attrs": {"boot_epoch": identity.boot_epoch, "coordinator_version": answer.version}}
        )

    def _agreed(self, answer: m.RegisterResponse) -> SessionKey | None:
        """The session's key; without one, everything is signed."""
        identity, half = self.identity, self._half
        self._half = None
        if answer.session_key is None or half is None or identity.coordinator_key is None:
            return None
        key = session_key.accept(
            answer.session_key, half, identity.coordinator_key, node_id=identity.node_id, boot_epoch=identity.boot_epoch
        )
        if key is None:  # somebody on the way rewrites what is said; what is signed can be believed all the same
            self._logger.warning("session_key_not_believed", extra={"attrs": {"coordinator": self.address.base_url}})
        return key

    def _settle_for_source(self) -> None:
        """404: a coordinator without registration, unless this node knows better."""
        if self.identity.coordinator_key is not None:
            raise Unavailable("the coordinator answers registration with 404; this node is enrolled and takes no unsigned work")
        if not (self.address.allow_unsigned or is_loopback(self.address.base_url)):
            raise Forbidden(
                f"{self.address.base_url} has no registration, so its manifests are unsigned; they are taken over loopback alone",
                hint="set coordinator.allow_unsigned: true if you trust that coordinator and the way to it",
            )
        if self.dialect is not Dialect.SOURCE:
            self._logger.warning("plain_coordinator", extra={"attrs": {"coordinator": self.address.base_url, "signed": False}})
        self.dialect = Dialect.SOURCE
        self.barred = None
        self.outside = self.unknown = self.retired = False
        self._token = self.address.auth_token
        self._opened.set()


def is_loopback(base_url: str) -> bool:
    """Whether the URL leads to this very machine."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
