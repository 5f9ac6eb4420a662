"""A rollout put together: hosts, release, connections, the coordinator's word, the journal."""

import asyncio
import getpass
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from ostler.assembly.endpoint import Endpoint, look_for_endpoint
from ostler.fleet.gate import CoordinatorGate
from ostler.fleet.inventory.host import Host
from ostler.fleet.node_config import Own, services_of
from ostler.fleet.releases.store import Release, for_platform
from ostler.fleet.rollout.by_ssh import Content, Lines, Looked, SshCarrier
from ostler.fleet.rollout.engine import Engine
from ostler.fleet.rollout.journal import Happened, Journal, is_over
from ostler.fleet.rollout.preflight import Facts, Wanted
from ostler.fleet.ssh.step import Step
from ostler.fleet.ssh.trust import SYSTEM, Trust
from ostler.model.errors import OstlerError
from ostler.model.rollout.plan import Plan
from ostler.model.rollout.progress import Event, Phase, Progress
from ostler.protocol import routes
from ostler.protocol.client import TIMEOUT_S, AsyncClient
from ostler.protocol.trust import Trust as TlsTrust
from ostler.runtime.clock import SystemClock

BUNDLES = 4  # that are kept in memory: hosts of one fleet have few platforms, and mostly the same releases

ANSWER_S = 5.0  # for a coordinator that only the hosts may reach


def journals(env: Mapping[str, str] | None = None) -> Path:
    """Where rollouts are written down."""
    env = os.environ if env is None else env
    state = env.get("XDG_STATE_HOME") or f"{env.get('HOME') or Path.home()}/.local/state"
    return Path(state) / "ostler" / "rollouts"


def trust(given: Mapping[str, Any]) -> Trust:
    """Whom to believe that it is the host, by the options that were given: the files of the user and of the system, or the named one."""
    named = given.get("--known-hosts")
    files = (Path.home() / ".ssh/known_hosts", SYSTEM) if named is None else (Path(named),)
    return Trust(files=files, accept_new=bool(given.get("--accept-new")), given=given)


def new_id() -> str:
    """The id of a rollout: when, and something that no other one has."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def owner() -> str:
    """Who deploys, for the hosts' locks."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(kw_only=True)
class Rollout:
    """One that was looked at (`look`) and can be carried out (`run`)."""

    plan: Plan
    release: Release
    hosts: Mapping[str, Host]
    lines: Lines
    gate: CoordinatorGate | None
    message: str
    own: Mapping[str, Own] = field(default_factory=dict)
    looked: dict[str, Looked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Builds what carries the steps."""
        wheels = {file.sha256 for file in self.release.manifest.files.values()}

        made, turn = lru_cache(maxsize=BUNDLES)(partial(for_platform, self.release.bundle)), Lock()

        def bundle(platform: str, there: frozenset[str]) -> bytes:
            with turn:  # hosts that begin together need the same one
                return made(platform, there & wheels)

        self._carrier = SshCarrier(
            self.lines,
            self.hosts,
            plan=self.plan,
            content=Content(
                bundle=bundle,
                digest=self.release.manifest.digest,
                own=self.own,
                services={name: services(host) for name, host in self.hosts.items()},
            ),
            owner=owner(),
            message=self.message,
            gate=self._ask if self.gate is not None else None,
            is_over=lambda rollout_id: is_over(journals(), rollout_id),
        )

    async def look(self, names: Sequence[str]) -> None:
        """Preflight, all hosts at once, then of the coordinator, where it will be asked; changes nothing. Raises Rejected where that does
        not answer."""
        wanted = Wanted(
            rollout_id=self.plan.rollout_id,
            release=self.plan.release,
            platforms=self.release.manifest.platforms,
            bundle_mb=max(1, self.release.size >> 20),
        )
        found = await asyncio.gather(*(self._carrier.look(name, replace(wanted, own=self.own.get(name))) for name in names))
        self.looked = dict(zip(names, found, strict=True))
        if self.gate is not None and any(one.changes for one in found):
            await self.gate.ready()

    def steps(self, name: str) -> list[Step]:
        """What would be carried out on a host that was looked at, in its order."""
        return self._carrier.steps(name)

    async def run(
        self,
        journal: Journal,
        *,
        progress: Mapping[str, Progress] | None,
        heard: Callable[[Happened, Progress], None],
        waits: Callable[[str, str], None],
    ) -> Engine:
        """Carry it out, after `look`; answers the engine with how each host ended. `waits` is told what a host is waited for meanwhile."""
        self._carrier.waits = waits
        engine = Engine(
            self.plan, self._carrier, journal=journal, progress=progress, heard=heard, clock=lambda: datetime.now(UTC)
        )
        await asyncio.gather(*(self._carrier.clear(name) for name in self.looked))
        for name, looked in self.looked.items():
            if name in self.plan.excluded or engine.progress[name].phase is not Phase.PLANNED:
                continue
            if looked.unreachable is not None:
                engine.refuse(name, Event.LOST, looked.unreachable)
            elif looked.verdict is not None and looked.verdict.refusal is not None:
                engine.refuse(name, Event.REFUSED, looked.verdict.refusal)
            elif looked.verdict is not None and not looked.changes:
                engine.refuse(name, Event.MATCHES, None)
        await engine.run()
        return engine

    async def _ask(self, host: Host, facts: Facts | None) -> str | None:
        told = (facts.health or {}).get("node_id") if facts is not None else None
        return await self.gate.wrong(str(told or host.name), self.plan.release) if self.gate is not None else None


@asynccontextmanager
async def opened(
    plan: Plan,
    release: Release,
    hosts: Mapping[str, Host],
    *,
    own: Mapping[str, Own],
    trust: Trust,
    message: str,
    coordinator: bool,
    told: Callable[[Host, str, Step], None],
) -> AsyncIterator[Rollout]:
    """A rollout with its connections; a host without `own` keeps its configuration.

    `coordinator`: the one of the environment or profile is asked too, where there is one.
    """
    endpoint = look_for_endpoint() if coordinator else None
    async with Lines(trust, local_user=getpass.getuser(), told=told) as lines:
        client = None if endpoint is None else _client(endpoint)
        try:
            gate = None if client is None else CoordinatorGate(client, SystemClock())
            yield Rollout(plan=plan, release=release, hosts=hosts, lines=lines, gate=gate, message=message, own=own)
        finally:
            if client is not None:
                await client.close()


def _client(endpoint: Endpoint, timeout_s: float = TIMEOUT_S) -> AsyncClient:
    tls = TlsTrust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)
    return AsyncClient(endpoint.url, token=endpoint.token, trust=tls, timeout_s=timeout_s)


async def unanswered(address: str) -> str | None:
    """Why no coordinator answers this machine at an address that hosts are to be told; None where one does."""
    endpoint = look_for_endpoint() or Endpoint(url=address, origin="--coordinator")
    async with _client(replace(endpoint, url=address, token=None), timeout_s=ANSWER_S) as client:
        try:
            await client.call(routes.VERSION)
        except OstlerError as exc:
            return exc.message
    return None


def services(host: Host) -> list[dict[str, Any]]:
    """The programs of the host's services, as its inventory has them."""
    found = services_of(host)
    return [
        {"service": name, "expected": one["binary"], "candidates": one.get("candidates") or [], "version": one.get("version")}
        for name, one in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(one, Mapping) and one.get("binary")
    ]
