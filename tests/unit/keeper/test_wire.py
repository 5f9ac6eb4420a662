"""The keeper's own JSON agrees with the standard library's."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.keeper import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_encoded_is_decoded_by_others_and_by_itself(value):
    text = wire.encode(value)
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == value
    assert wire.decode(text.encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_value_error(data):
    try:
        value = wire.decode(data)
    except ValueError:
        return
    assert json.loads(data.decode().strip(" \t\r")) == value


@pytest.mark.parametrize(
    "text", ["", " ", "{", "[1,", '"a', "{} {}", "NaN", "Infinity", "[-Infinity]", "nul", "01", "[" * 100_000, "1" * 9000]
)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        wire.decode(text.encode())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        wire.encode({"a": [value]})


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}])
def test_what_json_has_no_shape_for_is_refused(value):
    with pytest.raises(TypeError, match="is not JSON"):
        wire.encode([value])
