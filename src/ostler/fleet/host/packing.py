"""The host program as one file, packed where it is sent from and on the host, where a release has its own."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

FOLDER = "ostler/fleet/host"
# The watcher is started with each switch, from this file, whose modules Python compiles each time: it loads its own alone.
_MAIN = """import sys
if sys.argv[1:] == ["watch"]:
    from ostler.fleet.host.watcher import watch
    watch()
else:
    from ostler.fleet.host.program import main
    sys.exit(main(sys.argv[1:]))
"""
_NOT_THERE = {"bundle.py"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same program


def modules(packages: Path) -> dict[str, str]:
    """Those of a release, by their file names."""
    return {one.name: one.read_text() for one in (packages / FOLDER).glob("*.py")}


def pack(modules: Mapping[str, str]) -> bytes:
    """A zip file that Python executes, of the package's modules by their file names."""
    files = {"__main__.py": _MAIN, "ostler/__init__.py": "", "ostler/fleet/__init__.py": ""}
    files |= {f"{FOLDER}/{name}": text for name, text in modules.items() if name not in _NOT_THERE}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()
