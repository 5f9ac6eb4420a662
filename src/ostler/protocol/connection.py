"""HTTP/1.1 for the calls that nodes and coordinator make all the time: a small request, a small answer, one kept connection each.

httptools parses; nothing is streamed, redirected or sent through a proxy (`direct_to` says which addresses that leaves out). A
general client spends more on such a call than both ends do on what it is for: 0.8 ms of CPU against less than 0.1.
"""

import asyncio
import contextlib
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httptools

from ostler.model.errors import InvalidSpec

IDLE_KEPT = 16  # connections that wait for the next call
MAX_HEAD_BYTES = 256 * 2**10
MAX_ANSWER_BYTES = 256 * 2**20
_NO_CONTENT_LENGTH = frozenset({"GET", "DELETE"})
_READ_BYTES = 64 * 2**10
_SENT_AT_ONCE = 64 * 2**10
_HUNG_UP = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
_NO_ANSWER = "the connection was closed before an answer came"
_SILENCE = "nothing came back in {:g} s"
_NOT_TAKEN = "{} did not take the connection in {:g} s"

Answer = tuple[int, Mapping[str, str], bytes]


class _Kept(Protocol):
    """A connection that may wait for the next call."""

    @property
    def reusable(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def cut(self) -> None: ...


C = TypeVar("C", bound=_Kept)


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


class _Reading:
    """Answers of one connection, one after the other, as their bytes come in."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.reusable = False  # the connection may carry another call
        self._parser: Any = None
        self._head = 0  # bytes that came before the answer's body
        self._in_head = False
        self._open_ended = False
        self._raw: dict[bytes, bytes] = {}
        self.on_header = self._raw.__setitem__  # told by the parser, header by header, without a call of Python
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def begin(self) -> None:
        """A call goes out."""
        self.answer, self.reusable = None, False
        self._head, self._in_head, self._open_ended = 0, True, False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """`answer` is there once it is whole. Raises ProtocolViolation for what is none, or too much of one."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if isinstance(exc, httptools.HttpParserCallbackError) and exc.__context__ is not None:
                raise exc.__context__ from None  # what a signal's handler raised while the parser told us something
            if self.answer is not None:  # what follows it belongs to no call
                self.reusable = False
                return
            raise ProtocolViolation(f"the answer is not HTTP: {exc}") from None
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD_BYTES:
                raise ProtocolViolation(f"the head of the answer is longer than {MAX_HEAD_BYTES >> 10} KiB")
        elif len(self._body) > MAX_ANSWER_BYTES:
            raise ProtocolViolation(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")

    def end(self) -> None:
        """No more bytes will come, which may be the end of an answer. Raises ConnectionResetError where it is not."""
        if not self._open_ended:
            raise ConnectionResetError(_NO_ANSWER)
        self._complete(reusable=False)

    # what the parser tells

    def on_message_begin(self) -> None:
        if self.answer is not None:  # more than the answer: what follows belongs to no call
            self.reusable = False
        self._raw.clear()
        self._body = bytearray()

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        self._in_head = False
        self._headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._raw.items()}
        # without a length its end is the end of the connection
        self._open_ended = "content-length" not in self._headers and "transfer-encoding" not in self._headers

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return  # a word before the answer, such as 100 Continue
        if self.answer is None:
            self._complete(reusable=self._parser.should_keep_alive())

    def _complete(self, *, reusable: bool) -> None:
        self.answer, self.reusable = (self._parser.get_status_code(), self._headers, bytes(self._body)), reusable


class _Connection(asyncio.Protocol):
    """One connection, which carries one call after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._reading = _Reading()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def reusable(self) -> bool:
        """Whether it may carry another call."""
        return self._reading.reusable and not self.closed

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send; the answer resolves, or fails with an OSError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._reading.begin()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    cut = close

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # nothing was asked: whatever it is, it belongs to no call
            self.close()
            return
        try:
            self._reading.feed(data)
        except ProtocolViolation as exc:
            self._fail(exc)
        else:
            if self._reading.answer is not None:
                self._answer.set_result(self._reading.answer)

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is None or self._answer.done():
            return
        try:
            if isinstance(exc, OSError) or not self._ended:
                raise exc if isinstance(exc, OSError) else ConnectionResetError(_NO_ANSWER)
            self._reading.end()
        except OSError as failure:
            self._fail(failure)
        else:
            self._answer.set_result(cast(Answer, self._reading.answer))

    def _fail(self, exc: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)
        self.close()


class _Line:
    """The same of a thread that waits."""

    def __init__(self, line: socket.socket) -> None:
        self._socket = line
        self._reading = _Reading()
        self._cut = False
        self._poll = select.poll()
        self._poll.register(line.fileno(), select.POLLIN)
        self._both = select.poll()
        self._both.register(line.fileno(), select.POLLIN | select.POLLOUT)

    @property
    def reusable(self) -> bool:
        """Whether it may carry another call: nothing came that nobody asked for, its end included."""
        return self._reading.reusable and not self.closed

    @property
    def closed(self) -> bool:
        """Whether it has ended, or brought what belongs to no call."""
        return self._socket.fileno() < 0 or bool(self._poll.poll(0))

    def ask(self, request: bytes, within_s: float) -> Answer:
        """Send, and wait for the answer; `within_s` is what the other end may take before it takes or gives the next bytes. Raises
        OSError, TimeoutError among them."""
        reading, taken = self._reading, True
        reading.begin()
        if len(request) <= _SENT_AT_ONCE:
            self._socket.settimeout(within_s)
            try:
                self._socket.sendall(request)
            except _HUNG_UP:
                taken = False  # a refusal may be there to be read
        else:
            taken = self._send(memoryview(request), within_s)
        while reading.answer is None:
            self._read()
        reading.reusable = reading.reusable and taken
        return reading.answer

    def _send(self, rest: memoryview, within_s: float) -> bool:
        """What is refused is not sent to its end: as soon as there is an answer, or nobody takes more. Whether all was sent."""
        self._socket.settimeout(0)
        try:
            while rest:
                events = self._both.poll(within_s * 1e3)
                if not events:
                    raise TimeoutError
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if events[0][1] & ~select.POLLOUT:
                        self._read()
                        if self._reading.answer is not None:
                            return False
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    rest = rest[self._socket.send(rest[:_SENT_AT_ONCE]) :]
        except _HUNG_UP:
            return False
        finally:
            self._socket.settimeout(within_s)
        return True

    def _read(self) -> None:
        data, ragged = b"", False
        try:
            data = self._socket.recv(_READ_BYTES)
        except ssl.SSLEOFError:  # without a word of goodbye: no end of an answer, whoever cut it
            ragged = True
        if data:
            self._reading.feed(data)
        elif self._cut or ragged:
            raise ConnectionResetError(_NO_ANSWER)
        else:
            self._reading.end()

    def close(self) -> None:
        """Close it; nobody waits."""
        self._socket.close()

    def cut(self) -> None:
        """End the call of the thread that waits, which closes it then: its number may be another file's a moment later."""
        self._cut = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS's own would take the encryption from under the reader


class _Calls(Generic[C]):
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
        self._idle: deque[tuple[float, C]] = deque()  # its ends are safe to use from any thread
        self._busy: set[C] = set()
        self._closed = False

    def close(self) -> None:
        """Close all connections; calls under way fail."""
        self._closed = True
        for connection in list(self._busy):
            connection.cut()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].close()

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

    def _take(self) -> C | None:
        now = time.monotonic()
        while True:
            try:
                since, connection = self._idle.pop()
            except IndexError:
                return None
            if now - since < self._keep_s and not connection.closed:
                return connection
            connection.close()

    def _leave(self, connection: C) -> None:
        now = time.monotonic()
        if connection.reusable and len(self._idle) < self._kept and not self._closed:
            self._idle.append((now, connection))
        else:
            connection.close()
        try:
            while now - self._idle[0][0] >= self._keep_s:
                self._idle.popleft()[1].close()
        except IndexError:
            return

    def _addresses(self, found: Sequence[Any], within_s: float) -> Iterator[tuple[str, int, float]]:
        """Each of the host's, and its share of the time."""
        if not found:
            raise ConnectionError(f"{self._host} has no address")
        for *_, address in found:
            scope = address[3] if len(address) > 3 else 0  # of a link-local one
            yield f"{address[0]}%{scope}" if scope else str(address[0]), int(address[1]), within_s / len(found)

    def _no_name(self, exc: UnicodeError) -> ConnectionError:
        return ConnectionError(f"{self._host!r} cannot be the name of a host: {exc}")


class DirectCalls(_Calls[_Connection]):
    """From an event loop."""

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
        timer: asyncio.TimerHandle | None = None
        try:
            answer = connection.ask(request)
            timer = answer.get_loop().call_later(answer_s, _give_up, answer, answer_s)
            return await answer
        finally:
            if timer is not None:
                timer.cancel()
            self._busy.discard(connection)
            self._leave(connection)

    async def _connect(self, within_s: float) -> _Connection:
        """To the first of the host's addresses that answers."""
        loop = asyncio.get_running_loop()
        context = None if self._context is None else self._context()
        name = None if context is None else self._host
        try:
            async with asyncio.timeout(within_s):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except UnicodeError as exc:
            raise self._no_name(exc) from None
        failure: OSError | None = None
        for host, port, share_s in self._addresses(found, within_s):
            try:
                async with asyncio.timeout(share_s):
                    _, connection = await loop.create_connection(_Connection, host, port, ssl=context, server_hostname=name)
            except TimeoutError:
                failure = TimeoutError(_NOT_TAKEN.format(host, share_s))
            except OSError as exc:
                failure = exc
            else:
                return connection
        assert failure is not None  # noqa: S101 - there was an address
        raise failure


def _give_up(answer: "asyncio.Future[Answer]", after_s: float) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError(_SILENCE.format(after_s)))


class BlockingCalls(_Calls[_Line]):
    """From threads that wait, each call over a connection of its own while it lasts. Without an event loop between them a small call
    takes a third of a millisecond less."""

    def call(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, *, connect_s: float, answer_s: float
    ) -> Answer:
        """As that of DirectCalls."""
        request = self._request(method, url, headers, content)
        line = self._take() or self._connect(connect_s)
        self._busy.add(line)
        try:
            return line.ask(request, answer_s)
        except TimeoutError:
            raise TimeoutError(_SILENCE.format(answer_s)) from None
        finally:
            self._busy.discard(line)
            self._leave(line)

    def _connect(self, within_s: float) -> _Line:
        """To the first of the host's addresses that answers."""
        context = None if self._context is None else self._context()
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except UnicodeError as exc:
            raise self._no_name(exc) from None
        failure: OSError | None = None
        for host, port, share_s in self._addresses(found, within_s):
            line: socket.socket | None = None
            try:
                line = socket.create_connection((host, port), share_s)
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is not None:
                    line = context.wrap_socket(line, server_hostname=self._host, suppress_ragged_eofs=False)
                return _Line(line)
            except TimeoutError:
                failure = TimeoutError(_NOT_TAKEN.format(host, share_s))
            except OSError as exc:
                failure = exc
            if line is not None:
                line.close()
        assert failure is not None  # noqa: S101 - there was an address
        raise failure
