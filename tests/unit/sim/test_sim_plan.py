"""What a simulation draws, what it refuses, and how it sums up."""

from array import array

import pytest

from ostler.sim.figures import Usage, read_usage, summary
from ostler.sim.plan import Draws, Plan

PLAN = Plan(nodes=10, jobs=5)


def draws(plan: Plan) -> list[float]:
    chance = Draws(plan)
    return [value for _ in range(50) for value in (chance.seconds(), chance.fails(), chance.life_s(), chance.away_s())]


def test_the_same_seed_draws_the_same():
    plan = Plan(nodes=1, jobs=1, job_s=2, fail=0.3, churn=0.5, seed=7)
    assert draws(plan) == draws(plan)
    assert draws(plan) != draws(Plan(nodes=1, jobs=1, job_s=2, fail=0.3, churn=0.5, seed=8))


def test_jobs_take_what_they_take_on_average_and_never_nothing():
    chance = Draws(Plan(nodes=1, jobs=1, job_s=3))
    some = [chance.seconds() for _ in range(4000)]
    assert min(some) >= 0.3
    assert 2.8 < sum(some) / len(some) < 3.3
    assert Draws(Plan(nodes=1, jobs=1, job_s=0)).seconds() == 0


def test_nobody_dies_or_fails_unasked():
    chance = Draws(PLAN)
    assert chance.life_s() == float("inf")
    assert not any(chance.fails() for _ in range(100))


@pytest.mark.parametrize(("changes", "named"), [
    ({"nodes": 0}, "nodes"), ({"nodes": 10_001}, "nodes"), ({"fail": 1.1}, "fail"), ({"verify": -0.1}, "verify"),
    ({"churn": 61}, "churn"), ({"log_bytes": 10**6}, "log-bytes"), ({"jobs": 0}, "for"), ({"rate": 3}, "for"), ({"for_s": 0.0}, "for"),
    ({"rate": float("inf"), "for_s": 1.0}, "rate"),
])  # fmt: skip
def test_what_cannot_be_is_named(changes: dict[str, float], named: str):
    assert [name for name, _ in Plan(**{"nodes": 10, "jobs": 5, **changes}).problems()] == [named]


def test_what_can_be_is_not():
    assert list(PLAN.problems()) == list(Plan(nodes=1, for_s=5, rate=9).problems()) == []


def test_each_node_has_two_connections_or_shares_one_of_them():
    assert Plan(nodes=100, jobs=1).descriptors - Plan(nodes=0, jobs=1).descriptors == 200
    assert Plan(nodes=100, jobs=1, share=True).descriptors - Plan(nodes=0, jobs=1, share=True).descriptors == 100


def test_percentiles():
    one = summary(array("d", [number / 1000 for number in range(1, 201)]))
    assert (one.count, one.p50_ms, one.p99_ms, one.max_ms) == (200, 101, 199, 200)
    alone = summary(array("d", [0.0015]))
    assert (alone.count, alone.p50_ms, alone.p99_ms, alone.max_ms) == (1, 1.5, 1.5, 1.5)


def test_what_a_process_says_of_itself():
    text = "# HELP\nprocess_cpu_seconds_total 1.5\nprocess_resident_memory_bytes 1.048576e+07\nprocess_open_fds 12.0\nprocess_max_fds 9\n"
    assert read_usage(text) == Usage(cpu_s=1.5, memory_mb=10, descriptors=12)
    assert read_usage("nothing of the kind") == Usage()


def test_a_coordinator_that_was_started_anew_has_used_nobody_knows_how_much():
    before = Usage(cpu_s=50, started=1)
    assert Usage(cpu_s=60, started=1).cpu_since(before) == 10
    assert Usage(cpu_s=60, started=2).cpu_since(before) is None
    assert Usage().cpu_since(before) is None
