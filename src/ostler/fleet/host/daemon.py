"""A word with the node daemon on its own socket: health, drain, resume."""

import contextlib
import http.client
import json
import socket
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0


class _Door(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("node", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(door: Path, method: str, path: str) -> dict[str, Any] | None:
    """The answer's content, or None where nobody answers with such."""
    with contextlib.closing(_Door(door)) as connection:
        try:
            connection.request(method, path)
            answer = json.loads(connection.getresponse().read(1 << 20))
        except (OSError, ValueError, http.client.HTTPException):
            return None
    return answer if isinstance(answer, dict) else None
