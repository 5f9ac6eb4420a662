"""Whether a release that stands here is what an installation makes of its manifest: what came out of its bundle, and what was made of
that, all of it root's, and nothing beside it.

Of byte code only owner and mode are looked at: Python makes it, and the host has a record of its own of that (`reusing`).
"""

import configparser
import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ostler.fleet.host import archive, environment, packing, reusing, wheels
from ostler.fleet.host.places import APPLICATION, PACKAGES, PROGRAM, own_platform

MOST = 100
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class _File:
    """As an installation makes it. `sha256` is None where that was looked at already, or nobody can say."""

    modes: tuple[int, ...] = (0o644,)
    sha256: str | None = None


def altered(home: Path) -> list[str]:
    """What of the release at `home` was edited, removed or put there since, or is not root's alone to write, by the paths below it (its own
    name: the directory itself): at most 100, then one text that says how many more. All of its files are read, some thousand; a wheel
    whose content the manifest does not tell, as in releases of before, is left out."""
    try:
        manifest = archive.unsigned(reusing.read(home, archive.MANIFEST, most=archive.MAX_MANIFEST)[1])
    except (OSError, ValueError):
        return [archive.MANIFEST]
    if manifest.release != home.name:
        return [archive.MANIFEST]
    files = [one for one in manifest.files.values() if one.serves(own_platform())]
    found = sorted(map(_shown, _altered(home, files)))
    return found if len(found) <= MOST else [*found[:MOST], f"{len(found) - MOST} more"]


def _altered(home: Path, files: list[archive.File]) -> set[str]:
    unpacked = {Path(one.path).name: one.unpacked for one in files if one.path.endswith(reusing.SUFFIX)}
    there = dict(_below(home))
    made = {one.path: _File(sha256=one.sha256) for one in files if not one.path.endswith(reusing.SUFFIX)}
    wrong, named = ({f"{PACKAGES}/{path}" for path in paths} for paths in reusing.compare(home / PACKAGES, unpacked))
    made |= dict.fromkeys(named, _File((0o644, 0o755)))
    made |= {archive.MANIFEST: _File(), environment.SETTINGS: _File(sha256=_sha256(environment.settings()))}
    folders = _folders([*made, environment.PYTHON])
    more = f"{PACKAGES}/" if None in unpacked.values() else None
    odd = {path for path, facts in there.items() if not _is_made(path, facts, made, folders, more)}
    made |= _out_of_packages(home, unpacked, wrong | odd)
    odd = {path for path in odd if not _is_made(path, there[path], made, folders, more)}
    gone = {path for path in made if path not in there}
    found = wrong | odd | {path for path in gone if odd.isdisjoint(map(str, PurePosixPath(path).parents))}
    found |= {
        path for path, one in made.items() if one.sha256 and path not in found and not reusing.is_so(home, path, one.sha256)
    }
    python = home / environment.PYTHON
    if not python.is_symlink() or python.readlink() != environment.base():
        found.add(environment.PYTHON)
    return {home.name if path == "." else path for path in found}


def _out_of_packages(home: Path, wheels_there: Iterable[str], not_so: set[str]) -> dict[str, _File]:
    """The commands and the host program, as an installation makes them of packages; what is `not_so` says nothing of them."""
    made: dict[str, _File] = {}
    for wheel in wheels_there:
        declared = f"{PACKAGES}/{wheels.information(wheel)}/{wheels.COMMANDS}"
        if wheel.split("-")[0] == APPLICATION and not _touches(not_so, declared):
            with contextlib.suppress(OSError, ValueError, KeyError, configparser.Error):  # the packages tell that
                scripts = wheels.scripts(wheel, home / PACKAGES, f"{home}/{environment.PYTHON} -I")
                made |= {f"bin/{name}": _File((0o755,), _sha256(text)) for name, text in scripts.items()}
    if _touches(not_so, f"{PACKAGES}/{packing.FOLDER}"):
        made |= {PROGRAM: _File()} if os.path.lexists(home / PROGRAM) else {}
    elif modules := packing.modules(home / PACKAGES):
        made[PROGRAM] = _File(sha256=hashlib.sha256(packing.pack(modules)).hexdigest())
    return made


def _touches(paths: Iterable[str], place: str) -> bool:
    """Whether one of the paths is the place, or is above or below it."""
    return any(f"{place}/".startswith(f"{path}/") or path.startswith(f"{place}/") for path in paths)


def _below(home: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """The release (".") and all that is in it, by the paths there; None: a directory that cannot be read."""
    yield ".", home.lstat()
    left = [""]
    while left:
        folder = left.pop()
        try:
            with os.scandir(home / folder) as entries:
                for one in entries:
                    with contextlib.suppress(FileNotFoundError):  # such as byte code before it has its name
                        facts = one.stat(follow_symlinks=False)
                        if stat.S_ISDIR(facts.st_mode):
                            left.append(f"{folder}{one.name}/")
                        yield f"{folder}{one.name}", facts
        except OSError:
            yield folder.rstrip("/") or ".", None


def _folders(paths: Iterable[str]) -> set[str]:
    """Those that these paths are in."""
    direct = {path.rpartition("/")[0] for path in paths}
    return {str(one) for folder in direct for one in (PurePosixPath(folder), *PurePosixPath(folder).parents)}


def _is_made(
    path: str, facts: os.stat_result | None, made: Mapping[str, _File], folders: Collection[str], more: str | None
) -> bool:
    """Whether it may be there, as it is; below `more` also what nobody knows of."""
    if facts is None or facts.st_uid != os.geteuid():
        return False
    mode, is_file, is_folder = stat.S_IMODE(facts.st_mode), stat.S_ISREG(facts.st_mode), stat.S_ISDIR(facts.st_mode)
    if path in made:
        return is_file and mode in made[path].modes
    if path in folders:
        return is_folder and mode & 0o777 == 0o755
    if path == environment.PYTHON:
        return stat.S_ISLNK(facts.st_mode)
    above, _, name = path.rpartition("/")
    is_byte_code = is_file and above.endswith(f"/{reusing.CACHE}") and above.rpartition("/")[0] in folders
    is_cache = is_folder and name == reusing.CACHE and above in folders
    is_more = more is not None and path.startswith(more) and (is_file or is_folder)
    return (is_byte_code or is_cache or is_more) and not mode & _OTHERS


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(path: str) -> str:
    """In plain letters, whatever somebody called it."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()
