"""Ostler itself: coordinator, node and keeper as processes with everything on, asked as a program asks, by `ostler.Client`."""

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from driver import Contestant, kill, stamp_program, tree, until

import ostler

COMMAND = Path(sys.executable).parent / "ostler"
TASKS = Path(__file__).parent / "noop_tasks"
KEEPER = b"ostler/node/keeper"


def serve(one: Contestant, data: Path, *more: str | Path) -> tuple[subprocess.Popen[bytes], str]:
    """A coordinator on a free port: its process and its URL."""
    log = data.with_suffix(".log").open("ab")
    process = subprocess.Popen(
        [COMMAND, "coordinator", "--data", data, "--listen", "127.0.0.1:0", *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip
    one.processes.append(process)
    for line in process.stdout:
        if line.startswith(b"ready "):
            return process, line.split()[1].decode()
    sys.exit(data.with_suffix(".log").read_text())


class Ostler(Contestant):
    """One coordinator on SQLite and one node; jobs at level `process` unless said otherwise."""

    settings = "SQLite WAL, synchronous=FULL; TLS off (loopback); signatures, leases, logs, events, audit, quotas, keeper on"
    level = "process"

    def version(self) -> str:
        return ostler.__version__

    def start(self) -> None:
        self.allowlist = self.place / "allowlist.d"
        self.allowlist.mkdir()
        stamp = stamp_program(self.place.parent)
        (self.allowlist / "true.yaml").write_text("command: {path: /usr/bin/true}\n")
        (self.allowlist / "stamp.yaml").write_text(json.dumps({"command": {"path": str(stamp)}}))
        self.coordinator, self.url = serve(self, self.place / "coordinator")
        self.token = (self.place / "coordinator" / "admin.token").read_text().strip()
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {self.token}"}, timeout=60)
        self.client = ostler.Client(self.url, token=self.token)
        self.open: list[ostler.JobFuture] = []
        made = self.http.post("/tokens", json={"kind": "join", "uses": 1}).raise_for_status().json()
        self.node = self.start_node(made["token"])
        until(self.ready, "a ready node")
        self.executor = ostler.Executor(self.client)

    def start_node(self, token: str = "") -> subprocess.Popen[bytes]:
        """The daemon, which starts a keeper where none runs."""
        settings = {
            "coordinator": {"base_url": f"{self.url}/api/v1", "auth_token": "env:JOIN_TOKEN"},
            "runners": {
                "cli": {"allowlist_dir": str(self.allowlist), "allow_own_binaries": True},
                "python": {"enable": True, "task_paths": [str(TASKS)]},
            },
            "resources": {"max_concurrent_cpu": self.slots},
            "workspace": {"root": str(self.place / "jobs")},
            "state_dir": str(self.place / "node"),
            "sandbox": {"level": self.level},
            "health": {"listen": "127.0.0.1:0"},
        }
        (self.place / "node.yaml").write_text(json.dumps(settings))
        return self.spawn([COMMAND, "node", "--config", self.place / "node.yaml"], env={**os.environ, "JOIN_TOKEN": token or "-"})

    def ready(self) -> bool:
        """Whether the node takes work."""
        return any(one["state"] == "ready" for one in self.http.get("/nodes").json()["items"])

    def keepers(self) -> list[int]:
        """The keeper's process, which outlives the daemon."""
        return [pid for pid in tree([os.getpid()]) if KEEPER in (Path(f"/proc/{pid}/cmdline").read_bytes())][:1]

    def parts(self) -> dict[str, list[int]]:
        keepers = self.keepers()
        return {
            "coordinator": tree([self.coordinator.pid]), "node": tree([self.node.pid], without=keepers),
            "keeper": keepers, "jobs and workers": tree(keepers)[len(keepers) :],
        }  # fmt: skip

    def bulk(self, count: int) -> None:
        """One call for each thousand, as the client makes them."""
        self.open = self.client.submit_many([{"command": "true"}] * count)

    def singles(self, count: int) -> None:
        """One call each, over one connection."""
        self.open = [self.client.submit(["true"]) for _ in range(count)]

    def tasks(self, count: int) -> None:
        """One job for each no-op, in the node's warm workers."""
        self.open = self.client.submit_many([{"task": "noop"}] * count)

    def wait(self) -> None:
        """Until every future has its job's end."""
        for future in concurrent.futures.as_completed(self.open, timeout=600):
            future.result()

    def function(self) -> tuple[float, float]:
        """The executor's way to call one."""
        return self.executor.submit("noop:clock").result(30), time.time()

    def program(self) -> tuple[float, float]:
        """Through the same client; the job prints the clock."""
        future = self.client.submit(["stamp"])
        future.result(30)
        seen = time.time()
        return int(future.logs()) / 1e9, seen

    def cold(self) -> float:
        """Daemon and keeper are started anew for a job that waits."""
        self.end(self.node)
        kill(tree(self.keepers()))
        until(lambda: not self.keepers(), "the keeper's end")
        future = self.client.submit(["stamp"])
        began = time.time()
        self.node = self.start_node()
        future.result(30)
        return int(future.logs()) / 1e9 - began

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
            self.http.close()


class Sandboxed(Ostler):
    """The same with each job in bubblewrap, without a network."""

    level = "bwrap"
