"""Nested dataclasses as people see them: what a field may be, which keys are known, what is secret, and values in plain form."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from ostler.runtime.durations import format_duration

FieldPath = tuple[str | int, ...]  # where a value stands in a document: keys, and places in lists
MASK = "********"
_hints: dict[Any, dict[str, Any]] = {}


def hints_of(shape: Any) -> dict[str, Any]:
    """The type of each field, resolved."""
    found = _hints.get(shape)
    if found is None:
        found = _hints[shape] = typing.get_type_hints(shape)
    return found


def members_of(kind: Any) -> tuple[Any, ...]:
    """The types that a union may be; of anything else, itself."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else (kind,)


def section_of(kind: Any) -> type[Any] | None:
    """The dataclass that a type holds, if any."""
    return next((one for one in members_of(kind) if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def kind_at(shape: Any, path: FieldPath) -> Any:
    """The type expected at a path; None where the path leads nowhere."""
    kind = shape
    for part in path:
        kind = next((below for one in members_of(kind) if (below := _below(one, part)) is not None), None)
    return kind


def _below(kind: Any, part: str | int) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(part, int):
        return args[0] if origin in (tuple, list) and args else None
    if origin is dict:
        return args[1]
    return hints_of(kind).get(part) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def keys_at(shape: Any, path: FieldPath) -> list[str]:
    """The keys that a mapping at this path may have; none where anything goes."""
    section = section_of(kind_at(shape, path))
    return [field.name for field in dataclasses.fields(section)] if section is not None else []


def field_paths(shape: type[Any], path: FieldPath = ()) -> Iterator[tuple[FieldPath, bool]]:
    """(path, secret) of every field of a configuration that is not a section."""
    for field in dataclasses.fields(shape):
        section = section_of(hints_of(shape)[field.name])
        if section is not None:
            yield from field_paths(section, (*path, field.name))
        else:
            yield (*path, field.name), not field.repr


def is_secret(shape: Any, path: FieldPath) -> bool:
    """Whether the field at this path is never shown."""
    section = section_of(kind_at(shape, path[:-1])) if path else None
    return section is not None and any(one.name == path[-1] and not one.repr for one in dataclasses.fields(section))


def leaves(value: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any, bool]]:
    """(path, value, secret) of each field of a value that is not a section itself."""
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if dataclasses.is_dataclass(found):
            yield from leaves(found, (*path, field.name))
        else:
            yield (*path, field.name), found, not field.repr


def plain(value: Any, *, mask: bool = True) -> Any:
    """A configuration as the lists, dicts and scalars that stand in a file; secrets masked unless told otherwise."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: MASK
            if mask and not field.repr and getattr(value, field.name)
            else plain(getattr(value, field.name), mask=mask)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one, mask=mask) for key, one in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [plain(one, mask=mask) for one in value]
    return value


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word; empty where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
