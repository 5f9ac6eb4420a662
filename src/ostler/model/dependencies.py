"""Dependencies: what one job waits for in another, what an end means to those who wait, and cycles, which would wait for ever."""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ostler.model.enumeration import Word
from ostler.model.job import JobState

STRICT = {"extra": "forbid"}
N = TypeVar("N", bound=Hashable)


class Until(Word):
    """Which end is waited for."""

    SUCCESS = "success"
    DONE = "done"  # any end


class Otherwise(Word):
    """What becomes of a job once the success that it waits for cannot come any more."""

    CANCEL = "cancel"
    HOLD = "hold"  # a person decides: a release lets it run all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A job, or an array or group and so all its jobs, whose end is waited for; `otherwise` counts with `until: success` alone."""

    __pydantic_config__ = STRICT

    job: str
    until: Until = Until.SUCCESS
    otherwise: Otherwise = Otherwise.CANCEL


@dataclass(frozen=True, slots=True)
class Edge:
    """`job` waits for `on`; both are numbers of jobs."""

    on: int
    job: int
    until: Until
    otherwise: Otherwise


@dataclass(frozen=True, slots=True)
class Fallout:
    """What some ends mean: who is cancelled and who is held, each because of which job; and who else has one less to wait for."""

    cancelled: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    nearer: frozenset[int] = frozenset()


def fallout(edges: Iterable[Edge], ended: Mapping[int, JobState]) -> Fallout:
    """What the ends of jobs mean to those that wait for them, and to those that wait for these in turn."""
    waiting: dict[int, list[Edge]] = defaultdict(list)
    for edge in edges:
        waiting[edge.on].append(edge)
    cancelled: dict[int, int] = {}
    held: dict[int, int] = {}
    nearer: set[int] = set()
    news = deque(ended.items())
    while news:
        on, state = news.popleft()
        for edge in waiting.get(on, ()):
            if edge.job in cancelled:
                continue
            nearer.add(edge.job)
            if edge.until is Until.DONE or state is JobState.DONE:
                continue
            if edge.otherwise is Otherwise.HOLD:
                held.setdefault(edge.job, on)
            else:
                cancelled[edge.job] = on
                news.append((edge.job, JobState.CANCELLED))
    alive = {job: on for job, on in held.items() if job not in cancelled}
    return Fallout(cancelled, alive, frozenset(nearer - cancelled.keys()))


def find_cycle(graph: Mapping[N, Sequence[N]]) -> list[N] | None:
    """Some nodes of which each leads to the next and the last to the first; None where there is no such ring."""
    done: set[N] = set()
    for start in graph:
        if start in done:
            continue
        path: dict[N, None] = {start: None}  # in order, and quick to look into
        ahead = [iter(graph[start])]
        while ahead:
            step = next(ahead[-1], None)
            if step is None:
                ahead.pop()
                done.add(path.popitem()[0])
            elif step in path:
                nodes = list(path)
                return nodes[nodes.index(step) :]
            elif step not in done and step in graph:
                path[step] = None
                ahead.append(iter(graph[step]))
    return None
