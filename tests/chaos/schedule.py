"""Which faults come when: a pure function of a seed, a duration and what this machine can do to processes."""

import random
from collections.abc import Collection
from dataclasses import dataclass

NODES = ("node-a", "node-b")
FIRST_S = 2.0  # something runs by then
QUIET_S = 3.0  # no fault begins so shortly before the end
LEASE_S = 5.0
MARGIN_S = 2.0
LONG = (LEASE_S + MARGIN_S + 1.0, LEASE_S + MARGIN_S + 6.0)  # whoever is away for so long loses its attempts
SHORT = (0.3, LEASE_S - 2.5)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: it begins `at` seconds after the start, `lasts` so many seconds, and is healed then.

    `amount` means what the kind says: seconds of a step of a clock, seconds that a write or a packet is late by, how many answers
    are lost.
    """

    at: float
    kind: str
    target: str
    lasts: float
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What may befall whom. `needs` names what a machine must be able to do: mounting, a C compiler, a PostgreSQL."""

    weight: int
    targets: tuple[str, ...]
    lasts: tuple[float, float]
    amount: tuple[float, float] = (0.0, 0.0)
    needs: str = ""


_LINES = (*NODES, "submitter")
KINDS: dict[str, Kind] = {
    # Processes die, and are started again after a while, as systemd does.
    "kill_daemon": Kind(3, NODES, (0.1, 2.5)),
    "kill_daemon_long": Kind(1, NODES, LONG),  # its keeper goes on alone, and its jobs are given to others
    "kill_keeper": Kind(2, NODES, (0.0, 0.0)),
    "kill_machine": Kind(2, NODES, (0.2, 9.0)),  # daemon, keeper and whatever they run
    "kill_coordinator": Kind(4, ("coordinator",), (0.1, 3.0)),
    "kill_coordinator_long": Kind(1, ("coordinator",), LONG),
    "kill_everything": Kind(1, ("all",), (0.2, 2.0)),
    "restart_daemon": Kind(2, NODES, (0.0, 0.5)),  # in good order
    "restart_coordinator": Kind(2, ("coordinator",), (0.0, 0.5)),
    # Processes stand still, and know nothing of it afterwards.
    "stop_daemon": Kind(2, NODES, SHORT),
    "stop_daemon_long": Kind(3, NODES, LONG),
    "stop_keeper": Kind(1, NODES, (0.3, 7.0)),
    "stop_coordinator": Kind(2, ("coordinator",), SHORT),
    "stop_coordinator_long": Kind(1, ("coordinator",), LONG),
    # Lines. What is held back comes late, as TCP has it; what is cut is lost, whether or not it had arrived.
    "partition": Kind(2, _LINES, SHORT),
    "partition_long": Kind(3, NODES, LONG),
    "partition_cut": Kind(2, NODES, LONG),  # and the connections of before do not come back
    "deaf": Kind(2, _LINES, (0.5, 9.0)),  # what one asks arrives, what is answered does not
    "mute": Kind(2, _LINES, (0.5, 9.0)),
    "cut": Kind(3, _LINES, (0.0, 0.0)),
    "lose_answers": Kind(5, _LINES, (1.0, 6.0), (1, 12)),
    "slow_line": Kind(2, _LINES, (2.0, 8.0), (0.05, 0.6)),
    # Disks.
    "full_disk": Kind(
        3, ("node-a.state", "node-a.jobs", "node-b.state", "node-b.jobs", "coordinator.data"), (1.0, 7.0), needs="mount"
    ),
    "no_inodes": Kind(2, ("node-a.state", "node-a.jobs", "node-b.jobs", "coordinator.data"), (1.0, 6.0), needs="mount"),
    "read_only": Kind(2, ("node-a.jobs", "node-b.jobs", "node-a.state", "coordinator.data"), (1.0, 6.0), needs="mount"),
    "slow_disk": Kind(2, ("coordinator", *NODES), (2.0, 8.0), (0.02, 0.4), needs="compiler"),
    # Clocks of the day; the monotonic ones cannot step.
    "clock_step": Kind(3, ("coordinator", *NODES), (2.0, 12.0), (-7200.0, 7200.0), needs="compiler"),
    "drain": Kind(1, NODES, (1.0, 5.0), (0.5, 3.0)),
    # Credentials that end in the middle; the tokens of nodes are short-lived throughout.
    "rotate_token": Kind(3, ("submitter",), (0.2, 6.0)),
    "revoke_join_token": Kind(1, NODES, (0.1, 2.5)),
    "clone_node": Kind(1, NODES, (0.5, 9.0)),
    # The database, where it is PostgreSQL, the lines to it, and one coordinator of two.
    "kill_replica": Kind(4, ("coordinator", "coordinator-2"), (0.1, 6.0), needs="replicas"),
    "stop_replica": Kind(2, ("coordinator", "coordinator-2"), (0.5, 9.0), needs="replicas"),
    "restart_replica": Kind(2, ("coordinator", "coordinator-2"), (0.0, 0.5), needs="replicas"),
    "stop_replica_in_crash": Kind(3, ("coordinator", "coordinator-2"), (2.0, 9.0), needs="replicas"),
    "restart_database": Kind(3, ("database",), (0.0, 2.0), needs="postgresql"),
    "kill_database": Kind(2, ("database",), (0.2, 3.0), needs="postgresql"),
    "cut_database": Kind(2, ("database",), (0.0, 0.0), needs="postgresql"),
    "partition_database": Kind(2, ("database",), (0.5, 9.0), needs="postgresql"),
}


def schedule(
    seed: int, duration_s: float, *, able: Collection[str], every_s: float = 2.5, only: Collection[str] = ()
) -> tuple[Fault, ...]:
    """The faults of a run, first to last. They overlap, and all are healed by `duration_s`.

    `able` are the needs that are met; `only` narrows the kinds. All kinds come as often as they weigh before any comes more often.
    """
    dice = random.Random(f"faults {seed}")
    kinds = [name for name, kind in KINDS.items() if (not kind.needs or kind.needs in able) and (not only or name in only)]
    if not kinds:
        return ()
    faults: list[Fault] = []
    deck: list[str] = []
    at = FIRST_S
    while at < duration_s - QUIET_S:
        if not deck:
            deck = [name for name in kinds for _ in range(KINDS[name].weight)]
            dice.shuffle(deck)
        name = deck.pop()
        kind = KINDS[name]
        lasts = min(dice.uniform(*kind.lasts), duration_s - at)
        faults.append(Fault(round(at, 2), name, dice.choice(kind.targets), round(lasts, 2), round(dice.uniform(*kind.amount), 3)))
        at += dice.expovariate(1 / every_s)
    return tuple(faults)


def outage(duration_s: float) -> tuple[Fault, ...]:
    """Each of two replicas is killed once and the database falls twice, at fixed parts of a run: nobody may stand still for long."""
    parts = (
        (0.15, "kill_replica", "coordinator", 8.0), (0.35, "restart_database", "database", 0.0),
        (0.55, "kill_replica", "coordinator-2", 8.0), (0.75, "kill_database", "database", 0.5),
    )  # fmt: skip
    return tuple(Fault(round(part * duration_s, 2), kind, target, lasts) for part, kind, target, lasts in parts)
