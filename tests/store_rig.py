"""A real store on a real file with a clock that moves when told to, and nodes as short calls."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostler.coordinator.operations import groups, jobs, leases, nodes, reads
from ostler.coordinator.store.store import Store
from ostler.coordinator.store.tx import Tx
from ostler.model.capabilities import Capabilities, Cpu, Gpu
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest
from ostler.model.sandbox import SandboxAbilities
from ostler.protocol import messages as m
from ostler.protocol.codec import encode
from ostler.runtime.clock import ManualClock

LOGGER = logging.getLogger("ostler.tests")


def manifest(**changes: Any) -> tuple[Manifest, str]:
    one = Manifest(**{"command": "true", **changes})
    return one, encode(one).decode()


def capabilities(node_id: str, *, vram: Sequence[int] = (), **changes: Any) -> Capabilities:
    return Capabilities(
        **{
            "node_id": node_id,
            "version": "0.1.0",
            "cpu": Cpu(cores=4, arch="x86_64", threads=8),
            "memory_mb": 16_000,
            "disk_free_mb": 100_000,
            "gpu": tuple(Gpu(vendor="nvidia", name="card", vram_mb=mb) for mb in vram),
            "runners": ("cli", "python"),
            "sandbox": SandboxAbilities(levels=("none", "process", "bwrap")),
            **changes,
        }
    )


def registration(
    node_id: str = "n1",
    epoch: str = "boot:1",
    *,
    slots: int = 4,
    gpu_slots: int = 0,
    held: Sequence[m.Held] = (),
    key: bytes = b"",
    **has: Any,
) -> m.RegisterRequest:
    return m.RegisterRequest(
        node_id=node_id, version="0.1.0", protocol=1, boot_epoch=epoch,
        public_key=key or hashlib.sha256(node_id.encode()).digest(), capabilities=capabilities(node_id, **has),
        cpu_slots=slots, gpu_slots=gpu_slots, held=tuple(held),
    )  # fmt: skip


def held(some: Sequence[leases.Lease]) -> tuple[m.Held, ...]:
    return tuple(m.Held(one.job_id, one.attempt) for one in some)


def log_end(data: bytes, stream: str = "stdout", *, offset: int = 0) -> m.LogEnd:
    return m.LogEnd(stream=stream, length=len(data), sha256=hashlib.sha256(data).hexdigest(), offset=offset, tail=data[offset:])


class Rig:
    """Calls operations through the store, as the API does."""

    def __init__(self, store: Store, clock: ManualClock, url: str) -> None:
        self.store, self.clock, self.url = store, clock, url

    async def write(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.store.write(operation, *args, **kwargs)

    async def read(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.store.read(operation, *args, **kwargs)

    @classmethod
    def open(cls, url: str | Path, clock: ManualClock | None = None) -> "Rig":
        clock = clock or ManualClock()
        return cls(Store.open(url, logger=LOGGER, clock=clock), clock, str(url))

    async def submit(self, count: int = 1, **changes: Any) -> list[str]:
        answer = await self.write(jobs.submit_jobs, [manifest(**changes)] * count)
        return [one.job_id for one in answer.items]

    async def join(self, node_id: str = "n1", epoch: str = "boot:1", **how: Any) -> nodes.Session:
        request = registration(node_id, epoch, **how)

        def enrol(tx: Any) -> nodes.Session:
            nodes.enrol_node(tx, request, "join")
            return nodes.open_session(tx, request)

        return await self.write(enrol)

    async def register(self, node_id: str = "n1", epoch: str = "boot:1", **how: Any) -> nodes.Session:
        return await self.write(nodes.open_session, registration(node_id, epoch, **how))

    async def pull(
        self,
        node_id: str = "n1",
        *,
        slots: int = 4,
        gpu_slots: int = 0,
        held: Sequence[m.Held] = (),
        fresh: bool = True,
        latency: frozenset[str] = frozenset(),
        spread: bool = False,
        **more: Any,
    ) -> list[leases.Lease]:
        request = m.PullRequest(node_id=node_id, slots=slots, gpu_slots=gpu_slots, held=tuple(held), **{"protocol": 1, **more})
        return await self.write(leases.lease_jobs, request, fresh=fresh, latency=latency, spread=spread)

    async def ack(self, node_id: str, some: Sequence[leases.Lease], *, decline: str | None = None) -> list[m.ItemResult]:
        items = [m.AckItem(job_id=one.job_id, attempt=one.attempt, decline=decline) for one in some]
        return await self.write(leases.ack_jobs, node_id, items)

    async def begin(self, node_id: str = "n1", **how: Any) -> list[leases.Lease]:
        """Lease and acknowledge."""
        some = await self.pull(node_id, **how)
        assert all(one.ok for one in await self.ack(node_id, some))
        return some

    async def finish(self, node_id: str, lease: leases.Lease, **changes: Any) -> m.ItemResult:
        outcome = m.Outcome(job_id=lease.job_id, attempt=lease.attempt, **changes)
        return (await self.write(leases.finish_attempts, node_id, [outcome]))[0]

    async def fail(self, node_id: str, lease: leases.Lease, code: FailureCode = FailureCode.LOST) -> m.ItemResult:
        return await self.finish(node_id, lease, failure=Failure(code, "it broke"))

    async def progress(self, node_id: str, lease: leases.Lease, state: Any = None, **changes: Any) -> m.ItemResult:
        item = m.ProgressItem(job_id=lease.job_id, attempt=lease.attempt, state=state, **changes)
        return (await self.write(leases.report_progress, node_id, [item]))[0]

    async def append(
        self, node_id: str, lease: leases.Lease, offset: int, data: bytes, stream: str = "stdout", **more: Any
    ) -> int:
        return await self.write(leases.append_log, node_id, lease.job_id, lease.attempt, stream, offset, data, **more)

    async def beat(self, node_id: str = "n1", held: Sequence[m.Held] | None = (), **changes: Any) -> list[m.Directive]:
        request = m.HeartbeatRequest(node_id=node_id, held=None if held is None else tuple(held), **changes)
        return await self.write(nodes.heartbeat, request)

    async def cancel_group(self, group_id: str, reason: str | None = None) -> m.GroupView:
        after = 0
        while (went_on := await self.write(groups.cancel_some, group_id, reason, after)) is not None:
            assert went_on > after
            after = went_on
        return await self.read(groups.show_group, group_id)

    async def job(self, job_id: str) -> m.JobView:
        return await self.read(reads.show_job, job_id)

    async def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in (await self.job(job_id)).timeline]

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return await self.read(lambda tx: tx.rows(sql, params))

    @property
    def on_postgres(self) -> bool:
        return self.url.startswith("postgres")

    async def plan(self, sql: str) -> str:
        """How the database would walk through this query."""
        explain = "EXPLAIN" if self.on_postgres else "EXPLAIN QUERY PLAN"

        def look(tx: Tx) -> list[Any]:
            if self.on_postgres:  # a table of a few rows may well be read whole
                tx.run("SET LOCAL enable_seqscan = off")
            return tx.rows(f"{explain} {sql}")

        return "\n".join(str(row[-1]) for row in await self.store.read(look))

    async def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that jobs' rows say, to compare with later."""
        tables = ("jobs", "attempts", "events", "artifacts", "logs", "log_chunks")
        return {table: await self.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}

    def close(self) -> None:
        self.store.close()

    def reopen(self) -> None:
        """As after a restart."""
        self.close()
        self.store = Store.open(self.url, logger=LOGGER, clock=self.clock)
