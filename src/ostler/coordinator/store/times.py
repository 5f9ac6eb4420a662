"""Times in columns: microseconds since 1970 in UTC, as integers, the same on every database."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(at: datetime) -> int:
    """An aware time as a column's integer."""
    return (at - _EPOCH) // _MICROSECOND


def when(column: int) -> datetime:
    """A column's integer as an aware time."""
    return _EPOCH + timedelta(microseconds=column)


def when_or_none(column: int | None) -> datetime | None:
    """The same for a column that may be null."""
    return None if column is None else when(column)


def span(duration: timedelta) -> int:
    """A duration in microseconds."""
    return duration // _MICROSECOND
