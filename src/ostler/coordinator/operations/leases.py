"""What nodes do with jobs: lease, acknowledge, report, deliver; and what happens to leases that nobody renews.

Each function is one transaction's worth and runs through `Store.write`. Every write about an attempt names (job_id, attempt) and
the caller's node; a stale one changes nothing and is answered with the code `stale_attempt`. `boot_epoch` is the caller's session
(from its token or message): a write of an older session than the newest registered one is refused with StaleAttempt; None skips
that check. Delivery (`finish_attempts`, `append_log`, `set_workspace`) stands in `deliveries` and `logs`; this module is the one
door to all of it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from msgspec import structs

from ostler.coordinator.config import RENEW_AFTER
from ostler.coordinator.operations import quotas, sessions
from ostler.coordinator.operations.changes import (
    Case,
    Changes,
    Living,
    after_failure,
    living,
    load,
    load_live,
    shortened,
    write,
)
from ostler.coordinator.operations.claims import DECLINE_REST_US, Claim, Placements, claim
from ostler.coordinator.operations.commands import claim_commands
from ostler.coordinator.operations.deliveries import finish_attempts, set_workspace
from ostler.coordinator.operations.logs import append_log
from ostler.coordinator.operations.sessions import NodeRow, stale
from ostler.coordinator.operations.waits import handed_to
from ostler.coordinator.placement.choose import Candidate, Credit
from ostler.coordinator.placement.shape import Shape
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.times import span
from ostler.coordinator.store.tx import Tx
from ostler.model import attempt as attempt_model
from ostler.model import job as jobs
from ostler.model.attempt import BEGUN, Attempt, AttemptEvent, AttemptState
from ostler.model.errors import Conflict, InvalidTransition
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import Job, JobEvent, JobState
from ostler.model.manifest import InputFile
from ostler.model.node import NodeEvent, NodeState
from ostler.protocol.messages import AckItem, Held, ItemResult, ProgressItem, PullRequest

__all__ = [
    "Lease",
    "ack_jobs",
    "append_log",
    "bind_live_attempt",
    "expire_attempts",
    "finish_attempts",
    "lease_commands",
    "lease_jobs",
    "pull",
    "report_progress",
    "set_workspace",
]

# What a reported stage means to a job and to its attempt, in the order in which stages are passed.
_STAGES: dict[AttemptState, tuple[JobEvent, AttemptEvent]] = {
    AttemptState.ACKED: (JobEvent.ACK, AttemptEvent.ACK),
    AttemptState.PREPARING: (JobEvent.PREPARE, AttemptEvent.PREPARE),
    AttemptState.RUNNING: (JobEvent.START, AttemptEvent.START),
    AttemptState.UPLOADING: (JobEvent.UPLOAD, AttemptEvent.UPLOAD),
}
_ORDER = {state: place for place, state in enumerate(_STAGES)}


@dataclass(frozen=True, slots=True)
class Lease:
    """One job offered to a node under `attempt`; `spec` is the manifest as submitted, `tries` the attempts begun before, `inputs`
    what it gets of other jobs. `acked`: the pull acknowledged it.
    """

    job_id: str
    attempt: int
    spec: str
    tries: int
    inputs: tuple[InputFile, ...] = ()
    latency: bool = False
    acked: bool = False


class Pulled(NamedTuple):
    """What a pull brought; the node, and on a first turn its live attempts, as they were read in front of these leases."""

    leases: list[Lease]
    node: NodeRow
    live: list[Case] | None


@beside_others
def lease_jobs(
    tx: Tx, request: PullRequest, *, fresh: bool = True, latency: frozenset[str] = frozenset(), spread: bool = False
) -> list[Lease]:
    """Lease at most `request.slots` CPU and `request.gpu_slots` GPU jobs to the node; empty where none fits.

    The first `request.begins` of them are acknowledged by it, where this transaction will be durable before anybody is told.
    `fresh` is True on the first turn of a pull: leases offered earlier that its `held` lacks are then taken back. On later turns
    of the same long poll `held` is a snapshot of its arrival, so pass False. `filters` may hold the lists `runners` and `queues`.
    `latency` names the queues of that class; `spread` tells that other nodes ask for work, too.
    Raises NotFound for an unknown node, StaleAttempt for an older boot epoch.
    """
    return pull(tx, request, fresh=fresh, latency=latency, spread=spread).leases


def pull(
    tx: Tx, request: PullRequest, *, fresh: bool = True, latency: frozenset[str] = frozenset(), spread: bool = False
) -> Pulled:
    """`lease_jobs`, and what was read of the node for it."""
    node = sessions.pulling(tx, request.node_id, request.boot_epoch)
    live: list[Case] | None = None
    changed = False
    if fresh:
        changes, held = Changes(tx), {(one.job_id, one.attempt) for one in request.held}
        had = load_live(tx, node.node_id)
        live = [case for case in had if not _take_back(tx, changes, case, held, request.number)]
        request = _cautious(request, node, lost=len(had) - len(live))
        changed = bool(sessions.seen(tx, node, held=request.held if request.protocol is not None else None, live=live))
        changes.flush()  # before the claim: what came back may be leased anew
    node = sessions.advanced(tx, node, NodeEvent.BEAT)
    takes = node.state is NodeState.READY and not node.draining and node.cordoned is None
    lives = living(tx, node.node_id) if live is None else [Living(case.shape_id, _runs(case)) for case in live]
    commands = _commands(tx, request, node)
    chosen = _choose(tx, request, node, lives, latency, spread=spread) if takes else []
    aged = node.last_seen_at is None or not 0 <= tx.at - node.last_seen_at < span(RENEW_AFTER)
    if commands or chosen or changed or (fresh and aged):
        tx.run("UPDATE nodes SET renewals = renewals + 1, last_seen_at = ? WHERE node_id = ?", (tx.at, node.node_id))
    return Pulled(_hand_out(tx, request, node, commands, chosen), node, live)


@beside_others
def lease_commands(tx: Tx, request: PullRequest) -> list[Lease]:
    """Lease the commands to services that wait for the node, and nothing else, on a later turn of a pull. Raises as `lease_jobs`."""
    node = sessions.pulling(tx, request.node_id, request.boot_epoch)
    commands = _commands(tx, request, node)
    if commands:
        sessions.advanced(tx, node, NodeEvent.BEAT)
        tx.run("UPDATE nodes SET renewals = renewals + 1, last_seen_at = ? WHERE node_id = ?", (tx.at, node.node_id))
    return _hand_out(tx, request, node, commands, [])


def _commands(tx: Tx, request: PullRequest, node: NodeRow) -> list[Candidate]:
    """Also for one that has no slot free, or gets no other work: who maintains a host wants to stop its services."""
    if not node.commanded or request.protocol is None:
        return []
    offer = tx.memo(Placements).offer_of(tx, node.node_id, node.offer, (node.cpu_slots, node.gpu_slots))
    return claim_commands(tx, node, offer, _wanted(request.filters, "runners"))


def _hand_out(
    tx: Tx, request: PullRequest, node: NodeRow, commands: Sequence[Candidate], jobs_: Sequence[Candidate]
) -> list[Lease]:
    """Lease what was chosen, commands first. All of those are acknowledged by a pull that acknowledges anything: they wait for no slot."""
    chosen = [*commands, *jobs_]
    numbers = [max(one.attempt, _era(tx)) + 1 for one in chosen]
    acked = len(commands) + request.begins if request.number > 0 and tx.is_durable else 0
    specs = _lease(tx, node, chosen, numbers, acked=acked, pull=request.number)
    return [
        Lease(one.job_id, number, specs[one.seq][0], one.tries, specs[one.seq][1], one.latency, place < acked)
        for place, (one, number) in enumerate(zip(chosen, numbers, strict=True))
    ]


def _cautious(request: PullRequest, node: NodeRow, *, lost: int) -> PullRequest:
    """Half of what the last answer held, and no less than the node has slots, where that answer was lost.

    Whoever is too busy to answer in time would otherwise lease all that a node can hold, and take it back, again and again, and
    get no time for anything else.
    """
    return structs.replace(request, slots=min(request.slots, max(node.cpu_slots, lost // 2))) if lost else request


def _take_back(tx: Tx, changes: Changes, case: Case, held: Collection[tuple[str, int]], pull: int) -> bool:
    """An offer that the node's newest pull does not name never arrived: back to the queue, at no cost.

    One that an earlier pull acknowledged likewise: its node begins nothing that comes with the answer to an older pull than its
    newest. An older one that comes late takes nothing back.
    """
    attempt = case.attempt
    if attempt is None or (attempt.job_id, attempt.attempt) in held:
        return False
    if attempt.state is not AttemptState.LEASED and not (case.unheard and -(case.missing or 0) < pull):
        return False
    lose(tx, changes, case, "the offer did not reach the node", told=True)
    return True


def _choose(
    tx: Tx, request: PullRequest, node: NodeRow, live: Sequence[Living], latency: frozenset[str], *, spread: bool
) -> list[Candidate]:
    places = tx.memo(Placements)
    shapes = places.shapes_of(tx, {one.shape_id for one in live})
    now = _at_once(request.slots, node.cpu_slots, live, shapes, latency)
    credit = Credit(cpu=max(0, request.slots), gpu=max(0, request.gpu_slots), now=now)
    if not (credit.cpu or credit.gpu or now):
        return []
    return claim(
        tx,
        Claim(
            node_id=node.node_id,
            boot_epoch=node.boot_epoch,
            offer=places.offer_of(tx, node.node_id, node.offer, (node.cpu_slots, node.gpu_slots)),
            offer_number=node.offer,
            live=tuple([shapes[one.shape_id] for one in live]),
            disk_free_mb=node.disk_free_mb,
            credit=credit,
            runners=_wanted(request.filters, "runners"),
            queues=_wanted(request.filters, "queues"),
            latency=latency,
            spread=spread,
            once=request.protocol is None,
        ),
        quotas.spare,
    )


def _at_once(asked: int, slots: int, live: Sequence[Living], shapes: Mapping[int, Shape], latency: frozenset[str]) -> int:
    """How many jobs of latency queues the node begins at once, of those without a GPU.

    As many as it has slots free. Where it has none, and still has jobs leased ahead or asks for such, its jobs take so little time
    that a slot is free in a moment (`node.credit`), which such a job then gets before those: one at a time.
    """
    free = slots - len([1 for one in live if shapes[one.shape_id].takes_a_slot])
    if free > 0:
        return min(free, max(0, asked))
    hasty = {
        shape_id
        for shape_id in {one.shape_id for one in live}
        if shapes[shape_id].queue in latency and not shapes[shape_id].demand.gpu_slots
    }
    next_up = any(one.shape_id in hasty and not one.runs for one in live) if hasty else False
    return int((asked > 0 or free < 0) and not next_up)


def _runs(case: Case) -> bool:
    return case.attempt is not None and case.attempt.state in {AttemptState.RUNNING, AttemptState.UPLOADING}


def _wanted(filters: Mapping[str, Any] | None, name: str) -> frozenset[str] | None:
    names = (filters or {}).get(name)
    return frozenset(map(str, names)) if isinstance(names, list) else None


class _Era:
    """The number up to which no attempt is numbered any more: a restore of the database raises it, and no coordinator runs then."""

    number: int | None = None


def _era(tx: Tx) -> int:
    era = tx.memo(_Era)
    if era.number is None:
        row = tx.row("SELECT next FROM counters WHERE name = 'attempts'")
        era.number = 0 if row is None else int(row[0])
    return era.number


_SPECS = "SELECT job_seq, body, EXISTS (SELECT 1 FROM handed h WHERE h.job_seq = specs.job_seq) FROM specs"


def _lease(
    tx: Tx, node: NodeRow, chosen: Sequence[Candidate], numbers: Sequence[int], *, acked: int, pull: int
) -> dict[int, tuple[str, tuple[InputFile, ...]]]:
    """Write the leases: job, attempt and events together; answers by seq the specs, and what the jobs get of others.

    The first `acked` were acknowledged by the pull of this number.
    """
    if not chosen:
        return {}
    updates, attempts, events = [], [], []
    for place, (one, number) in enumerate(zip(chosen, numbers, strict=True)):
        job = jobs.advance(
            Job(job_id=one.job_id, state=JobState.QUEUED, attempt=number - 1, tries=one.tries),
            JobEvent.LEASE, now=tx.now, node_id=node.node_id,
        )  # fmt: skip
        attempt = Attempt(job_id=one.job_id, attempt=number, node_id=node.node_id)
        events.append((tx.at, JobEvent.LEASE.value, one.seq, number, node.node_id))
        note: tuple[int | None, int | None] = (None, None)
        if place < acked:
            job = jobs.advance(job, JobEvent.ACK, now=tx.now)
            attempt = attempt_model.advance(attempt, AttemptEvent.ACK, now=tx.now)
            events.append((tx.at, JobEvent.ACK.value, one.seq, number, node.node_id))
            note = (tx.at, -pull)
        updates.append((job.state.value, number, job.tries, node.node_id, one.seq, one.attempt))
        attempts.append((one.seq, number, node.node_id, node.boot_epoch, attempt.state.value, tx.at, *note))
        tx.wake(("job", one.job_id))
    if acked:
        tx.bind()
    write(
        tx,
        "UPDATE jobs SET state = ?, attempt = ?, tries = ?, node_id = ?, due_at = NULL "
        "WHERE seq = ? AND state = 'queued' AND attempt = ?",
        updates,
    )
    tx.many(
        "INSERT INTO attempts (job_seq, attempt, node_id, boot_epoch, state, leased_at, acked_at, missing) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        attempts,
    )
    tx.many("INSERT INTO events (at, kind, job_seq, attempt, node_id) VALUES (?, ?, ?, ?, ?)", events)
    tx.wake(("events",))
    if len(chosen) == 1:  # without a list a look costs a third
        found = tx.rows(f"{_SPECS} WHERE job_seq = ?", (chosen[0].seq,))
    else:
        found = tx.rows(f"{_SPECS} WHERE {tx.any_of('job_seq')}", (tx.array([one.seq for one in chosen]),))
    handed = [seq for seq, _, some in found if some]
    inputs = handed_to(tx, handed) if handed else {}
    return {seq: (body, inputs.get(seq, ())) for seq, body, _ in found}


@beside_others
def ack_jobs(tx: Tx, node_id: str, items: Sequence[AckItem], *, boot_epoch: str | None = None) -> list[ItemResult]:
    """Accept leases, or hand them back (`decline`); one answer per item, in order. Doubled acks are ok."""
    sessions.current(tx, node_id, boot_epoch)
    cases = load(tx, [item.job_id for item in items])
    changes, results, heard = Changes(tx), [], []
    for item in items:
        case = cases.get(item.job_id)
        if case is None or not case.is_held_by(node_id, item.attempt):
            results.append(stale(item.job_id, item.attempt, node_id))
            continue
        if case.unheard and item.decline is None:
            heard.append((case.seq, item.attempt))
        results.append(_ack(tx, changes, case, item))
    changes.flush()
    write(tx, "UPDATE attempts SET missing = NULL WHERE job_seq = ? AND attempt = ?", heard)
    return results


def _ack(tx: Tx, changes: Changes, case: Case, item: AckItem) -> ItemResult:
    accepted = case.attempt is not None and case.attempt.state in BEGUN
    if item.decline is None:
        if not accepted:
            changes.apply(case, JobEvent.ACK, AttemptEvent.ACK)
        return ItemResult(job_id=item.job_id, attempt=item.attempt)
    if accepted and not case.unheard:
        return refused(item, f"attempt {item.attempt} of job {item.job_id} was acknowledged: it cannot be handed back")
    tx.memo(Placements).rest((case.job.node_id or "", case.boot_epoch, case.seq), tx.at + DECLINE_REST_US)
    lose(tx, changes, case, shortened(item.decline) or "", told=True)
    return ItemResult(job_id=item.job_id, attempt=item.attempt)


def refused(item: AckItem | ProgressItem, message: str) -> ItemResult:
    """An item that does not fit the attempt's state; nothing of it was applied."""
    return ItemResult(job_id=item.job_id, attempt=item.attempt, ok=False, code=InvalidTransition.code, message=message)


@beside_others
def report_progress(tx: Tx, node_id: str, items: Sequence[ProgressItem], *, boot_epoch: str | None = None) -> list[ItemResult]:
    """Stages and progress of attempts that the node holds; a stage that was passed already is ignored."""
    sessions.current(tx, node_id, boot_epoch)
    cases = load(tx, [item.job_id for item in items])
    changes, results, said = Changes(tx), [], []
    for item in items:
        case = cases.get(item.job_id)
        if case is None or not case.is_held_by(node_id, item.attempt):
            results.append(stale(item.job_id, item.attempt, node_id))
        elif case.job.state is JobState.LEASED:
            results.append(refused(item, f"attempt {item.attempt} of job {item.job_id} was never acknowledged"))
        elif item.state is not None and item.state not in _STAGES:
            results.append(refused(item, f"{item.state.value} is no stage of a running attempt"))
        else:
            reach(changes, case, item.state)
            if item.pct is not None or item.note is not None:
                said.append((item.pct, shortened(item.note), case.seq, item.attempt))
                tx.wake(("job", item.job_id))
            results.append(ItemResult(job_id=item.job_id, attempt=item.attempt))
    changes.flush()
    # What is not said anew stays as it was.
    write(tx, "UPDATE attempts SET pct = coalesce(?, pct), note = coalesce(?, note) WHERE job_seq = ? AND attempt = ?", said)
    return results


def reach(changes: Changes, case: Case, state: AttemptState | None) -> None:
    """Bring a begun attempt to a stage unless it is there or beyond."""
    if state is not None and case.attempt is not None and _ORDER[state] > _ORDER[case.attempt.state]:
        job_event, attempt_event = _STAGES[state]
        changes.apply(case, job_event, attempt_event)


def bind_live_attempt(tx: Tx, node_id: str, job_id: str) -> int:
    """The attempt of the caller's only live lease of that job (section 8 calls name none); else Conflict. Works in a read."""
    case = load(tx, [job_id]).get(job_id)
    if case is None or case.attempt is None or not case.is_held_by(node_id, case.job.attempt):
        raise Conflict(
            f"{node_id} holds no attempt of job {job_id}", hint="a job that was given to another node is not this one's any more"
        )
    return case.attempt.attempt


def expire_attempts(
    tx: Tx, node_id: str, *, renewals: int | None = None, only: Collection[Held] | None = None, reason: str | None = None
) -> list[Held]:
    """End the live attempts of a node that went silent (or `only` these); nothing where the node renewed since `renewals` was
    read.

    Unacknowledged leases go back to the queue and cost no try; begun ones fail with E_LOST and are retried by policy; those whose
    cancel was asked for end cancelled. Answers what was ended.
    """
    node = sessions.find(tx, node_id)
    if node is None or (renewals is not None and node.renewals != renewals):
        return []
    wanted = None if only is None else {(one.job_id, one.attempt) for one in only}
    changes, ended = Changes(tx), []
    for case in load_live(tx, node_id):
        if wanted is None or (case.job.job_id, case.job.attempt) in wanted:
            lose(tx, changes, case, reason or f"node {node_id} was silent for a whole lease", told=False)
            ended.append(Held(case.job.job_id, case.job.attempt))
    changes.flush()
    if ended:
        tx.wake(("node", node_id))
    return ended


def lose(tx: Tx, changes: Changes, case: Case, reason: str, *, told: bool) -> None:
    """End a live attempt whose node does not have it any more, or never had it.

    `told`: a living node says so. Of one that is silent nobody knows whether it had begun what it never named, and a job may have run.
    """
    if case.job.state is JobState.LEASED or (told and case.unheard and case.cancel_at is None):
        changes.apply(case, JobEvent.RETURN, AttemptEvent.RETURN, message=reason)
        tx.wake(("queue",))
        return
    job_event, due_in = after_failure(case, FailureCode.LOST)
    attempt_event = AttemptEvent.CANCEL if job_event is JobEvent.CANCEL else AttemptEvent.FAIL
    failure = None if job_event is JobEvent.CANCEL else Failure(FailureCode.LOST, reason)
    changes.apply(case, job_event, attempt_event, failure=failure, due_in=due_in, message=reason)
