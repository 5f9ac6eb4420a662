"""All simulated nodes of one run, the jobs that they get, and the measuring of both."""

import asyncio
import contextlib
import os
import platform
import resource
import secrets
import time
from collections.abc import Callable

from ostler import __version__
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.errors import InvalidSpec, NoCapacity, OstlerError, Problem, Rejected, Unavailable
from ostler.model.job import TERMINAL, JobState
from ostler.model.sandbox import SandboxAbilities
from ostler.model.words import many
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.trust import Trust
from ostler.sim.figures import Figures, Report, Usage, read_usage, summary
from ostler.sim.node import OPENINGS, Doors, SimNode
from ostler.sim.plan import SHARED, Draws, Plan

SUBMIT = 1000  # jobs in one call
LOOK_S = 0.5  # how often it is looked whether all jobs are over
TICK_S = 0.1
TELL_S = 10.0
JOIN_S = 24 * 3600.0
PATIENCE_S = 60.0
PAGE = 500
RETIRING = 32  # calls at the same time
_LIVE = ",".join(state.value for state in JobState if state not in TERMINAL)


class SimFleet:
    """One run against one coordinator, as an operator; `tell` gets a line now and then."""

    def __init__(self, plan: Plan, *, url: str, token: str | None, trust: Trust, tell: Callable[[str], None]) -> None:
        if found := [Problem(name, what) for name, what in plan.problems()]:
            raise InvalidSpec("the simulation is not valid", found)
        self._plan, self._tell = plan, tell
        self._url, self._trust = url, trust
        self.name = f"sim-{secrets.token_hex(3)}"  # its pool and its queue: no job of anybody else comes here
        self._admin = AsyncClient(url, token=token, trust=trust, patience_s=PATIENCE_S, busy_s=PATIENCE_S)
        self._shared = AsyncClient(url, trust=trust, kept=SHARED)
        self._figures, self._draws = Figures(), Draws(plan)
        self._nodes: list[SimNode] = []
        self._sent_at: dict[str, float] = {}
        self._submitted = 0

    async def run(self, stop: asyncio.Event) -> Report:
        """Until all jobs are over, the time is, or `stop` is set; then the nodes are retired. Raises the error tree where it cannot
        begin, such as InvalidSpec for more nodes than this process may have connections."""
        _allow(self._plan)
        try:
            join = await self._admin.call(
                routes.CREATE_TOKEN,
                m.TokenRequest(uses=self._plan.nodes, pool=self.name, expires_s=JOIN_S, note="ostler sim nodes"),
            )
            return await self._with_nodes(join, stop)
        finally:
            await self._shared.close()
            await self._admin.close()

    async def _with_nodes(self, join: m.TokenView, stop: asyncio.Event) -> Report:
        plan = self._plan
        doors = Doors(
            polls=lambda: AsyncClient(self._url, trust=self._trust, kept=1),
            calls=lambda: self._shared if plan.share else AsyncClient(self._url, trust=self._trust, kept=1),
            join=join.token or "", capabilities=_capabilities(), opening=asyncio.Semaphore(OPENINGS), leased=self._leased,
        )  # fmt: skip
        self._nodes = [
            SimNode(f"{self.name}-{number:05}", plan, self._draws, self._figures, doors) for number in range(plan.nodes)
        ]
        living = [asyncio.create_task(node.live()) for node in self._nodes]
        began = asyncio.create_task(self._until_all_there(living))
        late = asyncio.create_task(self._watch_lateness())
        stopping = asyncio.create_task(stop.wait())
        try:
            await _first(began, stopping)
            if not stop.is_set():
                began.result()
            return await self._measure(stop, stopping, living)
        finally:
            for task in (*living, began, late, stopping):
                task.cancel()
            await asyncio.gather(*living, began, late, stopping, return_exceptions=True)
            await self._retire(join)
            await self._cancel_rest()

    async def _until_all_there(self, living: "list[asyncio.Task[None]]") -> None:
        """Wait until each node has registered once; raises what kept one from it for good."""
        told_at = began = time.monotonic()
        while (there := sum(node.enrolled for node in self._nodes)) < len(self._nodes):
            _check(living)
            self._check_welcome()
            if time.monotonic() - told_at >= TELL_S:
                told_at = time.monotonic()
                self._tell(f"{there} of {many(len(self._nodes), 'node')} there")
            await asyncio.sleep(TICK_S)
        self._tell(f"{many(len(self._nodes), 'node')} there after {time.monotonic() - began:.1f} s, in the pool {self.name}")

    def _check_welcome(self) -> None:
        if self._figures.troubles["register: no_capacity"] > self._plan.nodes:
            raise NoCapacity(
                "the coordinator takes no more connections from this address",
                hint=f"set limits.connections there to {self._plan.descriptors} or more, for as long as you simulate",
            )

    async def _measure(self, stop: asyncio.Event, stopping: "asyncio.Task[bool]", living: "list[asyncio.Task[None]]") -> Report:
        self._figures.begin()
        before, began, own = await self._usage(), time.monotonic(), _own_cpu_s()
        submitting = asyncio.create_task(self._submit())
        ending = asyncio.create_task(self._until_over(submitting))
        telling = asyncio.create_task(self._keep_telling(living))
        try:
            async with asyncio.timeout(self._plan.for_s):
                await _first(ending, stopping, telling)
            for task in (ending, telling):
                if task.done():
                    task.result()
            why = "interrupted" if stop.is_set() else "all jobs are over"
        except TimeoutError:
            why = "the time is over"
        finally:
            for task in (submitting, ending, telling):
                task.cancel()
            await asyncio.gather(submitting, ending, telling, return_exceptions=True)
        seconds = time.monotonic() - began
        return await self._report(why, seconds, before, (_own_cpu_s() - own) / seconds)

    async def _report(self, why: str, seconds: float, before: Usage, own_cpu: float) -> Report:
        figures, after = self._figures, await self._usage()
        counts = {}
        for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
            query = m.JobQuery(queue=self.name, state=state.value, limit=1, count=True)
            counts[state] = (await self._admin.call(routes.LIST_JOBS, query=query)).total or 0
        used = after.cpu_since(before)
        return Report(
            nodes=self._plan.nodes, seconds=round(seconds, 2), jobs_done=counts[JobState.DONE], jobs_failed=counts[JobState.FAILED],
            jobs_cancelled=counts[JobState.CANCELLED], jobs_per_s=round(sum(counts.values()) / seconds, 1), lost=figures.lost,
            killed=figures.killed, verified=figures.verified, calls=figures.of_calls(), troubles=dict(figures.troubles),
            coordinator_cpu=None if used is None else round(used / seconds, 3),
            coordinator_cpu_s=None if used is None else round(used, 2), coordinator_memory_mb=after.memory_mb,
            coordinator_descriptors=after.descriptors, simulator_cpu=round(own_cpu, 3),
            simulator_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            simulator_late_p99_ms=summary(figures.late).p99_ms if figures.late else 0.0, stopped=why,
        )  # fmt: skip

    async def _usage(self) -> Usage:
        with contextlib.suppress(OstlerError):
            return read_usage((await self._admin.call(routes.METRICS)).decode())
        return Usage()

    # --- jobs ---

    async def _submit(self) -> None:
        """Those of the beginning, then so many a second."""
        plan = self._plan
        for begin in range(0, plan.jobs, SUBMIT):
            await self._send(min(SUBMIT, plan.jobs - begin))
        began, sent = time.monotonic(), 0
        while plan.rate:
            await asyncio.sleep(TICK_S)
            due = int((time.monotonic() - began) * plan.rate) - sent
            if due:
                await self._send(due)
                sent += due

    async def _send(self, count: int) -> None:
        one = {"command": "true", "queue": self.name, "requirements": {"pool": self.name}}
        began = time.monotonic()
        answer: m.SubmitResponse = await self._admin.call(routes.SUBMIT, codec.encode([one] * count))
        self._figures.took(f"submit {SUBMIT}" if count == SUBMIT else "submit", time.monotonic() - began)
        self._submitted += count
        for job in answer.items:
            self._sent_at.setdefault(job.job_id, began)

    def _leased(self, job_id: str) -> None:
        """A lease came in. One that comes before the answer of its submission has waited for nothing."""
        sent_at = self._sent_at.pop(job_id, None)
        if sent_at is not None and self._plan.rate:
            self._figures.took("submit to lease", time.monotonic() - sent_at)

    async def _until_over(self, submitting: "asyncio.Task[None]") -> None:
        await submitting
        if not self._plan.jobs:
            await asyncio.Event().wait()  # until the time is over
        query = m.JobQuery(queue=self.name, state=_LIVE, limit=1)
        while (await self._admin.call(routes.LIST_JOBS, query=query)).items:  # noqa: ASYNC110 - the coordinator is the one to ask
            await asyncio.sleep(LOOK_S)

    # --- besides ---

    async def _watch_lateness(self) -> None:
        """How late this process is itself: what it measures of others is that much too high."""
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self._figures.late.append(max(0.0, time.monotonic() - due))

    async def _keep_telling(self, living: "list[asyncio.Task[None]]") -> None:
        while True:
            await asyncio.sleep(TELL_S)
            _check(living)
            figures = self._figures
            beats = figures.calls.get("heartbeat")
            told = f"heartbeat p99 {summary(beats).p99_ms:.0f} ms, " if beats else ""
            self._tell(f"{figures.over} of {self._submitted} jobs over, {told}{figures.lost} leases lost")

    async def _retire(self, join: m.TokenView) -> None:
        """None of them comes back: their records say so, and their token enrols no more."""
        gate = asyncio.Semaphore(RETIRING)

        async def retire(node: SimNode) -> None:
            async with gate:
                with contextlib.suppress(Rejected, Unavailable):
                    await self._admin.call(routes.RETIRE_NODE, m.ReasonRequest(reason="simulated"), node_id=node.node_id)

        with contextlib.suppress(Rejected, Unavailable):
            await self._admin.call(routes.REVOKE_TOKEN, token_id=join.token_id)
        await asyncio.gather(*(retire(node) for node in self._nodes if node.enrolled))

    async def _cancel_rest(self) -> None:
        """What is not over would wait for ever: no node comes to this pool any more."""
        gate = asyncio.Semaphore(RETIRING)

        async def cancel(job_id: str) -> None:
            async with gate:
                with contextlib.suppress(Rejected):
                    await self._admin.call(routes.CANCEL_JOB, m.CancelRequest(reason="simulated"), job_id=job_id)

        more, cursor = self._submitted > 0, None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while more:
                    query = m.JobQuery(queue=self.name, state=_LIVE, limit=PAGE, cursor=cursor)
                    page = await self._admin.call(routes.LIST_JOBS, query=query)
                    await asyncio.gather(*(cancel(job.job_id) for job in page.items))
                    cursor = page.next_cursor
                    more = cursor is not None
        except (TimeoutError, OstlerError):
            self._tell(f"jobs that are not over stay in the queue {self.name}, and no node will take them")


def _allow(plan: Plan) -> None:
    """Let this process have as many connections as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if plan.descriptors > hard != resource.RLIM_INFINITY:
        raise InvalidSpec(
            f"{plan.nodes} nodes need {plan.descriptors} file descriptors, and this process may have {hard}",
            hint="raise the limit (ulimit -Hn)" + ("" if plan.share else ", or let the nodes share connections: --share"),
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, plan.descriptors), hard))


def _capabilities() -> Capabilities:
    return Capabilities(
        node_id="simulated", version=__version__, cpu=Cpu(cores=4, arch=platform.machine(), threads=4), memory_mb=8192,
        disk_free_mb=100_000, runners=("cli",), sandbox=SandboxAbilities(levels=("none", "process", "bwrap")), tags=("simulated",),
    )  # fmt: skip


def _own_cpu_s() -> float:
    used = os.times()
    return used.user + used.system


def _check(living: "list[asyncio.Task[None]]") -> None:
    for task in living:
        if task.done() and not task.cancelled():
            task.result()


async def _first(*tasks: "asyncio.Task[object]") -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
