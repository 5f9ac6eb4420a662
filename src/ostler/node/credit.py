"""How much work a node asks for, accepts and starts: pure decisions over the attempts that it has.

Jobs that take milliseconds would leave a slot idle for a round trip each, so some are leased (returnable) and a few
acknowledged ahead of a free slot. Jobs that take seconds are never taken ahead: another node may be idle.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from ostler.model.attempt import AttemptState
from ostler.node.attempts import AttemptTable, Live, Slots

LEASE_AHEAD_S = 1.0  # so much work, in seconds of all slots, is leased ahead
START_AHEAD_S = 0.02  # so much is handed to the keeper or to workers ahead of a free slot, if they take as many
ACK_AHEAD_S = 0.25  # and so much is acknowledged ahead: it cannot be handed back for free any more
OFFER_PATIENCE_S = 2.0  # an offer that found no slot for so long is handed back
SETTLING_PER_SLOT = 8
FEW = 4  # fewer than this are not worth gathering
AT_ONCE_S = 0.005  # deliveries go so far apart while nothing runs: whoever waits for each end before the next job seldom notices
SOON_S = 0.01  # while something runs, which may end any moment
GATHER_S = (0.02, 0.1)  # while jobs queue up here, at the least and at the most


@dataclass(slots=True)
class Pace:
    """How long recent attempts took, from the beginning of the work to its end."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    median_s: float | None = None

    def add(self, seconds: float) -> None:
        """One more is over."""
        self.recent.append(max(seconds, 1e-4))
        self.median_s = median(self.recent)


def ahead(pace_s: float | None, slots: int, prefetch: int, horizon_s: float) -> int:
    """How many attempts keep `slots` busy for `horizon_s`, at most `prefetch`; none while nothing is known."""
    if pace_s is None or slots <= 0:
        return 0
    return min(prefetch, math.floor(slots * horizon_s / pace_s))


def taken(lives: Iterable[Live]) -> Slots:
    """The slots that these attempts take."""
    cpu = gpu = 0
    for live in lives:
        count = live.gpu_count
        if count:
            gpu += count
        elif not live.slotless:
            cpu += 1
    return Slots(cpu, gpu)


def credit(limits: Slots, open_: Sequence[Live], pace_s: float | None, prefetch: int) -> Slots:
    """How many more attempts the node takes now. `open_` are all that are not over, offers included."""
    used = taken(open_)
    spare = ahead(pace_s, limits.cpu, prefetch, LEASE_AHEAD_S)
    return Slots(max(0, limits.cpu - used.cpu + spare), max(0, limits.gpu - used.gpu))


def apart(limits: Slots, queued: int, working: int, pace_s: float | None) -> float:
    """How far apart outcomes are delivered, in seconds: where jobs queue up, as far as all that the node has will take at its pace. So
    whoever waits for these outcomes before it gives more does not leave the node idle in the meantime."""
    if not queued:
        return SOON_S if working else AT_ONCE_S
    least, most = GATHER_S
    left_s = most if pace_s is None else (queued + working) * pace_s / max(limits.cpu, 1)
    return min(max(left_s, least), most)


def start_ahead(limits: Slots, pace_s: float | None, prefetch: int) -> int:
    """How many attempts wait at their runner for the end of those that run, at the most."""
    return ahead(pace_s, limits.cpu, prefetch, START_AHEAD_S)


def _is_there(live: Live) -> bool:
    """Whether its runner counts it, and nobody that is handed over now could overtake it."""
    return live.room is not None and (live.furnished is not None or bool(live.lends) or live.state is AttemptState.RUNNING)


def startable(
    limits: Slots,
    working: Sequence[Live],
    waiting: Sequence[Live],
    *,
    ahead: int = 0,
    may_wait: Callable[[Live], int] = lambda _: 0,
) -> list[Live]:
    """Which of the waiting ones start now: all that take no slot, and then the others in their order. One that needs a GPU does not hold
    up one that needs none.

    So many as `ahead` may be handed to their runner before a CPU slot is free, at most `may_wait` for each slot, where all that takes
    one is counted by this runner; those of latency queues come before them, as many as there are slots.
    """
    if not working and len(waiting) <= limits.cpu and not [1 for live in waiting if live.gpu_count or live.slotless]:
        return list(waiting)  # as on an idle node
    commands = [live for live in waiting if live.slotless]
    if commands:
        waiting = [live for live in waiting if not live.slotless]
    working = [live for live in working if not live.slotless]
    used = taken(working)
    ended = sum(live.settling and not live.gpu_count for live in working)
    # a disk that is slow to take outcomes may lag behind by so many, and no more
    used = Slots(used.cpu - min(ended, SETTLING_PER_SLOT * limits.cpu), used.gpu)
    cpu, gpu = limits.cpu - used.cpu, limits.gpu - used.gpu
    hasty = 0
    counted = [live for live in working if not (live.settling or live.gpu_count)]
    counting = {live.manifest.runner for live in counted}
    if len(counting) <= 1 and all(map(_is_there, counted)):
        hasty = limits.cpu - sum(live.latency and not live.settling for live in working)
    else:
        ahead = 0
    chosen: list[Live] = []
    cpu_blocked, gpu_blocked = False, gpu <= 0
    for live in waiting:
        if gpu_blocked and (cpu_blocked or cpu <= -ahead) and not (live.latency and hasty > 0):
            break
        count = live.gpu_count
        if not count:
            runner = live.manifest.runner
            waits = may_wait(live) * limits.cpu if counting <= {runner} else 0
            room = cpu > 0 or (waits and (cpu > -min(ahead, waits) or (live.latency and hasty > 0)))
            if cpu_blocked or not room:
                cpu_blocked = True  # nor is one that cannot wait there held up by others that can
                continue
            cpu, hasty = cpu - 1, hasty - live.latency
            ahead, hasty = (ahead, hasty) if waits else (0, 0)  # nobody counts it with the others
            counting.add(runner)
            chosen.append(live)
        elif count <= gpu and not gpu_blocked:
            gpu -= count
            chosen.append(live)
        else:
            gpu_blocked = True  # a job for many GPUs is not starved by later ones for few
    return commands + chosen


def acceptable(limits: Slots, used: Slots, pace_s: float | None, prefetch: int) -> int:
    """How many attempts without a GPU are accepted, at the most, beside those that take the slots `used`."""
    return max(0, limits.cpu - used.cpu + ahead(pace_s, limits.cpu, prefetch, ACK_AHEAD_S))


def _lasts(spare: int, limits: Slots, begun: int) -> bool:
    """Whether enough is accepted, of the `spare` that may be ahead, for an ack to wait until it takes more at once."""
    return spare >= FEW and begun - limits.cpu >= spare // 2


@dataclass(frozen=True, slots=True)
class AckPlan:
    """What becomes of the offers: accepted, or handed back with the reason."""

    accept: list[Live]
    decline: list[tuple[Live, str]]


def plan_acks(
    limits: Slots,
    open_: Sequence[Live],
    offers: Sequence[Live],
    *,
    pace_s: float | None,
    prefetch: int,
    now: float,
    refusal: str | None,
    ending: str | None = None,
) -> AckPlan:
    """`open_` are all that are not over; `offers` those of them that are not accepted. `refusal` is why the node takes no work now,
    `ending` why it takes not even commands to its services."""
    if not offers:
        return AckPlan([], [])
    if refusal is not None:
        plan = AckPlan([], [])
        for live in offers:
            if live.refusal is not None or (live.slotless and ending is None):
                plan.accept.append(live)
            else:
                plan.decline.append((live, refusal))
        return plan
    asked = set(map(id, offers))
    used = taken(live for live in open_ if id(live) not in asked)
    lasts = _lasts(ahead(pace_s, limits.cpu, prefetch, ACK_AHEAD_S), limits, used.cpu)
    cpu = 0 if lasts else acceptable(limits, used, pace_s, prefetch)
    gpu = limits.gpu - used.gpu
    # One of a latency queue gets the next slot that is free, whatever was accepted before it.
    hasty = limits.cpu - taken(live for live in open_ if id(live) not in asked and live.latency).cpu
    plan = AckPlan([], [])
    for live in offers:
        count = live.gpu_count
        if live.refusal is not None or live.slotless:
            plan.accept.append(live)  # it takes no slot: its failure is all there is to it, or it is a command
        elif (count and count > limits.gpu) or (not count and limits.cpu < 1):
            plan.decline.append((live, f"this node has {limits.cpu} CPU and {limits.gpu} GPU slots; the job can never run here"))
        elif live.accepted:
            plan.accept.append(live)  # it waits for its slot: to hand it back would cost a try now
        elif count and count <= gpu:
            gpu -= count
            plan.accept.append(live)
        elif not count and (cpu > 0 or (live.latency and hasty > 0)):
            cpu, hasty = cpu - 1, hasty - live.latency
            plan.accept.append(live)
        elif now - live.offered_at > OFFER_PATIENCE_S:
            plan.decline.append((live, "no slot became free in time"))
    return plan


def enough(limits: Slots, table: AttemptTable, pace_s: float | None, prefetch: int) -> bool:
    """Whether `plan_acks` would accept none of the offers, as far as that can be seen without looking at all of them."""
    lasts = _lasts(ahead(pace_s, limits.cpu, prefetch, ACK_AHEAD_S), limits, table.begun())
    return lasts and not limits.gpu and not any(x.latency for x in table.offered())


def asking(now: Slots, backlog: int, limits: Slots, pace_s: float | None, prefetch: int) -> Slots:
    """What a poll asks for. While enough work lies here a poll for one or two more would cost more than it brings, so it asks for
    nothing (and is open for directives) until half of what is leased ahead is used up."""
    spare = ahead(pace_s, limits.cpu, prefetch, LEASE_AHEAD_S)
    if spare >= FEW and backlog >= spare // 2 and now.cpu < spare // 2:
        return Slots(0, now.gpu)
    return now


def should_replace(asked: Slots, now: Slots) -> bool:
    """Whether an open poll that asked for `asked` must give way to one that asks for `now`.

    One with any credit returns as soon as there is work, so only the first credit of a kind is worth a new call; a node that
    takes nothing any more must say so at once.
    """
    if (asked.cpu, asked.gpu) != (0, 0) and (now.cpu, now.gpu) == (0, 0):
        return True
    return (asked.cpu == 0 and now.cpu > 0) or (asked.gpu == 0 and now.gpu > 0)
