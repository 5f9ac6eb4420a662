"""The HTTP server around the application: uvicorn with bounded heads, no signals of its own, and long polls that end with it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32 * 1024  # bytes of request line and headers
KEEP_ALIVE_S = 75  # longer than our clients keep theirs
BODY_AHEAD = 2**20  # bytes of a body that wait for their endpoint
HANDSHAKE_S = 10.0  # who opens a connection and says nothing loses it after this
GOODBYE_S = 1.0  # a connection that was closed waits so long for the other end to say that it has heard
TICK_S = 1.0
LINGER_S = 1.0
CANCELLED_S = 10.0  # disk work that is under way in a thread ends by itself
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)
_REFUSED = b'{"title":"Request header fields too large","status":431,"code":"too_large","type":"about:blank"}'


class BoundedProtocol(HttpToolsProtocol):
    """The parser collects a head of any size; this counts it and hangs up."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first bytes are a head."""
        self._head: int | None = 0
        self._refused = False
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of both; what comes after a refusal is not looked at."""
        if self._refused:
            return
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD:
            self._hang_up()

    def on_message_begin(self) -> None:
        """The next head begins. What stands in front of it in the same piece of data is not counted again."""
        self._head = self._head or 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole; its own size counts, not that of the body that came with it."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:
            self._hang_up()
            return
        self._head = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A body's bytes, unless its head was refused or they come too late.

        uvicorn stops reading at 64 KiB; a gigabyte in pieces of that size wakes the endpoint sixteen times as often.
        """
        cycle = self.cycle
        if self._refused or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > BODY_AHEAD:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """After this a head may follow on the same connection."""
        if not self._refused:
            super().on_message_complete()
        self._head = 0

    def _hang_up(self) -> None:
        """Answers, and closes a moment later: closing with bytes unread resets the connection, and the answer is lost."""
        if not self._refused and not self.transport.is_closing():
            self._refused = True
            self.transport.write(_REFUSAL % (len(_REFUSED), _REFUSED))
            self.loop.call_later(LINGER_S, self.transport.close)


class Server(uvicorn.Server):
    """Serves a listening socket until told to stop; `on_stop` runs before connections are waited for, so that it can end what they
    wait on. With a `context` it speaks TLS."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        *,
        context: ssl.SSLContext | None,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._context = context
        self._on_start = on_start
        self._on_stop = on_stop
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Accept nothing more, finish what is under way, return."""
        self.should_exit = True
        self._stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """From here on connections are answered."""
        await super().startup([])
        await self._listen()
        self._on_start()

    async def use(self, context: ssl.SSLContext) -> None:
        """New connections are encrypted with this from now on; those that are open go on as they are.

        A second server takes over the same socket's queue before the first one lets go, so that no connection is refused.
        """
        before = list(self.servers)
        self._context = context
        await self._listen()
        for one in before:
            one.close()
            self.servers.remove(one)

    async def _listen(self) -> None:
        tls: dict[str, Any] = {}
        if self._context is not None:
            tls = {"ssl": self._context, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S}
        backlog = self.config.backlog
        self.servers.append(
            await asyncio.get_running_loop().create_server(self._protocol, sock=self._listener.dup(), backlog=backlog, **tls)
        )

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def main_loop(self) -> None:
        """uvicorn's own looks for a flag ten times a second, on an idle machine too."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 10
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wakes who waits, then waits for them; also for those that had to be cancelled.

        uvicorn cancels what outlasts its patience and returns at once. A cancelled upload still has its staging file to remove,
        and what it needs for that is closed after this.
        """
        self._on_stop()
        await super().shutdown([self._listener])
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=CANCELLED_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the program."""
        yield


def build_server(
    app: Any,
    listener: socket.socket,
    *,
    context: ssl.SSLContext | None = None,
    drain_s: float,
    logger: logging.Logger,
    on_start: Callable[[], None],
    on_stop: Callable[[], None],
) -> Server:
    """A server for an application on a socket, not yet answering."""
    quiet = logging.getLogger("uvicorn.error")
    quiet.parent, quiet.propagate = logger, True
    quiet.setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    return Server(config, listener, context=context, on_start=on_start, on_stop=on_stop)
