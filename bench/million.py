"""What a million queued jobs cost: the same calls to two coordinators, one with a thousand jobs queued and one with a million.

    .venv/bin/python bench/million.py [--queued 1000000] [--finished 100000] [--rounds 25] [--data DIR] [--json FILE]

Both databases are filled by the coordinator's own operations (submit, lease, acknowledge, finish), the big one also with many that
are over, an array of 10,000, a job that 10,000 others wait for, and a chain of 1,000. Then each gets a coordinator of its own, and
the calls go to the one and the other in turn. CPU is that of the coordinator alone. A database in `--data` is used again.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from ostler.coordinator.operations import groups, jobs, leases, nodes
from ostler.coordinator.store.store import Store
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.manifest import Manifest
from ostler.model.sandbox import SandboxAbilities
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import Client
from ostler.protocol.codec import encode

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "var" / "bench"
OSTLER = Path(sys.executable).parent / "ostler"
BATCH, OWNERS, QUEUES = 2000, 5, 8
CLAIM = 4
PAGE_MS, CLAIM_RATIO = 50.0, 1.3  # what is promised
ARRAY, FAN, CHAIN = 10_000, 10_000, 1_000


def accepted(**fields):
    """A manifest as the API hands it on."""
    one = Manifest(command="true", **fields)
    return one, encode(one).decode()


def register(node_id, slots):
    """A node that takes whatever comes."""
    has = Capabilities(
        node_id=node_id, version="0", cpu=Cpu(cores=64, arch="x86_64", threads=64), memory_mb=64_000, disk_free_mb=10**6,
        runners=("cli",), sandbox=SandboxAbilities(levels=("none", "process")),
    )  # fmt: skip
    return m.RegisterRequest(
        node_id=node_id, version="0", protocol=m.PROTOCOL, boot_epoch="b:1", public_key=os.urandom(32), capabilities=has,
        cpu_slots=slots, gpu_slots=0,
    )  # fmt: skip


async def end_some(store, count):
    """Jobs that are over; every hundredth failed."""
    await store.write_lazily(nodes.enrol_node, register("past", BATCH), "bench")
    await store.write_lazily(nodes.open_session, register("past", BATCH))
    over = [accepted(queue=f"q{number % QUEUES}") for number in range(BATCH)]
    for _ in range(0, count, BATCH):
        await store.write_lazily(jobs.submit_jobs, over, "owner-0")
        left = BATCH
        while left:
            got = await store.write_lazily(leases.lease_jobs, m.PullRequest(node_id="past", slots=BATCH, protocol=1))
            await store.write_lazily(leases.ack_jobs, "past", [m.AckItem(job_id=one.job_id, attempt=one.attempt) for one in got])
            ends = [m.Outcome(job_id=one.job_id, attempt=one.attempt, exit_code=0) for one in got]
            await store.write_lazily(leases.finish_attempts, "past", ends)
            left -= len(got)


async def queue_some(store, count):
    """Jobs of 40 shapes (5 owners, 8 queues), five priorities; one in ten with a label, one in a hundred with a time to live."""
    for owner in range(OWNERS):
        some = [
            accepted(
                queue=f"q{number % QUEUES}", priority=number % 5, labels={"batch": str(number % 100)} if number % 10 == 0 else {},
                ttl_s=86_400 if number % 100 == 0 else None,
            )
            for number in range(min(BATCH, count // OWNERS))
        ]  # fmt: skip
        for _ in range(max(1, count // OWNERS // BATCH)):
            await store.write_lazily(jobs.submit_jobs, some, f"owner-{owner}")


async def tie_some(store):
    """An array, a fan, a chain, and some whose time has not come."""
    one, text = accepted(job_id="array", array=ARRAY)
    await store.write_lazily(jobs.submit_jobs, groups.expand(one, text), "owner-1")
    await store.write_lazily(jobs.submit_jobs, [accepted(job_id="fan", not_before="2099-01-01T00:00:00Z")], "owner-1")
    fan = accepted(depends_on=("fan",))
    for _ in range(FAN // BATCH):
        await store.write_lazily(jobs.submit_jobs, [fan] * BATCH, "owner-1")
    links = [accepted(job_id="link-0", not_before="2099-01-01T00:00:00Z")]
    links += [accepted(job_id=f"link-{number}", depends_on=(f"link-{number - 1}",)) for number in range(1, CHAIN)]
    await store.write_lazily(jobs.submit_jobs, links, "owner-1")


async def fill(data, queued, finished):
    """A database as it would be after a long time; how many jobs a second were submitted."""
    store = Store.open(data / "ostler.db", logger=logging.getLogger("bench"))
    try:
        if finished:
            await end_some(store, finished)
            await tie_some(store)
        began = time.perf_counter()
        await queue_some(store, queued)
        return queued / (time.perf_counter() - began)
    finally:
        store.close()


class Coordinator:
    """A real one on a data directory."""

    def __init__(self, data):
        self.data = data

    def __enter__(self):
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [OSTLER, "coordinator", "--data", self.data, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=(self.data / "coordinator.err").open("wb"), text=True,
            env={**os.environ, "OSTLER_API_TOKEN": ""},
        )  # fmt: skip
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            sys.exit((self.data / "coordinator.err").read_text())
        self.ready_s = time.perf_counter() - began
        self.url = line.split()[1]
        self.seen = psutil.Process(self.process.pid)
        self.start_cpu_s = self.cpu_s()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def cpu_s(self):
        """Seconds of CPU of all its threads so far, to the microsecond."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(one.read_text().split()[0]) for one in threads) / 1e9

    def pss_mb(self):
        """Its memory."""
        return self.seen.memory_full_info().pss / 2**20


class Caller:
    """A person and a node of one coordinator."""

    def __init__(self, coordinator, admin_token):
        self.client = Client(coordinator.url, token=admin_token)
        self.http = httpx.Client(base_url=coordinator.url, headers={"Authorization": f"Bearer {admin_token}"}, timeout=120)
        join = self.client.call(routes.CREATE_TOKEN, m.TokenRequest(kind=m.TokenKind.JOIN)).token
        answer = self.client.call(routes.REGISTER, register(f"n-{os.urandom(4).hex()}", 64), token=join)
        self.node_id, self.node_token = answer.node_id, answer.node_token
        self.cursors = {}
        self.leases = []

    def get(self, path, **params):
        """A page, by its path and query."""
        answer = self.http.get(f"/api/v1{path}" if path not in ("/metrics", "/healthz") else path, params=params)
        answer.raise_for_status()
        return answer

    def deep(self, **params):
        """A page far from the first one."""
        key = json.dumps(params)
        if key not in self.cursors:
            cursor = None
            for _ in range(10):
                page = self.get("/jobs", limit=500, **params, **({"cursor": cursor} if cursor else {})).json()
                cursor = page["next_cursor"] or cursor
            self.cursors[key] = cursor
        return self.get("/jobs", **params, **({"cursor": self.cursors[key]} if self.cursors[key] else {}))

    def any_job(self):
        """The id of one that waits."""
        return self.get("/jobs", state="queued", limit=1).json()["items"][0]["job_id"]

    def claim(self):
        """A pull that gets a few jobs."""
        pull = m.PullRequest(node_id=self.node_id, slots=CLAIM, protocol=m.PROTOCOL)
        jobs_got = self.client.call(routes.PULL, pull, token=self.node_token).jobs
        assert len(jobs_got) == CLAIM, len(jobs_got)
        self.leases = [json.loads(one.payload) for one in jobs_got]

    def ack(self):
        """They are accepted."""
        items = tuple(m.AckItem(job_id=one["job_id"], attempt=one["attempt"]) for one in self.leases)
        self.client.call(routes.ACK, m.AckBatch(items=items), token=self.node_token)

    def finish(self):
        """They are over."""
        items = tuple(m.Outcome(job_id=one["job_id"], attempt=one["attempt"], exit_code=0) for one in self.leases)
        self.client.call(routes.RESULT, m.OutcomeBatch(items=items), token=self.node_token)

    def beat(self):
        """A heartbeat."""
        self.client.call(routes.HEARTBEAT, m.HeartbeatRequest(node_id=self.node_id, held=()), token=self.node_token)

    def submit(self, count=1):
        """New jobs."""
        answer = self.http.post("/api/v1/jobs", json=[{"command": "true", "args": []}] * count)
        answer.raise_for_status()
        return [one["job_id"] for one in answer.json()["items"]]

    def cancel(self):
        """One that waits."""
        self.http.post(f"/api/v1/jobs/{self.made.pop()}/cancel", json={}).raise_for_status()


LIFE = {"pull: claim 4": Caller.claim, "ack 4": Caller.ack, "result 4": Caller.finish}
STEPS = {
    "heartbeat": Caller.beat,
    "submit 1": lambda caller: setattr(caller, "made", caller.submit()),
    "explain": lambda caller: caller.get(f"/jobs/{caller.made[0]}/explain"),
    "show": lambda caller: caller.get(f"/jobs/{caller.made[0]}"),
    "cancel 1": Caller.cancel,
    "submit 100": lambda caller: caller.submit(100),
    "list": lambda caller: caller.get("/jobs"),
    "list, 500": lambda caller: caller.get("/jobs", limit=500),
    "list, deep": lambda caller: caller.deep(),
    "list state=queued": lambda caller: caller.get("/jobs", state="queued"),
    "list state=queued, deep": lambda caller: caller.deep(state="queued"),
    "list state=running": lambda caller: caller.get("/jobs", state="running"),
    "list state=done,failed": lambda caller: caller.get("/jobs", state="done,failed"),
    "list state=waiting": lambda caller: caller.get("/jobs", state="waiting"),
    "list queue": lambda caller: caller.get("/jobs", queue="q3"),
    "list queue, deep": lambda caller: caller.deep(queue="q3"),
    "list queue that is empty": lambda caller: caller.get("/jobs", queue="none"),
    "list queue, state": lambda caller: caller.get("/jobs", queue="q3", state="queued"),
    "list owner": lambda caller: caller.get("/jobs", owner="owner-2"),
    "list owner, state=queued": lambda caller: caller.get("/jobs", owner="owner-0", state="queued"),
    "list owner, state=done": lambda caller: caller.get("/jobs", owner="owner-0", state="done"),
    "list owner, state=failed": lambda caller: caller.get("/jobs", owner="owner-2", state="failed"),
    "list owner, state=running": lambda caller: caller.get("/jobs", owner="owner-2", state="running"),
    "list owner without jobs": lambda caller: caller.get("/jobs", owner="nobody", state="queued"),
    "list owner, queue": lambda caller: caller.get("/jobs", owner="owner-0", queue="q3"),
    "list owner, queue of others": lambda caller: caller.get("/jobs", owner="owner-0", queue="default"),
    "list label": lambda caller: caller.get("/jobs", label="batch=50"),
    "list label, state=queued": lambda caller: caller.get("/jobs", label="batch=50", state="queued"),
    "list label, state=failed": lambda caller: caller.get("/jobs", label="batch=50", state="failed"),
    "list node": lambda caller: caller.get("/jobs", node=caller.node_id),
    "list node, state": lambda caller: caller.get("/jobs", node="past", state="failed"),
    "list group": lambda caller: caller.get("/jobs", group="array"),
    "list, count": lambda caller: caller.get("/jobs", count="true", limit=1),
    "list state=queued, count": lambda caller: caller.get("/jobs", state="queued", count="true", limit=1),
    "list owner, count": lambda caller: caller.get("/jobs", owner="owner-2", count="true", limit=1),
    "list label, count": lambda caller: caller.get("/jobs", label="batch=50", count="true", limit=1),
    "nodes": lambda caller: caller.get("/nodes"),
    "overview": lambda caller: caller.get("/overview"),
    "metrics": lambda caller: caller.get("/metrics"),
    "healthz": lambda caller: caller.get("/healthz"),
    "events": lambda caller: caller.get("/events", limit=100),
}  # fmt: skip


class Figures:
    """Wall and CPU milliseconds of one call to each of the two."""

    def __init__(self, coordinators):
        self.coordinators = coordinators
        self.walls, self.cpus = [[], []], [[], []]

    def time(self, number, step, caller):
        before, began = self.coordinators[number].cpu_s(), time.perf_counter()
        step(caller)
        self.walls[number].append((time.perf_counter() - began) * 1e3)
        self.cpus[number].append((self.coordinators[number].cpu_s() - before) * 1e3)

    def told(self, name):
        both = [
            {"wall_ms": statistics.median(wall), "worst_ms": max(wall), "cpu_ms": statistics.median(cpu)}
            for wall, cpu in zip(self.walls, self.cpus, strict=True)
        ]
        cells = [both[0]["wall_ms"], both[1]["wall_ms"], both[1]["worst_ms"], both[0]["cpu_ms"], both[1]["cpu_ms"]]
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)
        return both


def measure(rounds, callers, coordinators, only):
    """Each step on each coordinator, turn about."""
    found, figures = {}, {name: Figures(coordinators) for name in LIFE}
    for turn in range(5 * rounds):
        if turn == rounds:  # caches are warm now; before that a claim costs half as much again, of a thousand as of a million
            figures = {name: Figures(coordinators) for name in LIFE}
        for name, step in LIFE.items():
            for number, caller in enumerate(callers):
                figures[name].time(number, step, caller)
    found |= {name: one.told(name) for name, one in figures.items()}
    for caller in callers:
        caller.made = caller.submit()
    for name, step in STEPS.items():
        if only and only not in name:
            continue
        one = Figures(coordinators)
        for _ in range(rounds):
            for number, caller in enumerate(callers):
                if name == "cancel 1":
                    caller.made = caller.submit()
                one.time(number, step, caller)
        found[name] = one.told(name)
    return found


def bystanders(caller, coordinator, act):
    """What others feel while `act` is under way in another thread: their slowest heartbeat, in ms; and how long it took itself."""
    import threading

    worker = threading.Thread(target=act)
    slowest, began, before = 0.0, time.perf_counter(), coordinator.cpu_s()
    worker.start()
    while worker.is_alive():
        asked = time.perf_counter()
        caller.beat()
        slowest = max(slowest, (time.perf_counter() - asked) * 1e3)
    worker.join()
    return {"took_s": time.perf_counter() - began, "cpu_s": coordinator.cpu_s() - before, "slowest_heartbeat_ms": slowest}


def large(caller, coordinator):
    """Things that touch many jobs, and what they do to others."""
    found = {}
    http = httpx.Client(base_url=coordinator.url, headers=caller.http.headers, timeout=600)
    acts = {
        f"cancel an array of {ARRAY}": lambda: http.post("/api/v1/groups/array/cancel", json={}).raise_for_status(),
        f"cancel a job that {FAN} wait for": lambda: http.post("/api/v1/jobs/fan/cancel", json={}).raise_for_status(),
        f"cancel a chain of {CHAIN}": lambda: http.post("/api/v1/jobs/link-0/cancel", json={}).raise_for_status(),
        "submit 10000": lambda: http.post("/api/v1/jobs", json=[{"command": "true", "args": []}] * 10_000).raise_for_status(),
        "a pass of retention": lambda: http.post("/api/v1/retention").raise_for_status(),
    }
    for name, act in acts.items():
        one = found[name] = bystanders(caller, coordinator, act)
        print(f"| {name} | {one['took_s']:.2f} | {one['cpu_s']:.2f} | {one['slowest_heartbeat_ms']:.0f} |", flush=True)
    http.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--data", type=Path, help="keep the databases here, and use them again")
    parser.add_argument("--only", help="only steps with this in their name")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    place = args.data or Path(tempfile.mkdtemp(prefix="million-", dir=PLACE if PLACE.exists() else None))
    report = {"queued": args.queued, "finished": args.finished, "steps": {}, "large": {}}
    try:
        for name, queued, finished in (("small", 1000, 0), ("big", args.queued, args.finished)):
            data = place / name
            if not (data / "ostler.db").exists():
                data.mkdir(parents=True, mode=0o700)
                report[f"{name}_submit_per_s"] = asyncio.run(fill(data, queued, finished))
        size = (place / "big" / "ostler.db").stat().st_size / 2**20
        with contextlib.ExitStack() as stack:
            coordinators = [stack.enter_context(Coordinator(place / name)) for name in ("small", "big")]
            callers = [
                Caller(one, (place / name / "admin.token").read_text().strip())
                for one, name in zip(coordinators, ("small", "big"), strict=True)
            ]
            for name, one in zip(("small", "big"), coordinators, strict=True):
                report[f"{name}_start"] = {"ready_s": one.ready_s, "cpu_s": one.start_cpu_s, "pss_mb": one.pss_mb()}
                print(f"{name}: ready after {one.ready_s:.2f} s, {one.start_cpu_s:.2f} s of CPU, {one.pss_mb():.0f} MB")
            print(f"database {size:.0f} MB; submitted {report.get('big_submit_per_s', 0):.0f} a second\n")
            print(
                "| call | 1,000: ms | "
                f"{args.queued:,}: ms | worst | 1,000: CPU ms | {args.queued:,}: CPU ms |\n|---|---|---|---|---|---|"
            )
            report["steps"] = measure(args.rounds, callers, coordinators, args.only)
            if not args.only:
                print("\n| with a million queued | s | CPU s | others' slowest heartbeat meanwhile, ms |\n|---|---|---|---|")
                report["large"] = large(callers[1], coordinators[1])
            report["pss_mb"] = [one.pss_mb() for one in coordinators]
            print(
                f"\nmemory (PSS): {report['pss_mb'][0]:.0f} MB with a thousand, {report['pss_mb'][1]:.0f} MB with {args.queued:,}"
            )
        claim = [one["cpu_ms"] for one in report["steps"].get("pull: claim 4", [{"cpu_ms": 1}] * 2)]
        pages = {
            name: one[1]["wall_ms"] for name, one in report["steps"].items() if name.startswith("list") and "count" not in name
        }
        slowest = max(pages.values(), default=0)
        print(f"claim: {claim[1] / claim[0]:.2f} × (at most {CLAIM_RATIO}); slowest page: {slowest:.0f} ms (at most {PAGE_MS:g})")
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))
    finally:
        if args.data is None:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
