"""The members of a bundle's tar archive, as `ostler release build` lays them out: plain files of the `ustar` form (POSIX.1-1988) alone.

A bundle is untrusted until its manifest is checked, and its heads come before that. So none of a head is followed: what it says beyond
name and size (long names, extended heads, sparse files, links) is refused before more is read.
"""

import re
from typing import IO

from ostler.fleet.host.refusals import Refused

BLOCK = 512
RECORD = 20 * BLOCK  # what an archive's length is a multiple of
ZEROS = BLOCK + RECORD  # at most so many end it: two blocks, and what fills a record. A platform's part has those of the whole
PIECE = 1 << 20
_OCTAL = re.compile(rb"([0-7]{6,11})[ \0]{1,2}")
_SUM = slice(148, 156)


class Members:
    """An archive that is read once, as it comes. Offsets and sizes are bytes."""

    def __init__(self, archive: IO[bytes]) -> None:
        self._archive, self._at = archive, 0
        self._left = self._padding = 0

    def next(self) -> tuple[str, int] | None:
        """Name and size of the next file, whose bytes come next; None: the zeros begin that end an archive. Raises Refused."""
        while self.read():
            pass
        self._exactly(self._padding)
        head = self._exactly(BLOCK)
        if not any(head):
            self._padding = 0
            return None
        name, size = _read(head)
        self._left, self._padding = size, -size % BLOCK
        return name, size

    def end(self) -> None:
        """After `next` answered None: nothing but zeros follows, and no more than end an archive. Raises Refused."""
        left = ZEROS - BLOCK
        while piece := self._archive.read(left + 1):
            left -= len(piece)
            if left < 0 or any(piece):
                raise Refused("unfit", "this is not the bundle of a release: more follows behind its end")

    def read(self) -> bytes:
        """The next piece of the file that `next` named, b"" at its end. Raises Refused where the archive ends before."""
        piece = self._some(min(PIECE, self._left))
        self._left -= len(piece)
        return piece

    def _some(self, most: int) -> bytes:
        piece = self._archive.read(most) if most else b""
        if most and not piece:
            raise Refused("unfit", "this is not a whole bundle: it ends too early")
        self._at += len(piece)
        return piece

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self._some(size - len(found))
        return found


def _read(head: bytes) -> tuple[str, int]:
    """Name and size that a head of 512 bytes tells."""
    if head[257:262] != b"ustar" or _number(head[_SUM]) != sum(head) - sum(head[_SUM]) + 8 * ord(" "):
        raise Refused("unfit", "this is not the bundle of a release: it has a member without a head of the ustar form")
    kind = head[156:157]
    if kind not in (b"0", b"\0"):
        raise Refused("unfit", f"the bundle has a member of the kind {kind!r}: one of a release is of plain files alone")
    size = _number(head[124:136])
    try:
        name = "/".join(one.rstrip(b"\0").decode("ascii") for one in (head[345:500], head[:100]) if one[0])
    except UnicodeDecodeError:
        name = ""
    if size is None or not name:
        raise Refused("unfit", "the bundle has a member whose name or size cannot be read")
    return name, size


def _number(field: bytes) -> int | None:
    found = _OCTAL.fullmatch(field)
    return int(found[1], 8) if found else None
