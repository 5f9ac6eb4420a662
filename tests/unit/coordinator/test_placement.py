"""Placement: pure functions over values."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.loops.silence import Silence
from ostler.coordinator.placement.choose import Candidate, Credit, Room, choose
from ostler.coordinator.placement.fair import FairShare
from ostler.coordinator.placement.offer import offer_of
from ostler.coordinator.placement.rank import AGEING, rank_of
from ostler.coordinator.placement.shape import Shape, read_shape, shape_of, write_shape
from ostler.model.manifest import Manifest, Policy, Requirements, Runner
from ostler.model.resources import Offer, Resources, unmet
from ostler.model.sandbox import SandboxAbilities, SandboxLevel
from store_rig import capabilities


def shape(**needs) -> Shape:
    return shape_of(Manifest(command="true", requirements=Requirements(**needs)))


def offer(*, vram: tuple[int, ...] = (), gpu_slots: int | None = None, **capacity) -> Offer:
    slots = len(vram) if gpu_slots is None else gpu_slots
    base = {"cpu_slots": 4, "gpu_slots": slots, "cpu_threads": 8, "memory_mb": 1000, "disk_mb": 1000}
    return Offer(node_id="n1", capacity=Resources(**{**base, **capacity}), vram_mb=vram)


def queue(*jobs: tuple[int, int]) -> list[Candidate]:
    """(priority, seq) pairs in the claim's order."""
    return [
        Candidate(seq, f"j{seq}", rank_of(priority, seq), 0, 0)
        for priority, seq in sorted(jobs, key=lambda job: (-job[0], job[1]))
    ]


def test_a_shape_is_what_placement_needs_and_nothing_else():
    one = Manifest(command="a", requirements=Requirements(tags=("x",)), labels={"a": "b"}, priority=3, timeout_s=1)
    two = Manifest(command="b", requirements=Requirements(tags=("x",)))
    assert shape_of(one) == shape_of(two)
    assert write_shape(shape_of(one)) == write_shape(shape_of(two))
    others = [
        Manifest(command="a", requirements=Requirements(tags=("y",))), Manifest(command="a", queue="slow"),
        Manifest(runner=Runner.PYTHON, task="t"), Manifest(command="a", policy=Policy(sandbox=SandboxLevel.BWRAP)),
    ]  # fmt: skip
    ids = {write_shape(shape_of(other))[0] for other in [one, *others]}
    assert len(ids) == 5
    assert all(0 <= number < 2**63 for number in ids)
    for other in others:
        found = shape_of(other)
        assert read_shape(write_shape(found)[1]) == found
        assert found.asks.requirements == other.requirements
        assert found.asks.policy.sandbox is other.policy.sandbox


def test_an_offer_leaves_out_what_this_release_does_not_know():
    has = capabilities(
        "n1", vram=(24_000, 0), runners=("cli", "quantum"), tags=("fast",), sandbox=SandboxAbilities(levels=("none", "vault"))
    )
    found = offer_of("n1", has, cpu_slots=2, gpu_slots=2)
    assert found.runners == {Runner.CLI}
    assert found.sandbox_levels == {SandboxLevel.NONE}
    assert found.tags == {"fast"}
    assert (found.vram_mb, found.capacity.cpu_threads) == ((24_000, 0), 8)
    assert offer_of("n1", None, cpu_slots=2, gpu_slots=0).runners == frozenset()


def test_the_first_by_priority_and_age_over_all_shapes():
    queues = [(shape(), queue((0, 1), (9, 5))), (shape(memory_mb=1), queue((9, 2), (0, 3)))]
    assert [one.seq for one in choose(Room(offer(), []), Credit(10, 0), queues)] == [2, 5, 1, 3]
    assert [one.seq for one in choose(Room(offer(), []), Credit(3, 0), queues)] == [2, 5, 1]
    assert choose(Room(offer(), []), Credit(0, 9), queues) == []


def test_a_shape_without_room_steps_aside():
    queues = [(shape(memory_mb=600), queue((9, 1), (9, 2))), (shape(memory_mb=300), queue((0, 3), (0, 4)))]
    assert [one.seq for one in choose(Room(offer(), []), Credit(9, 0), queues)] == [1, 3]


def test_each_kind_of_slot_has_its_credit():
    queues = [(shape(gpus=2), queue((0, 1), (0, 2))), (shape(gpu=True), queue((0, 3))), (shape(), queue((0, 4), (0, 5)))]
    room = Room(offer(vram=(1, 1, 1, 1)), [])
    assert [one.seq for one in choose(room, Credit(1, 3), queues)] == [1, 3, 4]


def test_video_memory_is_matched_largest_to_largest():
    room = Room(offer(vram=(24, 8)), [])
    assert room.fits(shape(vram_mb=20))
    room.take(shape(vram_mb=20))
    assert not room.fits(shape(vram_mb=20))
    assert room.fits(shape(vram_mb=8))
    assert room.fits(shape(gpu=True))
    shared = Room(offer(vram=(24, 8), gpu_slots=4), [shape(vram_mb=20)])  # two jobs may share a GPU
    assert shared.fits(shape(vram_mb=20))
    shared.take(shape(vram_mb=20))
    assert not shared.fits(shape(vram_mb=20))
    assert not Room(offer(gpu_slots=1), []).fits(shape(gpu=True))


def test_a_shrunk_node_takes_nothing_and_breaks_nothing():
    room = Room(offer(memory_mb=100), [shape(memory_mb=600)])
    assert room.free.memory_mb == -500
    assert not room.fits(shape(memory_mb=1))
    assert room.fits(shape())


def test_the_measured_disk_bounds_a_job_without_counting_twice():
    room = Room(offer(disk_mb=1000), [shape(disk_mb=600)], disk_free_mb=400)
    assert room.fits(shape(disk_mb=400))
    assert not room.fits(shape(disk_mb=401))
    assert not Room(offer(disk_mb=1000), [], disk_free_mb=100).fits(shape(disk_mb=200))


needs = st.builds(
    Requirements,
    gpus=st.integers(0, 3), vram_mb=st.sampled_from([0, 0, 8, 24]), cpu_threads=st.integers(0, 4), memory_mb=st.integers(0, 500),
    disk_mb=st.integers(0, 500),
)  # fmt: skip


@given(
    some=st.lists(st.tuples(needs, st.lists(st.integers(-2, 2), min_size=1, max_size=5)), max_size=5),
    live=st.lists(needs, max_size=3),
    vram=st.lists(st.sampled_from([8, 16, 24]), max_size=4),
    credit=st.builds(Credit, cpu=st.integers(0, 5), gpu=st.integers(0, 5)),
)
def test_what_is_chosen_fits_together_and_nothing_that_fits_is_passed_over(some, live, vram, credit):
    def as_shape(need: Requirements) -> Shape:
        return shape_of(Manifest(command="x", requirements=need))

    distinct = dict(some)
    number = iter(range(100))
    queues = [(as_shape(need), queue(*[(priority, next(number)) for priority in each])) for need, each in distinct.items()]
    node = offer(vram=tuple(vram))
    chosen = choose(Room(node, map(as_shape, live)), credit, queues)
    by_seq = {one.seq: found for found, jobs in queues for one in jobs}
    taken = [by_seq[one.seq] for one in chosen]
    assert len(set(chosen)) == len(chosen)
    assert sum(one.demand.cpu_slots for one in taken) <= credit.cpu
    assert sum(one.demand.gpu_slots for one in taken) <= credit.gpu
    total = Resources.total([as_shape(one).demand for one in live])
    for one in taken:
        total = total + one.demand
    begun = Resources.total(one.demand for one in taken)
    for name in ("gpu_slots", "cpu_threads", "memory_mb", "disk_mb"):
        assert getattr(begun, name) == 0 or getattr(total, name) <= getattr(node.capacity, name)
    for found, jobs in queues:  # of each shape a prefix of its queue, and no head left that fits beside the others
        mine = [one for one in chosen if by_seq[one.seq] == found]
        assert mine == jobs[: len(mine)]
        if len(mine) < len(jobs):
            left = Credit(
                credit.cpu - sum(one.demand.cpu_slots for one in taken), credit.gpu - sum(one.demand.gpu_slots for one in taken)
            )
            gpus = found.demand.gpu_slots
            room = Room(node, [*map(as_shape, live), *taken])
            assert not room.fits(found) or (gpus > left.gpu if gpus else left.cpu < 1)


@given(
    st.integers(0, 6),
    st.builds(Credit, cpu=st.integers(0, 4), gpu=st.integers(0, 2), now=st.none() | st.integers(0, 3)),
    st.builds(dict, memory_mb=st.sampled_from([0, 300]), gpus=st.sampled_from([0, 1])),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 3),
)
def test_jobs_of_one_shape_are_chosen_as_among_others(count, credit, needs, hasty, spread, spare):
    """The short way for them, beside the long one, which a queue without jobs leads to."""
    one, other = shape(**needs), shape(memory_mb=1)
    jobs = queue(*[(-number, number) for number in range(count)])
    found = []
    for queues in ([(one, jobs)], [(one, jobs), (other, [])]):
        room, fair = Room(offer(memory_mb=1000, vram=(8000, 8000)), []), FairShare()
        chosen = choose(
            room, credit, queues, fair=fair, latency={"default"} if hasty else set(), spread=spread,
            spare={} if spare is None else {None: spare},
        )  # fmt: skip
        found.append((chosen, room.free, fair.times))
    assert found[0] == found[1]


@given(st.sampled_from([None, "default", "lab"]), st.sampled_from([None, "n1", "n2"]), st.sampled_from(["default", "lab"]))
def test_a_job_runs_in_its_pool_and_one_that_names_neither_pool_nor_node_in_the_default(pool, node, where):
    asks = Manifest(command="x", requirements=Requirements(pool=pool, node=node))
    has = Offer(node_id="n1", pool=where, capacity=Resources(cpu_slots=1), runners=frozenset({Runner.CLI}))
    wanted = pool or ("default" if node is None else where)
    assert ("pool" in dict(unmet(asks, has))) == (wanted != where)


# --- silence -----------------------------------------------------------------------------------------------------------------


def test_silence_counts_what_was_watched():
    silence: Silence[str] = Silence(max_step_s=5)
    assert silence.observe({"a": 1, "b": 1}, 100) == {"a": 0, "b": 0}
    assert silence.observe({"a": 1, "b": 2}, 103) == {"a": 3, "b": 0}
    assert silence.observe({"a": 1, "c": 9}, 9999) == {"a": 8, "c": 0}  # a long gap counts as one step
    assert silence.observe({"a": 1, "b": 2, "c": 9}, 9000) == {"a": 8, "b": 0, "c": 0}  # and a clock that went back as none


# --- configuration -----------------------------------------------------------------------------------------------------------


def test_the_configuration_names_every_contradiction(tmp_path):
    good = CoordinatorConfig(data=tmp_path)
    assert good.problems() == []
    assert good.database == str(tmp_path / "ostler.db")
    assert CoordinatorConfig(data=tmp_path, store="sqlite:///x").database == "sqlite:///x"
    bad = CoordinatorConfig(
        data=tmp_path, listen_port=70_000, lease=timedelta(seconds=30), heartbeat=timedelta(seconds=20), pull_wait=timedelta(0),
        lease_margin=timedelta(seconds=-1), max_log_bytes=0, max_batch=0,
    )  # fmt: skip
    fields = [line.partition(":")[0] for line in bad.problems()]
    assert fields == ["listen_port", "pull_wait", "lease_margin", "heartbeat", "max_log_bytes", "max_batch"]


@pytest.mark.parametrize("margin", [0.5, 1.0])
def test_the_margin_is_longer_than_what_a_pull_may_leave_unrenewed(tmp_path, margin):
    config = CoordinatorConfig(data=tmp_path, lease_margin=timedelta(seconds=margin))
    assert [line.partition(":")[0] for line in config.problems()] == ["lease_margin"]


def test_a_point_of_priority_is_worth_some_waiting():
    minute = int(AGEING.total_seconds() * 1e6)
    assert rank_of(0, 0) < rank_of(0, 1)
    assert rank_of(1, 0) < rank_of(0, 0)
    assert rank_of(10, 10 * minute + 1) > rank_of(0, 0) > rank_of(10, 10 * minute - 1)
    assert rank_of(-1000, 0) < rank_of(1000, 2000 * minute + 1)  # however important the others, everybody's turn comes
