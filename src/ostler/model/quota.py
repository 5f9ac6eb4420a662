"""Quotas: what a principal may have waiting and running, and use in a calendar month (UTC); and how use is measured.

Time is in microseconds and money in billionths of the currency, both whole numbers, so that a ledger adds up to the last digit.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
BILLION = 10**9
WARN_PCT = 80
MAX_HOURS = 10_000_000.0
_MONEY = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits; None: not limited. `queued` also counts jobs that are held or wait; those that run do not count there."""

    queued: int | None = None
    running: int | None = None
    cpu_us: int | None = None
    gpu_us: int | None = None
    money: int | None = None

    def text(self) -> str:
        """The limits there are, in one line."""
        some: list[tuple[str, int | None, Callable[[int], str]]] = [
            ("queued", self.queued, str), ("running", self.running, str), ("CPU hours", self.cpu_us, hours_text),
            ("GPU hours", self.gpu_us, hours_text), ("money", self.money, money_text),
        ]  # fmt: skip
        return ", ".join(f"{name} {shown(value)}" for name, value, shown in some if value is not None) or "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was used: processor threads and GPUs, each times the time for which they were taken, and what that costs."""

    cpu_us: int = 0
    gpu_us: int = 0
    money: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(cpu_us=self.cpu_us + other.cpu_us, gpu_us=self.gpu_us + other.gpu_us, money=self.money + other.money)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of an hour of one thread and of one GPU, in billionths."""

    cpu_hour: int = 0
    gpu_hour: int = 0


FREE = Price()


def charge(cpu: int, gpu: int, began: int, ended: int, price: Price = FREE) -> Iterator[tuple[int, Spent]]:
    """(day, what was used on it) for so many threads and GPUs from `began` to `ended`; days and both times count from 1970."""
    while began < ended:
        day = began // DAY_US
        until = min(ended, (day + 1) * DAY_US)
        cpu_us, gpu_us = cpu * (until - began), gpu * (until - began)
        money = (cpu_us * price.cpu_hour + gpu_us * price.gpu_hour) // HOUR_US
        yield day, Spent(cpu_us=cpu_us, gpu_us=gpu_us, money=money)
        began = until


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in UTC: its name, its first day (since 1970), and when the next one begins."""

    name: str
    first_day: int
    ends_at: datetime


def month_of(now: datetime) -> Month:
    """The month of a time."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return Month(f"{first:%Y-%m}", (first - _EPOCH).days, following)


@dataclass(frozen=True, slots=True)
class Gauge:
    """One limit and how much of it is taken; `text` says so in a sentence's end, such as "8 of 10 CPU hours"."""

    taken: int
    limit: int
    text: str
    monthly: bool

    @property
    def full(self) -> bool:
        """Nothing is left."""
        return self.taken >= self.limit

    @property
    def warns(self) -> bool:
        """Most of it is taken."""
        return self.taken * 100 >= self.limit * WARN_PCT


def gauges(quota: Quota, spent: Spent) -> list[Gauge]:
    """How the monthly limits stand."""
    found = [
        (spent.cpu_us, quota.cpu_us, hours_text, "CPU hours"),
        (spent.gpu_us, quota.gpu_us, hours_text, "GPU hours"),
        (spent.money, quota.money, money_text, "of its budget"),
    ]
    return [
        Gauge(taken, limit, f"{shown(taken)} of {shown(limit)} {what}", monthly=True)
        for taken, limit, shown, what in found
        if limit is not None
    ]


def crossed(quota: Quota, before: Spent, after: Spent) -> list[Gauge]:
    """The monthly limits that began to warn, or became full, on the way from one to the other."""
    return [
        new
        for old, new in zip(gauges(quota, before), gauges(quota, after), strict=True)
        if (new.warns and not old.warns) or (new.full and not old.full)
    ]


def queue_gauge(quota: Quota, count: int) -> Gauge | None:
    """How the queue stands with so many jobs waiting; None where it is not limited."""
    if quota.queued is None:
        return None
    return Gauge(count, quota.queued, f"{count} of {quota.queued} jobs waiting", monthly=False)


def hours_text(microseconds: int) -> str:
    """Hours as people read them: exact to a thousandth, and finer where there is less than a hundredth."""
    hours = microseconds / HOUR_US
    return f"{hours:.{3 if hours >= 0.01 else 7}f}".rstrip("0").rstrip(".")


def money_text(billionths: int) -> str:
    """Money as a decimal, exactly: 1500000000 is 1.5."""
    whole, rest = divmod(billionths, BILLION)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def parse_money(text: str) -> int:
    """A decimal such as 12.50 in billionths; raises ValueError whose text ends the sentence "X …"."""
    if not _MONEY.fullmatch(text):
        raise ValueError("is not an amount: write digits, such as 12 or 12.50, at most 9 on either side of the point")
    whole, _, rest = text.partition(".")
    return int(whole) * BILLION + int(rest.ljust(9, "0"))


def parse_hours(hours: float) -> int:
    """Hours in microseconds; raises ValueError for what is no number of hours."""
    if not 0 <= hours <= MAX_HOURS:
        raise ValueError(f"must be from 0 to {MAX_HOURS:.0f}")
    return round(hours * HOUR_US)
