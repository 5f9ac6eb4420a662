"""A multipart form whose length is known before its first byte: fields, then files in blocks, never a file as a whole."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ostler.model.errors import InvalidSpec

BLOCK = 2**20
_ESCAPES = {'"': "%22", "\r": "%0D", "\n": "%0A"}


@dataclass(frozen=True, slots=True)
class FilePart:
    """One file of a form: the field's name, the name that it is sent under, where it lies, and how many bytes of it."""

    field: str
    filename: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Form:
    """A form ready to be sent. `pieces` are bytes, and files in between."""

    boundary: str
    pieces: tuple[bytes | FilePart, ...]

    @classmethod
    def of(cls, fields: Mapping[str, bytes], files: Sequence[FilePart]) -> "Form":
        """Fields come first, in order, so that the receiver knows what it is about to get."""
        boundary = secrets.token_hex(16)
        pieces: list[bytes | FilePart] = []
        head = b""
        for name, value in fields.items():
            disposition = f'--{boundary}\r\nContent-Disposition: form-data; name="{escape(name)}"\r\n'
            head += disposition.encode() + b"\r\n" + value + b"\r\n"
        for file in files:
            names = f'name="{escape(file.field)}"; filename="{escape(file.filename)}"'
            kind = "Content-Type: application/octet-stream"
            disposition = f"--{boundary}\r\nContent-Disposition: form-data; {names}\r\n{kind}\r\n\r\n"
            pieces += [head + disposition.encode(), file]
            head = b"\r\n"
        pieces.append(head + f"--{boundary}--\r\n".encode())
        return cls(boundary, tuple(pieces))

    @property
    def headers(self) -> dict[str, str]:
        """What the request says of it."""
        length = sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in self.pieces)
        return {"Content-Type": f"multipart/form-data; boundary={self.boundary}", "Content-Length": str(length)}

    def blocks(self) -> Iterator[bytes]:
        """The body; what a file has grown by since stays out. Raises InvalidSpec where one has become shorter."""
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from file_blocks(piece.path, piece.size)


def file_blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, in blocks."""
    left = size
    with path.open("rb") as file:
        while left:
            block = file.read(min(BLOCK, left))
            if not block:
                raise InvalidSpec(f"{path} has become {left} bytes shorter while it was sent")
            left -= len(block)
            yield block


def escape(text: str) -> str:
    """A name as forms spell it (source: the HTML standard, section 4.10.22.8)."""
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    return text
