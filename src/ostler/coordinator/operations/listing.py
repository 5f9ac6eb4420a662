"""Lists of jobs, newest first. A page costs the same at the end of a million jobs as at their start, whatever is asked for.

By state, owner and queue, in any combination, jobs stand in one index, apart from each other in *lanes*: each is read along the
index from where the last page ended, and a few newest of each make the page. So its cost depends on how many owners and queues
there are, never on how many jobs. Along labels, nodes and groups what else is asked for is looked at job by job, but no further
than `MAX_LOOKED` of them: such a page may come short, and tells where to go on.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ostler.coordinator.operations.views import JOB_COLUMNS, JOB_FROM, check_limit, job_of, read_cursor, write_cursor
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import InvalidSpec, Problem
from ostler.model.job import JobState
from ostler.protocol.messages import JobPage, JobQuery

MAX_LOOKED = 5000  # jobs that one page looks at, where most of them may not belong to it
WINDOW = 200
WAITING = "waiting"  # no state of its own: queued, and not to be leased yet
_TOP = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Walk:
    """A piece of an index in the page's order; `unless` is what else must be so, of which most of it may not be."""

    source: str
    where: str
    params: tuple[object, ...]
    seq: str = "j.seq"
    besides: str = ""
    besides_params: tuple[object, ...] = ()


def list_jobs(tx: Tx, query: JobQuery) -> JobPage:
    """One page, newest first. Raises InvalidSpec for a bad filter, cursor or limit (1 to 500)."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (int,))
    states = _states(query.state)
    walks = list(walks_of(tx, query, states))
    found, floor = _newest(tx, walks, place[0] if place else _TOP, query.limit + 1)
    page = found[: query.limit]
    rows = {row[0]: row for row in tx.rows(f"SELECT {JOB_COLUMNS} {JOB_FROM} WHERE {tx.any_of('j.seq')}", (tx.array(page),))}
    going_on = page[-1] if len(found) > query.limit else floor
    return JobPage(
        items=tuple(job_of(rows[one]) for one in page),
        next_cursor=None if going_on is None else write_cursor(going_on),
        total=sum(_count(tx, walk) for walk in walks) if query.count else None,
    )


def _newest(tx: Tx, walks: Sequence[Walk], below: int, most: int) -> tuple[list[int], int | None]:
    """The newest jobs of all walks, and how far down they were looked at where that was not to the end."""
    found: list[int] = []
    floor: int | None = None
    for walk in walks:
        if walk.besides:
            some, stopped = _look_through(tx, walk, below, most)
            if stopped is not None:
                floor = max(floor or 0, stopped)
        else:
            above = found[-1] if len(found) == most else -1
            some = [row[0] for row in tx.rows(walk_sql(walk), (*walk.params, below, above, most))]
        found = heapq.nlargest(most, [*found, *some])
    if floor is not None and len(found) < most:
        return [seq for seq in found if seq >= floor], floor
    return [seq for seq in found if floor is None or seq >= floor], floor


def walk_sql(walk: Walk) -> str:
    """The newest of a walk in which everything belongs to the page."""
    return f"""SELECT {walk.seq} FROM {walk.source} WHERE {walk.where} AND {walk.seq} < ? AND {walk.seq} > ?
               ORDER BY {walk.seq} DESC LIMIT ?"""  # noqa: S608 - fragments of ours


def window_sql(walk: Walk) -> str:
    """The next of a walk, each with whether it belongs to the page."""
    return f"""SELECT {walk.seq}, ({walk.besides}) FROM {walk.source} WHERE {walk.where} AND {walk.seq} < ?
               ORDER BY {walk.seq} DESC LIMIT ?"""  # noqa: S608 - fragments of ours


def _look_through(tx: Tx, walk: Walk, below: int, most: int) -> tuple[list[int], int | None]:
    found: list[int] = []
    looked, window = 0, max(most, WINDOW)
    while looked < MAX_LOOKED:
        rows = tx.rows(window_sql(walk), (*walk.besides_params, *walk.params, below, window))
        found += [seq for seq, belongs in rows if belongs]
        looked += len(rows)
        if len(rows) < window or len(found) >= most:
            return found[:most], None
        below, window = rows[-1][0], min(4 * window, MAX_LOOKED - looked)
    return found, below


def _count(tx: Tx, walk: Walk) -> int:
    besides = f" AND ({walk.besides})" if walk.besides else ""
    row = tx.row(f"SELECT count(*) FROM {walk.source} WHERE {walk.where}{besides}", (*walk.params, *walk.besides_params))  # noqa: S608
    return row[0] if row else 0


def walks_of(tx: Tx, query: JobQuery, states: Sequence[JobState | str]) -> Iterator[Walk]:
    """The pieces of indexes that hold all jobs in question and, where they can, no others; no job stands in two of them."""
    if query.label is not None:
        key, separator, value = query.label.partition("=")
        if not separator or not key:
            raise InvalidSpec("the query is not valid", [Problem("label", "must be KEY=VALUE")])
        # The order of the join is told: from the labels, which are in the page's order, to the jobs.
        joined = "labels l CROSS JOIN jobs j"
        besides = _besides(query, states, group=True, node=True)
        yield Walk(joined, "j.seq = l.job_seq AND l.key = ? AND l.value = ?", (key, value), "l.job_seq", *besides)
    elif query.group is not None:
        source = f"jobs j {tx.by_index('ix_jobs_group')}"
        for state in states or JobState:
            real = JobState.QUEUED if state == WAITING else state
            yield Walk(
                source,
                "j.group_id = ? AND j.state = ?",
                (query.group, real),
                "j.seq",
                *_besides(query, [WAITING] if state == WAITING else [], node=True),
            )
    elif query.node is not None:
        yield Walk(f"jobs j {tx.by_index('ix_jobs_node')}", "j.node_id = ?", (query.node,), "j.seq", *_besides(query, states))
    elif not states and query.owner is None and query.queue is None:
        yield Walk("jobs j", "1 = 1", ())
    else:
        for state in states or JobState:
            if state == WAITING:
                source = f"jobs j {tx.by_index('ix_jobs_waiting')}"
                yield Walk(source, "j.waits > 0", (), "j.seq", *_besides(query, []))
            else:
                yield from _lanes(tx, query, state)


def _besides(
    query: JobQuery, states: Sequence[JobState | str], *, group: bool = False, node: bool = False
) -> tuple[str, tuple[object, ...]]:
    """What else is asked for, as a condition; empty where nothing is."""
    found: list[str] = []
    params: list[object] = []
    if states:
        real = [state for state in states if state != WAITING]
        either = [f"j.state IN ({', '.join('?' * len(real))})"] if real else []
        found.append(f"({' OR '.join([*either, *(['j.waits > 0'] if WAITING in states else [])])})")
        params += real
    columns = [("queue", query.queue), ("owner", query.owner)]
    columns += [("group_id", query.group)] * group + [("node_id", query.node)] * node
    for column, value in columns:
        if value is not None:
            found.append(f"j.{column} = ?")
            params.append(value)
    return " AND ".join(found), tuple(params)


def _lanes(tx: Tx, query: JobQuery, state: str) -> Iterator[Walk]:
    """The lanes of a state: one for each owner and queue."""
    source = f"jobs j {tx.by_index('ix_jobs_list')}"
    owners = [query.owner] if query.owner is not None else owners_of(tx, state)
    for owner in owners:
        mine, params = ("j.owner = ?", (state, owner)) if owner is not None else ("j.owner IS NULL", (state,))
        for queue in queues_of(tx, state, owner) if query.queue is None else [query.queue]:
            yield Walk(source, f"j.state = ? AND {mine} AND j.queue = ?", (*params, queue))


def owners_of(tx: Tx, state: str) -> list[str | None]:
    """Whose jobs are in this state: one step down the index for each of them, none for each job."""
    jobs = f"jobs {tx.by_index('ix_jobs_list')}"
    nobody = tx.row(f"SELECT 1 FROM {jobs} WHERE state = ? AND owner IS NULL LIMIT 1", (state,))  # noqa: S608
    return [*([None] if nobody else []), *(row[0] for row in tx.rows(steps_sql(tx, "owner"), (state, state)))]


def queues_of(tx: Tx, state: str, owner: str | None) -> list[str]:
    """The queues in which an owner has jobs in this state, by as many steps."""
    if owner is None:
        return [row[0] for row in tx.rows(steps_sql(tx, "queue", " AND owner IS NULL"), (state, state))]
    return [row[0] for row in tx.rows(steps_sql(tx, "queue", " AND owner = ?"), (state, owner, state, owner))]


def steps_sql(tx: Tx, column: str, where: str = "") -> str:
    """A loose scan of the index of lists: the values of a column of it, each found by one step."""
    jobs = f"jobs {tx.by_index('ix_jobs_list')}"
    return f"""
        WITH RECURSIVE named(one) AS (
            SELECT min({column}) FROM {jobs} WHERE state = ?{where}
            UNION ALL
            SELECT (SELECT min({column}) FROM {jobs} WHERE state = ?{where} AND {column} > named.one) FROM named WHERE one IS NOT NULL
        ) SELECT one FROM named WHERE one IS NOT NULL"""  # noqa: S608 - fragments of ours


def _states(asked: str | None) -> list[JobState | str]:
    if not asked:
        return []
    words = {word.strip() for word in asked.split(",") if word.strip()}
    known = {WAITING, *(state.value for state in JobState)}
    if unknown := sorted(words - known):
        raise InvalidSpec(
            "the query is not valid",
            [Problem("state", f"{', '.join(unknown)} is no state; known are {', '.join(sorted(known))}")],
        )
    found: list[JobState | str] = [state for state in JobState if state.value in words]
    return found if WAITING not in words or JobState.QUEUED in found else [*found, WAITING]
