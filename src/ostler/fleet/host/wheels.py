"""Wheels into a directory of packages, without pip: a bare host has none, and what comes out of a checked bundle needs no judging."""

import configparser
import hashlib
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from ostler.fleet.host.refusals import Refused

RECORD, COMMANDS = "RECORD", "entry_points.txt"
_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
_PLACES = {"purelib", "platlib"}  # of a wheel's `.data` folder
_PIECE = 1 << 20

Unpacked = tuple[str, int, str]  # a file that came out of a wheel: its path below the packages, its mode, its sha256 in hex


def unpack(wheel: Path, packages: Path, is_there: Callable[[str, int, bytes], bool] = lambda path, mode, content: False) -> None:
    """Its files into `packages` (source: the binary distribution format, PEP 427), but for those that `is_there`, given a path, mode and
    content, says are there now. Raises Refused.
    """
    made: set[Path] = set()
    with _opened(wheel, wheel.name) as archive:
        for entry, target in _entries(archive):
            place = packages / target
            if place.parent not in made:
                place.parent.mkdir(parents=True, exist_ok=True)
                made.add(place.parent)
            if entry.file_size > _PIECE or not is_there(str(target), _mode(entry), archive.read(entry)):
                _write(archive, entry, place)


def unpacked(wheel: IO[bytes], name: str) -> str:
    """What `unpack` makes of a wheel of this name, as one digest. Raises Refused."""
    with _opened(wheel, name) as archive:
        return digest(
            (str(target), _mode(entry), hashlib.sha256(archive.read(entry)).hexdigest()) for entry, target in _entries(archive)
        )


def digest(files: Iterable[Unpacked]) -> str:
    """The sha256 in hex of one line for each file, sorted: hash, mode in octal digits, path."""
    lines = sorted(f"{sha256} {mode:o} {path}\n" for path, mode, sha256 in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def information(wheel: str) -> str:
    """The directory that tells of an unpacked wheel; `wheel` is its file's name."""
    name, version = wheel.split("-")[:2]
    return f"{name}-{version}.dist-info"


def target(name: str) -> PurePosixPath | None:
    """Where a file of a wheel belongs, below the directory of packages; None for what no program reads there. Raises Refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Refused("unfit", f"a wheel has the file {name!r}, which would leave its directory")
    if not path.parts[0].endswith(".data"):
        return path
    kind, rest = path.parts[1], path.parts[2:]
    return PurePosixPath(*rest) if kind in _PLACES and rest else None


@contextmanager
def _opened(wheel: Path | IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as exc:
        raise Refused("unfit", f"{name} is not a whole wheel: {exc}") from None


def _entries(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    for entry in archive.infolist():
        if not entry.is_dir() and (place := target(entry.filename)) is not None:
            yield entry, place


def _mode(entry: zipfile.ZipInfo) -> int:
    return 0o755 if entry.external_attr >> 16 & stat.S_IXUSR else 0o644


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> None:
    with archive.open(entry) as source, place.open("xb") as file:
        while block := source.read(_PIECE):
            file.write(block)
    place.chmod(_mode(entry))


def scripts(wheel: str, packages: Path, python: str) -> dict[str, str]:
    """The commands that an unpacked wheel offers, by their names; `python` is the interpreter's path as it will be."""
    declared = packages / information(wheel) / COMMANDS
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(declared.read_text())
    found = {command: place.partition(":")[::2] for command, place in parser["console_scripts"].items()}
    return {
        command: _SCRIPT.format(python=python, module=module.strip(), function=function.strip())
        for command, (module, function) in found.items()
    }
