"""A release as its signed bundle describes it: what hosts get, told apart by its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
