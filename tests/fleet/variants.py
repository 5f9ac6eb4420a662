"""Releases that differ from a real one in a few lines of the application: good ones, and ones that are no good in a certain way."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ostler.fleet.releases.application import Application
from ostler.fleet.releases.build import Part, write_bundle
from ostler.fleet.releases.dependencies import Platform
from ostler.fleet.releases.keys import ReleaseKeys
from ostler.fleet.releases.store import Release, ReleaseStore

NODE = "ostler/assembly/node.py"
MAIN = "def main(arguments: Sequence[str]) -> int:\n"
DOES_NOT_START = {NODE: (MAIN, MAIN + "    raise SystemExit('this release does not start')\n")}
LOOPS = {NODE: (MAIN, MAIN + "    import threading\n    threading.Timer(30.0, os._exit, (1,)).start()\n")}
RUNS_NO_JOB = {"ostler/node/self_check.py": ('PROGRAM = "/usr/bin/true"', 'PROGRAM = "/usr/bin/false"')}
FILLING = """    try:
        with open("/var/lib/ostler/fill", "wb") as fill:
            while True:
                fill.write(bytes(1 << 20))
    except OSError:
        raise SystemExit("no space left") from None
"""
FILLS_THE_DISK = {NODE: (MAIN, MAIN + FILLING)}
GOOD = {NODE: (MAIN, MAIN + "    # another release\n")}


def variant(of: Release, store: Path, keys: ReleaseKeys, changes: Mapping[str, tuple[str, str]], *, older_s: int = 0) -> Release:
    """`of` with `changes` in its application: file → (what stands there once, what is to stand there); its commit is so much older."""
    manifest = of.manifest
    with tarfile.open(of.bundle) as bundle:
        contents = {name: file.read() for name in manifest.files if (file := bundle.extractfile(name)) is not None}
    parts = {}
    for name, content in contents.items():
        patched = _patched(content, changes) if name.startswith("wheels/ostler-") else content
        parts[name] = Part(patched, tuple(manifest.files[name].platforms))
    application = Application({}, manifest.version, manifest.protocol, manifest.schema, manifest.commit, manifest.made - older_s)
    platforms = [Platform.parse(one) for one in manifest.platforms]
    return ReleaseStore(store).add(lambda into: write_bundle(into, parts, application, platforms, keys))


def _patched(wheel: bytes, changes: Mapping[str, tuple[str, str]]) -> bytes:
    fresh = io.BytesIO()
    done = set()
    with zipfile.ZipFile(io.BytesIO(wheel)) as before, zipfile.ZipFile(fresh, "w") as after:
        for info in before.infolist():
            content = before.read(info)
            if info.filename in changes:
                old, new = changes[info.filename]
                assert content.decode().count(old) == 1, (info.filename, old)
                content = content.decode().replace(old, new).encode()
                done.add(info.filename)
            after.writestr(replace_info(info), content)
    assert done == set(changes), set(changes) - done
    return fresh.getvalue()


def replace_info(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The same name, times and rights, for other content."""
    fresh = zipfile.ZipInfo(info.filename, info.date_time)
    fresh.external_attr = info.external_attr
    return fresh
