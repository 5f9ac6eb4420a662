"""A release as its signed bundle describes it: what hosts get, told apart by its content."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NUMBERS = re.compile(r"(?a)[0-9]{1,9}(\.[0-9]{1,9})*")

Age = tuple[tuple[int, ...], int]


def age(version: str, made: int) -> Age:
    """What says which of two releases is older, to hosts as well: the numbers of its version, then when its commit was made."""
    numbers = _NUMBERS.match(version)
    return tuple(map(int, numbers[0].split("."))) if numbers else (), made


def is_older(one: Age, other: str, known: Mapping[str, Age]) -> bool:
    """Whether a release is older than another of this id. Of one that is not `known`, the version in its id is all there is to tell."""
    return one < known[other] if other in known else one[0] < age(other.rpartition("-")[0], 0)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """What of a bundle a host of one platform needs, a bundle itself: the pieces of the whole (from, to before), their sha256 and size."""

    sha256: str
    size: int
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release. `digest` is the sha256 of its manifest, `made` when its commit was made (seconds since 1970; 0: not known), `protocol`
    the oldest and newest that it speaks, `schema` the newest that it knows. `keys` are the raw release keys by id that are trusted from it
    on, a set of this `generation`; `signed_by` those keys that signed it. `sha256` is of its bundle, `excerpts` are by platform.
    """

    release: str
    digest: str
    version: str
    commit: str | None
    made: int
    protocol: tuple[int, int]
    schema: int
    platforms: tuple[str, ...]
    signed_by: tuple[str, ...]
    generation: int
    keys: Mapping[str, bytes] = field(default_factory=dict)
    sha256: str = ""
    excerpts: Mapping[str, Excerpt] = field(default_factory=dict)
