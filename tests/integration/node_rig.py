"""A node daemon in this process against a scripted coordinator over real HTTP, with a runner that does what a test tells it.

The coordinator is a fake at the true seam: it speaks the protocol over a socket and can answer wrongly, late or not at all,
which the real one cannot be made to do on command.
"""

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import structs
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ostler.model.capabilities import Capabilities, Cpu, Load
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile, Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import (
    BackoffBounds,
    CoordinatorAddress,
    HealthConfig,
    Heartbeat,
    NodeConfig,
    ResourceLimits,
    SandboxConfig,
    WorkspaceConfig,
)
from ostler.node.daemon import NodeDaemon, Parts
from ostler.node.identity import Identity
from ostler.node.journal import Journal
from ostler.node.runners.service import ServiceRunner
from ostler.node.vault import Vault
from ostler.protocol import codec, dsse
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.ports import AttemptTask, Ending, Progress, Withdrawn
from ostler.protocol.session_key import SessionKey, agree
from ostler.runtime.clock import SystemClock
from ostler.runtime.service_manager import ServiceManager

PATIENCE_S = 60.0  # for broken code alone: nothing is timed
LOGGER = logging.getLogger("ostler.test.node")


async def until(condition, what="the condition", timeout_s=PATIENCE_S):
    """Wait until `condition()` is true and give its value back."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):  # noqa: ASYNC110 - what is waited for lies behind a socket
            await asyncio.sleep(0.005)
    return value


class Server(uvicorn.Server):
    """One that leaves this process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


class FakeCoordinator:
    """Hands out what `offer` was given, remembers all that it is told. `refuse` maps a route's name to a list of answers
    (status and body, or "drop" to cut the connection) that are given first."""

    def __init__(self, *, lease_s=30.0, heartbeat_s=0.3, pull_wait_s=5.0):
        self.key = Ed25519PrivateKey.generate()
        self.signer = self.key
        self.terms = {"lease_s": lease_s, "heartbeat_s": heartbeat_s, "pull_wait_s": pull_wait_s}
        self.join_token = "join-me"
        self.enrolled: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.queue: list[m.Assignment] = []
        self.directives: list[m.Directive] = []
        self.refuse = defaultdict(list)
        self.calls: list[tuple[str, object]] = []
        self.leased: dict[tuple[str, int], m.Assignment] = {}
        self.acked: list[tuple[str, int]] = []
        self.declined: list[m.AckItem] = []
        self.outcomes: dict[tuple[str, int], m.Outcome] = {}
        self.deliveries: list[tuple[str, int]] = []
        self.logs: dict[tuple[str, int, str], bytes] = defaultdict(bytes)
        self.files: dict[str, bytes] = {}
        self.workspaces: dict[tuple[str, int], bytes] = {}
        self.bundles: dict[str, bytes] = {}
        self.served: list[str | None] = []  # of bundles: the ranges that were asked for
        self.cuts: list[int] = []  # after so many bytes the next answer with a bundle breaks off
        self.progress: list[m.ProgressItem] = []
        self.registrations: list[m.RegisterRequest] = []
        self.beats: list[m.HeartbeatRequest] = []
        self.open_pulls = 0
        self.most_pulls = 0
        self.forget: tuple[m.Held, ...] = ()
        self.stale: set[tuple[str, int]] = set()
        self.begun: set[tuple[str, int]] = set()  # acknowledged by the pull that brought it
        self.acks_ahead = False  # whether a pull's own word counts as the ack of what it brings
        self.says_pull = ""  # the name of another pull, by which what it brings was acknowledged
        self.crossing: list[tuple[m.Assignment, None]] = []  # what an older poll has claimed when a newer one comes
        self.agrees = False  # whether it agrees on a key with each session, and uses it where a pull names it
        self.session_key: SessionKey | None = None
        self.forges = False  # whether somebody who does not have that key makes what a pull brings
        self.sealed: list[str] = []  # the names of the keys of what was handed out
        self._news = asyncio.Event()
        self._newest: object | None = None
        self.port = 0
        self.server: Server | None = None

    # --- as a server ---

    async def start(self):
        routes = {
            "/nodes/register": self.register, "/nodes/heartbeat": self.heartbeat, "/jobs/pull": self.pull,
            "/jobs/ack": self.ack, "/jobs/progress": self.report, "/jobs/result": self.result,
        }  # fmt: skip
        app = Starlette(
            routes=[
                *(Route(f"/api/v1{path}", self._guard(path, work), methods=["POST"]) for path, work in routes.items()),
                Route(
                    "/api/v1/jobs/{job_id}/attempts/{attempt:int}/log/{stream}", self._guard("log", self.log), methods=["PATCH"]
                ),
                Route(
                    "/api/v1/jobs/{job_id}/attempts/{attempt:int}/workspace",
                    self._guard("workspace", self.workspace),
                    methods=["PUT"],
                ),
                Route("/api/v1/releases/{release}/bundle", self._guard("bundle", self.bundle)),
            ]
        )
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.server = Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0))
        self._serving = asyncio.create_task(self.server.serve(sockets=[listener]))
        await until(lambda: self.server.started, "the fake coordinator")
        return self

    async def stop(self):
        """Be gone: connections are cut, the port answers nobody."""
        self._news.set()
        self.server.should_exit = self.server.force_exit = True
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(self._serving, return_exceptions=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/api/v1"

    def _guard(self, name, work):
        async def endpoint(request: Request):
            if self.refuse[name]:
                answer = self.refuse[name].pop(0)
                if answer == "drop":
                    request.scope["extensions"] = {}
                    with contextlib.suppress(ClientDisconnect):
                        await request.body()
                    for connection in list(self.server.server_state.connections):
                        if getattr(connection, "scope", None) is request.scope:
                            connection.transport.abort()
                    return Response(status_code=500)
                await request.body()
                return Response(answer[1], status_code=answer[0], media_type="application/problem+json")
            if name != "/nodes/register" and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
                return _problem(401, "unauthenticated")
            try:
                return await work(request)
            except ClientDisconnect:
                return Response(status_code=400)

        return endpoint

    # --- as a script ---

    def offer(self, job_id, attempt=1, *, signer=None, node_id=None, spec=None, handed=(), latency=False, **manifest):
        """Put a job in the queue; `signer` signs it instead of the coordinator's own key."""
        manifest.setdefault("command", "do")
        text = codec.encode({"job_id": job_id, **manifest}).decode() if spec is None else spec
        assignment = m.Assignment(
            job_id=job_id, attempt=attempt, node_id=node_id or "", lease_s=self.terms["lease_s"], spec=text, inputs=tuple(handed),
            latency=latency,
        )  # fmt: skip
        self.queue.append((assignment, signer))
        self._news.set()

    def tell(self, kind, job_id=None, attempt=None, **more):
        """A directive that is answered until it is taken back."""
        one = m.Directive(kind=m.DirectiveKind(kind), job_id=job_id, attempt=attempt, **more)
        self.directives.append(one)
        self._news.set()
        return one

    # --- routes ---

    async def register(self, request):
        body = codec.decode(await request.body(), m.RegisterRequest)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if body.signature is not None:
            known = self.enrolled.get(body.node_id)
            if known != body.public_key or body.challenge != "challenge-1":
                return _problem(401, "unauthenticated", challenge="challenge-1")
            message = m.register_message(body.challenge, body.node_id, body.boot_epoch)
            Ed25519PublicKey.from_public_bytes(known).verify(body.signature, message)
        elif bearer == self.join_token:
            self.enrolled[body.node_id] = body.public_key
        else:
            return _problem(401, "unauthenticated", challenge="challenge-1")
        self.registrations.append(body)
        token = f"token-{len(self.registrations)}"
        self.tokens = {token}
        told = None
        if self.agrees and body.session_key is not None:
            self.session_key, told = agree(body.node_id, body.boot_epoch, body.session_key, self.key, "k")
        return _json(
            m.RegisterResponse(
                node_id=body.node_id, node_token=token, token_ttl_s=3600.0,
                coordinator_key=self.key.public_key().public_bytes_raw(), version="0", protocol=1, protocol_min=1,
                forget=self.forget, session_key=told, **self.terms,
            )
        )  # fmt: skip

    async def heartbeat(self, request):
        body = codec.decode(await request.body(), m.HeartbeatRequest)
        self.beats.append(body)
        return _json(m.HeartbeatResponse(lease_s=self.terms["lease_s"], directives=tuple(self.directives)))

    async def pull(self, request):
        body = codec.decode(await request.body(), m.PullRequest)
        self.calls.append(("pull", body))
        mark = self._newest = object()
        self._news.set()  # an older poll ends
        self.open_pulls += 1
        self.most_pulls = max(self.most_pulls, self.open_pulls)
        told = list(self.directives)
        try:
            async with asyncio.timeout(body.wait_s):
                while self._newest is mark and not self._due(body) and self.directives == told:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self.open_pulls -= 1
        if self._newest is not mark:
            taken, self.crossing = self.crossing, []
        else:
            taken = self._due(body)
            self.queue = [one for one in self.queue if one not in taken]
        jobs = []
        for place, (assignment, signer) in enumerate(taken):
            one = assignment if assignment.node_id else structs.replace(assignment, node_id=body.node_id)
            if self.acks_ahead and (place < body.begins or self._newest is not mark):
                one = structs.replace(one, acked=True, pull=self.says_pull or m.pull_name(body.boot_epoch, body.number))
                if self._newest is mark:
                    self.begun.add((one.job_id, one.attempt))
            self.leased[one.job_id, one.attempt] = one
            jobs.append((one, signer))
        if body.together and len(jobs) > 1 and not any(signer for _, signer in jobs):
            sealed = [dsse.sign(codec.encode([one for one, _ in jobs]), dsse.ASSIGNMENTS_TYPE, self.key, "k")]
        else:
            sealed = [dsse.sign(codec.encode(one), dsse.ASSIGNMENT_TYPE, signer or self.key, "k") for one, signer in jobs]
        key = self.session_key
        if key is not None and body.session_key == key.keyid and not any(signer for _, signer in jobs):
            secret = b"x" * 32 if self.forges else key.secret
            sealed = [dsse.seal(one.payload, one.payloadType, secret, key.keyid) for one in sealed]
        self.sealed += [one.signatures[0].keyid for one in sealed]
        return _json(m.PullResponse(jobs=tuple(sealed), directives=tuple(self.directives)))

    def _due(self, body):
        """Commands to services take no credit, and go first."""
        commands = [one for one in self.queue if '"runner":"service"' in one[0].spec]
        return commands + [one for one in self.queue if one not in commands][: body.slots]

    async def ack(self, request):
        body = codec.decode(await request.body(), m.AckBatch)
        self.calls.append(("ack", body))
        results = []
        for item in body.items:
            key = (item.job_id, item.attempt)
            if key in self.stale:
                results.append(m.ItemResult(job_id=item.job_id, attempt=item.attempt, ok=False, code="stale_attempt"))
                continue
            if item.decline is not None:
                self.declined.append(item)
            else:
                self.acked.append(key)
            results.append(m.ItemResult(job_id=item.job_id, attempt=item.attempt))
        return _json(m.BatchResponse(items=tuple(results)))

    async def report(self, request):
        body = codec.decode(await request.body(), m.ProgressBatch)
        self.progress.extend(body.items)
        return _json(m.BatchResponse(items=tuple(m.ItemResult(job_id=i.job_id, attempt=i.attempt) for i in body.items)))

    async def result(self, request):
        files = {}
        if request.headers["content-type"].startswith("multipart/"):
            async with request.form() as form:
                outcomes = [codec.decode(form["metadata"], m.Outcome)]
                files = {file.filename: await file.read() for file in form.getlist("artifacts")}
        else:
            outcomes = codec.decode(await request.body(), m.OutcomeBatch).items
        self.calls.append(("result", outcomes))
        return _json(m.BatchResponse(items=tuple(self._finish(one, files) for one in outcomes)))

    def _finish(self, outcome, files):
        key = (outcome.job_id, outcome.attempt)
        self.deliveries.append(key)
        if key in self.stale:
            return m.ItemResult(job_id=key[0], attempt=key[1], ok=False, code="stale_attempt", message="not yours")
        if key not in self.begun and key not in self.acked:
            return m.ItemResult(job_id=key[0], attempt=key[1], ok=False, code="invalid_transition", message="never acknowledged")
        for end in outcome.logs:
            have = self.logs[*key, end.stream]
            if end.offset != len(have):
                return m.ItemResult(
                    job_id=key[0], attempt=key[1], ok=False, code="offset_mismatch", stream=end.stream, offset=len(have)
                )
        for end in outcome.logs:
            self.logs[*key, end.stream] += end.tail
        self.files.update({f"{key[0]}/{name}": content for name, content in files.items()})
        self.outcomes.setdefault(key, outcome)
        return m.ItemResult(job_id=key[0], attempt=key[1])

    async def log(self, request):
        key = (request.path_params["job_id"], request.path_params["attempt"], request.path_params["stream"])
        offset = int(request.headers["upload-offset"])
        content = await request.body()
        if key[:2] in self.stale:
            return _problem(410, "gone")
        if offset != len(self.logs[key]):
            return _problem(409, "offset_mismatch", offset=len(self.logs[key]))
        self.logs[key] += content
        return Response(status_code=204, headers={"Upload-Offset": str(len(self.logs[key]))})

    async def bundle(self, request):
        content, wanted = self.bundles[request.path_params["release"]], request.headers.get("range")
        self.served.append(wanted)
        start = 0 if wanted is None else int(wanted.removeprefix("bytes=").removesuffix("-"))
        left, cut = content[start:], self.cuts.pop(0) if self.cuts else None

        async def body():
            yield left[:cut]
            if cut is not None:
                raise ConnectionError("cut")

        return StreamingResponse(body(), 206 if start else 200, {"Content-Length": str(len(left))})

    async def workspace(self, request):
        key = (request.path_params["job_id"], request.path_params["attempt"])
        self.workspaces[key] = await request.body()
        self.directives = [one for one in self.directives if one.kind is not m.DirectiveKind.DEBUG]
        return _json(m.Blob(sha256="0" * 64, size=len(self.workspaces[key])))


def _json(value):
    return Response(codec.encode(value), media_type="application/json")


def _problem(status, code, **more):
    return Response(codec.encode({"title": code, "status": status, "code": code, **more}), status_code=status)


class TestRunner:
    """Attempts live in the test: each waits for its gate unless its job is in `quick`. What lives outlasts a daemon, as under a
    keeper."""

    __test__ = False
    runner = Runner.CLI

    def __init__(self):
        self.living: dict[str, asyncio.Future[Ending]] = {}
        self.started: list[str] = []
        self.forgotten: list[str] = []
        self.killed: list[tuple[str, str]] = []
        self.work = {}
        self.progress = {}
        self.lets_wait = False
        self.waiting: dict[str, tuple[AttemptTask, asyncio.Future[None]]] = {}
        self.lending = False
        self.lent: list[str] = []

    def lends(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        return self.lending

    def waits(self, manifest: Manifest, *, lent: bool) -> int:
        return 2 * self.lets_wait

    def refuse(self, manifest: Manifest) -> Failure | None:
        return Failure(FailureCode.DENY, "no such command") if manifest.command == "denied" else None

    async def start(self, task: AttemptTask) -> Failure | None:
        if refused := self.refuse(task.manifest):
            return refused
        if task.room is not None:
            begins = asyncio.get_running_loop().create_future()
            one = {task.key: (task, begins)}
            self.waiting = {**one, **self.waiting} if task.first else {**self.waiting, **one}
            self._admit()
            await begins
        self.started.append(task.key)
        if task.lent:
            self.lent.append(task.key)
        if task.manifest.command == "unstartable":
            return Failure(FailureCode.START, "no such file")
        end = self.living[task.key] = asyncio.get_running_loop().create_future()
        work = self.work.get(task.job_id)
        if work is not None:
            work(task)
        if task.manifest.command == "do":
            end.set_result(Ending(exit_code=0))
            self._admit()
        return None

    async def wait(self, task: AttemptTask, progress) -> Ending:
        self.progress[task.key] = progress
        return await asyncio.shield(self.living[task.key])

    async def alive(self, task: AttemptTask) -> bool:
        return task.key in self.living

    def _admit(self) -> None:
        """As the keeper does it: one that waits begins once there is room."""
        running = sum(not end.done() for end in self.living.values())
        for key, (task, begins) in list(self.waiting.items()):
            if running >= task.room:
                break
            del self.waiting[key]
            if not begins.done():
                running += 1
                begins.set_result(None)

    async def withdraw(self, task: AttemptTask) -> None:
        if task.key in self.waiting:
            self.waiting.pop(task.key)[1].set_exception(Withdrawn("it need not begin"))

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        if task.key in self.waiting:
            await self.withdraw(task)
            return
        self.killed.append((task.key, reason))
        self.end(task.key, Ending(cancelled=reason == "cancel", signal=15, failure=_killed(reason)))

    async def forget(self, *tasks: AttemptTask) -> None:
        for task in tasks:
            self.forgotten.append(task.key)
            self.living.pop(task.key, None)

    async def close(self) -> None:
        pass

    def end(self, key: str, ending: Ending | None = None):
        """Let an attempt end."""
        if not self.living[key].done():
            self.living[key].set_result(ending or Ending(exit_code=0))
            self._admit()

    def say(self, key: str, pct: float, note: str):
        """A job tells its progress."""
        self.progress[key](Progress(pct=pct, note=note))


def _killed(reason):
    return None if reason == "cancel" else Failure(FailureCode.LOST, f"was ended by the node: {reason}")


class NodeRig:
    """One node's directory, and daemons that come and go on it."""

    def __init__(
        self,
        folder: Path,
        coordinator: FakeCoordinator,
        *,
        runner=None,
        slots=2,
        prefetch=32,
        config=None,
        services=None,
        updates=None,
    ):
        self.folder = folder
        self.coordinator = coordinator
        self.runner = runner or TestRunner()
        self.services = services  # makes the watcher of a daemon's services
        self.updates = updates
        self.capabilities = Capabilities(
            node_id="node-1", version="0", cpu=Cpu(cores=2, arch="x86_64"), memory_mb=1000, disk_free_mb=1000, machine_id="m1"
        )
        self.config = NodeConfig(
            node_id="node-1",
            coordinator=CoordinatorAddress(base_url=coordinator.url, auth_token=coordinator.join_token, timeout_s=5.0),
            heartbeat=Heartbeat(interval_s=0.3, backoff=BackoffBounds(min_s=0.05, max_s=0.3)),
            resources=ResourceLimits(max_concurrent_cpu=slots, prefetch=prefetch, grace_s=1.0),
            workspace=WorkspaceConfig(root=folder / "jobs", min_free_mb=0, keep_failed=timedelta(days=7)),
            sandbox=SandboxConfig(level=SandboxLevel.NONE),
            health=HealthConfig(listen="127.0.0.1:0"),
            state_dir=folder / "state",
        )
        if config is not None:
            self.config = config(self.config)
        self.config.workspace.root.mkdir(exist_ok=True)
        self.config.state.mkdir(exist_ok=True, mode=0o700)
        self.daemon: NodeDaemon | None = None
        self.inputs: dict[str, Failure | None] = {}
        self.prepared: dict[str, tuple[InputFile, ...]] = {}  # the files that an attempt was to have
        self.keeper_calls = 0
        self.manager = ServiceManager()
        self.no_op_fails = None

    async def start(self, *, pinned=False) -> NodeDaemon:
        """Start a daemon on this directory; `pinned` as if it had been enrolled somewhere before."""
        journal = Journal(self.config.state / "journal.db", logger=LOGGER)
        identity = Identity.open(self.config.state, journal, configured=self.config.node_id, boot_id="boot")
        if pinned:
            identity.pin(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
        self.clients = [AsyncClient(self.config.coordinator.base_url), AsyncClient(self.config.coordinator.base_url)]

        async def prepare(live, workspace):
            self.prepared[live.job_id] = live.manifest.input.files
            return self.inputs.get(live.job_id)

        async def keeper():
            self.keeper_calls += 1

        async def tidy(held):
            self.tidied = held

        async def no_op():
            return self.no_op_fails

        runners, watcher = {Runner.CLI: self.runner}, None
        if self.services is not None:
            watcher = self.services(self.config)
            runners[Runner.SERVICE] = ServiceRunner(watcher)
        self.daemon = NodeDaemon(
            Parts(
                config=self.config, journal=journal, identity=identity, client=self.clients[0], heart=self.clients[1],
                runners=runners, services=watcher, keeper=keeper, tidy=tidy, prepare=prepare, vault=Vault(self.config.state),
                look=lambda: self.capabilities, gpus=lambda: self.capabilities.gpu,
                sample=lambda: Load(load=0.1, free_mb=1, gpu_free=0, disk_free_mb=1, cpu_load=1.0, vram_free_mb=0),
                first_look=self.capabilities, clock=SystemClock(), logger=LOGGER,
                no_op=no_op, manager=self.manager, release="0.2.0-test", updates=self.updates,
            )
        )  # fmt: skip
        self.running = asyncio.create_task(self.daemon.run())
        return self.daemon

    async def stop(self):
        """As SIGTERM does."""
        if self.daemon is not None:
            self.daemon.stop()
            await self.running
            for client in self.clients:
                await client.close()
            self.daemon = None

    async def crash(self):
        """As SIGKILL does: nothing more is said, written or cleaned up."""
        daemon, self.daemon = self.daemon, None
        works = [live.work for live in daemon.table if live.work is not None]
        for live in daemon.table:
            live.forgotten = False
        self.running.cancel()
        daemon.heart.farewell = _nothing
        for work in works:
            work.cancel()
        await asyncio.gather(self.running, *works, return_exceptions=True)
        for client in self.clients:
            await client.close()

    def held(self):
        """What the daemon says that it has."""
        return {(one.job_id, one.attempt) for one in self.daemon.table.held()}

    async def beats(self, count=2):
        """Let the node live on for some heartbeats: what has not happened by then does not happen."""
        seen = len(self.coordinator.beats)
        await until(lambda: len(self.coordinator.beats) >= seen + count, f"{count} heartbeats")

    def over(self, job_id, attempt=1):
        """The outcome as the coordinator has it."""
        return self.coordinator.outcomes.get((job_id, attempt))


async def _nothing():
    return None
