"""Whether a release that stands here is what its manifest says: what came out of its bundle, and what was made of that.

Byte code is left out: Python makes it, and the host has a record of its own of that (`reusing`).
"""

import base64
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from ostler.fleet.host import packing, reusing, wheels
from ostler.fleet.host.archive import MANIFEST
from ostler.fleet.host.places import APPLICATION, PACKAGES, PROGRAM, digest, own_platform


def altered(home: Path) -> list[str]:
    """The files of the release at `home` that were edited, removed or put there since, by their paths below it. All of its files are read,
    some thousand; a wheel whose content the manifest does not tell, as in releases of before, is left out."""
    try:
        payload = base64.b64decode(json.loads((home / MANIFEST).read_bytes())["payload"])
        files = [one for one in json.loads(payload)["files"] if own_platform() in (one.get("platforms") or (own_platform(),))]
    except (OSError, ValueError, KeyError, TypeError):
        return [MANIFEST]
    if not home.name.endswith(hashlib.sha256(payload).hexdigest()[:12]):
        return [MANIFEST]
    brought = [str(one["path"]) for one in files if not one["path"].endswith(reusing.SUFFIX)]
    found = [one["path"] for one in files if one["path"] in brought and digest(home / one["path"]) != one["sha256"]]
    found += [path for path, content in _made(home, files).items() if digest(home / path) != hashlib.sha256(content).hexdigest()]
    unpacked = {Path(one["path"]).name: one.get("unpacked") for one in files if one["path"] not in brought}
    return sorted([*found, *(f"{PACKAGES}/{path}" for path in reusing.altered(home / PACKAGES, unpacked))])


def _made(home: Path, files: list[dict[str, Any]]) -> dict[str, bytes]:
    """The commands and the host program, as an installation makes them."""
    made = {}
    for wheel in (Path(one["path"]).name for one in files):
        if wheel.endswith(reusing.SUFFIX) and wheel.split("-")[0] == APPLICATION:
            with contextlib.suppress(OSError, ValueError, KeyError):  # the packages tell that
                scripts = wheels.scripts(wheel, home / PACKAGES, f"{home}/bin/python -I")
                made = {f"bin/{name}": text.encode() for name, text in scripts.items()}
    if modules := packing.modules(home / PACKAGES):
        made[PROGRAM] = packing.pack(modules)
    return made
