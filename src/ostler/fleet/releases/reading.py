"""A bundle as the coordinator sees it: read once as it comes, and checked as a host checks it."""

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO

from ostler.fleet.host import archive
from ostler.fleet.host.refusals import Refused
from ostler.fleet.releases.store import member_of
from ostler.model.errors import InvalidSpec
from ostler.model.release import Excerpt, Release


def read_bundle(bundle: IO[bytes], trusted: Mapping[str, bytes] | None) -> Release:
    """What a whole bundle is, once all of it was read and is as one of the `trusted` keys signed it (None: one that it brings).

    Its sha256 is that of the bundle as `ostler release build` lays it out; the bytes that came may be others. Blocks. Raises InvalidSpec.
    """
    try:
        with archive.opened(bundle, trusted) as (manifest, envelope, contents):
            layout = _Layout(manifest.platforms)
            layout.add(archive.MANIFEST, len(envelope), manifest.platforms)
            layout.data(envelope)
            for file, checked in contents.read():
                layout.add(file.path, file.size, [one for one in manifest.platforms if file.serves(one)])
                for block in checked:
                    layout.data(block)
    except Refused as exc:
        raise InvalidSpec(exc.message, hint="`ostler release verify` checks a bundle as a host does") from None
    sha256, excerpts = layout.end()
    return Release(
        release=manifest.release, digest=manifest.digest, version=manifest.version, commit=manifest.commit, made=manifest.made,
        protocol=manifest.protocol, schema=manifest.schema, platforms=manifest.platforms, signed_by=manifest.signed_by,
        generation=manifest.generation, keys=manifest.keys, sha256=sha256, excerpts=excerpts,
    )  # fmt: skip


class _Layout:
    """Where each member of the archive stands, and the hashes of the whole and of what each platform needs of it."""

    def __init__(self, platforms: Sequence[str]) -> None:
        self._whole = hashlib.sha256()
        self._parts = {one: hashlib.sha256() for one in platforms}
        self._pieces: dict[str, list[tuple[int, int]]] = {one: [] for one in platforms}
        self._serves: Sequence[str] = ()
        self._at = 0
        self._padding = 0

    def add(self, path: str, size: int, serves: Sequence[str]) -> None:
        """The next member, for these platforms."""
        self._feed(bytes(self._padding))
        self._serves, self._padding = serves, -size % tarfile.BLOCKSIZE
        self._cover(tarfile.BLOCKSIZE + size + self._padding)
        self._feed(member_of(path, size).tobuf(tarfile.USTAR_FORMAT))

    def data(self, block: bytes) -> None:
        """Of its content."""
        self._feed(block)

    def end(self) -> tuple[str, dict[str, Excerpt]]:
        """The sha256 of the whole, and the excerpts."""
        self._feed(bytes(self._padding))
        rest = 2 * tarfile.BLOCKSIZE
        rest += -(self._at + rest) % tarfile.RECORDSIZE
        self._serves = tuple(self._parts)
        self._cover(rest)
        self._feed(bytes(rest))
        return self._whole.hexdigest(), {
            one: Excerpt(
                sha256=digest.hexdigest(),
                pieces=tuple(self._pieces[one]),
                size=sum(end - begin for begin, end in self._pieces[one]),
            )
            for one, digest in self._parts.items()
        }

    def _cover(self, size: int) -> None:
        begin, self._at = self._at, self._at + size
        for one in self._serves:
            pieces = self._pieces[one]
            if pieces and pieces[-1][1] == begin:
                begin_before, _ = pieces.pop()
                pieces.append((begin_before, self._at))
            else:
                pieces.append((begin, self._at))

    def _feed(self, data: bytes) -> None:
        self._whole.update(data)
        for one in self._serves:
            self._parts[one].update(data)
