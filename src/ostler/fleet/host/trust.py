"""The release keys that this host trusts. They come with its first release, and change with releases that one of them signed."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostler.fleet.host.archive import Manifest
from ostler.fleet.host.places import read_json, write_json


@dataclass(frozen=True, slots=True)
class Trusted:
    """Keys by their ids, and the generation of this set: a set is replaced by a later one alone, so that an older release that is
    installed again brings no key back."""

    generation: int = 0
    keys: Mapping[str, bytes] = field(default_factory=dict)


def read(file: Path) -> Trusted:
    """What is in force; nothing on a bare host, or where the file was damaged."""
    found: dict[str, Any] = read_json(file) or {}
    try:
        return Trusted(int(found["generation"]), {name: base64.b64decode(key) for name, key in found["keys"].items()})
    except (KeyError, ValueError, AttributeError, TypeError):
        return Trusted()


def adopt(file: Path, manifest: Manifest) -> None:
    """Trust what a checked release says is to be trusted, where that is newer."""
    if manifest.generation > read(file).generation:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = {name: base64.b64encode(key).decode() for name, key in manifest.keys.items()}
        write_json(file, {"generation": manifest.generation, "keys": keys})
