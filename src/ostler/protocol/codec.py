"""How values become bytes: JSON through msgspec, into messages and the model's own dataclasses; unknown fields are ignored."""

from typing import Any, TypeVar

import msgspec

from ostler.model.errors import InvalidSpec, Problem

T = TypeVar("T")

encode = msgspec.json.encode
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(data: bytes | str | msgspec.Raw, shape: type[T], *, what: str = "body") -> T:
    """Bytes to a value of `shape`; raises InvalidSpec with the field's path where they do not fit."""
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = msgspec.json.Decoder(shape)
    try:
        value: T = decoder.decode(data)
    except msgspec.ValidationError as exc:
        message, _, place = str(exc).partition(" - at `$")
        path = place.rstrip("`").lstrip(".")
        raise InvalidSpec(f"the {what} does not have the expected shape", [Problem(path, message)]) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidSpec(f"the {what} is not valid JSON", [Problem("", str(exc))]) from exc
    return value


def convert(value: Any, shape: type[T], *, what: str = "value") -> T:
    """Plain lists, dicts and scalars (strings may stand for numbers, as in a query) to a value of `shape`."""
    try:
        return msgspec.convert(value, shape, strict=False)
    except msgspec.ValidationError as exc:
        message, _, place = str(exc).partition(" - at `$")
        path = place.rstrip("`").lstrip(".")
        raise InvalidSpec(f"the {what} does not have the expected shape", [Problem(path, message)]) from exc


def to_plain(value: Any) -> Any:
    """A value to lists, dicts and scalars as they stand in JSON."""
    return msgspec.to_builtins(value)
