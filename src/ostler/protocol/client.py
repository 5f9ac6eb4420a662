"""The typed client over the route table, in two shells: `AsyncClient` for daemons, `Client` for programs that wait.

Both build and read calls with `exchange`, so they differ in nothing but how they wait. Every error is one of the tree: what the
coordinator said by its code; no connection, or none in time, is CoordinatorUnreachable.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from msgspec.structs import replace

from ostler.model.errors import CoordinatorUnreachable, InvalidSpec, NoCapacity, Unavailable
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.connection import IDLE_KEPT, Answer, BlockingCalls, DirectCalls, direct_to
from ostler.protocol.events import Place, ServerEvent
from ostler.protocol.exchange import ROUTE_SHAPE, Prepared, failure, prepare, root_of, understand
from ostler.protocol.forms import FilePart, Form, file_blocks
from ostler.protocol.routes import Route
from ostler.protocol.trust import Trust
from ostler.runtime.backoff import Backoff
from ostler.runtime.later import later

if TYPE_CHECKING:
    import httpx
else:
    httpx = later("httpx")  # for what is streamed alone

TIMEOUT_S = 30.0
CONNECT_S = 10.0
KEEP_ALIVE_S = 30.0  # shorter than the coordinator's, so that no call meets a connection that is just being closed
SILENCE_S = 45.0  # a followed log sends a comment each 15 s


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=KEEP_ALIVE_S)


_OPTIONS = ("token", "query", "headers", "keyed")

Broken = Callable[["httpx.HTTPError"], CoordinatorUnreachable]


def _timeout(timeout_s: float, wait_s: float = 0.0) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S), read=timeout_s + wait_s)


def _request(prepared: Prepared, limit: httpx.Timeout, content: Any = None) -> httpx.Request:
    """Built by hand: the headers of every call are the same few, and merging a client's defaults costs as much as the rest."""
    try:
        return httpx.Request(
            prepared.method,
            prepared.url,
            headers=prepared.headers,
            content=prepared.content if content is None else content,
            extensions={"timeout": limit.as_dict()},
        )
    except (httpx.InvalidURL, ValueError) as exc:
        raise InvalidSpec(f"{prepared.url!r} is not the URL of a coordinator: {exc}") from exc


def _body_headers(size: int) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(size)}


class _Shell:
    """What both shells keep. `token` is the credential of calls that name none; `patience_s` how long a GET is tried again, `busy_s`
    how long any call is that the coordinator refused as one too many and did not do."""

    def __init__(
        self, base_url: str, *, token: str | None, trust: Trust, timeout_s: float, patience_s: float, busy_s: float
    ) -> None:
        self.root = root_of(base_url)
        self.token = token
        self.trust = trust
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self.busy_s = busy_s

    def _prepare(self, route: Route, message: Any, options: dict[str, Any], path: Mapping[str, Any]) -> Prepared:
        token = options.pop("token", None)
        if options.pop("keyed", route.keyed):
            options["headers"] = {"Idempotency-Key": secrets.token_hex(16), **(options.get("headers") or {})}
        return prepare(self.root, route, message, token=self.token if token is None else token, path=path, **options)

    def _verify(self) -> ssl.SSLContext | bool:
        """For httpx. Without TLS there is nothing to verify, and loading the authorities takes a while."""
        return self.trust.context if self.root.startswith("https:") else False

    def _context(self) -> Callable[[], ssl.SSLContext] | None:
        """For calls that need no more than a connection."""
        return self.trust.refresh if self.root.startswith("https:") else None

    def _unreachable(self, prepared: Prepared, exc: httpx.HTTPError | OSError) -> CoordinatorUnreachable:
        server = urlsplit(prepared.url)
        usual = (str(exc) or type(exc).__name__, "is it running, and is the URL right?")
        why, hint = self.trust.explain(exc, prepared.url) or usual
        return CoordinatorUnreachable(f"no answer from the coordinator at {server.scheme}://{server.netloc}: {why}", hint=hint)

    def _timeout(self, timeout_s: float | None, wait_s: float = 0.0) -> httpx.Timeout:
        return _timeout(self.timeout_s if timeout_s is None else timeout_s, wait_s)

    def _pause(
        self, exc: Unavailable, began: float, backoff: Backoff, patience_s: float | None = None, *, again: bool = True
    ) -> float | None:
        """How long to wait before the next try; None where patience (the client's own, or the call's) is at its end.

        What must not be done twice (`again=False`) is tried again only where it was refused as one too many, and so not done.
        """
        patience_s = (self.patience_s if patience_s is None else patience_s) if again else 0.0
        if isinstance(exc, NoCapacity):
            patience_s = max(patience_s, self.busy_s)
        pause = exc.retry_after if exc.retry_after is not None else backoff.next_s()
        return pause if time.monotonic() + pause - began <= patience_s else None


def _append_headers(offset: int, final: m.LogEnd | None) -> dict[str, str]:
    headers = {"Upload-Offset": str(offset)}
    if final is not None:
        digest = base64.b64encode(bytes.fromhex(final.sha256)).decode()
        headers |= {"Upload-Length": str(final.length), "Upload-Checksum": f"sha256 {digest}"}
    return headers


def _delivery(outcome: m.Outcome, files: Mapping[str, Path]) -> Form:
    parts = [FilePart("artifacts", entry.path, files[entry.path], entry.size) for entry in outcome.artifacts]
    return Form.of({"metadata": codec.encode(outcome)}, parts)


async def _threaded(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Blocks that a disk gives, read in a thread."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block


class AsyncDownload:
    """The head of an answer whose bytes are still to come; `blocks` is used once."""

    def __init__(self, response: httpx.Response, broken: Broken) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._broken = broken

    async def blocks(self) -> AsyncIterator[bytes]:
        """The bytes; a connection that breaks is CoordinatorUnreachable, never a short end."""
        try:
            async for block in self._response.aiter_raw():
                yield block
        except httpx.HTTPError as exc:
            raise self._broken(exc) from exc


class AsyncClient(_Shell):
    """Calls a coordinator from an event loop. One instance keeps its connections, at most `kept` of them while nothing is asked;
    `timeout_s` is on top of a call's own wait."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        trust: Trust | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = 0.0,
        busy_s: float = 0.0,
        kept: int = IDLE_KEPT,
    ) -> None:
        super().__init__(base_url, token=token, trust=trust or Trust(), timeout_s=timeout_s, patience_s=patience_s, busy_s=busy_s)
        address = direct_to(self.root)
        self._direct = None if address is None else DirectCalls(address, context=self._context(), keep_s=KEEP_ALIVE_S, kept=kept)

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        """For what is streamed, and for addresses that need more than a connection."""
        return httpx.AsyncClient(verify=self._verify(), limits=_limits())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        if self._direct is not None:
            self._direct.close()
        if "_http" in self.__dict__:
            await self._http.aclose()

    async def _exchange(self, prepared: Prepared, timeout_s: float | None, content: AsyncIterator[bytes] | None = None) -> Answer:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if self._direct is None or content is not None:
            status, headers, answer = await self._exchange_at_large(prepared, _timeout(limit_s, prepared.wait_s), content)
        else:
            times = {"connect_s": min(limit_s, CONNECT_S), "answer_s": limit_s + prepared.wait_s}
            try:
                status, headers, answer = await self._direct.call(
                    prepared.method, prepared.url, prepared.headers, prepared.content or b"", **times
                )
            except OSError as exc:
                raise self._unreachable(prepared, exc) from exc
        if not 200 <= status < 300:
            raise failure(status, answer, headers)
        return status, headers, answer

    async def _exchange_at_large(self, prepared: Prepared, limit: httpx.Timeout, content: AsyncIterator[bytes] | None) -> Answer:
        try:
            response = await self._http.send(_request(prepared, limit, content))
        except httpx.HTTPError as exc:
            raise self._unreachable(prepared, exc) from exc
        return response.status_code, response.headers, response.content

    async def call(
        self,
        route: Route,
        message: Any = None,
        *,
        timeout_s: float | None = None,
        patience_s: float | None = None,
        shape: Any = ROUTE_SHAPE,
        **more: Any,
    ) -> Any:
        """One call; its answer as the route's message. `more` takes token, query, headers and the path's parameters; `keyed=False`: the
        coordinator knows by the message itself that a call is made again.

        Raises the error tree. A GET, or what bears a key, that met Unavailable is made again for up to `patience_s` (the client's
        own if absent), when the coordinator asks it to.
        """
        options = {name: more.pop(name) for name in _OPTIONS if name in more}
        prepared = self._prepare(route, message, options, more)
        began, backoff = time.monotonic(), Backoff(min_s=0.2, max_s=5.0)
        while True:
            try:
                status, _, content = await self._exchange(prepared, timeout_s)
                return understand(route, status, content, shape=shape)
            except Unavailable as exc:
                again = route.method == "GET" or route.keyed
                pause = self._pause(exc, began, backoff, patience_s, again=again)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def send_form(
        self,
        route: Route,
        form: Form,
        *,
        timeout_s: float | None = None,
        shape: Any = ROUTE_SHAPE,
        token: str | None = None,
        **path: Any,
    ) -> Any:
        """A form with files as the body, in constant memory."""
        prepared = self._prepare(route, None, {"token": token, "headers": form.headers}, path)
        status, _, content = await self._exchange(prepared, timeout_s, _threaded(form.blocks()))
        return understand(route, status, content, shape=shape)

    async def deliver(
        self, outcome: m.Outcome, files: Mapping[str, Path], *, token: str | None = None, timeout_s: float | None = None
    ) -> m.ItemResult:
        """One outcome with its artifacts; `files` says where each announced path lies. Raises StaleAttempt among others."""
        answer: m.BatchResponse = await self.send_form(routes.RESULT, _delivery(outcome, files), token=token, timeout_s=timeout_s)
        return answer.items[0]

    async def upload(
        self, route: Route, file: Path, *, token: str | None = None, timeout_s: float | None = None, **path: Any
    ) -> m.Blob:
        """A file as the whole body of a call, in constant memory."""
        size = (await asyncio.to_thread(file.stat)).st_size
        prepared = self._prepare(route, None, {"token": token, "headers": _body_headers(size)}, path)
        status, _, content = await self._exchange(prepared, timeout_s, _threaded(file_blocks(file, size)))
        blob: m.Blob = understand(route, status, content)
        return blob

    async def append_log(
        self,
        held: m.Held,
        stream: str,
        offset: int,
        data: bytes,
        *,
        final: m.LogEnd | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Log bytes at an offset; the new length. Raises OffsetMismatch (rewind), Gone and NotFound (stop)."""
        options = {"token": token, "headers": _append_headers(offset, final)}
        path = {"job_id": held.job_id, "attempt": held.attempt, "stream": stream}
        prepared = self._prepare(routes.APPEND_LOG, data, options, path)
        _, headers, _ = await self._exchange(prepared, timeout_s)
        return int(headers.get("upload-offset", offset + len(data)))

    @asynccontextmanager
    async def download(self, route: Route, *, timeout_s: float | None = None, **more: Any) -> AsyncIterator[AsyncDownload]:
        """A call whose answer is read in blocks."""
        options = {name: more.pop(name) for name in _OPTIONS if name in more}
        prepared = self._prepare(route, None, options, more)
        try:
            response = await self._http.send(_request(prepared, self._timeout(timeout_s)), stream=True)
        except httpx.HTTPError as exc:
            raise self._unreachable(prepared, exc) from exc
        try:
            if not response.is_success:
                await response.aread()
                raise failure(response.status_code, response.content, response.headers)
            yield AsyncDownload(response, partial(self._unreachable, prepared))
        finally:
            await response.aclose()

    async def _follow(self, route: Route, query: Any, what: str, **path: Any) -> AsyncIterator[ServerEvent]:
        """Server-sent events; a connection that breaks is made anew after the last event seen, for up to `patience_s`."""
        place = Place(self.patience_s)
        while True:
            try:
                async with self.download(route, timeout_s=SILENCE_S, query=query, headers=place.headers(), **path) as answer:
                    async for block in answer.blocks():
                        for event in place.feed(block):
                            yield event
                            if event.kind == "end":
                                return
                lost: Unavailable = CoordinatorUnreachable(f"{what} broke off")
            except Unavailable as exc:
                lost = exc
            await asyncio.sleep(place.pause(lost))

    def follow_log(self, job_id: str, query: m.LogQuery) -> AsyncIterator[ServerEvent]:
        """A log's events until `end`, through broken connections for up to `patience_s`."""
        return self._follow(routes.READ_LOG, replace(query, follow=True), f"the log of {job_id}", job_id=job_id)

    def follow_events(self, query: m.EventQuery) -> AsyncIterator[ServerEvent]:
        """Events of the fleet without end, each a `FleetEvent`; through broken connections for up to `patience_s`, none lost or doubled.

        Raises Gone where the coordinator has deleted events behind the last one seen.
        """
        return self._follow(routes.EVENTS, replace(query, follow=True), "the stream of events")


class Download:
    """The head of an answer whose bytes are still to come; `blocks` is used once."""

    def __init__(self, response: httpx.Response, broken: Broken) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._broken = broken

    def blocks(self) -> Iterator[bytes]:
        """The bytes; a connection that breaks is CoordinatorUnreachable, never a short end."""
        try:
            yield from self._response.iter_raw()
        except httpx.HTTPError as exc:
            raise self._broken(exc) from exc


class Client(_Shell):
    """The same for programs that wait, without what nodes alone send."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        trust: Trust | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = 0.0,
        busy_s: float = 0.0,
    ) -> None:
        super().__init__(base_url, token=token, trust=trust or Trust(), timeout_s=timeout_s, patience_s=patience_s, busy_s=busy_s)
        address, context = direct_to(self.root), self._context()
        self._direct = None if address is None else BlockingCalls(address, context=context, keep_s=KEEP_ALIVE_S)
        if context is not None and self.trust.ca_file is not None:
            context()  # what cannot be trusted is told at once

    @cached_property
    def _http(self) -> httpx.Client:
        """For what is streamed, and for addresses that need more than a connection."""
        return httpx.Client(verify=self._verify(), limits=_limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        if self._direct is not None:
            self._direct.close()
        if "_http" in self.__dict__:
            self._http.close()

    def _exchange(self, prepared: Prepared, timeout_s: float | None, content: Iterator[bytes] | None = None) -> Answer:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if self._direct is None or content is not None:
            status, headers, answer = self._exchange_at_large(prepared, _timeout(limit_s, prepared.wait_s), content)
        else:
            times = {"connect_s": min(limit_s, CONNECT_S), "answer_s": limit_s + prepared.wait_s}
            try:
                status, headers, answer = self._direct.call(
                    prepared.method, prepared.url, prepared.headers, prepared.content or b"", **times
                )
            except OSError as exc:
                raise self._unreachable(prepared, exc) from exc
        if not 200 <= status < 300:
            raise failure(status, answer, headers)
        return status, headers, answer

    def _exchange_at_large(self, prepared: Prepared, limit: httpx.Timeout, content: Iterator[bytes] | None) -> Answer:
        try:
            response = self._http.send(_request(prepared, limit, content))
        except httpx.HTTPError as exc:
            raise self._unreachable(prepared, exc) from exc
        return response.status_code, response.headers, response.content

    def call(
        self,
        route: Route,
        message: Any = None,
        *,
        timeout_s: float | None = None,
        patience_s: float | None = None,
        shape: Any = ROUTE_SHAPE,
        **more: Any,
    ) -> Any:
        """One call; its answer as the route's message. `more` takes token, query, headers and the path's parameters; `keyed=False`: the
        coordinator knows by the message itself that a call is made again.

        Raises the error tree. A GET, or what bears a key, that met Unavailable is made again for up to `patience_s` (the client's
        own if absent), when the coordinator asks it to.
        """
        options = {name: more.pop(name) for name in _OPTIONS if name in more}
        prepared = self._prepare(route, message, options, more)
        began, backoff = time.monotonic(), Backoff(min_s=0.2, max_s=5.0)
        while True:
            try:
                status, _, content = self._exchange(prepared, timeout_s)
                return understand(route, status, content, shape=shape)
            except Unavailable as exc:
                again = route.method == "GET" or route.keyed
                pause = self._pause(exc, began, backoff, patience_s, again=again)
                if pause is None:
                    raise
            time.sleep(pause)

    def upload(
        self,
        route: Route,
        file: Path,
        *,
        query: Any = None,
        token: str | None = None,
        timeout_s: float | None = None,
        **path: Any,
    ) -> Any:
        """A file as the whole body of a call, in constant memory; the answer as the route's message."""
        size = file.stat().st_size
        prepared = self._prepare(route, None, {"token": token, "query": query, "headers": _body_headers(size)}, path)
        status, _, content = self._exchange(prepared, timeout_s, file_blocks(file, size))
        return understand(route, status, content)

    @contextmanager
    def download(self, route: Route, *, timeout_s: float | None = None, **more: Any) -> Iterator[Download]:
        """A call whose answer is read in blocks."""
        options = {name: more.pop(name) for name in _OPTIONS if name in more}
        prepared = self._prepare(route, None, options, more)
        try:
            response = self._http.send(_request(prepared, self._timeout(timeout_s)), stream=True)
        except httpx.HTTPError as exc:
            raise self._unreachable(prepared, exc) from exc
        try:
            if not response.is_success:
                response.read()
                raise failure(response.status_code, response.content, response.headers)
            yield Download(response, partial(self._unreachable, prepared))
        finally:
            response.close()

    def _follow(self, route: Route, query: Any, what: str, **path: Any) -> Iterator[ServerEvent]:
        """Server-sent events; a connection that breaks is made anew after the last event seen, for up to `patience_s`."""
        place = Place(self.patience_s)
        while True:
            try:
                with self.download(route, timeout_s=SILENCE_S, query=query, headers=place.headers(), **path) as answer:
                    for block in answer.blocks():
                        for event in place.feed(block):
                            yield event
                            if event.kind == "end":
                                return
                lost: Unavailable = CoordinatorUnreachable(f"{what} broke off")
            except Unavailable as exc:
                lost = exc
            time.sleep(place.pause(lost))

    def follow_log(self, job_id: str, query: m.LogQuery) -> Iterator[ServerEvent]:
        """A log's events until `end`, through broken connections for up to `patience_s`."""
        return self._follow(routes.READ_LOG, replace(query, follow=True), f"the log of {job_id}", job_id=job_id)

    def follow_events(self, query: m.EventQuery) -> Iterator[ServerEvent]:
        """Events of the fleet without end, each a `FleetEvent`; through broken connections for up to `patience_s`, none lost or doubled.

        Raises Gone where the coordinator has deleted events behind the last one seen.
        """
        return self._follow(routes.EVENTS, replace(query, follow=True), "the stream of events")
