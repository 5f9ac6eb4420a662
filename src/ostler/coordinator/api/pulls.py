"""Open long polls of nodes: the newest of a node wins, and new work wakes them in the order in which they came."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from ostler.coordinator.operations.takers import Asking, Takers
from ostler.coordinator.store.wakeups import Wakeups
from ostler.model.errors import Unavailable
from ostler.protocol.messages import Directive, WantedUpdate

ABREAST = 8  # how many are woken at a time: enough to fill a group commit, few enough to leave the loop to others
REST_S = 0.005  # between two looks at what waits, which cost a read each
STRETCH = 512  # how many are looked at together for those who could take anything
# A node is given work, urgent work apart, so often and no oftener; as many times at once if it was given none for as long. So what comes
# in a stream gathers, and what comes now and then does not wait.
GATHER_S = 0.008
AT_ONCE = 3
SLACK_S = 0.005  # for so long after that it waits for a submission that carries its claim along, and saves it a sync of its own
# Where one comes that soon after another, nobody waits for the end of each before he gives the next: so much longer work may gather,
# for as long as that goes on.
STREAM_S = 0.016
UNKNOWN = frozenset({-1})  # what waits, where the store cannot tell

DirectiveKey = tuple[str, str | None, int | None, float | None, WantedUpdate | None]


@dataclass(slots=True, eq=False)
class Pull:
    """One open long poll. `wake` ends its wait; `over` says that it should answer with nothing and claim nothing more."""

    node_id: str
    wake: asyncio.Event
    slots: int
    gpu_slots: int = 0
    over: bool = False
    turn: asyncio.Future[None] | None = None
    vain: frozenset[int] = frozenset()  # shapes of jobs that its node cannot run: nobody looks again for the sake of those
    withdraw: Callable[[], None] | None = None  # what stands for it in the store
    rests_until: float = 0.0  # in the meantime work gathers for it, instead of a call for each job (monotonic seconds)
    passed_over: bool = False  # some may have come in that time
    passed_at: float = 0.0  # when the last of it came

    def end(self) -> None:
        """Make it answer at once with nothing."""
        self.over = True
        self.wake.set()
        if self.withdraw is not None:
            self.withdraw()

    @property
    def rests(self) -> bool:
        """Whether this is that time. From any thread; work that is let pass is looked for at its end."""
        if not self.rests_until:
            return False
        self.passed_over = True  # in front of the look at the clock: `rested` looks the other way around, so one of both notices
        now = time.monotonic()
        flows, self.passed_at = now - self.passed_at < SLACK_S, now
        return now < self.rests_until + (STREAM_S if flows else 0.0)

    def looks_again(self, urgent: bool) -> bool:
        """Whether it looks now at what was let pass."""
        passed_over = self.passed_over
        self.passed_over = passed_over and urgent
        return passed_over and not urgent

    def rested(self) -> float:
        """That time is over, and nothing came since that would have told; or for how many seconds not yet."""
        now = time.monotonic()
        left = min(self.passed_at + SLACK_S, self.rests_until + STREAM_S) - now
        if left > 0 and self.passed_over:
            return left
        self.rests_until = 0.0
        if self.passed_over:
            self.wake.set()
        return 0.0

    def turned(self) -> None:
        """It has tried to claim: the next in line may."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)
        self.turn = None


class PullLine:
    """The line of open long polls."""

    def __init__(
        self, wakeups: Wakeups, takers: Callable[[Sequence[Asking]], Awaitable[Takers]], *, logger: logging.Logger
    ) -> None:
        """`takers` answers what waits, and those of some askers who could take it."""
        self._logger = logger
        self._wakeups = wakeups
        self._takers = takers
        self._line: dict[str, Pull] = {}  # by node, oldest first
        self._hungry: set[str] = set()  # those in line who have a slot free
        self._told: dict[str, set[DirectiveKey]] = {}
        self._rest_until = 0.0
        self._paid: dict[str, float] = {}  # by node: until when the times that it was given work are the right number of times
        self.work_waits = True  # as far as is known; who believes it wrongly is only slower

    def __len__(self) -> int:
        return len(self._line)

    @contextmanager
    def join(
        self, node_id: str, wake: asyncio.Event, slots: int, gpu_slots: int = 0, *, patience_s: float = 0.0
    ) -> Iterator[Pull]:
        """Stand in line. An older poll of the same node is answered empty at once. Who has no patience is kept waiting for nothing."""
        pull = Pull(node_id, wake, slots, gpu_slots)
        rests_until = self._paid.get(node_id, 0.0) - (AT_ONCE - 1) * GATHER_S
        if patience_s > GATHER_S and rests_until > time.monotonic():
            pull.rests_until, pull.passed_over = rests_until, self.work_waits
        older = self._line.pop(node_id, None)
        if older is not None:
            older.end()
        self._line[node_id] = pull
        self._note(pull)
        try:
            yield pull
        finally:
            pull.turned()
            if self._line.get(node_id) is pull:
                del self._line[node_id]
                self._hungry.discard(node_id)

    def _note(self, pull: Pull) -> None:
        (self._hungry.add if pull.slots > 0 or pull.gpu_slots > 0 else self._hungry.discard)(pull.node_id)

    def others_ask(self, node_id: str) -> bool:
        """Whether another node waits for work."""
        return len(self._hungry) > (node_id in self._hungry)

    def given(self, node_id: str, count: int) -> None:
        """It gets so many jobs now. Where several gathered, a stream flows, and what it brings next is not for at once."""
        now, saved = time.monotonic(), (AT_ONCE - 1) * GATHER_S if count >= AT_ONCE else 0.0
        self._paid[node_id] = max(now + saved, self._paid.get(node_id, 0.0)) + GATHER_S

    def credit(self, node_id: str, slots: int) -> None:
        """A heartbeat told how many more jobs its node takes now."""
        pull = self._line.get(node_id)
        if pull is not None and slots > pull.slots:
            pull.slots, pull.vain = slots, frozenset()
            self._note(pull)
            pull.wake.set()

    def changed(self, node_id: str) -> None:
        """What a node has is another thing now: it may be fit for what it was not fit for."""
        if (pull := self._line.get(node_id)) is not None:
            pull.vain = frozenset()
            pull.wake.set()

    def news(self, node_id: str, directives: Iterable[Directive]) -> list[Directive]:
        """Those that this node was not told before. Once a directive's cause is gone, the same one later is news again."""
        keyed = {(d.kind.value, d.job_id, d.attempt, d.timeout_s, d.update): d for d in directives}
        told = self._told.get(node_id, set())
        self._told[node_id] = set(keyed)
        return [directive for key, directive in keyed.items() if key not in told]

    def begin_session(self, node_id: str) -> None:
        """A new daemon knows nothing of what its predecessor was told."""
        self._told.pop(node_id, None)
        self._paid.pop(node_id, None)

    async def run(self) -> None:
        """Wake the line for new work, until cancelled."""
        async with self._wakeups.subscribe(("queue",)) as news:
            while True:
                await news.wait()
                if self._wakeups.closed:
                    for pull in self._line.values():
                        pull.end()
                    return
                news.clear()
                await self._round()

    async def _round(self) -> None:
        """The first few who have a slot free at once, so that an idle node begins at once; further ones, and those who have none, only
        where something waits that they could take, and that they were not found unfit for before."""
        self.work_waits = True
        first = list(islice((pull for pull in self._line.values() if pull.node_id in self._hungry), ABREAST))
        await self._wake(first)
        if all(pull in first for pull in self._line.values()):
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._rest_until - loop.time())  # what comes in such a moment is asked about together
        self._rest_until = loop.time() + REST_S
        known = await self._ask(())
        self.work_waits = bool(known.queued)
        line, hungry = [pull for pull in self._line.values() if pull not in first and not known.queued <= pull.vain], self._hungry
        line = [pull for pull in line if pull.node_id in hungry] + [pull for pull in line if pull.node_id not in hungry]
        for begin in range(0, len(line), STRETCH):
            rest = line[begin : begin + STRETCH]
            while rest:
                answer = await self._ask(rest)
                if not answer.queued:
                    return
                for pull in rest:
                    if pull.node_id not in answer.found:
                        pull.vain |= answer.queued
                some = [pull for pull in rest if pull.node_id in answer.found][:ABREAST]
                rest = rest[rest.index(some[-1]) + 1 :] if some else []
                await self._wake(some)

    async def _wake(self, some: Sequence[Pull]) -> None:
        """Let these try, and wait until they have."""
        turns = []
        for pull in some:
            if self._line.get(pull.node_id) is pull:
                pull.turn = asyncio.get_running_loop().create_future()
                turns.append(pull.turn)
                pull.wake.set()
        if turns:
            await asyncio.wait(turns)

    async def _ask(self, some: Sequence[Pull]) -> Takers:
        """A store that cannot tell must not leave anybody asleep."""
        try:
            return await self._takers([Asking(pull.node_id, pull.slots, pull.gpu_slots) for pull in some])
        except Unavailable as exc:
            self._logger.warning("work_unknown", extra={"attrs": {"error": str(exc)}})
            return Takers(UNKNOWN, {pull.node_id for pull in some})
