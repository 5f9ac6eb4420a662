"""Fetching one URL: over http(s) alone, resumed where the connection broke, never larger or slower than allowed."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostler.node.input_sink import Sink, refuse
from ostler.runtime.backoff import Backoff
from ostler.runtime.later import later

if TYPE_CHECKING:
    import httpx
else:
    httpx = later("httpx")

MAX_RETRY_AFTER_S = 30.0
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 507, 509}
_REDIRECTS = {301, 302, 303, 307, 308}
_MOVED_ON = {412, 416}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Where clouds answer any process on the machine with the machine's credentials. What a URL brings from there, the job could read.
LINK_LOCAL: tuple[Network, ...] = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Per connection: seconds to connect and seconds without a byte. `tries` are those in a row that bring nothing new."""

    connect_s: float = 10.0
    idle_s: float = 30.0
    tries: int = 5
    backoff_s: float = 0.5
    max_redirects: int = 5
    denied: tuple[Network, ...] = LINK_LOCAL


class _Broken(Exception):
    """This try failed; the next one may succeed, after `wait_s` if the server named a time."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def shown(url: str | httpx.URL) -> str:
    """A URL for messages: without credentials, which stand in its user part and, when it is presigned, in its query."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return repr(str(url)[:100])
    query = "?…" if parsed.query else ""
    return f"{parsed.copy_with(username=None, password=None, query=None, fragment=None)}"[:200] + query


class Download:
    """One URL on its way into a sink."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        sink: Sink,
        limits: DownloadLimits,
        *,
        checked: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`checked`: the content's hash is known, so that a resumed download cannot mix two versions unnoticed."""
        self._client = client
        self._url = url
        self._sink = sink
        self._limits = limits
        self._checked = checked
        self._sleep = sleep
        self._validator: str | None = None
        self._total: int | None = None

    async def run(self) -> None:
        """Fetch all of it. Raises InputRefused."""
        waits = Backoff(min_s=self._limits.backoff_s, max_s=MAX_RETRY_AFTER_S)
        best = 0
        while True:
            try:
                await self._once()
                return
            except _Broken as exc:
                broken = exc
            if self._sink.size > best:  # a bad line that moves is not a dead one
                best = self._sink.size
                waits.reset()
            wait_s = waits.next_s()
            if waits.failures >= self._limits.tries:
                raise refuse(f"{shown(self._url)}: {broken}; gave up after {waits.failures} tries") from broken
            await self._sleep(min(max(wait_s, broken.wait_s), MAX_RETRY_AFTER_S))

    async def _once(self) -> None:
        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        if self._sink.size:
            if self._validator is None and not self._checked:
                await self._sink.restart()
            else:
                headers["Range"] = f"bytes={self._sink.size}-"
                if self._validator is not None:
                    headers["If-Range"] = self._validator
        try:
            async with self._answer(headers) as response:
                await self._receive(response, ranged="Range" in headers)
        except httpx.UnsupportedProtocol as exc:
            raise refuse(f"{shown(self._url)}: {exc}") from exc
        except httpx.TransportError as exc:
            raise _Broken(f"{exc}" or type(exc).__name__) from exc
        if self._total is not None and self._sink.size != self._total:
            raise _Broken(f"{self._sink.size} of {self._total} bytes arrived")

    @asynccontextmanager
    async def _answer(self, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The response behind all redirects; each hop is looked at before it is taken."""
        limits = self._limits
        timeout = httpx.Timeout(limits.idle_s, connect=limits.connect_s)
        url = self._parse(self._url)
        for _ in range(limits.max_redirects + 1):
            request = self._client.build_request("GET", url, headers=headers, timeout=timeout)
            response = await self._client.send(request, stream=True, follow_redirects=False)
            try:
                self._look_at_peer(response)
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    yield response
                    return
            finally:
                await response.aclose()
            try:
                url = self._parse(str(url.join(location)))
            except (httpx.InvalidURL, ValueError) as exc:
                raise refuse(f"{shown(self._url)}: redirects to {location[:100]!r}, which is not a URL") from exc
        raise refuse(f"{shown(self._url)}: redirects more than {limits.max_redirects} times")

    def _parse(self, text: str) -> httpx.URL:
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError) as exc:
            raise refuse(f"{text[:100]!r} is not a URL: {exc}") from exc
        if url.scheme not in {"http", "https"} or not url.host:
            via = "" if text == self._url else f" (redirected from {shown(self._url)})"
            raise refuse(f"{shown(url)}{via}: only http and https URLs are fetched")
        self._look_at(url.host, url)
        return url

    def _look_at_peer(self, response: httpx.Response) -> None:
        """A name may lead anywhere, and elsewhere a moment later: what counts is the address that answered."""
        stream = response.extensions.get("network_stream")
        address = stream.get_extra_info("server_addr") if stream is not None else None
        if isinstance(address, tuple) and address:
            self._look_at(str(address[0]), response.url)

    def _look_at(self, host: str, url: httpx.URL) -> None:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._limits.denied):
            raise refuse(f"{shown(url)}: leads to {address}, from where this node fetches nothing")

    async def _receive(self, response: httpx.Response, *, ranged: bool) -> None:
        status = response.status_code
        if status in _AGAIN:
            raise _Broken(f"answered {status} {response.reason_phrase}", _retry_after(response))
        if ranged and status in _MOVED_ON:
            await self._sink.restart()
            raise _Broken(f"answered {status}: the file has changed")
        if status == 206 and ranged:
            await self._resume(response)
        elif status == 200:
            await self._begin(response)
        else:
            raise refuse(f"{shown(self._url)}: answered {status} {response.reason_phrase}".rstrip())
        async for chunk in response.aiter_raw():
            await self._sink.write(chunk)

    async def _begin(self, response: httpx.Response) -> None:
        if self._sink.size:
            await self._sink.restart()
        length = response.headers.get("content-length", "")
        self._total = int(length) if length.isascii() and length.isdecimal() else None
        if self._total is not None:
            self._sink.expect(self._total)
        etag = response.headers.get("etag", "")
        validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")  # a weak tag is no promise
        self._validator = validator if validator and validator.isascii() else None

    async def _resume(self, response: httpx.Response) -> None:
        matched = _RANGE.fullmatch(response.headers.get("content-range", ""))
        total = int(matched[2]) if matched and matched[2] != "*" else None
        if matched is None or int(matched[1]) != self._sink.size or (self._total is not None and total != self._total):
            await self._sink.restart()
            raise _Broken("continued with another part than the one that was missing")


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0
