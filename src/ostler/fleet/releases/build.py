"""A bundle from an application and what is pinned for it: the same input gives the same bytes, whoever builds and whenever."""

import base64
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostler.fleet.host import archive, wheels
from ostler.fleet.host.archive import FORMAT, MANIFEST, Manifest
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.reusing import SUFFIX
from ostler.fleet.releases.application import Application, members, of_checkout, of_installed
from ostler.fleet.releases.dependencies import Platform, collect, read_lock
from ostler.fleet.releases.keys import ReleaseKeys
from ostler.fleet.releases.sources import regular_bytes
from ostler.fleet.releases.store import Release, ReleaseStore, pack
from ostler.model.errors import InvalidSpec

UNITS, LOCK = "ostler/fleet/units", "ostler/fleet/releases"
LOCK_NAME = "dependencies.txt"


@dataclass(frozen=True, slots=True)
class Step:
    """How far a build is, in words."""

    step: str
    done: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a release, and the platforms that need it (none: all)."""

    content: bytes
    platforms: tuple[str, ...] = ()


def build(
    store: ReleaseStore,
    keys: ReleaseKeys,
    *,
    platforms: Sequence[Platform],
    cache: Path,
    source: Path | None = None,
    tell: Callable[[Any], None] = lambda _: None,
) -> Release:
    """A release of a checkout (None: of this very program) into the store; `tell` hears of each Step. Raises Rejected, Unavailable."""
    machines = tuple(dict.fromkeys(one.machine for one in platforms))
    with tempfile.TemporaryDirectory(prefix="ostler-release-") as scratch:
        tell(Step("building the application"))
        application = of_installed(machines, Path(scratch)) if source is None else of_checkout(source, machines, Path(scratch))
        tell(Step("collecting the libraries"))
        parts = parts_of(application, platforms, cache)
        tell(Step("writing the bundle"))
        return store.add(lambda into: write_bundle(into, parts, application, platforms, keys))


def parts_of(application: Application, platforms: Sequence[Platform], cache: Path) -> dict[str, Part]:
    """All files by their paths in the bundle: wheels, unit files. What the libraries are stands in the application's wheel. Raises
    InvalidSpec, Unavailable.
    """
    one_wheel = next(iter(application.wheels.values()))
    lock = members(one_wheel, LOCK).get(LOCK_NAME)
    if lock is None:
        raise InvalidSpec(f"{one_wheel.name} does not say which libraries it needs: {LOCK}/{LOCK_NAME} is not in it")
    libraries = collect(read_lock(lock.decode()), platforms, cache)
    needed: dict[Path, list[str]] = {}
    for platform in platforms:
        for wheel in (application.wheels[platform.machine], *libraries[platform]):
            needed.setdefault(wheel, []).append(str(platform))
    everywhere = [str(one) for one in platforms]
    parts = {
        f"wheels/{wheel.name}": Part(regular_bytes(wheel), () if of == everywhere else tuple(of)) for wheel, of in needed.items()
    }
    return parts | {f"units/{name}": Part(content) for name, content in members(one_wheel, UNITS).items()}


def write_bundle(
    into: Path, parts: Mapping[str, Part], application: Application, platforms: Sequence[Platform], keys: ReleaseKeys
) -> Manifest:
    """Write the signed bundle; answers what stands in it."""
    payload = _payload(parts, application, platforms, keys)
    envelope = keys.envelope(payload)
    into.write_bytes(pack([(MANIFEST, envelope), *((path, part.content) for path, part in sorted(parts.items()))]))
    return archive.read_manifest(envelope, keys.trusted)


def _payload(parts: Mapping[str, Part], application: Application, platforms: Sequence[Platform], keys: ReleaseKeys) -> bytes:
    files = [
        {
            "path": path,
            "sha256": hashlib.sha256(part.content).hexdigest(),
            "size": len(part.content),
            **({"platforms": part.platforms} if part.platforms else {}),
            **({"unpacked": _unpacked(path, part.content)} if path.endswith(SUFFIX) else {}),
        }
        for path, part in sorted(parts.items())
    ]
    trusted = [{"id": name, "public": base64.b64encode(key).decode()} for name, key in sorted(keys.trusted.items())]
    manifest = {
        "format": FORMAT,
        "version": application.version,
        "commit": application.commit,
        "made": application.made,
        "protocol": application.protocol,
        "schema": application.schema,
        "platforms": [str(one) for one in platforms],
        "keys": {"generation": keys.generation, "trusted": trusted},
        "files": files,
    }
    return json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"


def _unpacked(path: str, wheel: bytes) -> str:
    """By what a host knows that it has all of it already."""
    try:
        return wheels.unpacked(io.BytesIO(wheel), path)
    except Refused as exc:
        raise InvalidSpec(exc.message) from None
