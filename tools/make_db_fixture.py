"""Writes the database of this release, small and with something in every state, for the tests of later releases.

    .venv/bin/python tools/make_db_fixture.py [PATH]

It is made by this release's own operations. Once a release is out its fixture is never written again.
"""

import asyncio
import hashlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostler import __version__
from ostler.coordinator.operations import duties, jobs, leases, nodes, tokens
from ostler.coordinator.store.store import Store
from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Capabilities, Cpu, Gpu
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import Artifact, InputFile, Inputs, Manifest, Policy, Requirements, RetryPolicy, Runner
from ostler.model.node import NodeState
from ostler.model.sandbox import SandboxAbilities, SandboxLevel
from ostler.protocol import messages as m
from ostler.protocol.codec import encode
from ostler.runtime.clock import ManualClock

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "compat" / "fixtures"
ADMIN_TOKEN = "ostler_api_fixture_not-a-secret"
BLOB = hashlib.sha256(b"input").hexdigest()


class Maker:
    """A store, and the few calls that fill it."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = Store.open(path, logger=logging.getLogger("fixture"), clock=self.clock)

    async def submit(self, job_id: str, **changes: Any) -> None:
        one = Manifest(**{"command": "echo", "args": (job_id,), "job_id": job_id, "labels": {"fixture": "yes"}, **changes})
        await self.store.write(jobs.submit_jobs, [(one, encode(one).decode())])

    async def join(self, node_id: str, **has: Any) -> None:
        request = m.RegisterRequest(
            node_id=node_id, version=__version__, protocol=m.PROTOCOL, boot_epoch="boot:1",
            public_key=hashlib.sha256(node_id.encode()).digest(), capabilities=_capabilities(node_id, **has), cpu_slots=8,
            gpu_slots=len(has.get("gpu", ())),
        )  # fmt: skip
        await self.store.write(nodes.enrol_node, request, "fixture")
        await self.store.write(nodes.open_session, request)

    async def take(self, job_id: str, *, ack: bool = True, held: Sequence[m.Held] = (), node_id: str = "worker") -> m.Held:
        """Lease this job: every other one is held back for the moment."""
        await self.submit(job_id, queue=job_id, **self.extra.pop(job_id, {}))
        pull = m.PullRequest(node_id=node_id, slots=1, protocol=1, filters={"queues": [job_id]}, held=tuple(held))
        (lease,) = await self.store.write(leases.lease_jobs, pull, fresh=False)
        if ack:
            await self.store.write(leases.ack_jobs, node_id, [m.AckItem(job_id=job_id, attempt=lease.attempt)])
        return m.Held(job_id, lease.attempt)

    extra: dict[str, dict[str, Any]] = {  # noqa: RUF012 - what is special about some jobs
        "done": {
            "artifacts": (Artifact(path="out.txt"),),
            "input": Inputs(inline={"a.txt": "x"}, files=(InputFile(name="b", sha256=BLOB, size=5),)),
            "requirements": Requirements(cpu_threads=1, memory_mb=64, tags=("linux",)),
            "policy": Policy(sandbox=SandboxLevel.PROCESS),
        },
        "retry_wait": {"retries": RetryPolicy(max=5, backoff_s=60.0)},
        "failed": {"retries": 0},
    }

    async def progress(self, held: m.Held, state: AttemptState, **said: Any) -> None:
        item = m.ProgressItem(job_id=held.job_id, attempt=held.attempt, state=state, **said)
        await self.store.write(leases.report_progress, "worker", [item])

    async def finish(self, held: m.Held, **changes: Any) -> None:
        outcome = m.Outcome(job_id=held.job_id, attempt=held.attempt, usage=Usage(wall_s=1.5, peak_memory_mb=12.0), **changes)
        (result,) = await self.store.write(leases.finish_attempts, "worker", [outcome])
        if not result.ok:
            raise AssertionError(result)


def _capabilities(node_id: str, **has: Any) -> Capabilities:
    return Capabilities(
        **{
            "node_id": node_id, "version": __version__, "cpu": Cpu(cores=4, arch="x86_64", threads=8), "memory_mb": 16_000,
            "disk_free_mb": 100_000, "runners": ("cli", "python"), "tags": ("linux",),
            "sandbox": SandboxAbilities(levels=("none", "process", "bwrap")), **has,
        }
    )  # fmt: skip


async def fill(path: Path) -> None:
    """Everything that this release can store, once."""
    make = Maker(path)
    await _fill_tokens(make)
    await make.join("worker", gpu=(Gpu(vendor="nvidia", name="card", vram_mb=8192),))
    await _fill_jobs(make)
    await _fill_nodes(make)
    await _check(make)
    make.store.close()


async def _fill_tokens(make: Maker) -> None:
    write = make.store.write
    await write(tokens.ensure_admin_token, ADMIN_TOKEN)
    join = await write(tokens.create_token, m.TokenRequest(uses=3, note="fixture"))
    await write(tokens.revoke_token, join.token_id)
    await write(tokens.create_token, m.TokenRequest(note="still good"))


async def _fill_jobs(make: Maker) -> None:
    write = make.store.write
    await make.submit("queued", priority=5)
    await make.submit("queued-gpu", requirements=Requirements(gpu=True, vram_mb=80_000))
    await make.submit("queued-python", runner=Runner.PYTHON, command=None, args=(), task="tasks.example", ttl_s=86_400.0)
    await make.submit("held")
    await write(jobs.hold_job, "held")
    await make.take("leased", ack=False)
    await make.take("acked")
    await make.progress(await make.take("preparing"), AttemptState.PREPARING)
    running = await make.take("running")
    await make.progress(running, AttemptState.RUNNING, pct=40.0, note="encoding")
    await write(leases.append_log, "worker", "running", 1, "stdout", 0, b"half a line")
    await write(jobs.cancel_job, "running", "not needed any more")
    await make.progress(await make.take("uploading"), AttemptState.UPLOADING)
    make.clock.advance(2)
    out = m.ArtifactEntry(path="out.txt", type="text/plain", size=6, sha256=hashlib.sha256(b"hello\n").hexdigest())
    log = m.LogEnd(stream="stdout", length=6, sha256=hashlib.sha256(b"hello\n").hexdigest(), tail=b"hello\n")
    await make.finish(await make.take("done"), exit_code=0, logs=(log,), artifacts=(out,), sandbox="bwrap")
    await make.finish(await make.take("failed"), failure=Failure(FailureCode.EXIT, "exit code 3"), exit_code=3)
    await write(jobs.request_debug, "failed")
    await write(leases.set_workspace, "worker", "failed", 1, hashlib.sha256(b"workspace").hexdigest())
    await make.finish(await make.take("retry_wait"), failure=Failure(FailureCode.SIGNAL, "killed by signal 9"), signal=9)
    cancelled = await make.take("cancelled")
    await write(jobs.cancel_job, "cancelled")
    await make.finish(cancelled, cancelled=True)
    returned = await make.take("returned", ack=False)
    await write(leases.ack_jobs, "worker", [m.AckItem(job_id="returned", attempt=returned.attempt, decline="its disk is full")])
    await make.submit("expired", ttl_s=1.0)
    make.clock.advance(1)
    await write(duties.expire_due)


async def _fill_nodes(make: Maker) -> None:
    write = make.store.write
    for state in (NodeState.READY, NodeState.DRAINED, NodeState.LOST, NodeState.UNKNOWN, NodeState.RETIRED, NodeState.JOINING):
        await make.join(state.value)
    await write(nodes.drain_node, "worker", m.DrainRequest(reason="new disk", timeout_s=300.0))
    await write(nodes.heartbeat, m.HeartbeatRequest(node_id="ready", load=0.5, free_mb=1000, disk_free_mb=5000, health=("ok",)))
    await write(nodes.drain_node, "drained", m.DrainRequest())
    await write(duties.miss_node, "unknown", 1, "no sign of life")
    await write(duties.lose_node, "lost", 1, "silent")
    await write(nodes.retire_node, "retired", "sold")


async def _check(make: Maker) -> None:
    for table, kind in (("jobs", JobState), ("nodes", NodeState), ("attempts", AttemptState)):
        rows = await make.store.read(lambda tx, table=table: tx.rows(f"SELECT state FROM {table}"))
        if lacking := set(kind) - {row[0] for row in rows}:
            raise AssertionError(f"no row of {table} is in the states {sorted(lacking)}")


def main(arguments: Sequence[str]) -> int:
    target = Path(arguments[0]) if arguments else FIXTURES / f"coordinator-{__version__}.db"
    with tempfile.TemporaryDirectory() as where:
        made = Path(where) / "ostler.db"
        asyncio.run(fill(made))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, target)
        target.chmod(0o644)
    print(f"wrote {target} ({target.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
