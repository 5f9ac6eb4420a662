"""A line to a coordinator that can be held, cut, slowed, or made to lose answers: a TCP proxy, as networks treat connections.

It passes on what is said and can read along (`tap`): that is how the answers which a coordinator gave to a node are known without
asking either of them.
"""

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

Tap = Callable[[str, bytes, bytes, int, bytes], None]
KEPT = 16 << 20  # bytes of a body that are read along
HEARD = (b"/jobs/result", b"/jobs/fail", b"/jobs/ack", b"/jobs/pull", b"/nodes/register")


@dataclass(slots=True, eq=False)
class _Pair:
    """One connection, seen from the middle."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    ear: "_Ear | None"

    def abort(self) -> None:
        for one in (self.near, self.far):
            one.transport.abort()


def free_port() -> int:
    """A port that nobody has, of those that the kernel gives no connection: whoever listens there must find it again after a death."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


class Line:
    """Listens on a port of its own while there is somebody at the other end: a port that refuses is refused here, too."""

    def __init__(self, name: str, target: Callable[[], int], *, tap: Tap | None = None) -> None:
        self.name, self.port = name, free_port()
        self._target, self._tap = target, tap
        self._server: asyncio.Server | None = None
        self._beginning = asyncio.Lock()
        self._pairs: set[_Pair] = set()
        self._held = {"up": 0, "down": 0}
        self._moved = asyncio.Condition()
        self.late_s = 0.0
        self.losing = 0
        self.lost = 0

    async def listen(self) -> None:
        """Take connections, always on the same port."""
        async with self._beginning:  # two coordinators may come up at the same moment
            if self._server is None:
                self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)

    async def refuse(self) -> None:
        """Nobody is there: new connections are refused, and those of before are reset."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.cut()

    async def hold(self, *ways: str) -> None:
        """Let nothing through any more, `up` to the coordinator or `down` from it. Nothing is lost."""
        for way in ways:
            self._held[way] += 1

    async def let(self, *ways: str) -> None:
        """What was held goes on its way."""
        async with self._moved:
            for way in ways:
                self._held[way] -= 1
            self._moved.notify_all()

    def cut(self) -> None:
        """Reset all connections."""
        pairs, self._pairs = self._pairs, set()
        for one in pairs:
            one.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._pass("up")  # a packet that opens a connection is held like any other
        try:
            back, far = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, far, _Ear(self._tap) if self._tap else None)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump("up", reader, far, pair), self._pump("down", back, writer, pair))
        finally:
            pair.abort()
            self._pairs.discard(pair)

    async def _pump(self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: _Pair) -> None:
        try:
            while data := await source.read(1 << 16):
                if pair.ear is not None:
                    pair.ear.hear(way, data)
                if way == "down" and self.losing > 0:
                    self.losing -= 1
                    self.lost += 1
                    pair.abort()
                    return
                if self.late_s:
                    await asyncio.sleep(self.late_s)
                await self._pass(way)
                sink.write(data)
                await sink.drain()
            await self._pass(way)
            if sink.can_write_eof():
                sink.write_eof()
        except OSError:
            await self._pass(way)
            pair.abort()  # a reset at one end is one at the other

    async def _pass(self, way: str) -> None:
        if self._held[way]:
            async with self._moved:
                await self._moved.wait_for(lambda: not self._held[way])


@dataclass(slots=True, eq=False)
class _Message:
    url: bytes = b""
    kind: bytes = b""
    body: bytearray = field(default_factory=bytearray)


class _Ear:
    """Reads both ways of one connection, and tells each pair of question and answer that matters."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._asked: deque[_Message] = deque()
        self._deaf = False
        self._up, self._down = _Side(self._question), _Side(self._answer)
        self._request = httptools.HttpRequestParser(self._up)
        self._response = httptools.HttpResponseParser(self._down)

    def hear(self, way: str, data: bytes) -> None:
        if self._deaf:
            return
        try:
            (self._request if way == "up" else self._response).feed_data(data)
        except httptools.HttpParserError:  # a connection that was cut in the middle
            self._deaf = True

    def _question(self, message: _Message) -> None:
        self._asked.append(message)

    def _answer(self, message: _Message) -> None:
        if self._asked:
            asked = self._asked.popleft()
            path = asked.url.partition(b"?")[0]
            if path.endswith(HEARD):
                self._tap(path.decode(), asked.kind, bytes(asked.body), self._response.get_status_code(), bytes(message.body))


class _Side:
    """What httptools calls."""

    def __init__(self, done: Callable[[_Message], None]) -> None:
        self._done = done
        self._message = _Message()

    def on_message_begin(self) -> None:
        self._message = _Message()

    def on_url(self, url: bytes) -> None:
        self._message.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._message.kind = value

    def on_body(self, body: bytes) -> None:
        if len(self._message.body) < KEPT:
            self._message.body += body

    def on_message_complete(self) -> None:
        self._done(self._message)
