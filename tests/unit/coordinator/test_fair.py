"""Fair share between submitters and the two classes of queues: pure functions over values."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ostler.coordinator.placement.choose import Candidate, Credit, Room, choose
from ostler.coordinator.placement.fair import LEAD, FairShare, cost_of
from ostler.coordinator.placement.rank import rank_of
from ostler.coordinator.placement.shape import Shape, shape_of
from ostler.model.manifest import Manifest, Requirements
from ostler.model.resources import Offer, Resources

LATENCY = frozenset({"interactive"})


def shape(owner, queue="default", **needs) -> Shape:
    return shape_of(Manifest(command="true", queue=queue, requirements=Requirements(**needs)), owner)


def node(slots=4, **capacity) -> Offer:
    return Offer(node_id="n", capacity=Resources(cpu_slots=slots, cpu_threads=8, memory_mb=1000, disk_mb=1000, **capacity))


class Line:
    """What is queued, by shape; a claim takes its heads as the coordinator does."""

    def __init__(self, fair=None) -> None:
        self.fair = fair or FairShare()
        self.queues: dict[Shape, list[Candidate]] = {}
        self._seq = 0

    def add(self, what: Shape, count: int = 1, priority: int = 0) -> None:
        for _ in range(count):
            self._seq += 1
            job = Candidate(self._seq, f"j{self._seq}", rank_of(priority, self._seq), 0, 0)
            self.queues.setdefault(what, []).append(job)
        self.queues[what].sort(key=lambda job: (job.rank, job.seq))

    def claim(self, cpu: int, *, on: Offer | None = None, live=(), **how) -> list[tuple[str, int]]:
        """(owner, seq) of what a node gets, in order."""
        on = on or node(slots=cpu)
        self.fair.admit(one.owner for one, jobs in self.queues.items() if jobs)
        room = Room(on, live)
        heads = [(one, iter(jobs)) for one, jobs in self.queues.items() if jobs and room.fits(one)]
        chosen = choose(room, Credit(cpu, 0, how.pop("now", None)), heads, fair=self.fair, **how)
        took = {job.seq for job in chosen}
        owners = {job.seq: one.owner for one, jobs in self.queues.items() for job in jobs}
        for one, jobs in self.queues.items():
            self.queues[one] = [job for job in jobs if job.seq not in took]
        return [(owners[job.seq], job.seq) for job in chosen]


def test_with_one_slot_two_submitters_alternate_however_long_their_queues_are():
    line = Line()
    line.add(shape("a"), 10_000)
    line.add(shape("b"), 10)
    got = [line.claim(1)[0][0] for _ in range(30)]
    assert got == ["a", "b"] * 10 + ["a"] * 10


def test_who_slept_saved_up_nothing_and_who_came_back_lost_nothing():
    line = Line()
    line.add(shape("a"), 10_000)
    for _ in range(5):
        line.claim(100)
    line.add(shape("b"), 1000)  # 500 slots behind, and new
    assert Counter(owner for owner, _ in line.claim(100)) == {"a": 50, "b": 50}
    line.queues[shape("b")] = []
    line.claim(100)
    line.add(shape("b"), 1000)
    assert Counter(owner for owner, _ in line.claim(100)) == {"a": 50, "b": 50}


def test_a_large_job_counts_for_what_it_takes():
    line = Line()
    line.add(shape("large", cpu_threads=8), 100)  # all of a node with 4 slots
    line.add(shape("small"), 1000)
    got = Counter()
    for _ in range(50):  # one job at a time on an idle node
        got.update(owner for owner, _ in line.claim(1, on=node(4)))
    assert got == {"large": 10, "small": 40}
    assert cost_of(shape("x"), node(4).capacity) == 1
    assert cost_of(shape("x", memory_mb=500), node(4).capacity) == 2
    assert cost_of(shape("x", gpus=2), Resources(cpu_slots=2, gpu_slots=4)) == 1
    assert cost_of(shape("x", gpus=2), Resources(gpu_slots=4)) == 2
    assert cost_of(shape("x"), Resources()) == 1


def test_nodes_of_ones_own_are_not_held_against_anybody_for_long():
    line = Line()
    line.fair.admit(["a", "b"])  # b waits for another machine meanwhile
    for _ in range(5000):
        line.fair.charge("a", 1)
    line.add(shape("a"), 1000)
    line.add(shape("b"), 1000)
    before = Counter(owner for owner, _ in line.claim(int(LEAD), on=node(4)))
    after = Counter(owner for owner, _ in line.claim(100))
    assert before == {"b": LEAD}
    assert after == {"a": 50, "b": 50}


def test_within_a_submitter_priority_and_age_decide_and_between_them_they_do_not():
    line = Line()
    line.add(shape("a"), 2, priority=1000)
    line.add(shape("b"), 1)
    line.add(shape("b"), 1, priority=5)
    assert line.claim(4) == [("a", 1), ("b", 4), ("a", 2), ("b", 3)]


def test_a_submitter_at_a_limit_is_not_offered_more():
    line = Line()
    line.add(shape("a"), 9)
    line.add(shape("b"), 9)
    assert Counter(owner for owner, _ in line.claim(6, spare={"a": 1})) == {"a": 1, "b": 5}
    assert line.claim(6, spare={"a": 0, "b": 0}) == []


demands = st.builds(Requirements, cpu_threads=st.integers(0, 8), memory_mb=st.integers(0, 1000))
turns = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=30)


@given(jobs=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 60), min_size=1), turns=turns)
def test_submitters_who_wait_are_level_to_within_a_job_and_nothing_is_left_idle(jobs, turns):
    """The bound: whoever has work left was given at most one job's worth less than anybody else."""
    line = Line()
    for owner, count in jobs.items():
        line.add(shape(owner), count)
    given_to = Counter(dict.fromkeys(jobs, 0))
    for credit, slots in turns:
        waiting = sum(map(len, line.queues.values()))
        got = line.claim(credit, on=node(slots))
        assert len(got) == min(credit, waiting)  # work conserving
        given_to.update(owner for owner, _ in got)
        behind = [given_to[one.owner] for one, rest in line.queues.items() if rest]
        assert not behind or min(behind) >= max(given_to.values()) - 1


@given(
    shapes=st.lists(
        st.tuples(st.sampled_from("abc"), demands, st.integers(1, 20)), min_size=1, max_size=6, unique_by=lambda s: s[:2]
    ),
    turns=st.lists(st.integers(1, 8), min_size=200, max_size=200),
)
def test_nobody_starves_and_everything_that_fits_is_taken(shapes, turns):
    line = Line()
    for owner, need, count in shapes:
        line.add(shape_of(Manifest(command="x", requirements=need), owner), count)
    whole = node(8)
    for credit in turns:
        before = {one: len(jobs) for one, jobs in line.queues.items() if jobs}
        got = line.claim(credit, on=whole)  # an idle node that could run any of them
        assert bool(got) == bool(before)
    assert not any(line.queues.values())  # 120 jobs at most, and each turn takes one or more


@given(
    jobs=st.lists(st.tuples(st.sampled_from([{}, {"memory_mb": 1}, {"cpu_threads": 1}]), st.integers(-3, 3)), max_size=40),
    credit=st.integers(1, 50),
)
def test_of_a_single_submitter_rank_and_age_are_the_order(jobs, credit):
    line = Line()
    order = []
    for number, (need, priority) in enumerate(jobs, 1):
        line.add(shape("a", **need), 1, priority)
        order.append((rank_of(priority, number), number))
    big = Offer(node_id="n", capacity=Resources(cpu_slots=50, cpu_threads=100, memory_mb=100, disk_mb=0))
    assert [seq for _, seq in line.claim(credit, on=big)] == [seq for _, seq in sorted(order)][:credit]


# --- latency and throughput --------------------------------------------------------------------------------------------------


def test_latency_goes_first_and_never_beyond_what_begins_now():
    line = Line()
    line.add(shape("a"), 100)
    line.add(shape("a", "interactive"), 5)
    got = line.claim(20, on=node(4), now=2, latency=LATENCY)
    assert [seq for _, seq in got] == [101, 102, *range(1, 19)]
    assert [seq for _, seq in line.claim(0, on=node(4), now=1, latency=LATENCY)] == [103]  # although it asks for no batch
    assert line.claim(0, on=node(4), now=0, latency=LATENCY) == []


def test_a_newcomers_latency_job_is_next():
    line = Line()
    line.add(shape("a"), 1000)
    line.add(shape("c"), 1000)
    line.claim(100)
    line.add(shape("b", "interactive"))
    assert line.claim(1, latency=LATENCY)[0][0] == "b"


def test_latency_jobs_are_spread_while_other_nodes_ask():
    line = Line()
    line.add(shape("a", "interactive"), 3)
    line.add(shape("a"), 10)
    first = line.claim(4, now=4, latency=LATENCY, spread=True)
    assert [seq for _, seq in first] == [1, 4]  # room for the other two is kept
    second = line.claim(4, now=4, latency=LATENCY, spread=True)
    assert [seq for _, seq in second] == [2, 5, 6]
    assert [seq for _, seq in line.claim(4, now=4, latency=LATENCY)] == [3, 7, 8, 9]


def test_a_flood_of_latency_jobs_takes_no_more_than_its_share():
    line = Line()
    line.add(shape("a", "interactive"), 1000)
    line.add(shape("b"), 1000)
    got = Counter(owner for _ in range(50) for owner, _ in line.claim(2, latency=LATENCY))
    assert got == {"a": 50, "b": 50}
