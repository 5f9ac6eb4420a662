"""Open long polls of nodes: the newest of a node wins, and new work wakes them in the order in which they came."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ostler.coordinator.store.wakeups import Wakeups
from ostler.model.errors import Unavailable
from ostler.protocol.messages import Directive

ABREAST = 8  # how many are woken at a time: enough to fill a group commit, few enough to leave the loop to others

DirectiveKey = tuple[str, str | None, int | None, float | None]


@dataclass(slots=True, eq=False)
class Pull:
    """One open long poll. `wake` ends its wait; `over` says that it should answer with nothing and claim nothing more."""

    node_id: str
    wake: asyncio.Event
    slots: int
    over: bool = False
    turn: asyncio.Future[None] | None = None
    withdraw: Callable[[], None] | None = None  # what stands for it in the store

    def end(self) -> None:
        """Make it answer at once with nothing."""
        self.over = True
        self.wake.set()
        if self.withdraw is not None:
            self.withdraw()

    def found(self, _claim: object) -> None:
        """What stands for it in the store has got something."""
        self.wake.set()

    def turned(self) -> None:
        """It has tried to claim: the next in line may."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)
        self.turn = None


class PullLine:
    """The line of open long polls."""

    def __init__(self, wakeups: Wakeups, work_waits: Callable[[], Awaitable[bool]], *, logger: logging.Logger) -> None:
        self._logger = logger
        self._wakeups = wakeups
        self._work_waits = work_waits
        self._line: dict[str, Pull] = {}  # by node, oldest first
        self._told: dict[str, set[DirectiveKey]] = {}

    def __len__(self) -> int:
        return len(self._line)

    @contextmanager
    def join(self, node_id: str, wake: asyncio.Event, slots: int) -> Iterator[Pull]:
        """Stand in line. An older poll of the same node is answered empty at once."""
        pull = Pull(node_id, wake, slots)
        older = self._line.pop(node_id, None)
        if older is not None:
            older.end()
        self._line[node_id] = pull
        try:
            yield pull
        finally:
            pull.turned()
            if self._line.get(node_id) is pull:
                del self._line[node_id]

    def others_ask(self, node_id: str) -> bool:
        """Whether another node waits for work."""
        return any(pull.slots > 0 and not pull.over for other, pull in self._line.items() if other != node_id)

    def credit(self, node_id: str, slots: int) -> None:
        """A heartbeat told how many more jobs its node takes now."""
        pull = self._line.get(node_id)
        if pull is not None and slots > pull.slots:
            pull.slots = slots
            pull.wake.set()

    def news(self, node_id: str, directives: Iterable[Directive]) -> list[Directive]:
        """Those that this node was not told before. Once a directive's cause is gone, the same one later is news again."""
        keyed = {(d.kind.value, d.job_id, d.attempt, d.timeout_s): d for d in directives}
        told = self._told.get(node_id, set())
        self._told[node_id] = set(keyed)
        return [directive for key, directive in keyed.items() if key not in told]

    def begin_session(self, node_id: str) -> None:
        """A new daemon knows nothing of what its predecessor was told."""
        self._told.pop(node_id, None)

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
        line = list(self._line.values())
        for begin in range(0, len(line), ABREAST):
            if begin and not await self._more():
                return
            abreast = [pull for pull in line[begin : begin + ABREAST] if self._line.get(pull.node_id) is pull]
            turns = []
            for pull in abreast:
                pull.turn = asyncio.get_running_loop().create_future()
                turns.append(pull.turn)
                pull.wake.set()
            if turns:
                await asyncio.wait(turns)

    async def _more(self) -> bool:
        """Whether anything is left for who stands further back; a store that cannot tell must not leave them asleep."""
        try:
            return await self._work_waits()
        except Unavailable as exc:
            self._logger.warning("work_unknown", extra={"attrs": {"error": str(exc)}})
            return True
