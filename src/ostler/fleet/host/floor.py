"""How old a release may be that the daemon asks for: not older than the newest one that was found good here.

Whoever has root (SSH, a shell) may go back on purpose; the floor goes along then. What is older is told by the signed manifest.
"""

import contextlib
from typing import Any

from ostler.fleet.host.archive import MANIFEST, Manifest, read_manifest
from ostler.fleet.host.places import Places, read_json, write_json
from ostler.fleet.host.refusals import Refused


def check(places: Places, manifest: Manifest) -> None:
    """Raises Refused for a release that is older than the floor."""
    release, age = _read(places)
    if release is not None and manifest.age < age:
        raise Refused(
            "unfit",
            f"release {manifest.release} is older than {release}, which was good here: only whoever has root may go back (over SSH, "
            "`ostler fleet update`)",
        )


def settle(places: Places, release: str | None, *, lower: bool) -> None:
    """This release stays: it is the floor from now on, where it is newer than the one before, or root wanted it so (`lower`)."""
    with contextlib.suppress(Refused, OSError, ValueError):
        manifest = of_release(places, release or "")
        if lower or manifest.age >= _read(places)[1]:
            write_json(places.floor, {"release": manifest.release, "age": manifest.age})


def of_release(places: Places, release: str) -> Manifest:
    """The manifest of a release that is on this host, which was checked as it came. Raises Refused, OSError, ValueError."""
    return read_manifest((places.release(release) / MANIFEST).read_bytes(), None)


def _read(places: Places) -> tuple[str | None, tuple[tuple[int, ...], int]]:
    """The floor, and its age; before there is one, the release in force."""
    found: dict[str, Any] = read_json(places.floor) or {}
    with contextlib.suppress(KeyError, ValueError, TypeError):
        numbers, made = found["age"]
        return str(found["release"]), (tuple(map(int, numbers)), int(made))
    with contextlib.suppress(Refused, OSError, ValueError):
        manifest = of_release(places, places.in_force() or "")
        return manifest.release, manifest.age
    return None, ((), 0)
