"""Several coordinators on one PostgreSQL behind a real HAProxy, and whatever joins them."""

import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from e2e.fleet import OSTLER, Fleet, until

# As the how-to has it, but for the names and the patience: what is dead is found out in half a second.
HAPROXY = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout http-request 30s
    option redispatch
    retries 3
    retry-on conn-failure
frontend ostler
    bind 127.0.0.1:{port}
    default_backend coordinators
backend coordinators
    balance leastconn
    option httpchk GET /readyz
    default-server check inter 250ms fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


def haproxy() -> str:
    """The program; skips the test where it cannot be had."""
    if not shutil.which("haproxy") and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "haproxy"]
        subprocess.run(command, check=False, capture_output=True, timeout=300)
    found = shutil.which("haproxy")
    if not found:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Replica:
    """One coordinator, started as a user starts it, with a data directory and a port of its own."""

    def __init__(self, data: Path, store: str, artifacts: Path, env: dict[str, str], settings: dict[str, object]) -> None:
        self.data, self.env, self.port = data, env, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        data.mkdir(parents=True)
        self.config = data / "coordinator.yaml"
        self.config.write_text(yaml.safe_dump({"store": store, "artifacts": str(artifacts), **settings}))
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start (again) and wait for "ready URL"."""
        with (self.data / "coordinator.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [OSTLER, "coordinator", "--data", self.data, "--listen", f"127.0.0.1:{self.port}", "--config", self.config],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=self.env,
            )  # fmt: skip
        line = self.process.stdout.readline() if self.process.stdout else ""
        assert re.match(r"ready http", line), self.log()[-3000:]

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def stop(self) -> None:
        """As systemd does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.kill()

    def log(self) -> str:
        return (self.data / "coordinator.err").read_text()


class Replicas(Fleet):
    """Coordinators and the proxy in front of them; used like any other fleet, without a node of its own."""

    def __init__(self, data: Path, store: str, *, count: int = 2, settings: dict[str, object] | None = None) -> None:
        super().__init__(data)
        self.store, self.count = store, count
        self.replicas = [
            Replica(data / f"c{number}", store, data / "artifacts", self.env, settings or {}) for number in range(count)
        ]
        self.proxy: subprocess.Popen[bytes] | None = None

    def start(self):
        """The first one makes the keys, which the others get; then the proxy."""
        for replica in self.replicas:
            if replica is not self.replicas[0]:
                shutil.copytree(self.replicas[0].data / "keys", replica.data / "keys")
            replica.start()
        port = free_port()
        servers = "\n".join(f"    server c{i} 127.0.0.1:{one.port}" for i, one in enumerate(self.replicas))
        (self.data / "haproxy.cfg").write_text(HAPROXY.format(port=port, servers=servers))
        with (self.data / "haproxy.log").open("wb") as log:
            self.proxy = subprocess.Popen([haproxy(), "-db", "-f", self.data / "haproxy.cfg"], stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        self.token = (self.replicas[0].data / "admin.token").read_text().strip()
        self.env |= {"OSTLER_URL": self.url, "OSTLER_TOKEN": self.token}
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {self.token}"}, timeout=90,
            transport=httpx.HTTPTransport(retries=3),
        )  # fmt: skip
        self.get("/nodes")
        return self

    def stop(self):
        """The proxy first, so that nobody is sent to who is just ending."""
        if self.http:
            self.http.close()
        if self.proxy is not None:
            self.proxy.terminate()
            self.proxy.wait(20)
            self.proxy = None
        for replica in self.replicas:
            replica.stop()

    def at(self, number: int, path: str, **params):
        """GET from one of them, past the proxy."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.get(f"{self.replicas[number].url}/api/v1{path}", headers=headers, params=params, timeout=60)

    def submit_safely(self, manifests, key):
        """Submit until it is answered, under one idempotency key."""

        def attempt():
            with suppress(httpx.TransportError):
                answer = self.http.post("/jobs", json=manifests, headers={"Idempotency-Key": key})
                if answer.status_code in {502, 503, 504}:
                    return None
                assert answer.status_code in {200, 201}, answer.text
                return [item["job_id"] for item in answer.json()["items"]]
            return None

        return until(attempt, timeout=90, what="an answer to the submission")
