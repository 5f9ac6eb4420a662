"""A word with the node daemon on its own socket: health, drain, resume. It is not trusted, so a look has one end in time and in size."""

import json
import socket
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0  # for all of it
MAX_ANSWER = 64 << 10  # bytes, head and body
MAX_NESTED = 500  # lists and objects of an answer: far from what a reader, or a writer, can be led into
_PIECE = 8192


def ask(door: Path, method: str, path: str) -> dict[str, Any] | None:
    """The answer's content, or None where nobody answers with such."""
    try:
        body = _body(_said(door, method, path))
        if body.count(b"[") + body.count(b"{") > MAX_NESTED:
            return None
        answer = json.loads(body)
    except (OSError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _body(said: bytes) -> bytes:
    """What an answer holds; its head says how much that is. By hand, since the standard library's reader is a fifth of what a watcher
    loads. Raises ValueError."""
    head, _, rest = said.partition(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    (length,) = (int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    if not first.startswith(b"http/1.1 ") or not 0 <= length <= len(rest):
        raise ValueError("no whole answer")
    return rest[:length]


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
