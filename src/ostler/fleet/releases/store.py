"""The releases that an operator keeps: one bundle each, named by its id, in one directory."""

import io
import os
import secrets
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ostler.fleet.host import archive
from ostler.fleet.host.archive import MANIFEST, Contents, Manifest
from ostler.fleet.host.refusals import Refused
from ostler.model.errors import InvalidSpec, NotFound, Rejected

SUFFIX = ".tar"


@dataclass(frozen=True, slots=True)
class Release:
    """A bundle in the store. `size` in bytes, `made_at` when this store got it."""

    manifest: Manifest
    bundle: Path
    size: int
    made_at: datetime

    @property
    def release(self) -> str:
        """Its id."""
        return self.manifest.release


class ReleaseStore:
    """A directory of bundles."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def releases(self) -> tuple[list[Release], list[Rejected]]:
        """All that can be read, the newest first, and what is wrong with the others."""
        found, wrong = [], []
        for bundle in self.directory.glob(f"*{SUFFIX}"):
            try:
                found.append(self._release(bundle))
            except Rejected as exc:
                wrong.append(exc)
        return sorted(found, key=lambda one: (one.made_at, one.release), reverse=True), wrong

    def find(self, name: str | None) -> Release:
        """One release by its id or a beginning of it that no other one has; the newest for None. Raises NotFound."""
        found, _ = self.releases()
        if not found:
            raise NotFound(f"there are no releases in {self.directory}", hint="ostler release build")
        if name is None:
            return found[0]
        fits = [one for one in found if one.release == name] or [one for one in found if one.release.startswith(name)]
        if len(fits) != 1:
            what = f"{len(fits)} releases begin with {name}" if fits else f"there is no release {name} in {self.directory}"
            raise NotFound(what, hint="ostler release list")
        return fits[0]

    def add(self, write: Callable[[Path], Manifest]) -> Release:
        """What `write` makes of a path becomes a release; the one of this id that is there already stays."""
        self.directory.mkdir(parents=True, exist_ok=True)
        part = self.directory / f".{secrets.token_hex(8)}"
        try:
            manifest = write(part)
            bundle = self.directory / f"{manifest.release}{SUFFIX}"
            if not bundle.exists():
                _to_disk(part)
                part.replace(bundle)
                _to_disk(self.directory)
        finally:
            part.unlink(missing_ok=True)
        return self._release(bundle)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the `keep` newest; answers the ids of those that went."""
        gone = self.releases()[0][keep:]
        for one in gone:
            with suppress(FileNotFoundError):
                one.bundle.unlink()
        return [one.release for one in gone]

    def _release(self, bundle: Path) -> Release:
        with _opened(bundle, None) as (manifest, _, _):
            pass
        if bundle.name != f"{manifest.release}{SUFFIX}":
            raise InvalidSpec(f"{bundle} is the release {manifest.release}", hint=f"rename it to {manifest.release}{SUFFIX}")
        facts = bundle.stat()
        return Release(manifest, bundle, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))


def verify(bundle: Path, trusted: Mapping[str, bytes]) -> Manifest:
    """Check signature, names, sizes and hashes of a whole bundle, as a host does. Raises InvalidSpec."""
    with _opened(bundle, trusted) as (manifest, _, contents):
        for _file in contents.read():
            pass
    return manifest


def for_platform(bundle: Path, platform: str, there: Collection[str] = ()) -> bytes:
    """The bundle without the files that only other platforms need, and without the wheels whose sha256 are `there`: what one host is
    sent. Raises InvalidSpec.
    """
    with _opened(bundle, None) as (_, envelope, contents):
        files = [(MANIFEST, envelope)]
        files += [
            (file.path, b"".join(checked))
            for file, checked in contents.read()
            if file.serves(platform) and not (file.unpacked is not None and file.sha256 in there)
        ]
    return pack(files)


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive whose bytes depend on nothing else; it holds wheels, which are compressed already."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in files:
            tar.addfile(member_of(path, len(data)), io.BytesIO(data))
    return content.getvalue()


def member_of(path: str, size: int) -> tarfile.TarInfo:
    """The head of a member of such an archive."""
    member = tarfile.TarInfo(path)  # its times and owners are zero
    member.size, member.mode = size, 0o644
    return member


@contextmanager
def _opened(bundle: Path, trusted: Mapping[str, bytes] | None) -> Iterator[tuple[Manifest, bytes, Contents]]:
    """What the host program refuses, as this side says it."""
    try:
        with bundle.open("rb") as file, archive.opened(file, trusted) as found:
            yield found
    except Refused as exc:
        raise InvalidSpec(f"{bundle}: {exc.message}") from None
    except FileNotFoundError:
        raise NotFound(f"there is no file {bundle}", hint="ostler release list") from None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
