"""The HTTP server around the application: uvicorn with bounded heads and connections, no signals of its own, and polls that end with it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ostler.coordinator.api.exchanges import Exchange
from ostler.coordinator.api.rates import network_of

MAX_HEAD = 32 * 1024  # bytes of request line and headers
KEEP_ALIVE_S = 75  # longer than our clients keep theirs
BODY_AHEAD = 2**20  # bytes of a body that wait for their endpoint
HEAD_S = 30.0  # from a head's first bytes to its last
HANDSHAKE_S = 10.0  # who opens a connection and says nothing loses it after this
GOODBYE_S = 1.0  # a connection that was closed waits so long for the other end to say that it has heard
TICK_S = 1.0
LINGER_S = 1.0
CANCELLED_S = 10.0  # disk work that is under way in a thread ends by itself


def _refusal(status: int, title: str, code: str, *more: str) -> bytes:
    """A whole answer to a request that is not read."""
    body = f'{{"title":"{title}","status":{status},"code":"{code}","type":"about:blank"}}'
    lines = [f"HTTP/1.1 {status} {title}", "content-type: application/problem+json", "connection: close", *more]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", body]).encode()


_OF_A_PROXY = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
_TOO_LARGE = _refusal(431, "Request header fields too large", "too_large")
_TOO_SLOW = _refusal(408, "Request timeout", "timeout")
_TOO_MANY = _refusal(429, "Too many connections", "no_capacity", "retry-after: 1")


class Crowd:
    """How many connections each address holds open."""

    def __init__(self, limit: int, *, refused: Callable[[str], None]) -> None:
        self._limit = limit
        self._refused = refused
        self._of: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Whether one more is welcome; then `leave` follows."""
        count = self._of.get(address, 0)
        if count >= self._limit:
            self._refused("connections")
            return False
        self._of[address] = count + 1
        return True

    def leave(self, address: str) -> None:
        """One of them is gone."""
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


class BoundedProtocol(HttpToolsProtocol):
    """The parser collects a head of any size, and waits for it for any time; this counts, and hangs up."""

    crowd: Crowd
    direct: Any  # the application as it is, without what uvicorn puts around it
    _begun = False
    _entered: str | None = None
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first bytes are a head."""
        self._head: int | None = 0
        self._refused = False
        super().connection_made(transport)
        address = network_of(self.client[0]) if self.client else "local"
        if self.crowd.enter(address):
            self._entered = address
            self._slow = self.loop.call_later(HEAD_S, self._hang_up, _TOO_SLOW)
        else:
            self._hang_up(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._hurry(slow=False)
        if self._entered is not None:
            self.crowd.leave(self._entered)
        super().connection_lost(exc)
        if isinstance(self.cycle, Exchange) and self.cycle.on_gone is not None:
            self.cycle.on_gone()

    def _hurry(self, *, slow: bool) -> None:
        """A head that is not whole yet has its time; most come whole, and no timer is made for them."""
        if slow and self._slow is None:
            self._slow = self.loop.call_later(HEAD_S, self._hang_up, _TOO_SLOW)
        elif not slow and self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of both; what comes after a refusal is not looked at."""
        if self._refused:
            return
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        self._hurry(slow=self._begun or bool(self._head))
        if self._head is not None and self._head > MAX_HEAD:
            self._hang_up(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """The next head begins. What stands in front of it in the same piece of data is not counted again."""
        self._head = self._head or 0
        self._begun = True
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """The head is whole; its own size counts, not that of the body that came with it."""
        size, app = len(self.url), self.direct
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name in _OF_A_PROXY:
                app = self.app  # by way of uvicorn, which knows whom to believe
        if size > MAX_HEAD:
            self._hang_up(_TOO_LARGE)
            return
        self._head, self._begun = None, False
        before = self.cycle
        self.cycle = Exchange(self)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

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

    def _hang_up(self, answer: bytes) -> None:
        """Answers, and closes a moment later: closing with bytes unread resets the connection, and the answer is lost."""
        if not self._refused and not self.transport.is_closing():
            self._refused = True
            self.transport.write(answer)
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
        crowd: Crowd,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._crowd = crowd
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
        made = BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        made.crowd, made.direct = self._crowd, self.config.app
        return made

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
    context: ssl.SSLContext | None,
    crowd: Crowd,
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
    return Server(config, listener, context=context, crowd=crowd, on_start=on_start, on_stop=on_stop)
