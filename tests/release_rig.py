"""Releases of our own making: an application of three files that starts, signed by a real key."""

import base64
import hashlib
import io
import platform
import sys
import zipfile
from pathlib import Path

from ostler.fleet.releases.application import Application
from ostler.fleet.releases.build import Part, write_bundle
from ostler.fleet.releases.dependencies import Platform
from ostler.fleet.releases.keys import ReleaseKeys, open_keys
from ostler.fleet.releases.store import Release, ReleaseStore

HERE = Platform(sys.version_info.minor, platform.machine())
OTHER = Platform(sys.version_info.minor + 1, platform.machine())
TRIAL = 'import json\nimport ostler\nprint(json.dumps({"version": ostler.__version__}))\n'
ENTRY = "def main():\n    import ostler\n    print(ostler.__version__)\n"


def wheel(version: str, *, trial: str = TRIAL, more: dict[str, bytes] | None = None) -> bytes:
    """A wheel of an application that can be tried, as the host program does it."""
    return packed("ostler", version, {
        "ostler/__init__.py": f"__version__ = {version!r}\n".encode(),
        "ostler/assembly/__init__.py": b"",
        "ostler/assembly/trial.py": trial.encode(),
        "ostler/cli/__init__.py": b"",
        "ostler/cli/entry.py": ENTRY.encode(),
        f"ostler-{version}.dist-info/entry_points.txt": b"[console_scripts]\nostler = ostler.cli.entry:main\n",
        **(more or {}),
    })  # fmt: skip


def packed(name: str, version: str, files: dict[str, bytes]) -> bytes:
    """A wheel of these files (source: PEP 427)."""
    information = f"{name}-{version}.dist-info"
    files = files | {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: rig\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {path: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() for path, data in files.items()}
    record = f"{information}/RECORD"
    files[record] = "".join(f"{path},sha256={digest},{len(files[path])}\n" for path, digest in hashes.items()).encode()
    files[record] += f"{record},,\n".encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return content.getvalue()


def new_keys(directory: Path) -> ReleaseKeys:
    """A directory of release keys with one in it."""
    return open_keys(directory).with_new()


def make(
    store: Path,
    keys: ReleaseKeys,
    version: str = "1.0",
    *,
    platforms: tuple[Platform, ...] = (HERE, OTHER),
    made: int = 0,
    libraries: dict[str, bytes] | None = None,
    **options: object,
) -> Release:
    """A release in the store: an application, a unit, a library that another platform needs alone, and `libraries`, wheels by their
    files' names. `made`: the time of its commit."""
    parts = {
        f"wheels/ostler-{version}-py3-none-any.whl": Part(wheel(version, **options)),
        "units/ostler-node.service": Part(b"[Service]\nExecStart=/bin/true\n"),
        "wheels/other-1-py3-none-any.whl": Part(packed("other", "1", {"other.py": b"x = 1\n" * 999}), (str(OTHER),)),
        **{f"wheels/{name}": Part(content) for name, content in (libraries or {}).items()},
    }
    application = Application({}, version, (1, 1), 4, None, made)
    return ReleaseStore(store).add(lambda into: write_bundle(into, parts, application, platforms, keys))
