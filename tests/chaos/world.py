"""The processes of a run and what can be done to them: a coordinator (or replicas), two nodes with keepers, lines between them."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from .database import Database
from .disks import Disk, can_mount
from .line import Line, free_port
from .processes import Kept, Seen, seen
from .records import Record, now
from .schedule import LEASE_S, MARGIN_S, NODES
from .workload import SECRET, SECRET_VALUE

HERE = Path(__file__).parent
OSTLER = str(Path(sys.executable).parent / "ostler")
SLOTS = 6
TOLD = (  # what manifests say to `body.sh`
    "NUMBER", "LINES", "ERRORS", "SIZES", "PLACE", "STEPS", "PAUSE", "FAILS", "CODE", "HUNGRY", "INPUT", "HANDED", "DETACH", "SECRET",
)  # fmt: skip
START_S = 120.0
PRINCIPAL = "chaos"  # whose the jobs are
# Of coordinators: a short lease, so that much happens in little time, and nodes' tokens that run out where a node cannot ask for the next.
HASTY = {"lease": f"{LEASE_S}s", "lease_margin": f"{MARGIN_S}s", "heartbeat": "1s", "pull_wait": "5s", "token_ttl": "8s"}


def able(store: str = "sqlite", replicas: int = 1) -> set[str]:
    """What of `Kind.needs` this machine offers."""
    found = set()
    if can_mount():
        found.add("mount")
    if shutil.which("cc"):
        found.add("compiler")
    if store == "postgresql":
        found.add("postgresql")
    if replicas > 1:
        found.add("replicas")
    return found


class World:
    """Everything that runs, in one directory."""

    def __init__(
        self,
        place: Path,
        *,
        able: Collection[str],
        jobs: int,
        planted: str | None = None,
        settings: Mapping[str, str] = HASTY,
    ) -> None:
        self.place, self.able, self.planted = place, able, planted
        self.database: Database | None = None
        self._database_line: Line | None = None
        self.ports = {"coordinator": free_port()}
        if "replicas" in able:
            self.ports["coordinator-2"] = free_port()
        self.disks: dict[str, Disk] = {}
        self.lines = {name: Line(name, self._target, tap=None) for name in ("submitter", *NODES)}
        for name in NODES:
            self.lines[name] = Line(name, self._target, tap=lambda *heard, name=name: self._heard(name, *heard))
        self.coordinators: dict[str, Kept] = {}
        self.daemons: dict[str, Kept] = {}
        self.heard = Record(place / "heard.jsonl")
        self.pulls = Record(place / "pulls.jsonl")
        self.token = ""
        self.submitter = {"token": "", "token_id": ""}
        self.rotating = asyncio.Lock()
        self.joined: dict[str, str] = {}
        self.introductions: dict[str, dict[str, Any]] = {}
        self._jobs, self._settings = jobs, settings
        self._turn = 0
        self._up: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- places ---

    def data(self) -> Path:
        """The coordinator's data directory."""
        return self.place / "disks" / "coordinator.data"

    def state(self, node: str) -> Path:
        """A node's state directory."""
        return self.place / "disks" / f"{node}.state"

    def root(self, node: str) -> Path:
        """Where a node's workspaces are."""
        return self.place / "disks" / f"{node}.jobs"

    # --- start and stop ---

    async def start(self) -> None:
        """Start everything and wait until both nodes are ready."""
        for name in ("journals", "logs", "allowlist.d", "home"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "body.sh", self.place / "body.sh")
        self._prepare_disks()
        if "compiler" in self.able:
            shim = [str(HERE / "shim.c"), "-o", str(self.place / "shim.so"), "-ldl"]
            await asyncio.to_thread(subprocess.run, ["cc", "-shared", "-fPIC", "-O2", *shim], check=True)
        arguments = [{"match": ["-c", ".*"], "required": True, "allow_slash": True, "allow_colon": True, "allow_dash": True}]
        allowed = {"command": {"path": "/bin/sh"}, "args": arguments, "env": [f"CHAOS_{one}" for one in TOLD]}
        (self.place / "allowlist.d" / "sh.yaml").write_text(yaml.safe_dump(allowed))
        if "postgresql" in self.able:
            await self._start_database()
        for name, port in self.ports.items():

            async def up(name: str = name) -> bool:
                return name in self._up

            if name != "coordinator":  # the first one made the keys; the others need the same
                shutil.copytree(self.data() / "keys", self.place / name / "keys")
            self._make_coordinator(name, port)
            self.coordinators[name].start()
            await self.until(up, what=name)
        self.token = (self.data() / "admin.token").read_text().strip()
        async with self.client() as client:
            answer = await client.post("/tokens", json={"kind": "api", "role": "submitter", "principal": PRINCIPAL})
            assert answer.status_code < 300, answer.text
            self.submitter = answer.json()
            async with self.people() as people:
                answer = await people.put(f"/secrets/{SECRET}", content=SECRET_VALUE.encode())
            assert answer.status_code < 300, answer.text
            for name in NODES:
                answer = await client.post("/tokens", json={"kind": "join", "expires_s": 86400, "uses": 1, "note": name})
                assert answer.status_code < 300, answer.text
                self.joined[name] = answer.json()["token_id"]
                self._make_node(name, answer.json()["token"])
                self.daemons[name].start()

        await self.ready()

    async def ready(self, *, unlike: Mapping[str, str] | None = None) -> dict[str, str]:
        """Wait until both nodes are ready, in other sessions than `unlike`; answers their sessions."""
        found: dict[str, str] = {}
        async with self.client() as client:

            async def both() -> bool:
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    items = (await client.get("/nodes")).json()["items"]
                    found.update({one["node_id"]: one["boot_epoch"] for one in items if one["state"] == "ready"})
                return all(found.get(node, "") not in {"", (unlike or {}).get(node)} for node in NODES)

            await self.until(both, what="two ready nodes")
        return found

    async def whole(self) -> None:
        """Wait until the database and all coordinators are there."""

        async def there() -> bool:
            return self._up == set(self.ports) and (self.database is None or not self.database.busy.locked())

        await self.until(there, what="all coordinators")

    async def stop(self) -> dict[str, int | None]:
        """End everything in good order: daemons, keepers, coordinators. Answers how each ended."""
        codes: dict[str, int | None] = {}
        for name, one in self.daemons.items():
            codes[name] = await one.stop()
        for name in NODES:
            if self.keeper(name) is not None:
                command = [sys.executable, "-c", KEEPER_STOP, str(self.state(name))]
                done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
                codes[f"{name}-keeper"] = done.returncode
        for name, one in self.coordinators.items():
            codes[name] = await one.stop()
        return codes

    def clear(self) -> None:
        """Whatever is left must go, however a run ended."""
        for task in self._tasks:
            task.cancel()
        if self.database is not None:
            self.database.close()
        for kept in (*self.daemons.values(), *self.coordinators.values()):
            kept.abandon()
        for one in seen(str(self.place)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        self.heard.close()
        self.pulls.close()

    def keep_evidence(self) -> None:
        """Copy what lies on the small disks beside the records, and give the disks back."""
        for name, disk in self.disks.items():
            kept = self.place / "evidence" / name
            shutil.copytree(disk.place, kept, symlinks=True, ignore=_no_sockets, dirs_exist_ok=True)
            disk.unmount()
        if not self.disks:
            shutil.copytree(self.place / "disks", self.place / "evidence", symlinks=True, ignore=_no_sockets, dirs_exist_ok=True)
        shutil.rmtree(self.place / "disks", ignore_errors=True)

    def _prepare_disks(self) -> None:
        names = ["coordinator.data", *(f"{node}.{what}" for node in NODES for what in ("state", "jobs"))]
        for name in names:
            place = self.place / "disks" / name
            if "mount" in self.able:
                size = 256 + self._jobs // 4 if name == "coordinator.data" else 400
                self.disks[name] = Disk(place, size_mb=size)
                self.disks[name].mount()
            else:
                place.mkdir(parents=True)
            place.chmod(0o700 if not name.endswith("jobs") else 0o711)

    def _env(self, name: str, **more: str) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("OSTLER_", "COV_", "COVERAGE_"))}
        env |= {"HOME": str(self.place / "home"), "NO_COLOR": "1", **more}
        if "compiler" in self.able:
            control = self.place / f"{name}.shim"
            control.write_bytes(struct.pack("qq", 0, 0))
            env |= {"LD_PRELOAD": str(self.place / "shim.so"), "CHAOS_SHIM": str(control)}
        return env

    def _make_coordinator(self, name: str, port: int) -> None:
        file = self.place / f"{name}.yaml"
        config: dict[str, Any] = {
            "data": str(self.data() if name == "coordinator" else self.place / name),
            "listen_port": port,
            "drain": "2s",
            **self._settings,
        }
        if self._database_line is not None:
            config["store"] = f"postgresql://ostler:ostler@127.0.0.1:{self._database_line.port}/ostler"
            config["artifacts"] = str(self.data() / "artifacts")
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        command = [OSTLER, "coordinator", "--config", str(file)]
        if self.planted is not None:
            command = [sys.executable, "-m", f"{__package__}.planted", self.planted, str(file)]
        env = self._env(name)
        if self.planted is not None:
            env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        kept = Kept(name, lambda: command, env=env, log=self.place / "logs" / f"{name}.log")
        kept.on_up = lambda: self._watch(kept, port)
        self.coordinators[name] = kept

    def _make_node(self, name: str, token: str) -> None:
        file = self.place / f"{name}.yaml"
        config = {
            "node_id": name,
            "coordinator": {
                "base_url": f"http://127.0.0.1:{self.lines[name].port}/api/v1", "auth_token": "env:JOIN_TOKEN", "timeout_s": 5.0,
            },
            "heartbeat": {"backoff": {"min_s": 0.2, "max_s": 2}},
            "runners": {
                "cli": {"allowlist_dir": str(self.place / "allowlist.d")},
                "python": {"enable": True, "task_paths": [str(HERE / "tasks")]},
            },
            "resources": {"max_concurrent_cpu": SLOTS, "grace_s": 1.0},
            "workspace": {
                "root": str(self.root(name)), "keep_success": "2s", "keep_failed": "2s", "min_free_mb": 4, "cache_mb": 32,
            },
            "state_dir": str(self.state(name)),
            "sandbox": {"level": "process"},
            "health": {"listen": "off"},
        }  # fmt: skip
        file.write_text(yaml.safe_dump(config))
        command = [OSTLER, "node", "--config", str(file)]
        env = self._env(name, JOIN_TOKEN=token)
        self.daemons[name] = Kept(name, lambda: command, env=env, log=self.place / "logs" / f"{name}.log")

    # --- coordinators that come and go ---

    def line(self, name: str) -> Line:
        """A line by the name of whoever uses it; `database` is that of the coordinators."""
        if name == "database":
            assert self._database_line is not None
            return self._database_line
        return self.lines[name]

    async def _start_database(self) -> None:
        self.database = database = await asyncio.to_thread(Database)
        self._database_line = Line("database", lambda: database.port)
        await self._database_line.listen()

    def _target(self) -> int:
        """A coordinator that listens, in turn, as a plain load balancer chooses."""
        there = sorted(self._up)
        if not there:
            raise ConnectionRefusedError
        self._turn += 1
        return self.ports[there[self._turn % len(there)]]

    def _watch(self, kept: Kept, port: int) -> None:
        task = asyncio.get_running_loop().create_task(self._follow(kept, port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, kept: Kept, port: int) -> None:
        """From the start of a coordinator to its end: only while it listens do the lines to it."""
        process = kept.process
        assert process is not None
        while process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        else:
            return
        self._up.add(kept.name)
        for line in self.lines.values():
            await line.listen()
        await process.wait()
        self._up.discard(kept.name)
        if not self._up:
            for line in self.lines.values():
                await line.refuse()

    def client(self, line: str = "submitter") -> httpx.AsyncClient:
        """As an admin has it, through the submitters' line or another."""
        return self._client(line, lambda: self.token)

    def people(self) -> httpx.AsyncClient:
        """As submitters have it, with the token that they know at the moment."""
        return self._client("submitter", lambda: self.submitter["token"])

    def _client(self, line: str, token: Callable[[], str]) -> httpx.AsyncClient:
        def shown(request: httpx.Request) -> httpx.Request:
            request.headers["Authorization"] = f"Bearer {token()}"
            return request

        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.lines[line].port}/api/v1", timeout=8, auth=shown, trust_env=False,
            limits=httpx.Limits(max_connections=40, max_keepalive_connections=40),
        )  # fmt: skip

    # --- what is there ---

    def keeper(self, node: str) -> Seen | None:
        """The living keeper of a node."""
        mark = str(self.state(node))
        return next((one for one in seen(mark) if "keeper" in one.command and mark in one.command), None)

    def of_node(self, node: str) -> list[Seen]:
        """Everything that runs on a node, as if it were a machine."""
        found = [*seen(str(self.state(node))), *seen(str(self.root(node)))]
        daemon = self.daemons[node].pid
        return [one for one in {one.pid: one for one in found}.values() if one.pid != daemon and one.pid != os.getpid()]

    def set_clock(self, name: str, seconds: float) -> None:
        """Put the clock of the day of a part off by so many seconds."""
        self._shim(name, 0, int(seconds * 1e9))

    def set_sync_delay(self, name: str, seconds: float) -> None:
        """Let each sync of a part's files take longer."""
        self._shim(name, 1, int(seconds * 1e6))

    def _shim(self, name: str, place: int, value: int) -> None:
        with (self.place / f"{name}.shim").open("r+b") as file:  # the same file: it is mapped
            file.seek(place * 8)
            file.write(struct.pack("q", value))

    def _heard(self, node: str, path: str, kind: bytes, asked: bytes, status: int, answered: bytes) -> None:
        """A question of a node that was answered: what it said, and what it was told about it."""
        if status != 200:
            return
        if path.endswith("/nodes/register"):
            self.introductions[node] = json.loads(asked)
            return
        if path.endswith("/jobs/pull"):
            with contextlib.suppress(ValueError, KeyError):
                said, told = json.loads(asked), json.loads(answered)
                brought = _leases(told)
                self.pulls.write(node=node, slots=said["slots"], held=len(said.get("held") or ()), brought=len(brought))
                for one in brought:
                    if one.get("acked"):
                        self.heard.write(
                            node=node, call="pull", job_id=one["job_id"], attempt=one["attempt"], ok=True, declined=None
                        )  # fmt: skip
            return
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(answered)["items"]
            items = json.loads(asked)["items"] if kind.startswith(b"application/json") else [_metadata(asked)]
            for item, answer in zip(items, told, strict=False):
                self.heard.write(
                    node=node, call=path.rpartition("/")[2], job_id=answer["job_id"], attempt=answer["attempt"],
                    ok=answer.get("ok", True), code=answer.get("code"),
                    failure=(item.get("failure") or {}).get("code"), cancelled=item.get("cancelled", False),
                    exit_code=item.get("exit_code"), declined=item.get("decline"),
                    artifacts={one["path"]: one["sha256"] for one in item.get("artifacts") or ()},
                )  # fmt: skip

    @staticmethod
    async def until(condition, *, what: str) -> None:
        """Wait for something that another process does."""
        deadline = now() + START_S
        while not await condition():
            if now() > deadline:
                raise TimeoutError(f"{what}: not in {START_S:g} s")
            await asyncio.sleep(0.05)


KEEPER_STOP = "import sys, pathlib; from ostler.assembly.keeper_stop import shut_down; shut_down(pathlib.Path(sys.argv[1]))"


def _leases(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The assignments that a pull brought, whichever way this release signs them."""
    found = []
    for envelope in answer.get("jobs") or ():
        payload = json.loads(base64.b64decode(envelope["payload"]))
        found += payload if isinstance(payload, list) else [payload]
    return found


def _metadata(form: bytes) -> dict[str, Any]:
    """The field `metadata` of a multipart form, which comes first."""
    start = form.index(b"\r\n\r\n") + 4
    found = json.loads(form[start : form.index(b"\r\n--", start)])
    return found["items"][0] if "items" in found else found


def _no_sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket() or (Path(folder) / name).is_fifo()]
