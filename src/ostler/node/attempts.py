"""The attempts that this node has, in memory: everything else (slots, credit, what is held) is derived from them.

An attempt is offered (leased), accepted, waiting for a slot, being worked on, or over and waiting for the coordinator to have
its outcome.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ostler.model.attempt import AttemptState
from ostler.model.failures import Failure
from ostler.model.manifest import InputFile, Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.leases import Lease
from ostler.node.log_tails import LogTail
from ostler.node.outputs import Output
from ostler.node.workspace import Workspace
from ostler.protocol.messages import Held, LogEnd, Outcome
from ostler.protocol.ports import AttemptTask


@dataclass(slots=True, eq=False)
class Live:
    """One attempt. `offered_at` and the like are monotonic seconds.

    `outcome` is set once, when it is over; `cancelled` says why it shall end before; `forgotten` means that the coordinator
    wants to hear nothing of it any more; `refusal` that it is not run but reported failed (which needs an ack first); `accepted`
    that an earlier life of the daemon said yes to it.
    """

    job_id: str
    attempt: int
    manifest: Manifest
    lease: Lease
    offered_at: float
    spec: str = ""
    inputs: tuple[InputFile, ...] = ()  # what the coordinator found for the artifacts that `spec` names
    tries: int = 0
    latency: bool = False  # begins before all that was leased ahead
    ordered: bool = False  # the poll that brought it acknowledged it: it begins once it is written down,
    noted: bool = False  # which is under way
    state: AttemptState = AttemptState.LEASED
    started_at: float | None = None
    unrenewed: bool = False
    settling: bool = False  # its processes are gone and its outcome is being written down: a CPU slot is free again
    refusal: Failure | None = None
    accepted: bool = False
    cancelled: str | None = None
    lost: str | None = None
    forgotten: bool = False
    task: AttemptTask | None = None
    workspace: Workspace | None = None
    furnished: "asyncio.Future[Workspace] | None" = None  # a workspace made before its slot was free
    lends: bool | None = None  # whether its runner has a workspace for it; None: nobody asked yet
    lent: bool = False  # that is so, and it is made only for as long as something is in it
    unnoted: bool = False  # that has no `state.json` yet, though it begins
    note: asyncio.TimerHandle | None = None  # when it gets one
    room: int | None = None  # it may wait at the keeper until fewer than so many run there
    gpus: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    outcome: Outcome | None = None
    prepare_s: float = 0.0
    tails: tuple[LogTail, ...] = ()
    log_ends: tuple[LogEnd, ...] | None = None
    log_lock: asyncio.Lock | None = None
    logs_refused: bool = False
    level: SandboxLevel | None = None  # at which it runs, once that was asked
    work: asyncio.Task[None] | None = None
    preparing: asyncio.Future[Any] | None = None
    stopping: asyncio.Task[None] | None = None
    held: Held = field(init=False)
    gpu_count: int = field(init=False)
    slotless: bool = field(init=False)  # a command to a service: it takes no slot, and begins beside whatever runs

    def __post_init__(self) -> None:
        self.held = Held(self.job_id, self.attempt)
        self.gpu_count = self.manifest.requirements.gpu_count  # how many GPU slots it takes; with none it takes a CPU slot
        self.slotless = self.manifest.runner is Runner.SERVICE

    def forsake_workspace(self) -> None:
        """There is none any more, and no log."""
        if self.note is not None:
            self.note.cancel()
            self.note = None
        self.workspace, self.tails = None, ()


@dataclass(frozen=True, slots=True)
class Slots:
    """Slots by kind."""

    cpu: int
    gpu: int


class AttemptTable:
    """All attempts that are not delivered, in the order in which they were handed out.

    They lie in four places only so that the usual questions need not look at all of them: offered, accepted and no work begun, worked
    on, over.
    """

    def __init__(self) -> None:
        self._offers: dict[tuple[str, int], Live] = {}
        self._accepted: dict[tuple[str, int], Live] = {}
        self._working: dict[tuple[str, int], Live] = {}
        self._over: dict[tuple[str, int], Live] = {}
        self._jobs: dict[str, list[Live]] = {}

    def __len__(self) -> int:
        return len(self._offers) + len(self._accepted) + len(self._working) + len(self._over)

    def __iter__(self) -> Iterator[Live]:
        return iter([*self.open(), *self._over.values()])

    def add(self, live: Live) -> None:
        """Take one in."""
        place = self._over
        if live.outcome is None:
            place = self._offers if live.state is AttemptState.LEASED else self._accepted
        place[live.job_id, live.attempt] = live
        self._jobs.setdefault(live.job_id, []).append(live)

    def accept(self, live: Live) -> None:
        """It is acknowledged, and may begin."""
        live.state = AttemptState.ACKED
        key = (live.job_id, live.attempt)
        if self._offers.pop(key, None) is not None:
            self._accepted[key] = live

    def begin(self, live: Live) -> None:
        """Work on it begins: from now on it takes a slot."""
        key = (live.job_id, live.attempt)
        if (self._accepted.pop(key, None) or self._offers.pop(key, None)) is not None:
            self._working[key] = live

    def put_back(self, live: Live) -> None:
        """It has not begun after all, and is the next to."""
        key = (live.job_id, live.attempt)
        if self._working.pop(key, None) is not None:
            self._accepted = {key: live, **self._accepted}

    def end(self, live: Live, outcome: Outcome) -> None:
        """It is over; it stays held until the coordinator has the outcome."""
        live.outcome = outcome
        key = (live.job_id, live.attempt)
        if (self._working.pop(key, None) or self._accepted.pop(key, None) or self._offers.pop(key, None)) is not None:
            self._over[key] = live

    def remove(self, live: Live) -> None:
        """Nobody asks for it any more."""
        key = (live.job_id, live.attempt)
        queued = self._accepted.pop(key, None) or self._offers.pop(key, None)
        if (self._over.pop(key, None) or self._working.pop(key, None) or queued) is not None:
            same = self._jobs[live.job_id]
            same.remove(live)
            if not same:
                del self._jobs[live.job_id]

    def get(self, job_id: str, attempt: int) -> Live | None:
        """The one with this fencing pair."""
        key = (job_id, attempt)
        return self._working.get(key) or self._accepted.get(key) or self._offers.get(key) or self._over.get(key)

    def of_job(self, job_id: str) -> list[Live]:
        """All attempts of a job, over or not."""
        return list(self._jobs.get(job_id, ()))

    def held(self) -> tuple[Held, ...]:
        """What the coordinator is told that this node has: all of it."""
        return tuple([live.held for live in self])

    def offered(self) -> list[Live]:
        """Leased and not accepted yet: those of latency queues, then the others, each oldest first."""
        return _in_turn(list(self._offers.values()))

    @property
    def has_offers(self) -> bool:
        """Whether something is leased and not accepted."""
        return bool(self._offers)

    def waiting(self) -> list[Live]:
        """Accepted, and no work begun: those of latency queues, then the others, each oldest first."""
        return _in_turn(list(self._accepted.values()))

    def working(self) -> list[Live]:
        """Those that take a slot now."""
        return list(self._working.values())

    def begun(self) -> int:
        """How many are accepted and not over."""
        return len(self._accepted) + len(self._working)

    def queued(self) -> int:
        """How many have no work begun."""
        return len(self._offers) + len(self._accepted)

    def open(self) -> list[Live]:
        """Those that are not over."""
        return [*self._accepted.values(), *self._offers.values(), *self._working.values()]

    def over(self) -> list[Live]:
        """Those whose outcome waits for the coordinator."""
        return list(self._over.values())


_LATENCY = attrgetter("latency")


def _in_turn(lives: list[Live]) -> list[Live]:
    if any(map(_LATENCY, lives)):
        lives.sort(key=lambda live: not live.latency)
    return lives
