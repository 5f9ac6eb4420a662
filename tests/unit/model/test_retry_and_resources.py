"""Retry decisions and resource arithmetic."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model import errors
from ostler.model.failures import CODES, FailureCode, Retry
from ostler.model.manifest import Manifest, Policy, Requirements, RetryPolicy, Runner
from ostler.model.resources import Offer, Resources, demand, unmet
from ostler.model.retry import decide
from ostler.model.sandbox import SandboxAbilities, SandboxLevel, strongest

NEVER = [code for code, info in CODES.items() if info.retry is Retry.NEVER]


@given(st.sampled_from(NEVER), st.integers(1, 50))
def test_what_makes_no_sense_is_never_retried(code, tries):
    assert decide(RetryPolicy(max=100), code=code, tries=tries, jitter=0) is None


@given(st.integers(0, 100), st.integers(1, 200), st.floats(-1, 1))
def test_retries_end_and_waits_are_bounded(most, tries, jitter):
    wait = decide(RetryPolicy(max=most, backoff_s=1, max_backoff_s=60), code=FailureCode.LOST, tries=tries, jitter=jitter)
    assert (wait is None) == (tries > most)
    if wait is not None:
        assert timedelta(seconds=0.9) <= wait <= timedelta(seconds=66)


def test_waits_double():
    policy = RetryPolicy(max=9, backoff_s=2, max_backoff_s=10)
    waits = [decide(policy, code=FailureCode.EXIT, tries=n, jitter=0).total_seconds() for n in range(1, 6)]
    assert waits == [2, 4, 8, 10, 10]


def test_codes_narrow():
    policy = RetryPolicy(codes=(FailureCode.OOM,))
    assert decide(policy, code=FailureCode.EXIT, tries=1, jitter=0) is None
    assert decide(policy, code=FailureCode.OOM, tries=1, jitter=0) is not None


vectors = st.builds(
    Resources,
    cpu_slots=st.integers(0, 99),
    gpu_slots=st.integers(0, 99),
    cpu_threads=st.integers(0, 99),
    memory_mb=st.integers(0, 10**6),
    disk_mb=st.integers(0, 10**6),
)


@given(vectors, vectors, vectors)
def test_arithmetic(a, b, c):
    assert (a + b) - b == a
    assert Resources.total([a, b, c]) == a + b + c
    assert (a + b).covers(a)
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


def test_a_lack_of_something_not_asked_for_is_never_in_the_way():
    assert Resources(cpu_slots=1, memory_mb=-500).covers(Resources(cpu_slots=1))
    assert not Resources(cpu_slots=1).covers(Resources(cpu_slots=1, memory_mb=1))


OFFER = Offer(
    node_id="n1",
    capacity=Resources(cpu_slots=2, gpu_slots=1, cpu_threads=8, memory_mb=16000, disk_mb=1000),
    vram_mb=(16384,),
    tags=frozenset({"cuda"}),
    runners=frozenset({Runner.CLI}),
    sandbox_levels=frozenset({SandboxLevel.PROCESS}),
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"requirements": Requirements(gpu=True, vram_mb=12000, cpu_threads=4, tags=("cuda",), node="n1")}, []),
        ({"runner": Runner.PYTHON}, ["runner"]),
        ({"requirements": Requirements(node="n2")}, ["node"]),
        ({"requirements": Requirements(tags=("a", "cuda"))}, ["tags"]),
        ({"requirements": Requirements(gpus=2)}, ["gpu"]),
        ({"requirements": Requirements(vram_mb=20000)}, ["vram_mb"]),
        ({"requirements": Requirements(cpu_threads=9, memory_mb=10**6, disk_mb=2000)}, ["cpu_threads", "memory_mb", "disk_mb"]),
        ({"policy": Policy(sandbox=SandboxLevel.BWRAP)}, ["sandbox"]),
        ({"policy": Policy(sandbox=SandboxLevel.PROCESS)}, []),
    ],
)
def test_each_unmet_requirement_is_named(fields, expected):
    found = unmet(Manifest(command="true", **fields), OFFER)
    assert [name for name, _ in found] == expected
    assert all(reason for _, reason in found)


def test_a_node_without_slots_meets_nothing():
    offer = Offer(node_id="n", capacity=Resources(), runners=frozenset({Runner.CLI}))
    assert [name for name, _ in unmet(Manifest(command="true"), offer)] == ["slots"]


def test_demand_takes_one_kind_of_slot():
    assert demand(Requirements(cpu_threads=3)) == Resources(cpu_slots=1, cpu_threads=3)
    assert demand(Requirements(gpus=2)) == Resources(gpu_slots=2)


def leaves(cls):
    """The classes of the tree itself; a part may have finer ones of its own."""
    children = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [cls, *(leaf for sub in children for leaf in leaves(sub))]


def test_the_error_tree_has_distinct_codes_and_good_statuses():
    classes = leaves(errors.OstlerError)
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes[1:]:
        assert 400 <= cls.status < 600
        assert cls.__name__ in errors.__doc__


def test_errors_carry_what_their_reader_needs():
    assert errors.Unauthenticated("no", challenge="c").challenge == "c"
    assert errors.OffsetMismatch("no", offset=7).offset == 7
    assert errors.NoCapacity("later", retry_after=3).retry_after == 3
    assert errors.NotFound("no job j", hint="ostler job list").hint == "ostler job list"


def test_sandbox_levels_are_ordered_by_rank():
    ranked = sorted(SandboxLevel, key=lambda level: level.rank)
    assert ranked[:3] == [SandboxLevel.NONE, SandboxLevel.PROCESS, SandboxLevel.BWRAP]
    assert SandboxLevel.CONTAINER.at_least(SandboxLevel.BWRAP)
    assert not SandboxLevel.PROCESS.at_least(SandboxLevel.BWRAP)
    assert strongest(SandboxLevel.PROCESS, SandboxLevel.NONE) is SandboxLevel.PROCESS
    assert strongest(None) is SandboxLevel.NONE


def test_levels_of_a_later_release_are_ignored():
    abilities = SandboxAbilities(levels=("bwrap", "hypervisor", "none"))
    assert abilities.known_levels() == (SandboxLevel.NONE, SandboxLevel.BWRAP)
