"""One simulated node: everything that a daemon says to its coordinator, and nothing that it does.

It follows the daemon's rules where they matter to the coordinator: one long poll open at any time, which acknowledges what it brings,
heartbeats apart from it, an outcome that is told until somebody has it, a new session when the old one is refused. It takes nothing
ahead of a free slot.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ostler import __version__
from ostler.model.attempt import AttemptState
from ostler.model.capabilities import Capabilities
from ostler.model.errors import CoordinatorUnreachable, NoCapacity, NotFound, OstlerError, Rejected, Unauthenticated, Unavailable
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import codec, dsse, routes
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.routes import Route
from ostler.runtime.backoff import Backoff
from ostler.sim.figures import Figures
from ostler.sim.plan import Draws, Plan

STAGE_S = 0.15  # who is over sooner is never reported as running
QUICK_S = 0.05  # an empty answer that came at once is followed by so long a pause
JITTER = 0.1  # of heartbeats
TRIES_S = (0.2, 10.0)  # between tries, at first and at most
OPENINGS = 64  # nodes that register at the same time


@cache
def printed(size: int) -> tuple[m.LogEnd, ...]:
    """The logs of a job that printed so many bytes: what is short travels inside the outcome."""
    text = (b"simulated\n" * (size // 10 + 1))[:size]
    both = zip(m.LOG_STREAMS, (text, b""), strict=True)
    return tuple(
        m.LogEnd(stream=name, length=len(data), sha256=hashlib.sha256(data).hexdigest(), tail=data) for name, data in both
    )


@dataclass(slots=True)
class Attempt:
    """One lease that the node holds."""

    job_id: str
    attempt: int
    renewed_at: float  # when the call was sent that renewed it last
    timer: asyncio.TimerHandle | None = None
    accepted: bool = False
    outcome: m.Outcome | None = None

    @property
    def held(self) -> m.Held:
        """Its name."""
        return m.Held(self.job_id, self.attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """How a node reaches the coordinator, and what is common to all: `polls` has a connection of its own."""

    polls: Callable[[], AsyncClient]
    calls: Callable[[], AsyncClient]
    join: str
    capabilities: Capabilities
    opening: asyncio.Semaphore
    leased: Callable[[str], None]  # told the id of each job when a lease of it comes in


class SimNode:
    """Lives from `live` on until that is cancelled."""

    def __init__(self, node_id: str, plan: Plan, draws: Draws, figures: Figures, doors: Doors) -> None:
        self.node_id = node_id
        self.enrolled = False
        self._plan, self._draws, self._figures, self._doors = plan, draws, figures, doors
        self._key = Ed25519PrivateKey.generate()
        self._trusted: Ed25519PublicKey | None = None
        self._incarnation = 0
        self._slots = 0
        self._draining = False
        self._token: str | None = None
        self._epoch = ""
        self._terms: m.RegisterResponse | None = None
        self._held: dict[tuple[str, int], Attempt] = {}
        self._asked = 0
        self._sent = 0
        self._newest: asyncio.Task[None] | None = None
        self._polls: set[asyncio.Task[None]] = set()
        self._answered = asyncio.Event()
        self._ends = asyncio.Event()
        self._reopening: asyncio.Lock = asyncio.Lock()

    async def live(self) -> None:
        """One life after the other, until cancelled."""
        while True:
            await self._one_life()
            self._figures.troubles["died"] += 1
            await asyncio.sleep(self._draws.away_s())

    async def _one_life(self) -> None:
        self._incarnation += 1
        self._epoch, self._token, self._slots, self._asked = f"sim-{self.node_id}:{self._incarnation}", None, self._plan.slots, 0
        self._draining = False
        self._poll_client, self._call_client = self._doors.polls(), self._doors.calls()
        running: list[asyncio.Task[None]] = []
        try:
            await self._open()
            make = asyncio.get_running_loop().create_task
            running = [make(self._beat()), make(self._pull()), make(self._deliver())]
            life_s = self._draws.life_s()
            done, _ = await asyncio.wait(running, timeout=life_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # none ends by itself: this raises what ended it
        finally:
            for task in (*running, *self._polls):
                task.cancel()
            self._figures.killed += sum(1 for one in self._held.values() if one.accepted)
            for one in self._held.values():
                if one.timer is not None:
                    one.timer.cancel()
            self._held.clear()
            await self._poll_client.close()
            if not self._plan.share:
                await self._call_client.close()

    # --- the session ---

    async def _open(self) -> None:
        """Register, until it is done."""
        backoff = Backoff(min_s=TRIES_S[0], max_s=TRIES_S[1], jitter=0.5)
        async with self._reopening:
            while self._token is None:
                try:
                    async with self._doors.opening:
                        answer = await self._introduce()
                except OstlerError as exc:
                    self._trouble("register", exc)
                    if isinstance(exc, Rejected) and not self.enrolled:
                        raise
                    await asyncio.sleep(exc.retry_after if isinstance(exc, NoCapacity) and exc.retry_after else backoff.next_s())
                    continue
                self.enrolled, self._terms, self._token = True, answer, answer.node_token
                self._trusted = Ed25519PublicKey.from_public_bytes(answer.coordinator_key)
                for one in answer.forget:
                    self._drop((one.job_id, one.attempt))
                self._renew(time.monotonic())

    async def _introduce(self) -> m.RegisterResponse:
        """With the join token the first time; by signing a challenge later."""
        if not self.enrolled:
            try:
                return await self._register(token=self._doors.join)
            except Unauthenticated as exc:
                if exc.challenge is None:  # else it was enrolled, and the answer was lost
                    raise
                return await self._register(challenge=exc.challenge)
        try:
            return await self._register()
        except Unauthenticated as exc:
            if exc.challenge is None:
                raise
            return await self._register(challenge=exc.challenge)

    async def _register(self, *, token: str | None = None, challenge: str | None = None) -> m.RegisterResponse:
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        signature = None
        if challenge is not None:
            signature = self._key.sign(m.register_message(challenge, self.node_id, self._epoch))
        request = m.RegisterRequest(
            node_id=self.node_id, version=__version__, protocol=m.PROTOCOL, boot_epoch=self._epoch, public_key=public,
            capabilities=self._doors.capabilities, cpu_slots=self._plan.slots, gpu_slots=0, held=self._names(),
            challenge=challenge, signature=signature,
        )  # fmt: skip
        answer: m.RegisterResponse = await self._timed("register", routes.REGISTER, request, token)
        return answer

    async def _timed(self, name: str, route: Route, message: object, token: str | None) -> Any:
        began = time.monotonic()
        answer = await self._call_client.call(route, message, token=token)
        self._figures.took(name, time.monotonic() - began)
        return answer

    async def _call(self, name: str, route: Route, message: object) -> Any:
        """A short call in the session. Raises Unavailable, also where the session was refused and another one is open now."""
        if self._token is None:
            await self._open()
        token = self._token
        try:
            return await self._timed(name, route, message, token)
        except OstlerError as exc:
            self._trouble(name, exc)
            if isinstance(exc, Rejected):
                if self._token == token:
                    self._token = None
                await self._open()
                raise Unavailable("the session was opened anew") from exc
            raise

    def _trouble(self, call: str, exc: OstlerError) -> None:
        what = "unreachable" if isinstance(exc, CoordinatorUnreachable) else exc.code
        self._figures.troubles[f"{call}: {what}"] += 1

    # --- heartbeats ---

    async def _beat(self) -> None:
        assert self._terms is not None  # noqa: S101 - registered
        every = self._terms.heartbeat_s
        backoff = Backoff(min_s=TRIES_S[0], max_s=every, jitter=0.5)
        await asyncio.sleep(every * self._draws.part())  # nodes are not started all in the same moment
        while True:
            sent_at, held = time.monotonic(), self._names()
            request = m.HeartbeatRequest(
                node_id=self.node_id, load=0.5, free_mb=1000, disk_free_mb=100_000, held=held, version=__version__,
                boot_epoch=self._epoch, draining=self._draining, slots=self._free(),
            )  # fmt: skip
            try:
                answer: m.HeartbeatResponse = await self._call("heartbeat", routes.HEARTBEAT, request)
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            self._renew(sent_at, held)
            self._obey(answer.directives)
            await asyncio.sleep(every * (1 + JITTER * (2 * self._draws.part() - 1)))

    def _renew(self, sent_at: float, held: Sequence[m.Held] | None = None) -> None:
        """Note which leases go on; one that came to its end on this node's own clock is lost."""
        assert self._terms is not None  # noqa: S101 - registered
        for one in self._names() if held is None else held:
            found = self._held.get((one.job_id, one.attempt))
            if found is not None:
                if sent_at - found.renewed_at > self._terms.lease_s:
                    self._figures.lost += 1
                found.renewed_at = max(found.renewed_at, sent_at)

    def _obey(self, directives: Sequence[m.Directive]) -> None:
        for one in directives:
            key = (one.job_id or "", one.attempt or 0)
            match one.kind:
                case m.DirectiveKind.REFRESH_TOKEN:
                    self._token = one.token
                case m.DirectiveKind.REGISTER:
                    self._token = None
                case m.DirectiveKind.DRAIN:
                    self._draining = True
                case m.DirectiveKind.RESUME:
                    self._draining = False
                    self._reconsider()
                case m.DirectiveKind.FORGET:
                    if key in self._held:
                        self._figures.lost += 1
                        self._drop(key)
                case m.DirectiveKind.CANCEL:
                    if (found := self._held.get(key)) is not None and found.outcome is None:
                        self._end(found, cancelled=True)
                case m.DirectiveKind.RECONCILE:
                    if key not in self._held:
                        self._disown(*key)
                case m.DirectiveKind.DEBUG:
                    pass  # there is no workspace

    def _disown(self, job_id: str, attempt: int) -> None:
        lost = Failure(FailureCode.LOST, "the simulated node knows nothing of this attempt")
        one = Attempt(job_id, attempt, time.monotonic(), accepted=True)
        one.outcome = m.Outcome(job_id=job_id, attempt=attempt, failure=lost)
        self._held[job_id, attempt] = one
        self._ends.set()

    # --- work ---

    def _names(self) -> tuple[m.Held, ...]:
        return tuple(one.held for one in self._held.values())

    def _free(self) -> int:
        busy = sum(1 for one in self._held.values() if one.outcome is None)
        return 0 if self._draining else max(0, self._slots - busy)

    def _reconsider(self) -> None:
        """A poll that asked for nothing gives way to one that asks for something."""
        if self._newest is not None and not self._newest.done() and not self._asked and self._free():
            self._newest = self._poll()

    async def _pull(self) -> None:
        backoff = Backoff(min_s=TRIES_S[0], max_s=TRIES_S[1], jitter=0.5)
        while True:
            if self._token is None:
                await self._open()
            self._newest = self._poll()
            while not self._newest.done():
                self._answered.clear()
                await self._answered.wait()
            exc = None if self._newest.cancelled() else self._newest.exception()
            if exc is None:
                backoff.reset()
            elif isinstance(exc, OstlerError):
                self._trouble("pull", exc)
                if isinstance(exc, Unauthenticated | NotFound):
                    self._token = None
                else:
                    await asyncio.sleep(backoff.next_s())
            else:
                raise exc

    def _poll(self) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._ask())
        self._polls.add(task)
        task.add_done_callback(self._polled)
        return task

    def _polled(self, task: "asyncio.Task[None]") -> None:
        self._polls.discard(task)
        self._answered.set()
        if not task.cancelled():
            task.exception()  # that of one that was replaced is nobody's trouble

    async def _ask(self) -> None:
        assert self._terms is not None  # noqa: S101 - registered
        wait_s = self._terms.pull_wait_s
        self._asked = self._free()
        self._sent += 1
        number = self._sent
        sent_at, held = time.monotonic(), self._names()
        request = m.PullRequest(
            node_id=self.node_id, slots=self._asked, wait_s=wait_s, held=held, protocol=m.PROTOCOL, boot_epoch=self._epoch,
            together=True, begins=self._asked, number=number,
        )  # fmt: skip
        answer: m.PullResponse = await self._poll_client.call(routes.PULL, request, token=self._token)
        took = time.monotonic() - sent_at
        self._renew(sent_at, held)
        if took >= wait_s and not answer.jobs:
            self._figures.took("pull, beyond its wait", took - wait_s)
        offered: list[Attempt] = []
        for said in [one for envelope in answer.jobs for one in self._believed(envelope)]:
            if (one := self._take(said, sent_at)) is None:
                continue
            if said.acked and number == self._sent:
                one.accepted = True
                self._begin(one)
            else:
                offered.append(one)
        self._obey(answer.directives)
        if offered:
            await self._ack(offered)
        elif not answer.jobs and took < QUICK_S:
            await asyncio.sleep(QUICK_S)

    def _believed(self, envelope: dsse.Envelope) -> Sequence[m.Assignment]:
        """What an envelope assigns; nothing where its signature is checked and is not the coordinator's."""
        kind = envelope.payloadType
        if self._draws.verifies():
            self._figures.verified += 1
            if self._trusted is None or dsse.verify(envelope, kind, self._trusted) is None:
                self._figures.troubles["pull: a lease without a good signature"] += 1
                return ()
        if kind == dsse.ASSIGNMENTS_TYPE:
            return codec.decode(envelope.payload, tuple[m.Assignment, ...], what="assignments")
        return (codec.decode(envelope.payload, m.Assignment, what="assignment"),)

    def _take(self, said: m.Assignment, sent_at: float) -> Attempt | None:
        key = (said.job_id, said.attempt)
        if key in self._held:
            return None
        self._doors.leased(said.job_id)
        one = self._held[key] = Attempt(said.job_id, said.attempt, sent_at)
        return one

    async def _ack(self, got: Sequence[Attempt]) -> None:
        """Each begins once it is acknowledged; a poll that comes before that names it as held."""
        backoff = Backoff(min_s=TRIES_S[0], max_s=TRIES_S[1], jitter=0.5)
        batch = m.AckBatch(items=tuple(m.AckItem(job_id=one.job_id, attempt=one.attempt) for one in got))
        while True:
            try:
                answer: m.BatchResponse = await self._call("ack", routes.ACK, batch)
                break
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
        for one, result in zip(got, answer.items, strict=True):
            if self._held.get((one.job_id, one.attempt)) is not one or one.outcome is not None:
                continue
            if not result.ok:  # a newer poll overtook the answer that brought it; nothing was begun, so nothing is lost
                self._figures.troubles["ack: taken back before it was acknowledged"] += 1
                self._drop((one.job_id, one.attempt))
                continue
            one.accepted = True
            self._begin(one)

    def _begin(self, one: Attempt) -> None:
        loop, seconds = asyncio.get_running_loop(), self._draws.seconds()
        one.timer = loop.call_later(seconds, self._end, one)
        if seconds > STAGE_S:
            loop.call_later(STAGE_S, self._tell_running, one)

    def _tell_running(self, one: Attempt) -> None:
        if one.outcome is None and (one.job_id, one.attempt) in self._held:
            task = asyncio.get_running_loop().create_task(self._report(one))
            self._polls.add(task)
            task.add_done_callback(self._polls.discard)

    async def _report(self, one: Attempt) -> None:
        item = m.ProgressItem(job_id=one.job_id, attempt=one.attempt, state=AttemptState.RUNNING)
        with contextlib.suppress(Unavailable):  # the outcome says it, too
            await self._call("progress", routes.PROGRESS, m.ProgressBatch(items=(item,)))

    def _end(self, one: Attempt, *, cancelled: bool = False) -> None:
        if one.timer is not None:
            one.timer.cancel()
        failure = None
        if not cancelled and self._draws.fails():
            failure = Failure(FailureCode.EXIT, "the simulated program ended with 1")
        one.outcome = m.Outcome(
            job_id=one.job_id, attempt=one.attempt, failure=failure, cancelled=cancelled,
            exit_code=None if cancelled else int(failure is not None), logs=printed(self._plan.log_bytes),
        )  # fmt: skip
        self._ends.set()
        self._reconsider()

    async def _deliver(self) -> None:
        """Outcomes in batches, until the coordinator has them."""
        backoff = Backoff(min_s=TRIES_S[0], max_s=TRIES_S[1], jitter=0.5)
        while True:
            await self._ends.wait()
            self._ends.clear()
            over = [one for one in self._held.values() if one.outcome is not None]
            if not over:
                continue
            batch = m.OutcomeBatch(items=tuple(one.outcome for one in over if one.outcome is not None))
            try:
                answer: m.BatchResponse = await self._call("result", routes.RESULT, batch)
            except Unavailable:
                self._ends.set()
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            for one, result in zip(over, answer.items, strict=True):
                self._told(one, result)

    def _told(self, one: Attempt, result: m.ItemResult) -> None:
        outcome, figures = one.outcome, self._figures
        self._drop((one.job_id, one.attempt))
        if not result.ok or outcome is None:
            figures.lost += 1
            figures.troubles[f"result: {result.code}"] += 1
        elif outcome.cancelled:
            figures.cancelled += 1
        elif outcome.failure is not None:
            figures.failed += 1
        else:
            figures.done += 1

    def _drop(self, key: tuple[str, int]) -> None:
        one = self._held.pop(key, None)
        if one is not None and one.timer is not None:
            one.timer.cancel()
        self._reconsider()
