from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.runtime.durations import format_duration, parse_duration, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400),
        ("7d", 604800),
        ("90s", 90),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("500ms", 0.5),
        ("2w", 1209600),
        ("1.5h", 5400),
    ],
)
def test_parses_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("24", "has no unit; write 24s"),
        ("", "is not a duration"),
        ("soon", "is not a duration"),
        ("-5s", "is not a duration"),
        ("5 parsecs", "is not a duration"),
        ("1h1h", "names a unit twice"),
        ("99999d", "longer than ten years"),
        ("٣s", "is not a duration"),
    ],
)
def test_refuses_what_is_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_duration(text)


def test_command_lines_may_leave_the_unit_out() -> None:
    assert parse_seconds("90") == 90.0
    assert parse_seconds("1m") == 60.0
    with pytest.raises(ValueError, match="is not a duration: a number of seconds, or one with units"):
        parse_seconds("-1")


@given(st.integers(min_value=0, max_value=10 * 365 * 86400 * 1000))
def test_formatting_is_exact_to_the_millisecond(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value
