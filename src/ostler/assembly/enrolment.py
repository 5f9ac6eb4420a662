"""A node becomes known to its coordinator before its daemon runs, so that the daemon needs no token; and a word whether the way is open."""

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from ostler import __version__
from ostler.assembly.resolve import resolve_node
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.errors import InvalidSpec, NotFound, Unauthenticated
from ostler.node.config import NodeConfig
from ostler.node.identity import Identity
from ostler.node.journal import Journal
from ostler.node.probe import probe
from ostler.node.session import Dialect, SelfDescription, Session
from ostler.node.signatures import NodeKey
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient
from ostler.runtime.clock import SystemClock

KEY, JOURNAL = "node.key", "journal.db"
REACH_S = 10.0
_NOBODY = Capabilities(node_id="", version=__version__, cpu=Cpu(cores=1, arch=""), memory_mb=0, disk_free_mb=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Who this node is now, and where."""

    node_id: str
    coordinator: str


def enrol(file: Path, token: str, *, env: Mapping[str, str]) -> Enrolled:
    """Register once with a join token: the key is made, the coordinator's pinned, and nothing else is left behind.

    A node that is enrolled proves itself by its key, and the token is not used up. Raises Rejected or Unavailable.
    """
    config = resolve_node(file, env=env, need_secrets=False).value
    return asyncio.run(_enrol(config, token))


def reach(file: Path, *, env: Mapping[str, str]) -> Enrolled:
    """Whether the coordinator talks to this release of this node, and knows its key. Opens no session, so a daemon that has one keeps it.

    Raises Rejected where it does not, Unavailable where there is no answer.
    """
    config = resolve_node(file, env=env, need_secrets=False).value
    return asyncio.run(_reach(config))


def who_am_i(config: NodeConfig) -> str:
    """The node's id: as configured, else the one that was made for it. Raises NotFound for a node that was never enrolled."""
    if not (config.state / KEY).exists():
        raise NotFound(f"this node has no key in {config.state}: it was never enrolled", hint="ostler node enrol --config FILE")
    return config.node_id or _known_as(config.state / JOURNAL)


def client_of(config: NodeConfig) -> AsyncClient:
    """To its coordinator, for a few short calls."""
    address = config.coordinator
    return AsyncClient(address.base_url, trust=address.trust, timeout_s=min(REACH_S, address.timeout_s))


async def prove(client: AsyncClient, node_id: str, key: NodeKey) -> m.KeyStanding:
    """Which keys the coordinator knows of this node, one of which `key` is. Raises Unauthenticated where it does not know it, and the
    rest of the error tree."""
    asked = m.ProveRequest(node_id=node_id, protocol=m.PROTOCOL, public_key=key.public)
    challenge = await challenge_of(client, asked)
    signature = key.sign(m.prove_message(challenge, node_id))
    standing: m.KeyStanding = await client.call(
        routes.PROVE_NODE, structs.replace(asked, challenge=challenge, signature=signature)
    )
    return standing


async def challenge_of(client: AsyncClient, asked: m.ProveRequest) -> str:
    """What this coordinator wants signed. Raises the error tree."""
    try:
        await client.call(routes.PROVE_NODE, asked)
    except Unauthenticated as exc:
        if exc.challenge is None:
            raise
        return exc.challenge
    raise Unauthenticated("whatever answers there asks for no proof, as no coordinator does")


async def _enrol(config: NodeConfig, token: str) -> Enrolled:
    logger = logging.getLogger("ostler.enrolment")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    journal = Journal(config.state / JOURNAL, logger=logger)
    address = replace(config.coordinator, auth_token=token)
    client = AsyncClient(address.base_url, trust=address.trust, timeout_s=address.timeout_s)
    try:
        identity = Identity.open(config.state, journal, configured=config.node_id)
        held = tuple(m.Held(one.job_id, one.attempt) for one in journal.load())  # what a daemon of this state would say
        looked = await asyncio.to_thread(probe, node_id=identity.node_id, version=__version__)
        session = Session(
            client,
            identity=identity,
            address=address,
            heartbeat_s=config.heartbeat.interval_s,
            describe=lambda: SelfDescription(capabilities=looked, cpu_slots=0, gpu_slots=0, held=held),
            on_open=lambda _: None,
            on_return=lambda: None,
            on_renewal=lambda *_: None,
            on_retired=lambda _: None,
            clock=SystemClock(),
            logger=logger,
        )
        await session.register()
        if session.dialect is not Dialect.OSTLER:
            raise NotFound(
                f"{address.base_url} enrols no nodes: it does not know {routes.REGISTER.path}", hint="see coordinator.base_url"
            )
    finally:
        await client.close()
        await journal.close()
    return Enrolled(node_id=identity.node_id, coordinator=address.base_url)


async def _reach(config: NodeConfig) -> Enrolled:
    """A coordinator of before this question answers 404; then the challenge that it has for everybody is all there is to know."""
    node_id = who_am_i(config)
    key = NodeKey.open(config.state / KEY)
    async with client_of(config) as client:
        try:
            await prove(client, node_id, key)
        except NotFound:
            await _is_spoken_to(client, node_id, key)
    return Enrolled(node_id=node_id, coordinator=config.coordinator.base_url)


async def _is_spoken_to(client: AsyncClient, node_id: str, key: NodeKey) -> None:
    request = m.RegisterRequest(
        node_id=node_id, version=__version__, protocol=m.PROTOCOL, boot_epoch="asked", capabilities=_NOBODY,
        public_key=key.public, cpu_slots=0, gpu_slots=0, held=(),
    )  # fmt: skip
    try:
        await client.call(routes.REGISTER, request)
    except Unauthenticated as exc:
        if exc.challenge is None:
            raise


def _known_as(journal: Path) -> str:
    """The id that was made for a node whose configuration names none. Only read: the daemon may have the file open."""
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
            row = db.execute("SELECT value FROM facts WHERE name = 'node_id'").fetchone()
    except sqlite3.Error as exc:
        raise InvalidSpec(f"{journal} cannot be read: {exc}") from exc
    if row is None:
        raise NotFound(f"{journal} does not say who this node is", hint="ostler node enrol --config FILE")
    return bytes(row[0]).decode()
