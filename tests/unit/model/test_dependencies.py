"""Dependencies decided purely: cycles are found and are real, and ends reach exactly whom they mean something to."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.model.dependencies import Edge, Otherwise, Until, fallout, find_cycle
from ostler.model.job import TERMINAL, JobState

NODES = st.integers(0, 12)
GRAPHS = st.dictionaries(NODES, st.lists(NODES, max_size=4), max_size=13)
ENDS = st.sampled_from(sorted(TERMINAL))


def sortable(graph):
    """Whether nodes can be taken away one by one, each once it leads to none that is left: Kahn's way, and no depth-first search."""
    left = {node: {to for to in after if to in graph} for node, after in graph.items()}
    while free := [node for node, after in left.items() if not after]:
        left = {node: after - set(free) for node, after in left.items() if node not in free}
    return not left


@given(GRAPHS)
@settings(max_examples=400)
def test_a_cycle_is_found_where_there_is_one_and_is_real(graph):
    cycle = find_cycle(graph)
    assert (cycle is None) == sortable(graph)
    if cycle is not None:
        assert len(set(cycle)) == len(cycle)
        assert all(to in graph[node] for node, to in zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def test_cycles_of_every_length():
    assert find_cycle({1: [1]}) == [1]
    assert find_cycle({1: [2], 2: [3], 3: [2]}) == [2, 3]
    count = 100_000  # deeper than any recursion
    ring = {node: [(node + 1) % count] for node in range(count)}
    assert len(find_cycle(ring) or ()) == count
    ring[count - 1] = []
    assert find_cycle(ring) is None


@st.composite
def waits(draw):
    """A graph without cycles (each waits for smaller numbers alone), and how some of the jobs that wait for none ended."""
    size = draw(st.integers(2, 14))
    edges = [
        Edge(on, job, draw(st.sampled_from(Until)), draw(st.sampled_from(Otherwise)))
        for job in range(1, size)
        for on in sorted(draw(st.sets(st.integers(0, job - 1), max_size=3)))
    ]
    roots = sorted(set(range(size)) - {edge.job for edge in edges})
    return edges, {job: draw(ENDS) for job in draw(st.sets(st.sampled_from(roots), min_size=1))}


@given(waits(), st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_what_ends_mean(case, shuffle: random.Random):
    edges, ended = case
    found = fallout(edges, ended)
    # By the definition, one job after the other in the order of their numbers: every wait is for a smaller one.
    states = dict(ended)
    held, nearer = set(), set()
    for job in sorted({edge.job for edge in edges}):
        over = [edge for edge in edges if edge.job == job and edge.on in states]
        lost = [edge for edge in over if edge.until is Until.SUCCESS and states[edge.on] is not JobState.DONE]
        if any(edge.otherwise is Otherwise.CANCEL for edge in lost):
            states[job] = JobState.CANCELLED
            continue
        if lost:
            held.add(job)
        if over:
            nearer.add(job)
    assert set(found.cancelled) == set(states) - set(ended)
    assert (set(found.held), found.nearer) == (held, nearer)
    for job, on in (found.cancelled | found.held).items():
        assert any(edge.on == on and edge.job == job and edge.until is Until.SUCCESS for edge in edges)
        assert states[on] is not JobState.DONE
    mixed = shuffle.sample(edges, len(edges))
    again = fallout(mixed, ended)
    assert (set(again.cancelled), set(again.held), again.nearer) == (set(found.cancelled), set(found.held), found.nearer)


def test_a_long_chain_falls_as_a_whole():
    edges = [Edge(job, job + 1, Until.SUCCESS, Otherwise.CANCEL) for job in range(100_000)]
    assert len(fallout(edges, {0: JobState.FAILED}).cancelled) == 100_000
    assert fallout(edges, {0: JobState.DONE}).nearer == {1}
