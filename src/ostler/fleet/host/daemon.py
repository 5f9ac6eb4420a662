"""A word with the node daemon on its own socket: health, drain, resume. It is not trusted, so a look has one end in time and in size."""

import http.client
import io
import json
import socket
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0  # for all of it
MAX_ANSWER = 64 << 10  # bytes, head and body
MAX_NESTED = 500  # lists and objects of an answer: far from what a reader, or a writer, can be led into
_PIECE = 8192


class _Said:
    """What was read, where the reader of answers expects a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._content)


def ask(door: Path, method: str, path: str) -> dict[str, Any] | None:
    """The answer's content, or None where nobody answers with such."""
    try:
        response = http.client.HTTPResponse(_Said(_said(door, method, path)), method=method)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        if body.count(b"[") + body.count(b"{") > MAX_NESTED:
            return None
        answer = json.loads(body)
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    return answer if isinstance(answer, dict) else None


def _said(door: Path, method: str, path: str) -> bytes:
    """All that is answered until the other side ends, or the patience. Raises OSError."""
    until, said = time.monotonic() + PATIENCE_S, b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(door))
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        while len(said) < MAX_ANSWER and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            piece = connection.recv(_PIECE)
            if not piece:
                break
            said += piece
    return said
