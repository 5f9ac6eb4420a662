"""Quotas: what is charged to which day, what a month is, when a limit warns and when it is full, and money that never rounds."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.quota import (
    BILLION,
    DAY_US,
    HOUR_US,
    Gauge,
    Price,
    Quota,
    Spent,
    charge,
    crossed,
    gauges,
    hours_text,
    money_text,
    month_of,
    parse_hours,
    parse_money,
    queue_gauge,
)

TIMES = st.integers(0, 100 * DAY_US)


@given(TIMES, TIMES, st.integers(1, 64), st.integers(0, 8))
def test_what_is_charged_is_the_whole_time_each_day_its_own(began, ended, cpu, gpu):
    parts = list(charge(cpu, gpu, began, ended, Price(cpu_hour=BILLION, gpu_hour=2 * BILLION)))
    assert sum(used.cpu_us for _, used in parts) == cpu * max(0, ended - began)
    assert sum(used.gpu_us for _, used in parts) == gpu * max(0, ended - began)
    days = [day for day, _ in parts]
    assert days == sorted(set(days))
    for day, used in parts:
        assert 0 < used.cpu_us <= cpu * DAY_US
        assert began // DAY_US <= day <= ended // DAY_US
        exact = (used.cpu_us + 2 * used.gpu_us) * BILLION / HOUR_US
        assert used.money <= exact < used.money + 2


def test_use_adds_up():
    total = Spent(cpu_us=1, gpu_us=2, money=3) + Spent(cpu_us=10, gpu_us=20, money=30)
    assert total == Spent(cpu_us=11, gpu_us=22, money=33)


@pytest.mark.parametrize(
    ("now", "name", "ends"),
    [
        (datetime(2026, 2, 28, 23, 59, tzinfo=UTC), "2026-02", datetime(2026, 3, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2))), "2027-01", datetime(2027, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 31, tzinfo=UTC), "2026-01", datetime(2026, 2, 1, tzinfo=UTC)),
    ],
)
def test_a_month_is_of_utc(now, name, ends):
    month = month_of(now)
    assert (month.name, month.ends_at) == (name, ends)
    first = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=month.first_day)
    assert (first.day, f"{first:%Y-%m}") == (1, name)


def test_limits_warn_before_they_are_full():
    quota = Quota(cpu_us=10 * HOUR_US, gpu_us=0, money=5 * BILLION)
    texts = [(one.text, one.warns, one.full) for one in gauges(quota, Spent(cpu_us=8 * HOUR_US, money=BILLION))]
    assert texts == [("8 of 10 CPU hours", True, False), ("0 of 0 GPU hours", True, True), ("1 of 5 of its budget", False, False)]
    assert gauges(Quota(queued=3), Spent()) == []
    assert queue_gauge(Quota(), 5) is None
    assert queue_gauge(Quota(queued=10), 8) == Gauge(8, 10, "8 of 10 jobs waiting", monthly=False)


def test_a_crossing_is_told_once():
    quota = Quota(cpu_us=100)
    steps = [0, 79, 80, 81, 99, 100, 150]
    told = [
        len(crossed(quota, Spent(cpu_us=before), Spent(cpu_us=after)))
        for before, after in pairwise(steps)
    ]  # fmt: skip
    assert told == [0, 1, 0, 0, 1, 0]


@given(st.integers(0, BILLION * BILLION - 1))
def test_money_survives_its_text(amount):
    assert parse_money(money_text(amount)) == amount


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1.", ".5", "1,5", "0.0000000001", "1234567890", " 1", "٣"])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="is not an amount"):
        parse_money(text)


def test_a_quota_in_one_line():
    assert Quota().text() == "no limit"
    assert Quota(queued=1, running=2, cpu_us=HOUR_US, gpu_us=0, money=BILLION).text() == (
        "queued 1, running 2, CPU hours 1, GPU hours 0, money 1"
    )


def test_hours():
    assert parse_hours(1.5) == 5_400_000_000
    for wrong in (-1, 1e12, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be from 0"):
            parse_hours(wrong)
    assert [hours_text(one) for one in (0, HOUR_US, HOUR_US * 3 // 2, HOUR_US // 10000)] == ["0", "1", "1.5", "0.0001"]
