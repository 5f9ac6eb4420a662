"""HTTP/1.1 for the calls that nodes and coordinator make all the time: a small request, a small answer, one kept connection each.

httptools parses; nothing is streamed, redirected or sent through a proxy (`direct_to` says which addresses that leaves out). A
general client spends more on such a call than both ends do on what it is for: 0.8 ms of CPU against less than 0.1.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httptools

from ostler.model.errors import InvalidSpec

IDLE_KEPT = 16  # connections that wait for the next call
MAX_HEAD_BYTES = 256 * 2**10
MAX_ANSWER_BYTES = 256 * 2**20
_NO_CONTENT_LENGTH = frozenset({"GET", "DELETE"})

Answer = tuple[int, Mapping[str, str], bytes]


class ProtocolViolation(ConnectionError):
    """What came back is not an HTTP answer, or only a part of one."""


def direct_to(root: str) -> SplitResult | None:
    """The address in parts, where calls to it can be made here; None where a proxy, a login in the URL or a name outside of ASCII
    asks for more."""
    parts = urlsplit(root)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None or not root.isascii():
        return None
    proxies = getproxies()
    if (proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.netloc):
        return None
    return parts


class _Connection(asyncio.Protocol):
    """One connection, which carries one call after the other."""

    def __init__(self) -> None:
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._parser: Any = None
        self._head = 0  # bytes that came before the answer's body
        self._in_head = False
        self._open_ended = False
        self._ended = False
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send; the answer resolves, or fails with an OSError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self.reusable = False
        self._head, self._in_head, self._open_ended = 0, True, False
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # nothing was asked: whatever it is, it belongs to no call
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(ProtocolViolation(f"the answer is not HTTP: {exc}"))
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD_BYTES:
                self._fail(ProtocolViolation(f"the head of the answer is longer than {MAX_HEAD_BYTES >> 10} KiB"))

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is None or self._answer.done():
            return
        if exc is None and self._ended and self._open_ended:
            self._complete(reusable=False)
        else:
            self._fail(
                exc if isinstance(exc, OSError) else ConnectionResetError("the connection was closed before an answer came")
            )

    # what the parser tells

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():  # more than the answer: what follows belongs to no call
            self.reusable = False
        self._headers = {}
        self._body = bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        self._in_head = False
        # without a length its end is the end of the connection
        self._open_ended = not self._headers.keys() & {"content-length", "transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_ANSWER_BYTES:
            self._fail(ProtocolViolation(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB"))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return  # a word before the answer, such as 100 Continue
        if self._answer is not None and not self._answer.done():
            self._complete(reusable=self._parser.should_keep_alive())

    def _complete(self, *, reusable: bool) -> None:
        assert self._answer is not None  # noqa: S101
        self.reusable = reusable
        self._answer.set_result((self._parser.get_status_code(), self._headers, bytes(self._body)))

    def _fail(self, exc: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)
        self.close()


class DirectCalls:
    """Calls to one address. Connections that were idle for `keep_s` are not used again; a cancelled call closes its own."""

    def __init__(
        self, address: SplitResult, *, context: Callable[[], ssl.SSLContext] | None, keep_s: float, kept: int = IDLE_KEPT
    ) -> None:
        """With a `context` they are encrypted; it is asked for at each new connection. At most `kept` wait for the next call."""
        self._host = address.hostname or ""
        self._port = address.port or (443 if address.scheme == "https" else 80)
        self._netloc = address.netloc.encode("ascii")
        self._context = context
        self._root = f"{address.scheme}://{address.netloc}"
        self._keep_s = keep_s
        self._kept = kept
        self._idle: list[tuple[float, _Connection]] = []
        self._busy: set[_Connection] = set()

    async def call(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, *, connect_s: float, answer_s: float
    ) -> Answer:
        """Status, headers (names in lower case) and body. Raises OSError, TimeoutError among them; InvalidSpec for what cannot be
        sent."""
        request = self._request(method, url, headers, content)
        connection = self._take()
        if connection is None:
            connection = await self._connect(connect_s)
        self._busy.add(connection)
        try:
            async with asyncio.timeout(answer_s):
                return await connection.ask(request)
        except TimeoutError:
            raise TimeoutError(f"nothing came back in {answer_s:g} s") from None
        finally:
            self._busy.discard(connection)
            self._leave(connection)

    def close(self) -> None:
        """Close all connections; calls under way fail."""
        for connection in [*self._busy, *(one for _, one in self._idle)]:
            connection.close()
        self._idle.clear()

    def _request(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> bytes:
        if not url.startswith(self._root):
            raise InvalidSpec(f"{url!r} does not lie at {self._root}")
        head = f"{method} {url[len(self._root) :] or '/'} HTTP/1.1"
        lines = [f"{name}: {value}" for name, value in headers.items()]
        if content or method not in _NO_CONTENT_LENGTH:
            lines.append(f"Content-Length: {len(content)}")
        text = "\r\n".join([head, *lines])
        try:
            sent = text.encode("ascii")
        except UnicodeEncodeError as exc:
            raise InvalidSpec(f"a URL or header of the call to {self._root} is not plain ASCII text") from exc
        if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text or head.count(" ") != 2:
            raise InvalidSpec(f"a URL or header of the call to {self._root} holds a character that cannot be sent")
        return b"%s\r\nHost: %s\r\n\r\n%s" % (sent, self._netloc, content)

    def _take(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            since, connection = self._idle.pop()
            if now - since < self._keep_s and not connection.closed:
                return connection
            connection.close()
        return None

    def _leave(self, connection: _Connection) -> None:
        if connection.reusable and not connection.closed and len(self._idle) < self._kept:
            self._idle.append((asyncio.get_running_loop().time(), connection))
        else:
            connection.close()

    async def _connect(self, within_s: float) -> _Connection:
        """To the first of the host's addresses that answers; each has its share of the time."""
        loop = asyncio.get_running_loop()
        context = None if self._context is None else self._context()
        name = None if context is None else self._host
        async with asyncio.timeout(within_s):
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError = ConnectionError(f"{self._host} has no address")
        for *_, address in found:
            try:
                async with asyncio.timeout(within_s / len(found)):
                    _, connection = await loop.create_connection(
                        _Connection, str(address[0]), int(address[1]), ssl=context, server_hostname=name
                    )
            except TimeoutError:
                failure = TimeoutError(f"{address[0]} did not take the connection in {within_s / len(found):g} s")
            except OSError as exc:
                failure = exc
            else:
                return connection
        raise failure
