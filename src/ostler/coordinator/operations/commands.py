"""Commands to services as jobs: what is written of one beside its job, what a newer one ends, and which of them a node gets.

They stand in an index of their own: an ordinary claim never sees one, and a node that is told of none looks for none.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from ostler.coordinator.operations.cancels import PENDING, cancel_case
from ostler.coordinator.operations.changes import Changes, load_numbers
from ostler.coordinator.operations.claims import Placements
from ostler.coordinator.operations.sessions import NodeRow
from ostler.coordinator.operations.summons import summon
from ostler.coordinator.placement.choose import Candidate
from ostler.coordinator.placement.commands import MOST, Waiting, outdated
from ostler.coordinator.store.schema import COMMANDS_SQL
from ostler.coordinator.store.times import micros, span
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.job import JobState
from ostler.model.manifest import Manifest, RetryPolicy, Runner
from ostler.model.resources import Offer
from ostler.model.service import COMMAND_TTL, Verb, command_of
from ostler.protocol.codec import encode

LOOKED_AT = 256
_NEVER_AGAIN = encode(RetryPolicy(max=0)).decode()
_COLUMNS = "seq, job_id, service, verb, target, shape_id, submitted_at, not_before, state, rank, attempt, tries"


def note(tx: Tx, given: Sequence[tuple[int, Manifest, bool]]) -> None:
    """Of jobs that were just inserted, by number, those that are commands; the last part says whether it waits for something.

    One that does not say for how long it may wait is not carried out once `COMMAND_TTL` is over. Older commands to the same services
    that have not begun are cancelled, and those whom the new ones are for are woken. One that waits for a time or another job takes
    no other's place before that has come.
    """
    rows, places = [], set()
    for seq, manifest, waits in given:
        command = command_of(manifest)
        if command is None:
            continue
        target = manifest.requirements.node or ""
        begins = max(tx.at, micros(start)) if (start := manifest.start) is not None else tx.at
        rows.append((command.service, command.verb.value, target, begins + span(COMMAND_TTL), seq))
        if not waits:
            places.add((command.service, target, command.verb is not Verb.STATUS))
    tx.many("UPDATE jobs SET service = ?, verb = ?, target = ?, expires_at = coalesce(expires_at, ?) WHERE seq = ?", rows)
    supersede(tx, {(service, target) for service, target, changes in places if changes})
    for service, target in {place[:2] for place in places}:
        summon(tx, service, target)


def supersede(tx: Tx, places: Iterable[tuple[str, str]]) -> None:
    """Leave of the commands to each of these (service, target) the newest alone: those that have not begun are cancelled, and those that
    have are not tried again."""
    by_service: dict[str, list[str]] = defaultdict(list)
    for service, target in places:
        by_service[service].append(target)
    for service, targets in by_service.items():
        rows = tx.rows(
            f"""SELECT {_COLUMNS} FROM jobs {tx.by_index("ix_jobs_command")}
                WHERE {COMMANDS_SQL} AND {tx.any_of("target")} AND service = ? AND verb <> 'status' AND waits = 0""",  # noqa: S608
            (tx.array(targets), service),
        )
        _end(tx, rows, outdated(_waiting(tx, rows)))


def _end(tx: Tx, rows: Collection[Row], old: dict[int, Waiting]) -> None:
    if not old:
        return
    states = {row[0]: JobState(row[8]) for row in rows}
    begun = [seq for seq in old if states[seq] not in PENDING | {JobState.LEASED}]
    tx.many("UPDATE jobs SET retry = ? WHERE seq = ?", [(_NEVER_AGAIN, seq) for seq in begun])
    changes = Changes(tx)
    for case in load_numbers(tx, old.keys() - set(begun)):
        newer = old[case.seq]
        cancel_case(tx, changes, case, f"a newer command stands for it: {newer.verb.value} {newer.service} ({newer.job_id})")
    changes.flush()


def claim_commands(tx: Tx, node: NodeRow, offer: Offer, runners: Collection[str] | None) -> list[Candidate]:
    """The commands that this node gets now, first to last; its slots, its pools' quotas and whose turn it is are not looked at.

    One whose time is over is not among them, swept or not; of several to one service only the newest is.
    """
    if not offer.services or (runners is not None and Runner.SERVICE.value not in runners):
        return []
    rows = tx.rows(
        f"""SELECT {_COLUMNS} FROM jobs {tx.by_index("ix_jobs_command")}
            WHERE {COMMANDS_SQL} AND {tx.any_of("target")} AND {tx.any_of("service")} AND state = 'queued' AND held = 0 AND waits = 0
            AND (expires_at IS NULL OR expires_at > ?) ORDER BY seq LIMIT ?""",  # noqa: S608 - fragments of ours
        (tx.array([node.node_id, ""]), tx.array(offer.services), tx.at, LOOKED_AT),
    )
    if not rows:
        return []
    places = tx.memo(Placements)
    met = set(places.met_by(offer, node.offer, places.shapes_of(tx, {row[5] for row in rows})))
    resting = places.resting_for(node.node_id, node.boot_epoch, tx.at)
    rows = [row for row in rows if row[5] in met]
    old = outdated(_waiting(tx, rows))
    _end(tx, rows, old)
    return [
        Candidate(seq=row[0], job_id=row[1], rank=row[9], attempt=row[10], tries=row[11])
        for row in rows
        if row[0] not in old and row[0] not in resting
    ][:MOST]


def _waiting(tx: Tx, rows: Sequence[Row]) -> list[Waiting]:
    shapes = tx.memo(Placements).shapes_of(tx, {row[5] for row in rows})
    return [
        Waiting(
            seq=seq, job_id=job_id, service=service, verb=Verb(verb), target=target,
            requirements=shapes[shape_id].requirements, since=max(submitted_at, not_before or 0),
        )
        for seq, job_id, service, verb, target, shape_id, submitted_at, not_before, *_ in rows
    ]  # fmt: skip
