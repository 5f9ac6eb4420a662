"""Python values as JSON that any reader can take in without running anything: what calls carry there, and results back.

Plain JSON stays as it is. What JSON lacks is an object with one key that starts with `$`: `{"$tuple": [1, 2]}`, `{"$bytes": "AA=="}`.
A value comes back equal and of the same types, or is refused by name when it is written: nothing is rounded or turned into
something like it. Standard library alone: workers import this in interpreters that have no Ostler.
"""

import base64
import math
from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any
from uuid import UUID

MAX_DEPTH = 48  # brackets within brackets; a coordinator takes manifests of 64
_EXACT = 2**53  # whole numbers beyond it are not exact in every reader of JSON
_TUPLE, _DICT, _INT, _FLOAT = "$tuple", "$dict", "$int", "$float"


class NotData(TypeError):
    """A value that does not travel as data; the message says which and why."""


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _clock(value: Any) -> Any:
    """ISO 8601, which cannot tell the second of two equal hours from the first."""
    return [value.isoformat(), value.fold] if value.fold else value.isoformat()


def _read_clock(told: Any, read: Callable[[str], Any]) -> Any:
    return read(told[0]).replace(fold=told[1]) if isinstance(told, list) else read(told)


# exact type -> (tag, to JSON, from JSON)
_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("$bytes", _text, _bytes),
    bytearray: ("$bytearray", _text, lambda text: bytearray(_bytes(text))),
    complex: ("$complex", lambda value: [repr(value.real), repr(value.imag)], lambda pair: complex(*map(float, pair))),
    datetime: ("$datetime", _clock, lambda told: _read_clock(told, datetime.fromisoformat)),
    date: ("$date", date.isoformat, date.fromisoformat),
    time_of_day: ("$time", _clock, lambda told: _read_clock(told, time_of_day.fromisoformat)),
    timedelta: (
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(days=parts[0], seconds=parts[1], microseconds=parts[2]),
    ),
    Decimal: ("$decimal", str, Decimal),
    UUID: ("$uuid", str, UUID),
}
_READERS = {tag: read for tag, _, read in _SCALARS.values()}
_SEQUENCES: dict[type, str] = {tuple: _TUPLE, set: "$set", frozenset: "$frozenset"}
_SEQUENCE_TAGS: dict[str, Callable[[Any], Any]] = {tag: kind for kind, tag in _SEQUENCES.items()}


def encode(value: Any) -> Any:
    """The value as lists, dicts and scalars of JSON. Raises NotData."""
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotData(f"the text {value[:40]!r} is not valid Unicode") from None
        return value
    if kind is int:
        return value if -_EXACT <= value <= _EXACT else {_INT: hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if depth >= MAX_DEPTH:
        raise NotData(f"it is nested more than {MAX_DEPTH} deep, or holds itself")
    if kind is list:
        return [_encode(one, depth + 1) for one in value]
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: [_encode(one, depth + 2) for one in value]}
    if kind is dict:
        # A key that is no valid Unicode is not printable either, and refused below.
        if all(type(key) is str and not key.startswith("$") and key.isprintable() for key in value):
            return {key: _encode(one, depth + 1) for key, one in value.items()}
        return {_DICT: [[_encode(key, depth + 3), _encode(one, depth + 3)] for key, one in value.items()]}
    if kind in _SCALARS:
        tag, write, read = _SCALARS[kind]
        written = write(value)
        if kind in {datetime, time_of_day} and not _same(value, read(written)):
            raise NotData(f"the time zone of {value!r} is more than an offset")
        return {tag: written}
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise NotData(f"a {name} is no plain data")


def _same(one: Any, other: Any) -> bool:
    return bool(one == other and type(one.tzinfo) is type(other.tzinfo) and one.fold == other.fold)


def decode(value: Any) -> Any:
    """The value again. Raises ValueError for what `encode` does not write."""
    try:
        return _decode(value)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as exc:
        raise ValueError(f"not a value as it is written: {exc}") from exc


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, inner),) = value.items()
        if tag.startswith("$"):
            return _tagged(tag, inner)
    return {key: _decode(one) for key, one in value.items()}


def _tagged(tag: str, inner: Any) -> Any:
    if tag in _SEQUENCE_TAGS:
        return _SEQUENCE_TAGS[tag](_decode(one) for one in inner)
    if tag == _DICT:
        return {_decode(key): _decode(one) for key, one in inner}
    if tag == _INT:
        return int(inner, 16)
    if tag == _FLOAT:
        return float(inner)
    if tag in _READERS:
        return _READERS[tag](inner)
    raise ValueError(f"{tag[:40]!r} is not known")
