"""Server-sent events as the coordinator writes them (source: the HTML standard, section 9.2)."""

from typing import Any

from ostler.protocol import codec

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
KEEP_ALIVE = b": keep-alive\n\n"


def event(kind: str, content: Any, ident: str | None = None) -> bytes:
    """One event; `ident` is what `Last-Event-ID` says to go on after it."""
    head = f"id: {ident}\n" if ident else ""
    return f"{head}event: {kind}\ndata: ".encode() + codec.encode(content) + b"\n\n"


def mark(ident: str) -> bytes:
    """A place without an event: the reader goes on behind it, and is told nothing."""
    return f"id: {ident}\n\n".encode()
