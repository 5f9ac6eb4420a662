"""The application's own wheel: built from a checkout, or put together again from what is installed. The rest is read from it."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform as this_platform
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ostler.fleet.releases.sources import copy_tree, regular_bytes
from ostler.model.errors import InvalidSpec, Unavailable

NAME = "ostler"
BUILD_S = 300
_FROM_CHECKOUT = ("pyproject.toml", "hatch_build.py", "README.md")
_NOT_SOURCE = ("__pycache__", ".so", ".pyc", "_enter")  # what is compiled is compiled anew
_NOT_OF_A_WHEEL = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ASK = (
    "import sys\nsys.path.insert(0, sys.argv[1])\nfrom ostler.cli.entry import main\n"
    "sys.argv[1:] = ['version', '--json']\nsys.exit(main())\n"
)


@dataclass(frozen=True, slots=True)
class Application:
    """One version of Ostler: its wheels by machine (`x86_64`), and what it says of itself. `made` is the time of its commit, in seconds."""

    wheels: Mapping[str, Path]
    version: str
    protocol: tuple[int, int]
    schema: int
    commit: str | None
    made: int = 0


def of_checkout(source: Path, machines: tuple[str, ...], scratch: Path) -> Application:
    """Build a checkout, which is not written to. Only this machine's own kind gets the compiled helper. Raises InvalidSpec, Unavailable."""
    if not (source / "src" / NAME / "__init__.py").is_file() or not (source / "pyproject.toml").is_file():
        raise InvalidSpec(f"{source} is not a checkout of Ostler", hint="name a directory that has pyproject.toml and src/ostler")
    tree = scratch / "tree"
    copy_tree(source / "src", tree / "src", without=_NOT_SOURCE)
    copy_tree(source / "lock", tree / "lock", without=())
    for name in _FROM_CHECKOUT:
        (tree / name).write_bytes(regular_bytes(source / name))
    wheels = {machine: _built(tree, scratch / machine, helper=machine == this_platform.machine()) for machine in machines}
    return _described(wheels, scratch, commit_of(source), made_of(source))


def of_installed(machines: tuple[str, ...], scratch: Path) -> Application:
    """This very program: from its checkout where it runs from one, else from its installed files, each checked by its record."""
    distribution = importlib.metadata.distribution(NAME)
    if (source := _checkout_of(distribution)) is not None:
        return of_checkout(source, machines, scratch)
    wheel = _packed(distribution, scratch)
    if not wheel.name.endswith("-none-any.whl"):
        helpless = [machine for machine in machines if machine != this_platform.machine()]
        if helpless:
            raise InvalidSpec(
                f"the installed program has a helper that was compiled for {this_platform.machine()}, not {', '.join(helpless)}",
                hint="build from a checkout: --source DIR",
            )
    return _described(dict.fromkeys(machines, wheel), scratch, None)


def commit_of(source: Path) -> str | None:
    """The commit of a checkout, with `+changed` where its files are others; None where git does not know."""
    try:
        head = _git(source, "rev-parse", "HEAD")
        changed = _git(source, "status", "--porcelain", "--", "src", "lock", *_FROM_CHECKOUT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changed" if changed else head


def made_of(source: Path) -> int:
    """When the commit of a checkout was made, in seconds since 1970; 0 where git does not know."""
    try:
        return int(_git(source, "show", "--no-patch", "--format=%ct", "HEAD"))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 0


def members(wheel: Path, folder: str) -> dict[str, bytes]:
    """The files directly in a folder of a wheel, by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            PurePosixPath(name).name: archive.read(name)
            for name in sorted(archive.namelist())
            if str(PurePosixPath(name).parent) == folder and not name.endswith((".py", "/"))
        }


def _git(source: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _checkout_of(distribution: importlib.metadata.Distribution) -> Path | None:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(origin["url"]).path))


def _built(tree: Path, into: Path, *, helper: bool) -> Path:
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
        f"--wheel-dir={into}", str(tree),
    ]  # fmt: skip
    environment = dict(os.environ) if helper else {**os.environ, "CC": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=BUILD_S, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
        raise Unavailable(f"the application could not be built: {said[-1].strip()}", hint="pip install 'ostler[build]'")
    return next(into.glob(f"{NAME}-*.whl"))


def _described(wheels: Mapping[str, Path], scratch: Path, commit: str | None, made: int = 0) -> Application:
    """Ask the program that is in the wheel, not the one that runs."""
    place = scratch / "asked"
    with zipfile.ZipFile(next(iter(wheels.values()))) as archive:
        archive.extractall(place)  # our own build
    command = [sys.executable, "-I", "-B", "-c", _ASK, str(place)]
    environment = {**os.environ, "OSTLER_URL": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        said = json.loads(done.stdout)["client"]
        version, protocol = said["version"], (said["protocol_min"], said["protocol"])
    except (ValueError, KeyError):
        why = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise InvalidSpec(f"the application that was built does not start: it says {why}") from None
    return Application(wheels, version, protocol, said["schema"], commit, made)


def _packed(distribution: importlib.metadata.Distribution, scratch: Path) -> Path:
    """A wheel of what is installed (source: PEP 427). Raises InvalidSpec where a file is not what was installed."""
    files, modes = {}, {}
    for file in distribution.files or ():
        name = file.as_posix()
        if name.startswith("..") or file.name in _NOT_OF_A_WHEEL or file.suffix == ".pyc":
            continue
        place = Path(str(distribution.locate_file(file)))
        content, modes[name] = regular_bytes(place), 0o100755 if os.access(place, os.X_OK) else 0o100644
        if file.hash is not None and _record_hash(content) != file.hash.value:
            raise InvalidSpec(
                f"{name} is not as it was installed", hint="install Ostler anew, or build from a checkout: --source DIR"
            )
        files[name] = content
    info = f"{NAME}-{distribution.version}.dist-info"
    tag = next(line.partition(":")[2].strip() for line in files[f"{info}/WHEEL"].decode().splitlines() if line.startswith("Tag:"))
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    writer.writerows((name, f"sha256={_record_hash(content)}", len(content)) for name, content in sorted(files.items()))
    writer.writerow((f"{info}/RECORD", "", ""))
    files[f"{info}/RECORD"] = record.getvalue().encode()
    wheel = scratch / f"{NAME}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = modes.get(name, 0o100644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
