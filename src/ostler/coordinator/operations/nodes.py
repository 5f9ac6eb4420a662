"""Nodes: enrolment, sessions, heartbeats, draining, and what the coordinator wants of them.

Directives are derived from rows each time and never queued: the same one is answered until its cause is gone. A long poll should
therefore return at once only for directives that it has not sent in this session.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from ostler.coordinator.operations import rollout_turns, services, sessions
from ostler.coordinator.operations.changes import Case, Changes, load_live, load_to_cancel, shortened
from ostler.coordinator.operations.leases import lose
from ostler.coordinator.operations.sessions import NodeRow
from ostler.coordinator.operations.views import node_view
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.times import span
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.attempt import BEGUN
from ostler.model.capabilities import Capabilities
from ostler.model.errors import AlreadyExists, InvalidSpec, Problem, StaleAttempt
from ostler.model.manifest import DEFAULT_POOL, NAME
from ostler.model.node import NodeEvent, NodeState
from ostler.protocol.codec import encode
from ostler.protocol.dsse import key_id
from ostler.protocol.messages import (
    Directive,
    DirectiveKind,
    DrainRequest,
    HeartbeatRequest,
    Held,
    KeyStanding,
    NodeView,
    RegisterRequest,
)

MAX_HEALTH = 50  # problems of one node
SESSIONS_KEPT = timedelta(days=30)
RETIRED = ("retired",)  # the topic of nodes that were retired


class Session(NamedTuple):
    """What a registering daemon must know: attempts that it holds and that are over, and whether its node is draining."""

    forget: tuple[Held, ...]
    draining: bool


def enrol_node(tx: Tx, request: RegisterRequest, join_token_id: str) -> None:
    """Make the node known by its public key. The same key again is no error; another key is AlreadyExists, a retired one
    NodeRetired. A node without a key is known by the join token that it came with.
    """
    row = tx.row("SELECT public_key, next_key, state, token_id FROM nodes WHERE node_id = ?", (request.node_id,))
    if row is not None:
        if row[2] == NodeState.RETIRED:
            if request.public_key in _keys(row):
                raise sessions.retired(request.node_id)
        else:
            if request.public_key in _keys(row) and (request.public_key or row[3] == join_token_id):
                return
            if not request.public_key and not row[0]:
                raise AlreadyExists(
                    f"node {request.node_id} is enrolled with another join token, and has no key to prove that it is the same",
                    hint=f"use that token, or end the node first: `ostler node retire {request.node_id}`",
                )
            raise AlreadyExists(
                f"node {request.node_id} is enrolled with another key",
                hint=f"bring back its key file, or where that is lost end the node first: `ostler node retire {request.node_id}`; "
                "for another machine, give it another node id",
            )
        tx.run("DELETE FROM nodes WHERE node_id = ?", (request.node_id,))  # a new life under an old name
        tx.wake(RETIRED)
    tx.run(
        """INSERT INTO nodes (node_id, public_key, token_id, state, changed_at, version, protocol, boot_epoch, joined_at,
        renewals, offer,
               cpu_slots, gpu_slots, load, free_mb, gpu_free, health, draining, resume, pool)
           VALUES (?, ?, ?, 'joining', ?, ?, ?, '', ?, 0, 0, 0, 0, 0.0, 0, 0, '[]', 0, 0,
                   coalesce((SELECT pool FROM tokens WHERE token_id = ?), ?))""",
        (
            request.node_id, request.public_key, join_token_id, tx.at, request.version, request.protocol, tx.at,
            join_token_id, DEFAULT_POOL,
        ),
    )  # fmt: skip
    sessions.note(tx, "enrol", request.node_id, f"with the join token {join_token_id}")


def open_session(tx: Tx, request: RegisterRequest) -> Session:
    """Open (or find again) the session (node_id, boot_epoch) and reconcile the attempts of an earlier one.

    Raises NotFound (not enrolled), NodeRetired, StaleAttempt (a newer session was opened since).
    """
    node = sessions.present(tx, request.node_id, None)
    _promote(tx, node.node_id, request.public_key)
    held = {(one.job_id, one.attempt) for one in request.held}
    live = load_live(tx, node.node_id)
    if request.boot_epoch == node.boot_epoch:
        sessions.seen(tx, node, held=request.held, live=live)
    else:
        _begin_session(tx, node, request)
        same_boot = request.boot_epoch.partition(":")[0] == node.boot_epoch.partition(":")[0]
        kept = _reconcile(tx, node, live, held, same_boot=same_boot)
        tx.many(
            "UPDATE attempts SET boot_epoch = ?, missing = NULL WHERE job_seq = ? AND attempt = ?",
            [(request.boot_epoch, case.seq, case.job.attempt) for case in kept],
        )
        node = sessions.advanced(tx, node, NodeEvent.REGISTER)
        live = kept
    tx.run(
        """UPDATE nodes SET version = ?, protocol = ?, boot_epoch = ?, cpu_slots = ?, gpu_slots = ?, draining = 0, last_seen_at =
        ?,
               renewals = renewals + 1, offer = offer + 1 WHERE node_id = ?""",
        (request.version, request.protocol, request.boot_epoch, request.cpu_slots, request.gpu_slots, tx.at, node.node_id),
    )
    _store_capabilities(tx, node.node_id, request.capabilities)
    tx.wake(("node", node.node_id))
    return Session(_over(request.held, live), node.state in {NodeState.DRAINING, NodeState.DRAINED})


def renew_outside(tx: Tx, node_id: str, boot_epoch: str, held: Sequence[Held], *, protocol: int, version: str, why: str) -> None:
    """A node that speaks none of the protocols spoken here proved who it is: it gets no session, and keeps what it holds.

    Raises NotFound, NodeRetired, StaleAttempt (a newer session was opened since).
    """
    node = sessions.present(tx, node_id, None)
    _check_newest(tx, node, boot_epoch)
    sessions.seen(tx, node, held=held, live=load_live(tx, node_id))
    why = shortened(why) or ""
    if tx.run("UPDATE nodes SET quarantine = ? WHERE node_id = ? AND coalesce(quarantine, '') <> ?", (why, node_id, why)):
        sessions.note(tx, "outside", node_id, why)
    tx.run(
        """UPDATE nodes SET version = ?, protocol = ?, draining = 1, last_seen_at = ?, renewals = renewals + 1, offer = offer + 1
           WHERE node_id = ?""",
        (version, protocol, tx.at, node_id),
    )


def _check_newest(tx: Tx, node: NodeRow, boot_epoch: str) -> None:
    if boot_epoch != node.boot_epoch and tx.row(
        "SELECT 1 FROM sessions WHERE node_id = ? AND boot_epoch = ?", (node.node_id, boot_epoch)
    ):
        raise StaleAttempt(
            f"node {node.node_id} has a newer session than {boot_epoch}",
            hint="another daemon runs with this node's key; stop one of them",
        )


def _begin_session(tx: Tx, node: NodeRow, request: RegisterRequest) -> None:
    _check_newest(tx, node, request.boot_epoch)
    tx.run("DELETE FROM sessions WHERE node_id = ? AND opened_at < ?", (node.node_id, tx.at - span(SESSIONS_KEPT)))
    tx.run("INSERT INTO sessions (node_id, boot_epoch, opened_at) VALUES (?, ?, ?)", (node.node_id, request.boot_epoch, tx.at))


def _reconcile(tx: Tx, node: NodeRow, live: Sequence[Case], held: Collection[tuple[str, int]], *, same_boot: bool) -> list[Case]:
    """A new daemon adopts what it names; the rest of what its predecessor held is lost. Answers what was adopted.

    Only in the `same_boot` of its machine does its journal tell of all that was begun: a row is written before the start, not synced.
    """
    changes, kept = Changes(tx), []
    for case in live:
        if (case.job.job_id, case.job.attempt) in held:
            kept.append(case)
        else:
            why = f"the daemon of {node.node_id} was started anew and does not have it"
            lose(tx, changes, case, why, told=same_boot)
    changes.flush()
    return kept


def _store_capabilities(tx: Tx, node_id: str, has: Capabilities) -> None:
    tx.run(
        "INSERT INTO capabilities (node_id, body) VALUES (?, ?) ON CONFLICT (node_id) DO UPDATE SET body = excluded.body",
        (node_id, encode(has).decode()),
    )
    services.declare(tx, node_id, has.services)


@beside_others
def heartbeat(tx: Tx, request: HeartbeatRequest, protocol: int | None = None) -> list[Directive]:
    """Renew the node's leases. An unknown node is told to register; an older boot epoch is StaleAttempt.

    `protocol` is that of its session: another release may have been tried on its machine meanwhile.
    """
    found = sessions.find(tx, request.node_id)
    if found is None:
        return [Directive(kind=DirectiveKind.REGISTER, reason="this coordinator does not know the node")]
    node = sessions.checked(found, request.boot_epoch)
    live = load_live(tx, node.node_id)
    sessions.seen(tx, node, held=request.held, live=live)
    node = sessions.advanced(tx, node, NodeEvent.BEAT)
    changed = request.capabilities is not None
    node = replace(node, draining=int(request.draining), resume=node.resume if request.draining else 0)
    if (found.draining and not node.draining) or (node.state is NodeState.READY and found.state is not node.state):
        tx.wake(("node", node.node_id))  # its poll came first, and was found to be of a node that takes no work
    tx.run(
        """UPDATE nodes SET renewals = renewals + 1, last_seen_at = ?, load = ?, free_mb = ?, gpu_free = ?,
               disk_free_mb = coalesce(?, disk_free_mb), health = ?, version = coalesce(?, version), protocol = coalesce(?, protocol),
               draining = ?, resume = ?, quarantine = ?, offer = offer + ? WHERE node_id = ?""",
        (
            tx.at, request.load, request.free_mb, request.gpu_free, request.disk_free_mb,
            encode([shortened(one) for one in request.health[:MAX_HEALTH]]).decode(),
            request.version, protocol, node.draining, node.resume, shortened(request.quarantine), int(changed), node.node_id,
        ),
    )  # fmt: skip
    if request.capabilities is not None:
        _store_capabilities(tx, node.node_id, request.capabilities)
    if request.services is not None:
        services.observe(tx, node.node_id, request.services)
    if request.update is not None and node.rollout_id is not None:
        rollout_turns.note_report(tx, node.node_id, node.rollout_id, request.update)
    return derive(tx, node, live, request.held)


def directives(tx: Tx, node_id: str, held: Sequence[Held] | None = None) -> list[Directive]:
    """What the coordinator wants of the node now; `held` (of a pull) adds reconcile and forget. For `Store.read` or
    `Store.write`.
    """
    node = sessions.find(tx, node_id)
    if node is None:
        return [Directive(kind=DirectiveKind.REGISTER, reason="this coordinator does not know the node")]
    return derive(tx, node, load_to_cancel(tx, node_id) if held is None else load_live(tx, node_id), held)


def derive(tx: Tx, node: NodeRow, live: Sequence[Case], held: Sequence[Held] | None) -> list[Directive]:
    """Directives as they follow from rows and from what the node says that it holds: of its live attempts all, or without `held`
    at least those that are to be cancelled.
    """
    found: list[Directive] = []
    if node.state in {NodeState.DRAINING, NodeState.DRAINED}:
        found.append(Directive(kind=DirectiveKind.DRAIN, reason=node.reason, timeout_s=node.drain_s))
    elif node.resume:
        found.append(Directive(kind=DirectiveKind.RESUME))
    names = None if held is None else {(one.job_id, one.attempt) for one in held}
    for case in live:
        job_id, attempt = case.job.job_id, case.job.attempt
        begun = case.attempt is not None and case.attempt.state in BEGUN
        if begun and case.cancel_at is not None:
            found.append(Directive(kind=DirectiveKind.CANCEL, job_id=job_id, attempt=attempt, reason=_cancel_reason(tx, case)))
        if begun and names is not None and (job_id, attempt) not in names and not case.unheard:
            found.append(Directive(kind=DirectiveKind.RECONCILE, job_id=job_id, attempt=attempt))
    for one in _over(held or (), live):
        found.append(Directive(kind=DirectiveKind.FORGET, job_id=one.job_id, attempt=one.attempt))
    if node.rollout_id is not None and (wish := rollout_turns.wish(tx, node.node_id, node.rollout_id)) is not None:
        found.append(wish)
    for job_id, attempt in tx.rows(
        "SELECT j.job_id, a.attempt FROM attempts a JOIN jobs j ON j.seq = a.job_seq "
        "WHERE a.node_id = ? AND a.debug_at IS NOT NULL AND a.workspace IS NULL",
        (node.node_id,),
    ):
        found.append(Directive(kind=DirectiveKind.DEBUG, job_id=job_id, attempt=attempt))
    return found


def _cancel_reason(tx: Tx, case: Case) -> str | None:
    row = tx.row("SELECT cancel_reason FROM jobs WHERE seq = ?", (case.seq,))
    return row[0] if row else None


def _over(held: Collection[Held], live: Collection[Case]) -> tuple[Held, ...]:
    """What a node holds that is over (or was never its own): it is to be stopped and discarded."""
    names = {(case.job.job_id, case.job.attempt) for case in live}
    return tuple(one for one in held if (one.job_id, one.attempt) not in names)


def drain_node(tx: Tx, node_id: str, request: DrainRequest) -> NodeView:
    """No new work for a node. NotFound, InvalidTransition."""
    node = sessions.advanced(tx, sessions.known(tx, node_id), NodeEvent.DRAIN, shortened(request.reason))
    tx.run("UPDATE nodes SET drain_s = ?, resume = 0 WHERE node_id = ?", (request.timeout_s, node_id))
    empty_node(tx, node)
    tx.wake(("node", node_id))
    return node_view(tx, node_id)


def empty_node(tx: Tx, node: NodeRow) -> bool:
    """A draining node that holds no attempt any more is drained; whether it became so."""
    if node.state is not NodeState.DRAINING or load_live(tx, node.node_id):
        return False
    sessions.advanced(tx, node, NodeEvent.EMPTY, node.reason)
    return True


def resume_node(tx: Tx, node_id: str) -> NodeView:
    """Work again for a drained node. NotFound, InvalidTransition."""
    sessions.advanced(tx, sessions.known(tx, node_id), NodeEvent.RESUME)
    tx.run("UPDATE nodes SET drain_s = NULL, resume = 1, draining = 0 WHERE node_id = ?", (node_id,))
    tx.wake(("node", node_id), ("queue",))
    return node_view(tx, node_id)


def cordon_node(tx: Tx, node_id: str, reason: str | None = None) -> NodeView:
    """No new work for a node, which goes on and is not told. NotFound; NodeRetired."""
    _cordon(tx, node_id, shortened(reason) or "")
    return node_view(tx, node_id)


def uncordon_node(tx: Tx, node_id: str) -> NodeView:
    """The end of a cordon; of a drain it is not. NotFound; NodeRetired."""
    _cordon(tx, node_id, None)
    tx.wake(("node", node_id), ("queue",))
    return node_view(tx, node_id)


def _cordon(tx: Tx, node_id: str, reason: str | None) -> None:
    node = sessions.in_service(tx, node_id)
    if node.cordoned == reason:
        return
    tx.run("UPDATE nodes SET cordoned = ? WHERE node_id = ?", (reason, node_id))
    sessions.note(tx, "uncordon" if reason is None else "cordon", node_id, reason)


def move_node(tx: Tx, node_id: str, pool: str) -> NodeView:
    """Make a node one of a pool; what it runs and was offered stays. NotFound; NodeRetired; InvalidSpec."""
    if not NAME.fullmatch(pool):
        raise InvalidSpec("the pool is not valid", [Problem("pool", "must be 1 to 63 letters, digits, '.', '_' or '-'")])
    sessions.in_service(tx, node_id)
    if tx.run("UPDATE nodes SET pool = ?, offer = offer + 1 WHERE node_id = ? AND pool <> ?", (pool, node_id, pool)):
        sessions.note(tx, "pool", node_id, pool)
        tx.wake(("node", node_id), ("queue",))
    return node_view(tx, node_id)


def retire_node(tx: Tx, node_id: str, reason: str | None = None) -> NodeView:
    """The end of a node: its attempts are lost, its key opens nothing. Its id may be enrolled anew with another key."""
    node = sessions.advanced(tx, sessions.known(tx, node_id), NodeEvent.RETIRE, shortened(reason))
    changes = Changes(tx)
    for case in load_live(tx, node.node_id):
        lose(tx, changes, case, f"node {node_id} was retired", told=False)
    changes.flush()
    tx.wake(("node", node_id), RETIRED)
    return node_view(tx, node_id)


def is_enrolled(tx: Tx, node_id: str, public_key: bytes) -> bool:
    """Whether there is this node, with this key, and not retired. Works in a read."""
    sql = "SELECT 1 FROM nodes WHERE node_id = ? AND (public_key = ? OR next_key = ?) AND state <> 'retired'"
    return tx.row(sql, (node_id, public_key, public_key)) is not None


def node_keys(tx: Tx, node_id: str) -> tuple[bytes, ...]:
    """The raw public keys of a node that was ever enrolled: its own, and the one that is to take its place. For `Store.read`."""
    row = tx.row("SELECT public_key, next_key FROM nodes WHERE node_id = ?", (node_id,))
    return () if row is None else _keys(row)


def key_standing(tx: Tx, node_id: str) -> KeyStanding:
    """Which keys a node has. NotFound, NodeRetired. Works in a read."""
    sessions.in_service(tx, node_id)
    key, *more = node_keys(tx, node_id)
    return KeyStanding(node_id=node_id, key_id=key_id(key), next_key_id=key_id(more[0]) if more else None)


def replace_key(tx: Tx, node_id: str, new_key: bytes) -> KeyStanding:
    """A key that takes the place of the node's with the first session that it opens; with the node's own, none does. NotFound,
    NodeRetired."""
    sessions.in_service(tx, node_id)
    tx.run("UPDATE nodes SET next_key = nullif(?, public_key) WHERE node_id = ?", (new_key, node_id))
    return key_standing(tx, node_id)


def _promote(tx: Tx, node_id: str, key: bytes) -> None:
    """The key that opens a session is the node's own from now on."""
    sql = "UPDATE nodes SET public_key = next_key, next_key = NULL WHERE node_id = ? AND next_key = ?"
    if tx.run(sql, (node_id, key)):
        sessions.note(tx, "new_key", node_id, key_id(key))


def _keys(row: Row) -> tuple[bytes, ...]:
    return tuple(bytes(key) for key in row[:2] if key is not None)


def newest_session(tx: Tx, node_id: str) -> str | None:
    """The boot epoch of a node's newest session; None where there is no such node. For `Store.read`."""
    row = tx.row("SELECT boot_epoch FROM nodes WHERE node_id = ?", (node_id,))
    return None if row is None else row[0]


def retired_nodes(tx: Tx) -> list[str]:
    """The nodes that were retired. For `Store.read`."""
    return [row[0] for row in tx.rows("SELECT node_id FROM nodes WHERE state = 'retired'")]
