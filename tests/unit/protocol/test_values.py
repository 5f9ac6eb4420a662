"""Values as data: what comes back is equal and of the same types, at every depth, or it is refused by name."""

import json
import math
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.protocol import values
from ostler.protocol.values import NotData

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers() | st.decimals()
    | st.dates() | st.datetimes() | st.times() | st.timedeltas() | st.uuids() | st.binary().map(bytearray)
    | st.datetimes(timezones=st.just(UTC))
)  # fmt: skip
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()), st.binary())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.dictionaries(KEYS, inner)
        | st.sets(KEYS) | st.frozensets(KEYS)
    ),
    max_leaves=20,
)  # fmt: skip


def there_and_back(value):
    """As it travels: through JSON that has no NaN."""
    return values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False).encode()))


def spelled(value):
    """Equality that tells types, signs of zero and NaNs apart."""
    if isinstance(value, list | tuple):
        return type(value), [spelled(one) for one in value]
    if isinstance(value, set | frozenset):
        return type(value), sorted((spelled(one) for one in value), key=repr)
    if isinstance(value, dict):
        return type(value), [(spelled(key), spelled(one)) for key, one in value.items()]
    return type(value), repr(value)


@given(VALUES)
def test_it_comes_back_as_it_was(value):
    assert spelled(there_and_back(value)) == spelled(value)


@pytest.mark.parametrize(
    "value",
    [
        -0.0, math.nan, math.inf, -math.inf, 2**53, 2**53 + 1, -(2**200), (), set(), {}, {"$tuple": [1]}, {"$": 1}, {1: 2},
        {"a": {None: (b"\0", {1.5})}}, {(1, 2): [(3,)]}, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3))), time(1, 2, fold=1),
        date.min, timedelta(days=-1, microseconds=1), Decimal("1E+400"), Decimal("sNaN"), UUID(int=0), complex(math.nan, -0.0), "\0\u2028",
    ],
)  # fmt: skip
def test_odd_ones(value):
    assert spelled(there_and_back(value)) == spelled(value)


def test_a_number_longer_than_python_spells():
    assert there_and_back(10**5000) == 10**5000


def test_plain_json_stays_plain():
    plain = {"a": [1, 2.5, "x", None, True, {"b": []}]}
    assert values.encode(plain) == plain


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "a object is no plain data"),
        (Colour.RED, "Colour is no plain data"),  # it would come back as an int
        (Text("x"), "Text is no plain data"),
        (namedtuple("Point", "x y")(1, 2), "Point is no plain data"),
        (OrderedDict(a=1), "OrderedDict is no plain data"),
        ({1: {2: lambda: 1}}, "a function is no plain data"),
        (b"x".decode, "builtin_function_or_method"),
        ("\udcff", "not valid Unicode"),
        ({"\udcff": 1}, "not valid Unicode"),
        (datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Zurich")), "time zone"),
        (ValueError("x"), "a ValueError is no plain data"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(value, said):
    with pytest.raises(NotData, match=said):
        values.encode([{"deep": (value,)}])


def test_what_holds_itself_or_is_too_deep_is_refused():
    loop = []
    loop.append(loop)
    deep = []
    for _ in range(values.MAX_DEPTH):
        deep = [deep]
    for bad in (loop, deep):
        with pytest.raises(NotData, match="nested more than"):
            values.encode(bad)
    assert there_and_back(deep[0]) == deep[0]


@given(VALUES)
def test_brackets_stay_within_what_a_coordinator_takes(value):
    try:
        text = json.dumps(values.encode(value))
    except NotData:
        return
    depth = deepest = 0
    inside = False
    previous = ""
    for sign in text:
        if sign == '"' and previous != "\\":
            inside = not inside
        previous = "" if previous == "\\" else sign
        if not inside:
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
    assert deepest <= values.MAX_DEPTH + 3


@pytest.mark.parametrize(
    "text",
    [
        {"$tuple": 1}, {"$int": 5}, {"$int": "x"}, {"$bytes": "@"}, {"$set": [[1]]}, {"$dict": [[1]]}, {"$dict": [[[], 1]]}, {"$odd": 1},
        {"$float": "x"}, {"$date": "x"}, {"$complex": ["x", "1"]}, {"$timedelta": [1]}, {"$timedelta": [10**12, 0, 0]}, {"$uuid": "x"},
        {"$decimal": "x"},
    ],
)  # fmt: skip
def test_what_was_not_written_so_is_refused(text):
    with pytest.raises(ValueError, match="not a value as it is written"):
        values.decode([text])
