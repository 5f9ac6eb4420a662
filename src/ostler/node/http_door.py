"""A small HTTP/1.1 server for the machine itself: health, metrics and control, on a loopback port and a unix socket."""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import h11

IDLE_S = 10.0
MAX_CONNECTIONS = 64
MAX_BODY = 64 * 1024
_BLOCK = 16 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, without its body: nothing here takes one."""

    method: str
    path: str
    query: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer."""

    status: int
    content: bytes
    media: str = "application/json"


Serve = Callable[[Request], Awaitable[Reply]]


class HttpDoor:
    """Opens doors and answers through a function each. A door that cannot be opened is a warning: jobs matter more."""

    def __init__(self, *, logger: logging.Logger) -> None:
        self._logger = logger
        self._servers: list[asyncio.Server] = []
        self._sockets: list[Path] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.port: int | None = None

    async def listen(self, address: str, serve: Serve) -> None:
        """On HOST:PORT; "off" for nowhere."""
        if address == "off":
            return
        host, _, port = address.rpartition(":")
        try:
            server = await asyncio.start_server(self._accept(serve), host.strip("[]") or "127.0.0.1", int(port))
        except (OSError, ValueError, OverflowError) as exc:
            attrs = {"listen": address, "error": str(exc)}
            self._logger.warning("health_not_served", extra={"attrs": attrs})
            return
        self.port = server.sockets[0].getsockname()[1]
        self._servers.append(server)

    async def listen_locally(self, path: Path, serve: Serve) -> None:
        """On a unix socket that only the node's own user and root may open."""
        try:
            _unlink_socket(path)
            before = os.umask(0o177)
            try:
                server = await asyncio.start_unix_server(self._accept(serve), path)
            finally:
                os.umask(before)
        except (OSError, ValueError) as exc:
            attrs = {"listen": str(path), "error": str(exc)}
            self._logger.warning("control_not_served", extra={"attrs": attrs})
            return
        self._servers.append(server)
        self._sockets.append(path)

    async def close(self) -> None:
        """Answer nobody any more."""
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for path in self._sockets:
            with contextlib.suppress(OSError):
                path.unlink()

    def _accept(self, serve: Serve) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is None or len(self._connections) >= MAX_CONNECTIONS:
                writer.close()
                return
            self._connections.add(task)
            try:
                await self._converse(reader, writer, serve)
            except (TimeoutError, OSError, h11.ProtocolError, asyncio.CancelledError):
                pass  # it left, it stalled, it speaks something else; or the daemon ends, and nobody waits for this task
            finally:
                self._connections.discard(task)
                writer.close()

        return connection

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_BODY)
        while True:
            request = await self._read(http, reader)
            if request is None:
                return
            try:
                reply = await serve(request)
            except Exception:
                self._logger.exception("local_request_failed", extra={"attrs": {"path": request.path}})
                reply = Reply(500, b'{"error":"a bug of the node; see its log"}')
            headers = [
                ("content-type", reply.media),
                ("content-length", str(len(reply.content))),
                ("cache-control", "no-store"),
            ]
            content = b"" if request.method == "HEAD" else reply.content
            sent = http.send(h11.Response(status_code=reply.status, headers=headers))
            sent += http.send(h11.Data(data=content))
            sent += http.send(h11.EndOfMessage())
            writer.write(sent)
            async with asyncio.timeout(IDLE_S):
                await writer.drain()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _read(self, http: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
        request: Request | None = None
        body = 0
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(IDLE_S):
                    http.receive_data(await reader.read(_BLOCK))
            elif isinstance(event, h11.Request):
                parts = urlsplit(event.target.decode("ascii", "replace"))
                request = Request(event.method.decode("ascii"), parts.path, dict(parse_qsl(parts.query)))
            elif isinstance(event, h11.Data):
                body += len(event.data)
                if body > MAX_BODY:
                    return None
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None


def _unlink_socket(path: Path) -> None:
    """That of an earlier daemon: there is only one per state directory."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
