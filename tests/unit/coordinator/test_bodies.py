"""Bodies are looked through before anything reads them: how deep they nest, and how long their numbers are."""

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.coordinator.api.bodies import JSON_LIMIT, MAX_DEPTH, MAX_VALUES, guard_depth, guard_numbers, guard_values
from ostler.model.errors import InvalidSpec, TooLarge
from pace import at_most

texts = st.text(alphabet='[]{}"\\a1,: ', max_size=12)
values = st.recursive(
    st.none() | st.integers(-(10**18) + 1, 10**18 - 1) | texts | st.text(alphabet="0123456789", min_size=15, max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=60,
)


def nested(value: object, depth: int) -> object:
    for _ in range(depth):
        value = [value]
    return value


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(values, st.integers(0, MAX_DEPTH + 2))
def test_what_nests_too_deeply_is_refused_and_nothing_else(value: object, above: int) -> None:
    value = [nested(value, above), [[]] * MAX_DEPTH]  # never so few brackets that nobody looks
    raw = json.dumps(value).encode()
    if depth_of(value) > MAX_DEPTH:
        with pytest.raises(InvalidSpec, match="nested too deeply"):
            guard_depth(raw)
    else:
        guard_depth(raw)


def values_of(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return max(0, len(inner) - 1) + isinstance(value, dict | list) + sum(map(values_of, inner))


@settings(max_examples=20)
@given(values, st.integers(-2, 2))
def test_more_values_than_a_body_may_hold_are_refused_and_nothing_else(value: object, more: int) -> None:
    value = [value, "[,{" * 10, []]
    rest = MAX_VALUES - values_of(value) + more
    raw = json.dumps(value).encode()[:-1] + b",1" * rest + b"]"
    if more > 0:
        with pytest.raises(TooLarge, match=f"more than {MAX_VALUES} values"):
            guard_values(raw)
    else:
        guard_values(raw)


@pytest.mark.parametrize(
    "unit", [b"[" * 60 + b"]" * 60, b'{"a":' * 60 + b"1" + b"}" * 60, b"[]", b"{}", b'"[",[]', b"]" * 60, b"1"]
)
def test_a_body_as_large_as_may_be_is_looked_through_in_a_moment(unit: bytes) -> None:
    raw = b"[" + b",".join([unit] * (JSON_LIMIT // (len(unit) + 1))) + b"]"
    with at_most(50), pytest.raises(TooLarge):  # each pair of brackets taken away by itself it was 73
        guard_values(raw)
    with at_most(50), contextlib.suppress(InvalidSpec):
        guard_depth(raw[: 2 * MAX_VALUES] if unit != b"]" * 60 else raw)


@pytest.mark.parametrize("guard", [guard_depth, guard_numbers])
def test_a_string_without_an_end_is_looked_through_once(guard: Callable[[bytes], None]) -> None:
    """An expression that begins anew at each of these quotes is at it for an hour, in which no other call is answered."""
    raw = b"[" * (MAX_DEPTH + 1) + b"1" * 19 + b',"' + b'\\"' * 2**19
    with pytest.raises(InvalidSpec):
        guard(raw)
    with pytest.raises(InvalidSpec):
        guard(raw + b"\\")


@given(values)
def test_digits_in_strings_are_no_numbers(value: object) -> None:
    guard_numbers(json.dumps(value).encode())


@pytest.mark.parametrize(
    "text", ["10000000000000000000", "-1234567890123456789", "[1, 9999999999999999999]", '{"a":1111111111111111111}']
)
def test_a_number_that_no_column_holds_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="out of range"):
        guard_numbers(text.encode())


@pytest.mark.parametrize("text", ["0.1234567890123456789012", "1e300", "123456789012345678", '"12345678901234567890"'])
def test_a_number_that_fits_passes(text: str) -> None:
    guard_numbers(text.encode())
