"""Groups: how an array becomes jobs, how it (or a group of others) stands by what they do, and its end by a person's wish."""

from typing import Any

from ostler.coordinator.operations.cancels import cancel_case
from ostler.coordinator.operations.changes import Changes, load_group, shortened
from ostler.coordinator.operations.views import JOB_COLUMNS, JOB_FROM, is_array, job_of
from ostler.coordinator.store.times import when
from ostler.coordinator.store.tx import Row, Tx
from ostler.model import group as groups
from ostler.model.array import child
from ostler.model.errors import NotFound
from ostler.model.group import Group, GroupEvent, GroupState
from ostler.model.job import JobState
from ostler.model.manifest import Manifest
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import GroupView

MAX_FAILURES = 5
CANCEL_AT_ONCE = 500


def expand(manifest: Manifest, spec: str) -> list[tuple[Manifest, str]]:
    """The jobs of an array, each a manifest and its text, as `submit_jobs` takes them. Pure, and no work for a transaction."""
    plain = decode(spec, dict[str, Any], what="manifest")
    texts = [encode(child(plain, index)).decode() for index in range(manifest.array or 0)]
    return [(decode(text, Manifest, what="manifest"), text) for text in texts]


def show_group(tx: Tx, group_id: str) -> GroupView:
    """How a group stands, derived from its jobs. NotFound."""
    row = tx.row("SELECT count, submitted_at FROM groups WHERE group_id = ?", (group_id,))
    if row is None:
        raise NotFound(f"there is no array or group {group_id}", hint="see `ostler job list`")
    counts, group = _standing(tx, group_id)
    return GroupView(
        group_id=group_id, state=group.state, count=row[0], counts=counts, submitted_at=when(row[1]),
        array=is_array(tx, group_id), finished_at=group.finished_at, failures=tuple(job_of(one) for one in _failures(tx, group_id)),
    )  # fmt: skip


def cancel_some(tx: Tx, group_id: str, reason: str | None = None, after: int = 0) -> int | None:
    """Cancel the next jobs of a group that are not over, and answer after which to go on; None at its end. Others wait no longer than
    for one such piece. A group that is cancelled already is no error. NotFound, InvalidTransition (it came to its end before).
    """
    changes = Changes(tx)
    open_jobs = load_group(tx, group_id, after=after, limit=CANCEL_AT_ONCE)
    if not open_jobs and not after and (view := show_group(tx, group_id)).state is not GroupState.CANCELLED:
        groups.advance(Group(group_id=group_id, state=view.state), GroupEvent.CANCEL, now=tx.now)  # tells why not
    for case in open_jobs:
        cancel_case(tx, changes, case, shortened(reason))
    changes.flush()
    return open_jobs[-1].seq if len(open_jobs) == CANCEL_AT_ONCE else None


def _standing(tx: Tx, group_id: str) -> tuple[dict[JobState, int], Group]:
    jobs = f"jobs {tx.by_index('ix_jobs_group')}"
    found: dict[str, int] = dict(tx.rows(f"SELECT state, count(*) FROM {jobs} WHERE group_id = ? GROUP BY state", (group_id,)))  # noqa: S608
    counts = {state: found[state.value] for state in JobState if state.value in found}
    group, event = Group(group_id=group_id), groups.verdict(counts)
    if event is None:
        return counts, group
    last = tx.row(f"SELECT max(finished_at) FROM {jobs} WHERE group_id = ?", (group_id,))  # noqa: S608 - a fragment of ours
    return counts, groups.advance(group, event, now=when(last[0]) if last else tx.now)


def _failures(tx: Tx, group_id: str) -> list[Row]:
    """The first few jobs of a group that failed or expired; a walk for each state, since one over both would sort them all."""
    rows: list[Row] = []
    for state in (JobState.FAILED, JobState.EXPIRED):
        rows += tx.rows(
            f"SELECT {JOB_COLUMNS} {JOB_FROM} WHERE j.group_id = ? AND j.state = ? ORDER BY j.seq LIMIT ?",
            (group_id, state.value, MAX_FAILURES),
        )
    return sorted(rows)[:MAX_FAILURES]
