"""The daemon's side of a worker's socket: JSON lines, without a task or a stream object in between."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec

MAX_LINE = 1 << 20

Receive = Callable[[dict[str, Any]], None]


class WorkerLink(asyncio.Protocol):
    """One connection. `receive` is called with each message; `lost` resolves when the connection is gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.closed = False

    @classmethod
    async def open(cls, path: Path, receive: Receive) -> "WorkerLink":
        """Connect. Raises OSError; a path longer than an address holds goes through its folder's descriptor."""
        loop = asyncio.get_running_loop()
        folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            _, link = await loop.create_unix_connection(lambda: cls(receive), f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        return link

    def send(self, *messages: dict[str, Any]) -> None:
        """Send them in one piece; on a connection that is gone nothing happens: the worker's end tells what became of them."""
        if self._transport is not None and not self.closed:
            self._transport.write(b"".join([msgspec.json.encode(one) + b"\n" for one in messages]))

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_LINE:  # no message is: the task has got hold of the socket
            self.close()
            return
        for line in lines:
            try:
                message = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.close()
                return
            if isinstance(message, dict):
                self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.closed = True
