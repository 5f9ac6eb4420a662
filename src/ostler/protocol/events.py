"""Server-sent events as a reader sees them: lines in, events out (source: the HTML standard, section 9.2)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `ident` is what `Last-Event-ID` says to go on after it."""

    kind: str
    data: str
    ident: str | None = None


class EventReader:
    """Feeds on pieces of a stream, however they are cut."""

    def __init__(self, ident: str | None = None) -> None:
        self.ident = ident
        self._left = b""
        self._kind = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that this piece completes."""
        *lines, self._left = (self._left + piece).split(b"\n")
        found = []
        for line in lines:
            event = self._line(line.rstrip(b"\r").decode("utf-8", "replace"))
            if event is not None:
                found.append(event)
        return found

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            event = ServerEvent(self._kind or "message", "\n".join(self._data), self.ident) if self._data else None
            self._kind, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self.ident = value
        return None
