"""How many operations a second the store carries: bulk submit, lease, ack and finish on a real file, with the CPU that they cost.

    .venv/bin/python bench/store_ops.py [--jobs 20000] [--queued 0] [--data DIR | --store postgresql://…]

`--queued N` fills the queue with N more jobs of another shape first, which a claim must not feel.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import resource
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from ostler.coordinator.operations import jobs, leases, nodes
from ostler.coordinator.store.store import Store
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.manifest import Manifest, Requirements
from ostler.model.sandbox import SandboxAbilities
from ostler.protocol import messages as m
from ostler.protocol.codec import encode

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
BATCH, SUBMIT = 32, 2000


def cpu_s() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


class Phases:
    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, float, float, list[float]]] = {}

    @contextmanager
    def phase(self, name: str, count: int):
        calls: list[float] = []
        wall, cpu = time.perf_counter(), cpu_s()
        yield calls
        self.rows[name] = (count, time.perf_counter() - wall, cpu_s() - cpu, calls)

    def print(self) -> None:
        print(f"{'phase':28}{'jobs':>8}{'jobs/s':>10}{'cpu ms/job':>12}{'p50 ms':>9}{'p99 ms':>9}")
        for name, (count, wall, cpu, calls) in self.rows.items():
            ordered = sorted(calls) or [0.0]
            p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            print(
                f"{name:28}{count:8}{count / wall:10.0f}{cpu / count * 1e3:12.4f}"
                f"{statistics.median(ordered) * 1e3:9.2f}{p99 * 1e3:9.2f}"
            )


def manifest(**changes) -> tuple[Manifest, str]:
    one = Manifest(command="true", **changes)
    return one, encode(one).decode()


async def timed(calls: list[float], awaitable):
    begin = time.perf_counter()
    try:
        return await awaitable
    finally:
        calls.append(time.perf_counter() - begin)


def register(node_id: str, slots: int) -> m.RegisterRequest:
    has = Capabilities(
        node_id=node_id, version="0", cpu=Cpu(cores=64, arch="x86_64", threads=64), memory_mb=64_000, disk_free_mb=10**6,
        runners=("cli",), sandbox=SandboxAbilities(levels=("none", "process")),
    )  # fmt: skip
    return m.RegisterRequest(
        node_id=node_id,
        version="0",
        protocol=1,
        boot_epoch="b:1",
        public_key=bytes(32),
        capabilities=has,
        cpu_slots=slots,
        gpu_slots=0,
    )


async def life(store: Store, phases: Phases, label: str, count: int, *, streams: int, log: bytes) -> None:
    """Submit, lease, ack and finish `count` jobs; `streams` nodes work at once."""
    made = [manifest() for _ in range(SUBMIT)]
    with phases.phase(f"{label} submit x{SUBMIT}", count) as calls:
        for _ in range(count // SUBMIT):
            await timed(calls, store.write(jobs.submit_jobs, made))
    taken: dict[str, list[leases.Lease]] = {f"n{i}": [] for i in range(streams)}

    async def each(work) -> None:
        await asyncio.gather(*(work(node) for node in taken))

    with phases.phase(f"{label} lease+ack+finish x{BATCH}", count) as calls:

        async def lease(node: str) -> None:
            while True:
                held = tuple(m.Held(one.job_id, one.attempt) for one in taken[node])
                pull = m.PullRequest(node_id=node, slots=BATCH, held=held, protocol=1)
                got = await timed(calls, store.write(leases.lease_jobs, pull, fresh=False))
                if not got:
                    return
                taken[node] += got
                await store.write(leases.ack_jobs, node, [m.AckItem(job_id=one.job_id, attempt=one.attempt) for one in got])
                outcomes = [outcome(one, log) for one in got]
                results = await store.write(leases.finish_attempts, node, outcomes)
                assert all(one.ok for one in results), results
                taken[node].clear()

        await each(lease)


def outcome(one: leases.Lease, log: bytes) -> m.Outcome:
    ends = (
        m.LogEnd(stream="stdout", length=len(log), sha256=hashlib.sha256(log).hexdigest(), tail=log),
        m.LogEnd(stream="stderr", length=0, sha256=EMPTY),
    )
    return m.Outcome(job_id=one.job_id, attempt=one.attempt, exit_code=0, logs=ends, sandbox="process")


async def phases_apart(store: Store, phases: Phases, count: int) -> None:
    """One node, each phase by itself."""
    made = [manifest() for _ in range(SUBMIT)]
    with phases.phase(f"submit x{SUBMIT}", count) as calls:
        for _ in range(count // SUBMIT):
            await timed(calls, store.write(jobs.submit_jobs, made))
    rounds = count // BATCH
    await store.write(nodes.open_session, register("n0", BATCH))
    wall = {"lease": 0.0, "ack": 0.0, "finish": 0.0}
    cpu = dict(wall)
    calls3: dict[str, list[float]] = {name: [] for name in wall}

    async def step(name: str, operation, *args, **kwargs):
        begin, used = time.perf_counter(), cpu_s()
        value = await store.write(operation, *args, **kwargs)
        wall[name] += time.perf_counter() - begin
        cpu[name] += cpu_s() - used
        calls3[name].append(time.perf_counter() - begin)
        return value

    for _ in range(rounds):
        got = await step("lease", leases.lease_jobs, m.PullRequest(node_id="n0", slots=BATCH, protocol=1), fresh=True)
        assert len(got) == BATCH
        await step("ack", leases.ack_jobs, "n0", [m.AckItem(job_id=one.job_id, attempt=one.attempt) for one in got])
        done = await step("finish", leases.finish_attempts, "n0", [outcome(one, b"") for one in got])
        assert all(one.ok for one in done)
    for name, seconds in wall.items():
        phases.rows[f"{name} x{BATCH}"] = (rounds * BATCH, seconds, cpu[name], calls3[name])


async def one_by_one(store: Store, phases: Phases, count: int, callers: int) -> None:
    """Submitted, leased, acknowledged and finished one at a time by many callers: what group commit is for."""

    async def caller(calls: list[float], number: int) -> None:
        for _ in range(count // callers):
            await timed(calls, store.write(jobs.submit_jobs, [manifest()]))

    with phases.phase(f"submit one by one, {callers} callers", count) as calls:
        await asyncio.gather(*(caller(calls, number) for number in range(callers)))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--queued", type=int, default=0)
    parser.add_argument("--data", type=Path, help="the SQLite file goes into a directory here")
    parser.add_argument(
        "--store", help="an empty PostgreSQL database instead; `python tests/postgres.py` starts a server with one"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data) as data:
        store = Store.open(args.store or Path(data) / "ostler.db", logger=logging.getLogger("bench"))
        phases = Phases()
        try:
            for number in range(4):
                request = register(f"n{number}", 10 * BATCH)
                await store.write(nodes.enrol_node, request, "bench")
                await store.write(nodes.open_session, request)
            if args.queued:
                with phases.phase("fill the queue", args.queued) as calls:
                    other = [manifest(requirements=Requirements(gpu=True)) for _ in range(SUBMIT)]
                    for _ in range(args.queued // SUBMIT):
                        await timed(calls, store.write(jobs.submit_jobs, other))
            await phases_apart(store, phases, args.jobs)
            await life(store, phases, "4 nodes,", args.jobs, streams=4, log=b"hello\n" * 20)
            await one_by_one(store, phases, args.jobs // 4, 16)
            phases.print()
            size = 0 if args.store else (Path(data) / "ostler.db").stat().st_size
            print(
                json.dumps(
                    {
                        "database_mb": round(size / 2**20, 1),
                        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                    }
                )
            )
        finally:
            store.close()


if __name__ == "__main__":
    asyncio.run(main())
