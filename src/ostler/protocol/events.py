"""Server-sent events as a reader sees them: lines in, events out (source: the HTML standard, section 9.2); and its way back."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ostler.model.errors import Unavailable
from ostler.runtime.backoff import Backoff


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `ident` is what `Last-Event-ID` says to go on after it."""

    kind: str
    data: str
    ident: str | None = None


class EventReader:
    """Feeds on pieces of a stream, however they are cut. `ident` is that of the last event that was whole."""

    def __init__(self, ident: str | None = None) -> None:
        self.ident = ident
        self._ident = ident
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
            self.ident = self._ident  # not before: an event that breaks off in its middle is asked for again
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
            self._ident = value
        return None


class Place:
    """Where a follower stands, over as many connections as that takes: what to ask for next, and how long to wait before."""

    def __init__(self, patience_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._reader = EventReader()
        self._backoff = Backoff(min_s=0.2, max_s=5.0)
        self._heard_at = clock()

    def headers(self) -> dict[str, str]:
        """The head of the next call: after the last whole event; what was left of one that broke off is forgotten."""
        ident = self._reader.ident
        self._reader = EventReader(ident)
        return {"Accept": "text/event-stream"} | ({"Last-Event-ID": ident} if ident is not None else {})

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that a piece completes."""
        self._heard_at = self._clock()
        self._backoff.reset()
        return self._reader.feed(piece)

    def pause(self, lost: Unavailable) -> float:
        """How long to wait before the next call; raises what was lost where patience is at its end."""
        pause = lost.retry_after if lost.retry_after is not None else self._backoff.next_s()
        if self._clock() + pause - self._heard_at > self._patience_s:
            raise lost
        return pause
