"""Rows as clients see them."""

import base64
import binascii
from typing import Any

from ostler.coordinator.operations.changes import failure_of
from ostler.coordinator.store.schema import LIVE_SQL
from ostler.coordinator.store.times import when, when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.array import child_id
from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Capabilities
from ostler.model.errors import InvalidSpec, NotFound, Problem
from ostler.model.job import JobState
from ostler.model.manifest import Runner
from ostler.model.node import NodeState
from ostler.protocol.codec import decode
from ostler.protocol.messages import ArtifactEntry, AttemptView, EventView, Held, JobView, NodeView, outside

JOB_COLUMNS = """
    j.seq, j.job_id, j.state, j.runner, j.title, j.queue, j.priority, j.labels, j.submitted_at, j.attempt, j.tries, j.node_id,
    j.finished_at, j.due_at, j.expires_at, j.failure_code, j.failure_message, a.exit_code, a.signal, a.pct, a.note,
    j.held, j.cancel_at, j.retry_of, j.group_id, j.owner, j.not_before, j.waits"""
JOB_FROM = "FROM jobs j LEFT JOIN attempts a ON a.job_seq = j.seq AND a.attempt = j.attempt"


def job_of(row: Row) -> JobView:
    """A row of JOB_COLUMNS."""
    (
        _, job_id, state, runner, title, queue, priority, labels, submitted_at, attempt, tries, node_id, finished_at, due_at,
        expires_at, code, message, exit_code, signal, pct, note, held, cancel_at, retry_of,
        group_id, owner, not_before, waits,
    ) = row  # fmt: skip
    return JobView(
        job_id=job_id, state=JobState(state), runner=Runner(runner), title=title, queue=queue, priority=priority,
        labels=decode(labels, dict[str, str]), submitted_at=when(submitted_at), attempt=attempt, tries=tries, node_id=node_id,
        finished_at=when_or_none(finished_at), due_at=when_or_none(due_at), expires_at=when_or_none(expires_at),
        failure=failure_of(code, message), exit_code=exit_code, signal=signal, pct=pct, note=note, held=bool(held),
        cancel_requested=cancel_at is not None, retry_of=retry_of, group_id=group_id, owner=owner,
        not_before=when_or_none(not_before), waiting=waits != 0,
    )  # fmt: skip


def job_row(tx: Tx, job_id: str) -> Row:
    """The row of one job; raises NotFound."""
    row = tx.row(f"SELECT {JOB_COLUMNS} {JOB_FROM} WHERE j.job_id = ?", (job_id,))
    if row is None:
        raise no_job(tx, job_id)
    return row


def job_view(tx: Tx, job_id: str) -> JobView:
    """One job without its attempts, timeline, artifacts and manifest; raises NotFound."""
    return job_of(job_row(tx, job_id))


def is_array(tx: Tx, group_id: str) -> bool:
    """Whether a group is an array: then its jobs are called by its name and their number."""
    return tx.row("SELECT 1 FROM jobs WHERE job_id = ? AND group_id = ?", (child_id(group_id, 0), group_id)) is not None


def no_job(tx: Tx, job_id: str) -> NotFound:
    """There is no such job; where an array or a group has this id, that is said."""
    ends = "seq IN (SELECT min(seq) FROM jobs WHERE group_id = ? UNION ALL SELECT max(seq) FROM jobs WHERE group_id = ?)"
    jobs = [row[0] for row in tx.rows(f"SELECT job_id FROM jobs WHERE {ends} ORDER BY seq", (job_id, job_id))]  # noqa: S608
    if jobs:
        what = "an array of jobs" if is_array(tx, job_id) else "a group of jobs"
        return NotFound(
            f"{job_id} is {what} and no job: this is for one of {jobs[0]} to {jobs[-1]}",
            hint=f"see `ostler job list --group {job_id}`",
        )
    return NotFound(f"there is no job {job_id}", hint="see `ostler job list`")


def attempts_of(tx: Tx, seq: int) -> tuple[AttemptView, ...]:
    """All attempts of a job, first to last."""
    rows = tx.rows(
        """SELECT attempt, node_id, state, leased_at, acked_at, finished_at, failure_code, failure_message, exit_code, signal,
        usage,
               sandbox, workspace FROM attempts WHERE job_seq = ? ORDER BY attempt""",
        (seq,),
    )
    return tuple(
        AttemptView(
            attempt=attempt, node_id=node_id, state=AttemptState(state), leased_at=when(leased_at),
            acked_at=when_or_none(acked_at), finished_at=when_or_none(finished_at), failure=failure_of(code, message),
            exit_code=exit_code, signal=signal, usage=None if usage is None else decode(usage, Usage), sandbox=sandbox,
            workspace_sha256=workspace,
        )
        for (
            attempt, node_id, state, leased_at, acked_at, finished_at, code, message, exit_code, signal, usage, sandbox,
            workspace,
        ) in rows
    )  # fmt: skip


def timeline_of(tx: Tx, seq: int, job_id: str) -> tuple[EventView, ...]:
    """What happened to a job, first to last."""
    rows = tx.rows("SELECT id, at, kind, attempt, node_id, message FROM events WHERE job_seq = ? ORDER BY id", (seq,))
    return tuple(
        EventView(id=number, at=when(at), kind=kind, job_id=job_id, attempt=attempt, node_id=node_id, message=message)
        for number, at, kind, attempt, node_id, message in rows
    )


def artifacts_of(tx: Tx, seq: int, attempt: int | None) -> tuple[ArtifactEntry, ...]:
    """The artifacts of an attempt, or of the latest one that is over; empty where there are none."""
    if attempt is None:
        over = tx.row(
            f"SELECT max(attempt) FROM attempts WHERE job_seq = ? AND state NOT IN ({LIVE_SQL}, 'returned')",  # noqa: S608
            (seq,),
        )
        attempt = over[0] if over else None
    rows = tx.rows(
        "SELECT path, type, size, sha256 FROM artifacts WHERE job_seq = ? AND attempt = ? ORDER BY path", (seq, attempt)
    )
    return tuple(ArtifactEntry(path=path, type=kind, size=size, sha256=sha256) for path, kind, size, sha256 in rows)


NODE_COLUMNS = """
    n.node_id, n.state, n.version, n.protocol, n.boot_epoch, n.joined_at, n.last_seen_at, n.changed_at, n.reason, n.cpu_slots,
    n.gpu_slots, n.load, n.free_mb, n.gpu_free, n.disk_free_mb, n.health, n.pool, n.cordoned, n.draining, n.quarantine"""


def node_of(
    row: Row, *, attempts: tuple[Held, ...] = (), capabilities: Capabilities | None = None, release: str | None = None
) -> NodeView:
    """A row of NODE_COLUMNS."""
    (
        node_id, state, version, protocol, boot_epoch, joined_at, last_seen_at, changed_at, reason, cpu_slots, gpu_slots, load,
        free_mb, gpu_free, disk_free_mb, health, pool, cordoned, draining, quarantine,
    ) = row  # fmt: skip
    return NodeView(
        node_id=node_id, state=NodeState(state), version=version, protocol=protocol, boot_epoch=boot_epoch,
        joined_at=when(joined_at), last_seen_at=when_or_none(last_seen_at), changed_at=when_or_none(changed_at), reason=reason,
        cpu_slots=cpu_slots, gpu_slots=gpu_slots, load=load, free_mb=free_mb, gpu_free=gpu_free, disk_free_mb=disk_free_mb,
        health=decode(health, tuple[str, ...]), attempts=attempts, capabilities=capabilities, pool=pool,
        cordoned=cordoned is not None, cordon_reason=cordoned or None, draining=bool(draining), quarantine=quarantine,
        outside=outside(protocol), release=release,
    )  # fmt: skip


def node_view(tx: Tx, node_id: str, owner: str | None = None) -> NodeView:
    """One node with its capabilities and live attempts (of an owner's jobs alone, where one is named); raises NotFound."""
    row = tx.row(
        f"""SELECT {NODE_COLUMNS}, {tx.json_text("c.body", "release")}, c.body
            FROM nodes n LEFT JOIN capabilities c ON c.node_id = n.node_id WHERE n.node_id = ?""",  # noqa: S608 - fragments of ours
        (node_id,),
    )
    if row is None:
        raise NotFound(f"there is no node {node_id}", hint="see `ostler node list`")
    capabilities = None if row[-1] is None else decode(row[-1], Capabilities, what="capabilities")
    attempts = live_of(tx, [node_id], owner).get(node_id, ())
    return node_of(row[:-2], attempts=attempts, capabilities=capabilities, release=row[-2])


def live_of(tx: Tx, node_ids: list[str], owner: str | None = None) -> dict[str, tuple[Held, ...]]:
    """The live attempts of nodes, all or those of an owner's jobs."""
    found: dict[str, tuple[Held, ...]] = {}
    whose = "" if owner is None else "AND j.owner = ?"
    for node_id, job_id, attempt in tx.rows(
        f"""SELECT a.node_id, j.job_id, a.attempt FROM attempts a JOIN jobs j ON j.seq = a.job_seq
            WHERE {tx.any_of("a.node_id")} AND a.state IN ({LIVE_SQL}) {whose} ORDER BY a.node_id, a.leased_at, a.job_seq""",  # noqa: S608
        (tx.array(node_ids), *([] if owner is None else [owner])),
    ):
        found[node_id] = (*found.get(node_id, ()), Held(job_id, attempt))
    return found


def write_cursor(*place: str | int) -> str:
    """Where a page ended, as text that means nothing to its reader."""
    return base64.urlsafe_b64encode("\n".join(map(str, place)).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, kinds: tuple[type[Any], ...]) -> list[Any] | None:
    """The place in a cursor, a value of each kind; raises InvalidSpec for what was not written by `write_cursor`."""
    if cursor is None:
        return None
    try:
        parts = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode().split("\n")
        return [kind(part) for kind, part in zip(kinds, parts, strict=True)]
    except (ValueError, binascii.Error) as exc:
        raise InvalidSpec("the query is not valid", [Problem("cursor", "is not one that this list answered")]) from exc


MAX_PAGE = 500


def check_limit(limit: int) -> None:
    """Raises InvalidSpec for a page of nothing or of too much."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidSpec("the query is not valid", [Problem("limit", f"must be from 1 to {MAX_PAGE}, not {limit}")])
