"""One request and its answer on a connection: uvicorn's own, made with less, and answered in one piece where the answer is whole."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

SHORT_URL = 64  # bytes up to which a URL is taken apart once and remembered
_EXCHANGE = "ostler.exchange"
_NONE: Mapping[str, str] = MappingProxyType({})
_CLOSE = (b"connection", b"close")
_BODILESS = frozenset({204, 304})
_ASGI = {"version": "3.0", "spec_version": "2.3"}

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Whole:
    """An answer that is all there. Its headers lack the date and what is the connection's own."""

    status: int
    headers: list[Header]
    body: bytes = b""

    @classmethod
    def of(cls, status: int, body: bytes = b"", media_type: bytes = b"", more: Mapping[str, str] = _NONE) -> Self:
        """With the headers that belong to a body."""
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
        if status not in _BODILESS:
            headers.append((b"content-length", b"%d" % len(body)))
        if media_type:
            headers.append((b"content-type", media_type))
        return cls(status, headers, body)


def exchange_of(scope: Scope) -> "Exchange":
    """The exchange of a request. Its `reply` answers in one piece: ASGI takes two messages, and each looks at every header anew."""
    found: Exchange = scope["extensions"][_EXCHANGE]
    return found


class Exchange(RequestResponseCycle):
    """A request that is being answered. What is the same for all of a connection comes from its protocol."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        parser, url = protocol.parser, protocol.url
        version = parser.get_http_version()
        path, raw_path, query = _short(url) if len(url) <= SHORT_URL else _parts(url)
        scope: Any = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": protocol.headers,
            "scheme": protocol.scheme,
            "server": protocol.server,
            "client": protocol.client,
            "extensions": {_EXCHANGE: self},
        }
        self.scope = scope
        self.transport, self.flow, self.logger = protocol.transport, protocol.flow, protocol.logger
        self.access_log = False
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.disconnected, self.response_started, self.response_complete = False, False, False
        self.keep_alive = version != "1.0" and parser.should_keep_alive()
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body, self.more_body = bytearray(), True
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        self.on_gone: Callable[[], None] | None = None  # told when the caller hangs up before it has its answer

    async def run_asgi(self, app: Any) -> None:
        """Have it answered. Its scope lets go of it then: a cycle keeps both until the collector comes, thousands of them."""
        try:
            await super().run_asgi(app)
        finally:
            del self.scope["extensions"]

    async def reply(self, whole: Whole) -> None:
        """Head and body in one write."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        closes = _CLOSE in whole.headers
        headers = [*self.default_headers, *whole.headers]
        if not self.keep_alive and not closes:
            headers.append(_CLOSE)
        lines = b"".join([b"%s: %s\r\n" % header for header in headers])
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
            raise RuntimeError("a header of the answer holds a character that cannot be sent")
        self.response_started, self.waiting_for_100_continue = True, False
        body = b"" if self.scope["method"] == "HEAD" else whole.body
        self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[whole.status], lines, body))
        self.response_complete = True
        self.message_event.set()
        if closes or not self.keep_alive:
            self.transport.close()
        self.on_response()


def _parts(url: bytes) -> tuple[str, bytes, bytes]:
    """A URL's path, as it is meant and as it was sent, and its query."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


_short = lru_cache(maxsize=1024)(_parts)
