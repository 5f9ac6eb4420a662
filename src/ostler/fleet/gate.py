"""What the coordinator says of a host's new release: the daemon in it has reported there, and a job was done by it."""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import timedelta

from ostler.model.errors import NotFound, OstlerError, Rejected, Unavailable
from ostler.model.job import JobState
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock

CANARY = "/usr/bin/true"
CANARY_S = 30.0
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class CoordinatorGate:
    """Asks the coordinator. `patience` is how long a node may take to report and to run a no-op."""

    client: AsyncClient
    clock: Clock
    patience: timedelta = timedelta(seconds=90)

    async def ready(self) -> None:
        """Whether it answers, and lets this token submit jobs: webhooks are listed for nobody else. Raises Rejected, also for silence."""
        try:
            await self.client.call(routes.LIST_WEBHOOKS, query=m.PageQuery(limit=1))
        except OstlerError as exc:
            hint = "`--no-coordinator` leaves its word out"
            raise Rejected(
                f"the coordinator, which is to judge the release, cannot be asked: {exc.message}",
                hint=hint if exc.hint is None else f"{exc.hint}; {hint}",
            ) from exc

    async def wrong(self, node_id: str, release: str) -> str | None:
        """What is wrong with this node's release; None where all is well, or where the coordinator does not answer (its absence
        says nothing of the release). Raises Rejected where it refuses to be asked."""
        until = self.clock.monotonic() + self.patience.total_seconds()
        try:
            node = await self._reported(node_id, release, until)
            if node is None:
                return (
                    f"node {node_id} has not reported release {release} to the coordinator in {self.patience.total_seconds():g} s"
                )
            return await self._canary(node_id, until)
        except Unavailable:
            return None

    async def _reported(self, node_id: str, release: str, until: float) -> m.NodeView | None:
        backoff = Backoff(min_s=LOOK_S, max_s=2.0)
        while True:
            try:
                node: m.NodeView = await self.client.call(routes.SHOW_NODE, node_id=node_id)
                if node.capabilities is not None and node.capabilities.release == release:
                    return node
            except NotFound:
                pass
            if self.clock.monotonic() > until:
                return None
            await asyncio.sleep(backoff.next_s())

    async def _canary(self, node_id: str, until: float) -> str | None:
        """One no-op job for this node alone; none where all its slots are taken, so that it waits for others' ends."""
        job_id = f"canary-{secrets.token_hex(6)}"
        manifest = {
            "job_id": job_id,
            "runner": "cli",
            "command": CANARY,
            "requirements": {"node": node_id},
            "timeout_s": CANARY_S,
            "ttl_s": max(1.0, until - self.clock.monotonic()),
            "retries": 0,
            "labels": {"ostler": "canary"},
        }
        await self.client.call(routes.SUBMIT, manifest)
        while True:
            view: m.JobView = await self.client.call(routes.AWAIT_JOB, query=m.WaitQuery(wait_s=10.0), job_id=job_id)
            if view.state is JobState.DONE:
                return None
            if view.attempt == 0 and await self._is_full(node_id):  # jobs of hours are no reason to go back
                await self._cancel(job_id)
                return None
            if view.state in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
                why = f"{view.failure.code.value}: {view.failure.message}" if view.failure else view.state.value
                return f"its canary job {job_id} is {view.state.value} ({why})"
            if self.clock.monotonic() > until:
                await self._cancel(job_id)
                return f"its canary job {job_id} was still {view.state.value} after {self.patience.total_seconds():g} s"

    async def _is_full(self, node_id: str) -> bool:
        node: m.NodeView = await self.client.call(routes.SHOW_NODE, node_id=node_id)
        return len(node.attempts) >= node.cpu_slots

    async def _cancel(self, job_id: str) -> None:
        try:
            await self.client.call(routes.CANCEL_JOB, job_id=job_id)
        except OstlerError:
            return
