"""Where an operator's releases, release keys and fetched wheels are, unless a command names another place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReleasePlaces:
    """Directories: `keys` holds secrets, `cache` can be removed at any time."""

    store: Path
    keys: Path
    cache: Path


def release_places(env: Mapping[str, str], *, store: Path | None = None, keys: Path | None = None) -> ReleasePlaces:
    """What was named, else directories of the user's own (XDG_DATA_HOME, XDG_CACHE_HOME)."""
    home = env.get("HOME") or "~"
    data = Path(env.get("XDG_DATA_HOME") or f"{home}/.local/share").expanduser() / "ostler"
    cache = Path(env.get("XDG_CACHE_HOME") or f"{home}/.cache").expanduser() / "ostler"
    return ReleasePlaces(store or data / "releases", keys or data / "release-keys", cache / "wheels")
