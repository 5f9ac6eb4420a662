"""How much one caller may ask: the bucket as a value, and who is told apart from whom."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.coordinator.api import rates
from ostler.coordinator.api.rates import Bucket, Buckets, Rates, network_of, take
from ostler.coordinator.config import CoordinatorConfig, LimitsConfig
from ostler.model.errors import NoCapacity
from ostler.runtime.clock import ManualClock


def test_a_full_bucket_gives_its_burst_and_then_what_runs_in():
    bucket, waits = None, []
    for _ in range(4):
        bucket, wait_s = take(bucket, 10.0, per_s=2.0, burst=3.0)
        waits.append(wait_s)
    assert waits == [0, 0, 0, 0.5]
    assert take(bucket, 10.25, per_s=2.0, burst=3.0)[1] == pytest.approx(0.25)
    bucket, wait_s = take(bucket, 10.5, per_s=2.0, burst=3.0)
    assert (bucket.left, wait_s) == (0, 0)
    assert take(bucket, 1e6, per_s=2.0, burst=3.0)[0] == Bucket(2.0, 1e6), "no more than the burst"


@given(st.lists(st.floats(0, 2), min_size=1, max_size=200), st.floats(0.1, 50), st.floats(1, 20))
def test_never_more_than_the_burst_and_what_ran_in(pauses, per_s, burst):
    now, bucket, given_out = 0.0, None, 0
    for pause in pauses:
        now += pause
        bucket, wait_s = take(bucket, now, per_s=per_s, burst=burst)
        given_out += wait_s == 0
        assert 0 <= wait_s <= 1 / per_s
        assert given_out <= burst + now * per_s + 1e-6


def test_who_comes_back_when_told_is_served():
    bucket, now = None, 0.0
    for _ in range(100):
        bucket, wait_s = take(bucket, now, per_s=3.0, burst=1.0)
        if wait_s:
            now += wait_s + 1e-9
            bucket, wait_s = take(bucket, now, per_s=3.0, burst=1.0)
            assert wait_s == 0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(rates, "KEPT", 10)
    buckets = Buckets(per_s=1.0, burst=1.0)
    for number in range(100):
        buckets.take("mine", 0.0)
        buckets.take(f"a{number}", 0.0)
        assert len(buckets) <= 10
    assert buckets.take("mine", 0.0) > 0, "whoever calls all the time is never forgotten"
    assert buckets.take("a0", 0.0) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "/run/socket", True),
    ],
)
def test_what_counts_as_one_address(one, other, same):
    assert (network_of(one) == network_of(other)) is same


@pytest.fixture
def made():
    clock, refused = ManualClock(), []
    limits = LimitsConfig(calls_per_s=10, burst=3, failures_per_s=1, open_calls=2)
    return Rates(limits, clock=clock, refused=refused.append), clock, refused


def test_calls_of_one_caller_and_another(made):
    some, clock, refused = made
    for _ in range(3):
        some.enter("client:a")
        some.leave("client:a")
    with pytest.raises(NoCapacity) as caught:
        some.enter("client:a")
    assert caught.value.retry_after == pytest.approx(0.1)
    some.enter("client:b")
    clock.advance(0.11)
    some.enter("client:a")
    assert refused == ["calls"]


def test_open_calls(made):
    some, clock, refused = made
    some.enter("node:a")
    some.enter("node:a")
    clock.advance(10)
    with pytest.raises(NoCapacity, match="2 calls open"):
        some.enter("node:a")
    some.leave("node:a")
    some.enter("node:a")
    assert refused == ["open_calls"]


def test_guessing_is_slowed_and_shuts_nobody_out_who_was_let_in(made):
    some, clock, refused = made
    some.know(hashlib.sha256(b"good").digest())
    for _ in range(4):
        some.check_address("10.0.0.1", b"guess")
        some.failed("10.0.0.1")
    with pytest.raises(NoCapacity, match=r"too many failed authentications from 10\.0\.0\.1"):
        some.check_address("10.0.0.1", b"guess")
    some.check_address("10.0.0.1", b"good")
    some.check_address("10.0.0.2", b"guess")
    clock.advance(1.1)
    some.check_address("10.0.0.1", b"guess")
    assert refused == ["failures"]


@pytest.mark.parametrize("name", ["calls_per_s", "burst", "failures_per_s", "open_calls", "connections"])
def test_limits_that_let_nobody_in_are_refused(tmp_path, name):
    for value in (0, -1, float("nan")):
        config = CoordinatorConfig(data=tmp_path, limits=LimitsConfig(**{name: value}))
        assert [line.partition(":")[0] for line in config.problems()] == [f"limits.{name}"]
