"""Node rows: who calls, whether the call is of its newest session, and how a node's state changes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ostler.coordinator.operations.changes import Case, write
from ostler.coordinator.store.schema import COMMANDS_SQL
from ostler.coordinator.store.times import when_or_none
from ostler.coordinator.store.tx import Tx
from ostler.model import node as nodes
from ostler.model.errors import NodeRetired, NotFound, StaleAttempt
from ostler.model.node import Node, NodeEvent, NodeState
from ostler.protocol.messages import Held, ItemResult

_STATES = {state.value: state for state in NodeState}


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What operations need of a node's row; times in microseconds."""

    node_id: str
    state: NodeState
    reason: str | None
    changed_at: int | None
    boot_epoch: str
    last_seen_at: int | None
    renewals: int
    offer: int
    cpu_slots: int
    gpu_slots: int
    disk_free_mb: int | None
    draining: int
    drain_s: float | None
    resume: int
    cordoned: str | None
    rollout_id: str | None = None  # the one that may ask it for a release
    commanded: int = 0  # whether a command for it, or for whichever takes it, is not over; only where that was asked for


_COLUMNS = """node_id, state, reason, changed_at, boot_epoch, last_seen_at, renewals, offer, cpu_slots, gpu_slots, disk_free_mb,
    draining, drain_s, resume, cordoned, rollout_id"""


def find(tx: Tx, node_id: str) -> NodeRow | None:
    """The node's row."""
    row = tx.row(f"SELECT {_COLUMNS} FROM nodes WHERE node_id = ?", (node_id,))  # noqa: S608 - our own constant
    return None if row is None else NodeRow(row[0], _STATES[row[1]], *row[2:])


@cache
def _pulling_sql(by_index: str) -> str:
    """Two single steps down an index that is empty nearly always: with an IN it would cost six times as much."""
    some = f"EXISTS (SELECT 1 FROM jobs {by_index} WHERE {COMMANDS_SQL} AND target ="  # noqa: S608 - fragments of ours
    return f"SELECT {_COLUMNS}, {some} nodes.node_id) OR {some} '') FROM nodes WHERE node_id = ?"  # noqa: S608


def known(tx: Tx, node_id: str) -> NodeRow:
    """The node's row; raises NotFound."""
    node = find(tx, node_id)
    if node is None:
        raise NotFound(f"there is no node {node_id}", hint="see `ostler node list`")
    return node


def in_service(tx: Tx, node_id: str) -> NodeRow:
    """The row of a node that people still have plans with; raises NotFound, NodeRetired."""
    node = known(tx, node_id)
    if node.state is NodeState.RETIRED:
        raise retired(node_id)
    return node


def present(tx: Tx, node_id: str, boot_epoch: str | None) -> NodeRow:
    """The row of a calling node; raises NotFound, NodeRetired or StaleAttempt (an older session than the newest)."""
    return checked(known(tx, node_id), boot_epoch)


def checked(node: NodeRow, boot_epoch: str | None) -> NodeRow:
    """The same of a row that was read already."""
    _check(node.node_id, node.state, node.boot_epoch, boot_epoch)
    return node


def pulling(tx: Tx, node_id: str, boot_epoch: str | None) -> NodeRow:
    """The same of a node that asks for work, which also tells whether a command may wait for it: so most calls ask no second question."""
    row = tx.row(_pulling_sql(tx.by_index("ix_jobs_command")), (node_id,))
    if row is None:
        return known(tx, node_id)
    return checked(NodeRow(row[0], _STATES[row[1]], *row[2:]), boot_epoch)


def current(tx: Tx, node_id: str, boot_epoch: str | None) -> None:
    """The same check alone, and none without a boot epoch."""
    if boot_epoch is None:
        return
    row = tx.row("SELECT state, boot_epoch FROM nodes WHERE node_id = ?", (node_id,))
    if row is None:
        raise NotFound(f"there is no node {node_id}", hint="see `ostler node list`")
    _check(node_id, _STATES[row[0]], row[1], boot_epoch)


def _check(node_id: str, state: NodeState, newest: str, boot_epoch: str | None) -> None:
    if state is NodeState.RETIRED:
        raise retired(node_id)
    if boot_epoch is not None and boot_epoch != newest:
        raise StaleAttempt(
            f"node {node_id} has a newer session than {boot_epoch}",
            hint="another daemon runs with this node's key; stop one of them, then register anew",
        )


def retired(node_id: str) -> NodeRetired:
    """What a retired node is told, whatever it asks for."""
    return NodeRetired(
        f"node {node_id} was retired: its key opens nothing any more",
        hint="to use the machine again, remove the node's state directory and let it join anew: `ostler token create --join`",
    )


def advanced(tx: Tx, node: NodeRow, event: NodeEvent, reason: str | None = None) -> NodeRow:
    """The node after an event; writes its row and an event line where the state changes. Raises InvalidTransition."""
    before = Node(node_id=node.node_id, state=node.state, changed_at=when_or_none(node.changed_at), reason=node.reason)
    after = nodes.advance(before, event, now=tx.now, reason=reason)
    if after is before:
        return node
    write(
        tx,
        "UPDATE nodes SET state = ?, changed_at = ?, reason = ? WHERE node_id = ? AND state = ?",
        [(after.state.value, tx.at, after.reason, node.node_id, node.state.value)],
    )
    note(tx, event.value, node.node_id, reason)
    return replace(node, state=after.state, changed_at=tx.at, reason=after.reason)


def note(tx: Tx, kind: str, node_id: str, message: str | None = None) -> None:
    """One event line about a node."""
    tx.run("INSERT INTO events (at, kind, node_id, message) VALUES (?, ?, ?, ?)", (tx.at, kind, node_id, message))
    tx.wake(("events",))


def seen(tx: Tx, node: NodeRow, *, held: Sequence[Held] | None, live: Collection[Case]) -> int:
    """Note which live attempts the node's report lacks (`missing`), and which are there again; how many notes changed.

    Why a column: a renewal is the node's, so an attempt that the node forgot would be renewed for ever by a node in good health.
    The rescuer expires what stays missing for a whole lease *that it watched itself*; it remembers when it first saw a note and
    starts anew when the note is another one. A note changes only when the report does, so a healthy node costs no write. It is
    the renewal counter at that moment, which grows with each note (`lease_jobs` and `heartbeat` see to that): the same attempt
    missing a second time has a new one. `held=None` is the source's form of a report, which renews everything. One that a pull
    acknowledged is missing from the beginning, until it is named for the first time.
    """
    names = None if held is None else {(one.job_id, one.attempt) for one in held}
    notes: list[tuple[int | None, int, int]] = []
    for case in live:
        there = names is None or (case.job.job_id, case.job.attempt) in names
        if there and case.missing is not None:
            notes.append((None, case.seq, case.job.attempt))
        elif not there and case.missing is None and case.live:
            notes.append((node.renewals + 1, case.seq, case.job.attempt))
    write(tx, "UPDATE attempts SET missing = ? WHERE job_seq = ? AND attempt = ?", notes)
    return len(notes)


def stale(job_id: str, attempt: int, node_id: str) -> ItemResult:
    """The answer about an attempt that is not (or no longer) the caller's; nothing was changed."""
    return ItemResult(
        job_id=job_id, attempt=attempt, ok=False, code=StaleAttempt.code,
        message=f"attempt {attempt} of job {job_id} is not a live one of node {node_id}; stop and discard it",
    )  # fmt: skip
