"""A real `ostler up` for tests: coordinator, node and keeper as processes, reached as a user reaches them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import yaml

OSTLER = str(Path(sys.executable).parent / "ostler")
TASKS = Path(__file__).parent / "tasks"
PARTS = {"coordinator": "ostler.assembly.coordinator", "node": "ostler.assembly.node", "keeper": "ostler/node/keeper"}
OVER = {"done", "failed", "cancelled", "expired"}
SHELL = {
    "command": {"path": "/bin/sh"},
    "args": [{"match": ["-c", ".*"], "required": True, "allow_slash": True, "allow_colon": True, "allow_dash": True}],
}
PLAIN = {
    "sh": SHELL,
    "true": {"command": {"path": "/usr/bin/true"}},
    "sleep": {"command": {"path": "/usr/bin/sleep"}, "args": [["[0-9]{1,4}"]]},
    "echo": {"command": {"path": "/usr/bin/echo"}, "args": [{"match": ["[ -~]*"], "repeat": True, "allow_slash": True}]},
}


def until(condition, *, timeout=30.0, what="the condition"):
    """Poll until `condition()` is true and return its value; the deadline is for broken code, not for timing."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.02)


class Fleet:
    """One data directory and what `ostler up` runs on it."""

    def __init__(self, data: Path, *, level="process", slots=4, allow=None, settings=None, args=(), verify=True):
        self.data, self.slots, self.args, self.verify = data, slots, args, verify
        self.env = {
            **os.environ,
            "HOME": str(data),
            "XDG_CONFIG_HOME": str(data / "config"),
            "XDG_STATE_HOME": str(data / "state"),
            "OSTLER_NODE__SANDBOX__LEVEL": level,
            "OSTLER_NODE__RUNNERS__PYTHON__ENABLE": "true",
            "OSTLER_NODE__RUNNERS__PYTHON__TASK_PATHS": json.dumps([str(TASKS)]),
            "NO_COLOR": "1",
            **(settings or {}),
        }
        self.env.pop("OSTLER_URL", None)
        self.env.pop("OSTLER_TOKEN", None)
        data.mkdir(parents=True, exist_ok=True)
        (data / "allowlist.d").mkdir(exist_ok=True)
        for name, entry in {**PLAIN, **(allow or {})}.items():
            (data / "allowlist.d" / f"{name}.yaml").write_text(yaml.safe_dump(entry))
        self.process = None
        self.http = None

    def start(self):
        """Start and wait for "ready URL"; also once more, after everything was killed."""
        if self.http:
            self.http.close()
        with (self.data / "up.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [OSTLER, "up", "--data", self.data, "--listen", "127.0.0.1:0", "--slots", str(self.slots), *self.args],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=self.env,
            )  # fmt: skip
        for line in self.process.stdout:
            if found := re.match(r"ready (http\S+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError(f"ostler up did not get ready:\n{(self.data / 'up.err').read_text()}")
        self.token = (self.data / "admin.token").read_text().strip()
        self.env |= {"OSTLER_URL": self.url, "OSTLER_TOKEN": self.token}
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {self.token}"}, timeout=90,
            transport=httpx.HTTPTransport(retries=3, verify=self.verify),
        )  # fmt: skip
        return self

    def stop(self):
        """As Ctrl-C does; everything that was started is gone afterwards."""
        if self.http:
            self.http.close()
        if self.process is None:
            return
        mine = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        finally:
            self.process.stdout.close()
            if self.process.poll() is None:
                self.process.kill()
            for one in mine.values():
                with suppress(psutil.Error):
                    one.kill()
            self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def processes(self):
        """{"coordinator": …, "node": …, "keeper": …} as psutil processes; those that live now."""
        found = {}
        mine = set()
        with suppress(psutil.Error):
            mine = {one.pid for one in psutil.Process(self.process.pid).children(recursive=True)}
        for one in psutil.process_iter(["cmdline"]):
            line = " ".join(one.info["cmdline"] or [])
            for part, mark in PARTS.items():
                if mark in line and (one.pid in mine or str(self.data) in line):
                    found.setdefault(part, one)
        return found

    def kill(self, part):
        """kill -9 one part; returns its old pid."""
        one = until(lambda: self.processes().get(part), what=f"a living {part}")
        one.kill()
        return one.pid

    def join(self, name, *, slots=2, level="process", tasks=(TASKS,), python=None, tags=()):
        """One more node of this coordinator, with a state of its own."""
        return Joined(self, name, slots=slots, level=level, tasks=tasks, python=python or {}, tags=tags)

    def cli(self, *args, stdin=None, timeout=90, cwd=None):
        """Run the installed command line."""
        return subprocess.run(
            [OSTLER, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=timeout,
            cwd=cwd,
            check=False,
        )

    def get(self, path, **params):
        """GET, through a coordinator that may be restarting."""

        def attempt():
            with suppress(httpx.TransportError):
                answer = self.http.get(path, params=params)
                return answer if answer.status_code != 503 else None

        return until(attempt, timeout=60, what=f"an answer to GET {path}")

    def submit(self, manifest):
        """Submit one manifest or a list; returns the job id or ids."""
        answer = self.http.post("/jobs", json=manifest)
        assert answer.status_code == 201, answer.text
        ids = [item["job_id"] for item in answer.json()["items"]]
        return ids if isinstance(manifest, list) else ids[0]

    def sh(self, script, **fields):
        """Submit a shell line."""
        return self.submit({"command": "sh", "args": ["-c", script], **fields})

    def job(self, job_id):
        """The job as the API shows it."""
        return self.get(f"/jobs/{job_id}").json()

    def wait(self, job_id, timeout=90):
        """The job once it is over."""
        return until(lambda: (view := self.job(job_id))["state"] in OVER and view, timeout=timeout, what=f"the end of {job_id}")

    def wait_state(self, job_id, *states, timeout=60):
        """The job once it is in one of these states."""
        return until(
            lambda: (view := self.job(job_id))["state"] in states and view, timeout=timeout, what=f"{job_id} in {states}"
        )

    def log(self, job_id, stream="stdout", **params):
        """A whole log as text."""
        return self.get(f"/jobs/{job_id}/logs", stream=stream, **params).text

    def nodes(self):
        """All nodes."""
        return self.get("/nodes").json()["items"]


class Joined:
    """A node that joined a fleet with a token, as one on another machine does. Ends with its keeper and all that it runs."""

    def __init__(self, fleet, name, *, slots, level, tasks, python, tags):
        self.fleet, self.name, self.process = fleet, name, None
        self.home = fleet.data / "nodes" / name
        self.home.mkdir(parents=True)
        self.config = self.home / "node.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "node_id": name,
                    "coordinator": {"base_url": f"{fleet.url}/api/v1", "auth_token": "env:JOIN_TOKEN"},
                    "runners": {"cli": {"enable": False}, "python": {"enable": True, "task_paths": [*map(str, tasks)], **python}},
                    "resources": {"max_concurrent_cpu": slots},
                    "workspace": {"root": str(self.home / "jobs")},
                    "sandbox": {"level": level},
                    "health": {"listen": "off"},
                    "tags": list(tags),
                    "heartbeat": {"backoff": {"min_s": 0.2, "max_s": 2}},
                }
            )
        )
        self.token = fleet.cli("token", "create", "--join").stdout.strip()
        self.start()

    def start(self):
        """Start the daemon; also once more, after it was killed."""
        with (self.home / "node.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [OSTLER, "node", "--config", self.config], stdout=errors, stderr=errors,
                env={**self.fleet.env, "JOIN_TOKEN": self.token}, start_new_session=True,
            )  # fmt: skip
        until(lambda: any(one["node_id"] == self.name and one["state"] == "ready" for one in self.fleet.nodes()), what=self.name)

    def processes(self):
        """All that belongs to it, as psutil processes."""
        mark, found = str(self.home), {}
        with suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            found = {one.pid: one for one in [root, *root.children(recursive=True)]}
        for one in psutil.process_iter(["cmdline", "environ", "cwd"]):
            told = [*(one.info["cmdline"] or []), one.info["cwd"] or "", *(one.info["environ"] or {}).values()]
            if any(mark in text for text in told) and one.pid != os.getpid():
                found[one.pid] = one
                with suppress(psutil.Error):
                    found |= {child.pid: child for child in one.children(recursive=True)}
        return list(found.values())

    def kill(self):
        """As if the machine lost its power: daemon, keeper and everything that it runs."""
        for _ in range(3):  # what is being started meanwhile
            for one in self.processes():
                with suppress(psutil.Error):
                    one.kill()
        self.process.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
