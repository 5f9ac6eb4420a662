"""One call: what an endpoint is given, and what it may answer."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope

from ostler.coordinator.api.auth import Caller, CallerKind, Doorkeeper
from ostler.coordinator.api.bodies import JSON_LIMIT, Body, decode_json, decode_query
from ostler.coordinator.api.credentials import Credentials, NodeToken
from ostler.coordinator.api.exchanges import exchange_of
from ostler.coordinator.api.feed import Feed
from ostler.coordinator.api.metrics import Metrics
from ostler.coordinator.api.pulls import PullLine
from ostler.coordinator.api.session_keys import SessionKeys
from ostler.coordinator.api.trail import AUDITED, Trail, entry_of
from ostler.coordinator.artifacts.store import Artifacts
from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.keys import Keys
from ostler.coordinator.operations.audit import audited
from ostler.coordinator.operations.idempotency import KEY
from ostler.coordinator.operations.ownership import of_job, owner_of
from ostler.coordinator.operations.readers import Readers
from ostler.coordinator.sealing import Sealer
from ostler.coordinator.store.store import Store
from ostler.coordinator.store.tx import Tx
from ostler.coordinator.store.wakeups import Topic
from ostler.coordinator.webhooks import Courier
from ostler.model.access import Reach
from ostler.model.errors import InvalidSpec, NotFound, Problem
from ostler.protocol.messages import RetentionPass, RetentionPlan, WaitQuery
from ostler.protocol.ports import BundleReader
from ostler.protocol.routes import Route
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

P = ParamSpec("P")
T = TypeVar("T")
MAX_WAIT_S = 60.0


class Ending(Protocol):
    """What comes to an end."""

    @property
    def finished_at(self) -> datetime | None:
        """When it did; None while it has not."""
        ...


V = TypeVar("V", bound=Ending)


class Pruning(Protocol):
    """What removes by retention, as far as people may ask it."""

    @property
    def last(self) -> RetentionPass | None:
        """What its last pass did; None before the first."""
        ...

    async def prune(self) -> RetentionPass:
        """A pass now."""
        ...

    async def plan(self, limit: int) -> RetentionPlan:
        """What a pass would do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All that endpoints use, wired once."""

    config: CoordinatorConfig
    store: Store
    artifacts: Artifacts
    keys: Keys
    session_keys: SessionKeys
    sealer: Sealer
    credentials: Credentials
    door: Doorkeeper
    pulls: PullLine
    feed: Feed
    trail: Trail
    courier: Courier
    metrics: Metrics
    readers: Readers
    pruner: Pruning
    read_bundle: BundleReader
    clock: Clock
    logger: logging.Logger
    loops: Sequence[Loop] = ()


@dataclass(slots=True, kw_only=True)
class Call:
    """One request on its way through an endpoint."""

    services: Services
    route: Route
    scope: Scope
    receive: Receive
    caller: Caller
    body: Body
    path: dict[str, str]
    request_id: str
    target: str | None = None  # what it is about, where the path does not say so

    def header(self, name: bytes) -> str | None:
        """A request header by its lower-case name; bytes that are no ASCII make it unreadable, which is the same as absent."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value).decode("ascii", "replace").strip()
        return None

    def idempotency_key(self) -> str | None:
        """The key that the caller gave the call, so that it may be made again."""
        key = self.header(b"idempotency-key")
        if key is not None and not KEY.fullmatch(key):
            raise InvalidSpec(
                "the header Idempotency-Key is not valid",
                [Problem("Idempotency-Key", "must be 1 to 255 printable ASCII characters")],
            )
        return key

    def content_type(self) -> str:
        """The body's media type in lower case, without parameters."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def json(self, shape: type[T]) -> T:
        """The body as a message."""
        return decode_json(await self.body.whole(JSON_LIMIT), shape)

    def query(self, shape: type[T]) -> T:
        """The query as its message."""
        return decode_query(self.scope["query_string"], shape)

    @property
    def owner(self) -> str | None:
        """The principal to whose jobs this call is confined; None where it reaches everybody's."""
        caller = self.caller
        if caller.role is None or self.route.grants.get(caller.role) is Reach.ALL:
            return None
        return caller.principal

    async def read(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that only reads."""
        return await self.services.store.read(operation, *args, **kwargs)

    async def write(self, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that somebody asked for; what a client or an enroller changes leaves its row in the audit log with it.

        The caller is checked again: a body may have been kept back until long after its head was let in.
        """
        await self.readmit()
        if self.caller.kind not in AUDITED:
            return await self.services.store.write(operation, *args, **kwargs)
        entry = entry_of(self.route, self.caller, self.scope, self.path, self.request_id, target=self.target)
        return await self.services.store.write(audited, entry, operation, *args, **kwargs)

    async def write_for(self, principal: str, operation: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a caller who proved by the body who it is."""
        entry = entry_of(self.route, self.caller, self.scope, self.path, self.request_id, target=self.target)
        return await self.services.store.write(audited, entry._replace(principal=principal), operation, *args, **kwargs)

    async def note_download(self) -> None:
        """A row of the audit log for who gets at the bytes of a job that is another's."""
        if self.owner is None and not self.is_node:
            owner = await self.read(owner_of, self.path["job_id"])
            if owner != self.caller.principal:
                entry = entry_of(self.route, self.caller, self.scope, self.path, self.request_id)
                await self.services.trail.note(entry, f"of {owner}")

    async def read_job(self, operation: Callable[Concatenate[Tx, str, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read something of the path's job; NotFound where it is not the caller's."""
        return await self.services.store.read(of_job(self.owner, operation), self.path["job_id"], *args, **kwargs)

    async def write_job(self, operation: Callable[Concatenate[Tx, str, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something to the path's job; NotFound where it is not the caller's."""
        return await self.write(of_job(self.owner, operation), self.path["job_id"], *args, **kwargs)

    @contextlib.asynccontextmanager
    async def subscribe(self, *topics: Topic) -> AsyncIterator[asyncio.Event]:
        """Wake-ups for a call that stays open: of these topics, of the caller's token, which may be revoked meanwhile, and
        of its end: see `gone`."""
        mine = () if self.caller.token_id is None else (("token", self.caller.token_id),)
        async with self.services.store.wakeups.subscribe(*topics, *mine) as event:
            exchange = exchange_of(self.scope)
            exchange.on_gone = event.set
            try:
                yield event
            finally:
                exchange.on_gone = None

    @property
    def gone(self) -> bool:
        """Whether the caller has hung up: what stays open for it need not."""
        return bool(exchange_of(self.scope).disconnected)

    async def readmit(self) -> None:
        """Raises Unauthenticated once the caller's token is good no longer; on each turn of a call that stays open."""
        await self.services.door.readmit(self.caller)

    async def while_admitted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What goes in or out piece by piece, for as long as the caller's token is good; then raises Unauthenticated."""
        async for piece in pieces:
            await self.readmit()
            yield piece

    async def until_over(self, topic: Topic, operation: Callable[[Tx, str], V], name: str) -> V:
        """What a read answers once it has a `finished_at`; what it answers at the end of the caller's `wait_s` (60 at most)."""
        store, loop = self.services.store, asyncio.get_running_loop()
        until = loop.time() + min(self.query(WaitQuery).wait_s, MAX_WAIT_S)
        async with self.subscribe(topic) as event:
            while True:
                event.clear()
                await self.readmit()
                view = await store.read(operation, name)
                if view.finished_at is not None or loop.time() >= until or store.wakeups.closed or self.gone:
                    return view
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await event.wait()

    @property
    def node(self) -> NodeToken:
        """The calling node; only on routes for nodes."""
        if self.caller.token is None:
            raise NotFound("there is no such node for this caller")
        return self.caller.token

    @property
    def is_node(self) -> bool:
        """True where a node calls, on a route that is for clients too."""
        return self.caller.kind is CallerKind.NODE

    def own_node(self, node_id: str | None) -> str:
        """The calling node's id; another one's is as if it did not exist."""
        node = self.node
        if node_id is not None and node_id != node.node_id:
            raise NotFound(f"there is no node {node_id!r} that this token reaches; it is for {node.node_id}")
        return node.node_id


@dataclass(frozen=True, slots=True)
class Answer:
    """A value with another status than the route's first, or with headers."""

    value: Any
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Endpoint(Protocol):
    """Answers one route: with a message, an Answer, or a response of its own; raises the error tree."""

    async def __call__(self, call: Call) -> Any | Answer | Response:
        """Answers a call."""
        ...
