"""A real coordinator on a loopback socket with its real store, in the test's event loop; nodes and people are real clients."""

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec.structs import replace

from ostler.coordinator.config import CoordinatorConfig, LimitsConfig
from ostler.coordinator.service import run_coordinator
from ostler.fleet.releases.reading import read_bundle
from ostler.model.access import Role
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.errors import Unauthenticated
from ostler.protocol import codec, dsse, routes
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.trust import Trust

ADMIN = "ostler_api_admin_" + "a" * 32
LOGGER = logging.getLogger("ostler.test")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def capabilities(node_id: str) -> Capabilities:
    return Capabilities(
        node_id=node_id, version="0.1.0", cpu=Cpu(cores=8, arch="x86_64", threads=8), memory_mb=16000, disk_free_mb=100_000,
        gpu=(), runners=("cli", "python"), tags=(),
    )  # fmt: skip


_NOWHERE = {"attempt": "1", "stream": "stdout", "sha256": "0" * 64, "path": "a/b"}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def url_of(route: routes.Route, **named: str) -> str:
    """A route's path with these parameters; what is not named leads to something that is not there."""
    return _PARAMETER.sub(lambda found: named.get(found[1], _NOWHERE.get(found[1], f"{found[1][0]}-none")), route.url)


async def until(condition) -> None:
    """Asks again until it is so: for what another part does in its own time and tells nobody about."""
    while not await condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.002)


@dataclass
class Node:
    """A node that has a key, a token and a session."""

    rig: "Rig"
    node_id: str
    key: Ed25519PrivateKey
    epoch: str
    token: str = ""
    coordinator_key: bytes = b""

    def registration(self, **changes) -> m.RegisterRequest:
        request = m.RegisterRequest(
            node_id=self.node_id, version="0.1.0", protocol=m.PROTOCOL, boot_epoch=self.epoch,
            public_key=self.key.public_key().public_bytes_raw(), capabilities=capabilities(self.node_id),
            cpu_slots=8, gpu_slots=0,
        )  # fmt: skip
        return replace(request, **changes)

    async def register(self, token: str | None = None, **changes) -> m.RegisterResponse:
        answer = await self.rig.nobody.call(routes.REGISTER, self.registration(**changes), token=token)
        self.token, self.coordinator_key = answer.node_token, answer.coordinator_key
        return answer

    async def register_again(self, **changes) -> m.RegisterResponse:
        """As a node that is enrolled: by signing a challenge."""
        try:
            await self.register()
        except Unauthenticated as exc:
            message = m.register_message(exc.challenge, self.node_id, self.epoch)
            return await self.register(challenge=exc.challenge, signature=self.key.sign(message), **changes)
        raise AssertionError("a node was let in without a proof")

    async def call(self, route, message=None, **more):
        return await self.rig.nobody.call(route, message, token=self.token, **more)

    async def pull(self, slots: int = 8, wait_s: float = 0.0, held: tuple = (), **more) -> list[m.Assignment]:
        return self.open(await self.pull_raw(slots, wait_s, held, **more))

    async def pull_raw(self, slots: int = 8, wait_s: float = 0.0, held: tuple = (), **more) -> m.PullResponse:
        request = m.PullRequest(node_id=self.node_id, slots=slots, wait_s=wait_s, held=held, protocol=m.PROTOCOL, **more)
        return await self.call(routes.PULL, request)

    def open(self, answer: m.PullResponse) -> list[m.Assignment]:
        trusted = Ed25519PublicKey.from_public_bytes(self.coordinator_key)
        payloads = [dsse.verify(one, dsse.ASSIGNMENT_TYPE, trusted) for one in answer.jobs]
        assert None not in payloads
        return [codec.decode(payload, m.Assignment) for payload in payloads]

    async def ack(self, *held: m.Held) -> tuple[m.ItemResult, ...]:
        items = tuple(m.AckItem(job_id=one.job_id, attempt=one.attempt) for one in held)
        return (await self.call(routes.ACK, m.AckBatch(items=items))).items

    async def take(self, **manifest) -> m.Held:
        """Submits a job and takes it, so that an acknowledged attempt of this node lives."""
        job_id = await self.rig.submit(**manifest)
        [lease] = [one for one in await self.pull() if one.job_id == job_id]
        held = m.Held(lease.job_id, lease.attempt)
        [result] = await self.ack(held)
        assert result.ok
        return held

    async def finish(self, *outcomes: m.Outcome) -> tuple[m.ItemResult, ...]:
        return (await self.call(routes.RESULT, m.OutcomeBatch(items=outcomes))).items


class Rig:
    """One coordinator and its people. `people` has the admin token, `nobody` none, `http` sends whatever a test likes."""

    def __init__(self, data: Path, *, trust: Trust | None = None, **settings) -> None:
        self.trust = trust or Trust()
        # Tests fail to authenticate far more often than anybody is allowed to.
        self.config = CoordinatorConfig(data=data, **{"listen_port": 0, "limits": LimitsConfig(failures_per_s=1e6), **settings})
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Rig"]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        self.hangup = asyncio.Event()
        task = asyncio.create_task(
            run_coordinator(
                self.config,
                stop=stop,
                on_ready=ready.set_result,
                logger=LOGGER,
                read_bundle=read_bundle,
                admin_token=ADMIN,
                hangup=self.hangup,
            )
        )
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        self.stop, self.task, self.url = stop, task, ready.result()
        verify = self.trust.context if self.url.startswith("https:") else True
        async with (
            AsyncClient(self.url, token=ADMIN, trust=self.trust) as self.people,
            AsyncClient(self.url, trust=self.trust) as self.nobody,
            httpx.AsyncClient(base_url=self.url + routes.BASE, trust_env=False, timeout=60, verify=verify) as self.http,
        ):
            try:
                yield self
            finally:
                stop.set()
                await task

    def node(self, node_id: str | None = None) -> Node:
        return Node(self, node_id or f"n-{secrets.token_hex(4)}", Ed25519PrivateKey.generate(), f"boot:{secrets.token_hex(4)}")

    async def join_token(self, uses: int = 1) -> str:
        return (await self.people.call(routes.CREATE_TOKEN, m.TokenRequest(uses=uses))).token

    async def token_for(self, role: Role, principal: str | None = None, **more) -> m.TokenView:
        """An API token as an admin makes it."""
        wanted = m.TokenRequest(kind=m.TokenKind.API, role=role, principal=principal, **more)
        return await self.people.call(routes.CREATE_TOKEN, wanted)

    @contextlib.asynccontextmanager
    async def person(self, role: Role, principal: str | None = None, **more) -> AsyncIterator[AsyncClient]:
        """Somebody with a token of this role."""
        async with AsyncClient(self.url, token=(await self.token_for(role, principal, **more)).token, trust=self.trust) as client:
            yield client

    async def enrolled(self, node_id: str | None = None) -> Node:
        node = self.node(node_id)
        await node.register(await self.join_token())
        return node

    async def submit(self, **manifest) -> str:
        answer = await self.people.call(routes.SUBMIT, codec.encode({"command": "true", **manifest}))
        return answer.items[0].job_id

    async def show(self, job_id: str) -> m.JobView:
        return await self.people.call(routes.SHOW_JOB, job_id=job_id)

    async def open_calls(self, route: routes.Route, count: int = 1) -> None:
        """Waits until so many calls of a route are being answered."""
        line = f'ostler_requests_in_flight{{route="{route.name}"}} {count}.0'

        async def reached():
            return line in (await self.http.get(self.url + "/metrics")).text

        await until(reached)

    def bearer(self, token: str = ADMIN, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}", **more}

    @property
    def staged(self) -> list[Path]:
        return list((self.config.data / "artifacts" / "staging").iterdir())

    async def staging(self) -> None:
        """Waits until bytes of an upload lie in the staging directory."""

        async def some():
            return bool(self.staged)

        await until(some)

    @property
    def stored(self) -> list[Path]:
        return [one for one in (self.config.data / "artifacts" / "objects").rglob("*") if one.is_file()]


@contextlib.asynccontextmanager
async def coordinator(data: Path, **settings) -> AsyncIterator[Rig]:
    async with Rig(data, **settings).running() as rig:
        yield rig
