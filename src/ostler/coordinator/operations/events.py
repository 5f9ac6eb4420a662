"""Events as readers get them: windows of the append-only table, from a cursor on. All run through `Store.read`.

A cursor is the id of the last event that its reader saw. Ids are in the order of the commits as far as `Tx.settled` lets a reader
see, so whoever goes on behind a cursor skips nothing.
"""

from typing import NamedTuple

from ostler.coordinator.operations import sessions
from ostler.coordinator.operations.ownership import of_group, of_job
from ostler.coordinator.operations.views import no_job, read_cursor, write_cursor
from ostler.coordinator.store.times import when
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import Gone, InvalidSpec, NotFound, Problem
from ostler.model.events import KINDS
from ostler.protocol.messages import EventQuery, FleetEvent

WINDOW = 1000  # rows of one read: some milliseconds
LATEST = "latest"


class Found(NamedTuple):
    """One event and what decides who may see it."""

    id: int
    kind: str
    owner: str | None
    event: FleetEvent


class Window(NamedTuple):
    """Events behind a cursor, first to last; `end` is where to go on, `more` whether more waits there already."""

    found: tuple[Found, ...]
    end: int
    more: bool


class Filter(NamedTuple):
    """Which events a reader wants, of those that are its to see; `job_seq` stands for the query's job."""

    owner: str | None
    job_seq: int | None
    node_id: str | None
    group_id: str | None
    kinds: frozenset[str]

    def takes(self, one: Found) -> bool:
        """Whether the reader gets it. One who is confined to own jobs gets no event that is of no job."""
        return (
            (self.owner is None or one.owner == self.owner)
            and (not self.kinds or one.kind in self.kinds)
            and (self.node_id is None or one.event.node_id == self.node_id)
            and (self.group_id is None or one.event.group_id == self.group_id)
        )


class Start(NamedTuple):
    """Where a reader begins, and its filter."""

    after: int
    wanted: Filter


_COLUMNS = "e.id, e.at, e.kind, j.job_id, j.group_id, j.owner, e.attempt, e.node_id, e.message"


def begin(tx: Tx, query: EventQuery, owner: str | None) -> Start:
    """Reads a query. Raises InvalidSpec, NotFound (the caller has no such job, array or node) and Gone (what it asks for was deleted)."""
    kinds = frozenset(word.strip() for word in (query.kind or "").split(",") if word.strip())
    check_kinds(kinds)
    if query.after is not None and query.since_s is not None:
        raise InvalidSpec("the query is not valid", [Problem("since_s", "does not go with `after`, which says where to begin")])
    job_seq = None if query.job is None else of_job(owner, _seq_of)(tx, query.job)
    if query.group is not None:
        of_group(owner, _check_group)(tx, query.group)
    if query.node is not None and owner is None:  # to others it stays open which nodes there are
        sessions.known(tx, query.node)
    return Start(_place(tx, query), Filter(owner, job_seq, query.node, query.group, kinds))


def check_kinds(kinds: frozenset[str]) -> None:
    """Raises InvalidSpec for a kind that does not exist: it would match nothing, for ever."""
    if unknown := sorted(kinds - KINDS):
        problem = Problem("kind", f"{', '.join(unknown)[:200]} is unknown; there are {', '.join(sorted(KINDS))}")
        raise InvalidSpec("the kinds of events are not valid", [problem])


def _seq_of(tx: Tx, job_id: str) -> int:
    row = tx.row("SELECT seq FROM jobs WHERE job_id = ?", (job_id,))
    if row is None:
        raise no_job(tx, job_id)
    return int(row[0])


def _check_group(tx: Tx, group_id: str) -> None:
    if tx.row("SELECT 1 FROM groups WHERE group_id = ?", (group_id,)) is None:
        raise NotFound(f"there is no array or group {group_id}", hint="see `ostler job list`")


def _place(tx: Tx, query: EventQuery) -> int:
    if query.after == LATEST:
        return head(tx)
    if query.since_s is not None:
        return _place_of(tx, tx.at - int(query.since_s * 1_000_000))
    place = read_cursor(query.after, (int,))
    after = 0 if place is None else int(place[0])
    _check_kept(tx, after)
    return after


def head(tx: Tx) -> int:
    """The last event of all; 0 before the first."""
    row = tx.row(f"SELECT max(e.id) FROM events e WHERE {tx.settled('events', 'e')}")  # noqa: S608 - a fragment of ours
    return int(row[0]) if row and row[0] is not None else 0


def _place_of(tx: Tx, at: int) -> int:
    """The last event before a time: ids grow with time, so a search by halves along them needs no index of its own."""
    row = tx.row("SELECT min(id) FROM events")
    if row is None or row[0] is None:
        return 0
    low, high = int(row[0]) - 1, head(tx)  # at `low` and before: too early; behind `high`: late enough
    while low < high:
        middle = (low + high + 1) // 2
        early = tx.row("SELECT 1 FROM events WHERE id = (SELECT min(id) FROM events WHERE id >= ?) AND at < ?", (middle, at))
        low, high = (middle, high) if early else (low, middle - 1)
    return low


def _check_kept(tx: Tx, after: int) -> None:
    """Ids have no gaps but where old events were deleted, first the oldest; and, where `events_removed` says up to where that went,
    where a transaction was undone.
    """
    if after <= 0:
        return
    row = tx.row("SELECT min(id) FROM events")
    if row is not None and row[0] is not None and row[0] > after + 1:
        if tx.gaps:
            removed = tx.row("SELECT next FROM counters WHERE name = 'events_removed'")
            if removed is None or removed[0] <= after:
                return
        raise Gone(
            "events behind this cursor were deleted meanwhile",
            hint="begin anew without a cursor, at the oldest event that is kept, and look the present state up: `ostler job list`",
        )


def window(tx: Tx, after: int, job_seq: int | None = None) -> Window:
    """The next events, of everybody or of one job. Raises Gone where some were deleted before they were read."""
    _check_kept(tx, after)
    of, params = ("", ()) if job_seq is None else ("AND e.job_seq = ?", (job_seq,))
    last = after if job_seq is None else max(after, head(tx))
    rows = tx.rows(
        f"SELECT {_COLUMNS} FROM events e LEFT JOIN jobs j ON j.seq = e.job_seq "  # noqa: S608 - fragments of ours
        f"WHERE e.id > ? {of} AND {tx.settled('events', 'e')} ORDER BY e.id LIMIT ?",
        (after, *params, WINDOW),
    )
    found = tuple(
        Found(
            number, kind, owner,
            FleetEvent(
                cursor=write_cursor(number), at=when(at), kind=kind, job_id=job_id, group_id=group_id, owner=owner,
                attempt=attempt, node_id=node_id, message=message,
            ),
        )
        for number, at, kind, job_id, group_id, owner, attempt, node_id, message in rows
    )  # fmt: skip
    more = len(found) == WINDOW
    return Window(found, found[-1].id if found and (more or job_seq is None) else last, more)
