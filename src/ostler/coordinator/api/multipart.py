"""A multipart form as it arrives: its parts one after the other, never as a whole."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ostler.model.errors import InvalidSpec, Problem

MAX_NAME = 1024
MAX_PARTS = 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A part begins. `filename` is None for a plain field, else as it was sent, percent signs included."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part that began last is whole."""


Event = Part | bytes | PartEnd


class _Events:
    """Turns the parser's callbacks into a list that is read after each piece of the body."""

    def __init__(self) -> None:
        self.found: list[Event] = []
        self.over = False
        self._parts = 0
        self._field = b""
        self._value = b""
        self._disposition = b""

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidSpec("the form has too many parts", [Problem("", f"a form has at most {MAX_PARTS}")])
        self._disposition = b""

    def on_header_begin(self) -> None:
        self._field = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name, filename = options.get(b"name"), options.get(b"filename")
        if name is None or len(name) > MAX_NAME or len(filename or b"") > MAX_NAME:
            raise InvalidSpec("the form has a part without a name, or with too long a one")
        try:
            self.found.append(Part(name.decode(), None if filename is None else filename.decode()))
        except UnicodeDecodeError as exc:
            raise InvalidSpec("the form has a part whose name is not UTF-8") from exc

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.found.append(data[start:end])

    def on_part_end(self) -> None:
        self.found.append(PartEnd())

    def on_end(self) -> None:
        self.over = True


async def read_form(chunks: AsyncIterator[bytes], content_type: str) -> AsyncIterator[Event]:
    """The form's events in order; raises InvalidSpec where it is not one, or ends in the middle."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    events = _Events()
    if not boundary:
        raise InvalidSpec("the form has no boundary", [Problem("Content-Type", "multipart/form-data; boundary=… is expected")])
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": events.on_part_begin, "on_part_data": events.on_part_data, "on_part_end": events.on_part_end,
                "on_header_begin": events.on_header_begin, "on_header_field": events.on_header_field,
                "on_header_value": events.on_header_value, "on_header_end": events.on_header_end,
                "on_headers_finished": events.on_headers_finished, "on_end": events.on_end,
            },
        )  # fmt: skip
        async for chunk in chunks:
            parser.write(chunk)
            found, events.found = events.found, []
            for event in found:
                yield event
    except FormParserError as exc:
        raise InvalidSpec("the form cannot be read", [Problem("", str(exc))]) from exc
    if not events.over:
        raise InvalidSpec("the form ends in the middle; nothing was stored")
