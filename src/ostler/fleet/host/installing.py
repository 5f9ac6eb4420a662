"""A bundle becomes `releases/ID`: checked, unpacked beside (or linked, what a release here has of it), tried, brought to the disk, and
then named, in one step.

What has its name is whole. Whatever else a crash left is taken away by the next install.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ostler.fleet.host import archive, environment, fitting, packing, reusing, trust, wheels, wholeness
from ostler.fleet.host.places import APPLICATION, PACKAGES, PROGRAM, Places, own_platform, read_json, sync, write_json
from ostler.fleet.host.refusals import Refused

PARTIAL = ".partial"
_TRIAL = "ostler.assembly.trial"
_TRIAL_S = 60
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # source: linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS}  # of old kernels, and some file systems
_FULL = {errno.ENOSPC, errno.EDQUOT}


def install(
    places: Places,
    bundle: BinaryIO,
    *,
    digest: str | None = None,
    check: Callable[[archive.Manifest], None] = lambda manifest: None,
) -> dict[str, Any]:
    """Install a bundle as it is read, unless its release is there and whole; answers the id and whether it was there.

    `digest` is the manifest's sha256 in hex as the operator knows it: a host that trusts no key yet installs nothing without it, and
    takes the release keys from that release. A host that trusts keys installs what one of them signed. `check` may refuse a manifest that
    is good otherwise. Raises Refused.
    """
    trusted = trust.read(places.keys)
    if not trusted.keys and digest is None:
        raise Refused("untrusted", "this host trusts no release key yet, so its first release needs the digest of its manifest")
    with _readable(), _alone(places), archive.opened(bundle, trusted.keys or None) as (manifest, envelope, contents):
        if digest is not None and manifest.digest != digest:
            raise Refused("untrusted", f"release {manifest.release} is not the one that was announced: its digest is another")
        check(manifest)
        home = places.release(manifest.release)
        there = os.path.lexists(home) and not wholeness.altered(home)
        answer = {"release": manifest.release, "version": manifest.version, "was_there": there}
        if answer["was_there"]:
            for _ in contents.read(own_platform(), spared=manifest.files):  # who sends it is not cut off
                pass
        else:
            _make(places, home, manifest, envelope, contents)
        trust.adopt(places.keys, manifest)
    return answer


def prune(places: Places, keep: int) -> dict[str, Any]:
    """Remove all but the `keep` newest releases, the one in force, those that an open or the last update names, and those that a process
    was started from: an update does not restart the keeper, whose release may be many updates old.
    """
    named = {places.in_force(), *_in_use(places)}
    for update in (read_json(places.update), read_json(places.last)):
        named |= {update.get("release"), update.get("previous")} if update else set()
    if not places.releases.is_dir():
        return {"removed": []}
    with _alone(places):
        found = sorted((one for one in _releases(places)), key=lambda one: one.stat().st_mtime, reverse=True)
        gone = [one for one in found[keep:] if one.name not in named]
        for one in gone:
            for note in (places.compiled(one.name), places.reads(one.name)):
                note.unlink(missing_ok=True)
            aside = one.with_name(f"{one.name}{PARTIAL}")  # half of a release must not bear its name
            one.rename(aside)
            _remove(aside)
    return {"removed": [one.name for one in gone]}


def _in_use(places: Places) -> set[str]:
    """The releases whose interpreter or libraries a process of this host has."""
    within = re.compile(re.escape(f"{places.releases}/".encode()) + rb"([^/\0\n]+)/")
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        for said in ("cmdline", "maps"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                found.update(os.fsdecode(name) for name in within.findall((process / said).read_bytes()))
    return found


def _releases(places: Places) -> Iterator[Path]:
    return (one for one in places.releases.iterdir() if one.is_dir() and one.suffix != PARTIAL and not one.name.startswith("."))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What is made meanwhile is root's, and everybody may read it."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """One process at a time changes the releases; what an earlier one left half done is gone."""
    places.releases.mkdir(parents=True, exist_ok=True)
    with (places.releases / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in places.releases.glob(f"*{PARTIAL}"):
            _remove(left)
        yield


def _remove(path: Path) -> None:
    """Whatever it is; of a link, not what it refers to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _make(places: Places, home: Path, manifest: archive.Manifest, envelope: bytes, contents: archive.Contents) -> None:
    if (ours := own_platform()) not in manifest.platforms:
        raise Refused("unfit", f"release {manifest.release} is for {', '.join(manifest.platforms)}; this host is {ours}")
    half = home.with_name(f"{home.name}{PARTIAL}")
    try:
        half.mkdir()
        _lay_out(half)
        before = _standing(places)
        _unpack(half, contents, _reuse(half, manifest, before), reusing.Pieces(before, half / PACKAGES))
        _offer(half, home, manifest)
        (half / archive.MANIFEST).write_bytes(envelope)
        _pack_program(half)
        config = None
        with contextlib.suppress(ValueError):  # no text: whoever switches without another one is told so
            config = fitting.configured(places)
        entries = {} if config is None else fitting.allowlist(places, config, {})
        needs = _try(half, manifest, config, [str(places.allowlist)] if entries else [])
        if needs is not None and config is not None:
            fitting.remember(places, manifest.release, config, entries, needs)
        _note_compiled(places, half, manifest)
        _to_disk(half)
    except BaseException as exc:
        shutil.rmtree(half, ignore_errors=True)
        if isinstance(exc, OSError) and exc.errno in _FULL:
            raise Refused("disk", f"no space left for release {manifest.release} in {home.parent}") from None
        raise
    _name(places, half, home)


def _name(places: Places, half: Path, home: Path) -> None:
    """In place of what was altered, where there is such; a daemon that runs it is due for a start."""
    if not os.path.lexists(home):
        half.rename(home)
        sync(home.parent)
        return
    if places.in_force() == home.name:
        places.start_due.write_text(home.name)
    if not _exchange(half, home):
        home.rename(home.with_name(f"{home.name}.altered{PARTIAL}"))
        half.rename(home)
        half = home.with_name(f"{home.name}.altered{PARTIAL}")
    sync(home.parent)
    _remove(half)


def _exchange(one: Path, other: Path) -> bool:
    """Each takes the other's name in one step, so that both are there at any moment; whether that can be had here. Raises OSError."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    if call(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    if (code := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _lay_out(half: Path) -> None:
    """Its directories, and its Python."""
    (half / PACKAGES).mkdir(parents=True)
    (half / "bin").mkdir()
    (half / environment.PYTHON).symlink_to(environment.base())
    (half / environment.SETTINGS).write_text(environment.settings())


def _standing(places: Places) -> list[reusing.Standing]:
    """The releases that are here: the one in force first, then the newest."""
    now = places.in_force()
    found = sorted(_releases(places), key=lambda one: (one.name == now, one.stat().st_mtime), reverse=True)
    return [reusing.Standing(one / PACKAGES, read_json(places.compiled(one.name)) or {}) for one in found]


def _reuse(half: Path, manifest: archive.Manifest, before: list[reusing.Standing]) -> set[str]:
    """Wheels that need not come out of the bundle, by their paths there: what they become is there now."""
    ours, packages = own_platform(), half / PACKAGES
    return {
        file.path
        for file in manifest.files.values()
        if file.unpacked is not None and file.serves(ours) and file.path.endswith(reusing.SUFFIX)
        if reusing.link(Path(file.path).name, file.unpacked, before, packages)
    }


def _unpack(half: Path, contents: archive.Contents, reused: set[str], pieces: reusing.Pieces) -> None:
    """Files, and wheels into the packages; those that are there already are read past, and what is the same of others is linked."""
    ours = own_platform()
    for file, checked in contents.read(ours, spared=reused):
        if not file.serves(ours) or file.path in reused:
            continue
        target = half / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            out.writelines(checked)
        checked.finish()  # before anything is made of it
        if target.suffix == reusing.SUFFIX:
            wheels.unpack(target, half / PACKAGES, pieces.take)
            target.unlink()
    pieces.link_compiled()
    shutil.rmtree(half / "wheels", ignore_errors=True)


def _offer(half: Path, home: Path, manifest: archive.Manifest) -> None:
    """The application's own commands."""
    for name in (Path(file.path).name for file in manifest.files.values() if file.serves(own_platform())):
        if name.endswith(reusing.SUFFIX) and name.split("-")[0] == APPLICATION:
            for command, text in wheels.scripts(name, half / PACKAGES, f"{home}/bin/python -I").items():
                (half / "bin" / command).write_text(text)
                (half / "bin" / command).chmod(0o755)


def _pack_program(half: Path) -> None:
    """The release's own host program, which root runs while this release is in force."""
    if modules := packing.modules(half / PACKAGES):
        (half / PROGRAM).write_bytes(packing.pack(modules))


def _try(half: Path, manifest: archive.Manifest, config: str | None, allowlist: list[str]) -> list[str] | None:
    """What a host runs loads here, in this Python, and is what the manifest says. Python writes the byte code of it meanwhile. Answers the
    paths that it needs where it accepts configuration and allowlist, too; one that does not may be told others before it is switched to."""
    file = [] if config is None else ["/proc/self/fd/0", *allowlist]
    try:
        trial = subprocess.run(
            [str(half / "bin/python"), "-I", "-m", _TRIAL, *file],
            input=config or "",
            capture_output=True,
            text=True,
            timeout=_TRIAL_S,
            check=False,
            cwd="/",
            env={"HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise Refused(
            "unfit", f"release {manifest.release} did not start on this host in {_TRIAL_S} s; is it that busy?"
        ) from None
    try:
        answer = json.loads(trial.stdout)
        said = answer["version"]
    except (ValueError, KeyError, TypeError):
        said = (trial.stderr.strip() or "nothing").splitlines()[-1]
    if trial.returncode or said != manifest.version:
        raise Refused("unfit", f"release {manifest.release} does not start on this host: it says {said}")
    needs = answer.get("needs")  # releases of before do not tell
    return needs if answer.get("reads") is True and isinstance(needs, list) else None


def _note_compiled(places: Places, half: Path, manifest: archive.Manifest) -> None:
    """What byte code was made, for the installation of the next release."""
    note = places.compiled(manifest.release)
    for folder in (places.updates, note.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(note, reusing.compiled(half / PACKAGES))


def _to_disk(half: Path) -> None:
    """The whole file system's pages: a file at a time would take many times as long."""
    if shutil.which("sync") is None or subprocess.run(["sync", "--file-system", str(half)], check=False).returncode:
        os.sync()
