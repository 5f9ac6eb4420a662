"""Wheels into a directory of packages, without pip: a bare host has none, and what comes out of a checked bundle needs no judging."""

import configparser
import stat
import zipfile
from pathlib import Path, PurePosixPath

from ostler.fleet.host.refusals import Refused

_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
_PLACES = {"purelib", "platlib"}  # of a wheel's `.data` folder


def unpack(wheel: Path, packages: Path) -> None:
    """Its files into `packages` (source: the binary distribution format, PEP 427). Raises Refused."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and (target := _target(entry.filename)) is not None:
                    _write(archive, entry, packages / target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as exc:
        raise Refused("unfit", f"{wheel.name} is not a whole wheel: {exc}") from None


def _target(name: str) -> PurePosixPath | None:
    """Where a file of a wheel belongs, below the directory of packages; None for what no program reads there."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Refused("unfit", f"a wheel has the file {name!r}, which would leave its directory")
    if not path.parts[0].endswith(".data"):
        return path
    kind, rest = path.parts[1], path.parts[2:]
    return PurePosixPath(*rest) if kind in _PLACES and rest else None


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("xb") as file:
        while block := source.read(1 << 20):
            file.write(block)
    mode = entry.external_attr >> 16
    target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def scripts(wheel: str, packages: Path, into: Path, python: str) -> None:
    """The commands that an unpacked wheel offers; `python` is the interpreter's path as it will be."""
    name, version = wheel.split("-")[:2]
    declared = packages / f"{name}-{version}.dist-info" / "entry_points.txt"
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(declared.read_text())
    for command, place in parser["console_scripts"].items():
        module, _, function = place.partition(":")
        (into / command).write_text(_SCRIPT.format(python=python, module=module.strip(), function=function.strip()))
        (into / command).chmod(0o755)
