"""One call as values: the request out of a route and its arguments, and the answer or the error out of a response. No I/O."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

from msgspec import Struct
from msgspec.structs import asdict

from ostler import __version__
from ostler.model.errors import InvalidSpec, OstlerError, Unavailable
from ostler.protocol import codec
from ostler.protocol.problems import restore
from ostler.protocol.routes import BASE, Body, Route

USER_AGENT = f"ostler/{__version__}"
_SAFE = "-._~!$&'()*+,;=:@"


class _RouteShape:
    """Stands for "decode what the route table says"."""


ROUTE_SHAPE: Any = _RouteShape()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What goes over the wire. `content` is None where the caller streams a body of its own."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None
    wait_s: float


def root_of(base_url: str) -> str:
    """The address in front of the routes: with or without the /api/v1 that the source's configuration writes."""
    scheme, colon, rest = base_url.partition(":")
    return f"{scheme.lower()}{colon}{rest}".rstrip("/").removesuffix(BASE)


def prepare(
    root: str,
    route: Route,
    message: Any = None,
    *,
    token: str | None = None,
    query: Any = None,
    headers: Mapping[str, str] | None = None,
    path: Mapping[str, Any],
) -> Prepared:
    """The request of one call. `message` is a value of the route's shape, or bytes that are sent as they are."""
    try:
        return _prepare(root, route, message, token=token, query=query, headers=headers, path=path)
    except UnicodeEncodeError as exc:  # an argument of a command line that was not UTF-8
        raise InvalidSpec(f"{exc.object[:80]!r} is not valid Unicode") from exc


def _prepare(
    root: str, route: Route, message: Any, *, token: str | None, query: Any, headers: Mapping[str, str] | None,
    path: Mapping[str, Any],
) -> Prepared:  # fmt: skip
    url = root + _fill(route.url, path)
    wait_s = getattr(message, "wait_s", 0.0)
    if query is not None:
        given = asdict(query) if isinstance(query, Struct) else dict(query)
        wait_s = float(given.get("wait_s") or wait_s)
        pairs = [(name, _spell(value)) for name, value in given.items() if value is not None]
        if pairs:
            url = f"{url}?{urlencode(pairs)}"
    sent = {"User-Agent": USER_AGENT}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    content: bytes | None = None
    if isinstance(message, bytes | bytearray | memoryview):
        content = bytes(message)
    elif message is not None:
        content = codec.encode(message)
    elif route.body is Body.NONE or route.method in {"GET", "DELETE"}:
        content = b""
    if content:
        sent["Content-Type"] = "application/octet-stream" if route.body is Body.BYTES else "application/json"
    if headers:
        sent.update(headers)
    return Prepared(route.method, url, sent, content if content is not None else b"", wait_s)


def _fill(template: str, path: Mapping[str, Any]) -> str:
    """The template with each parameter percent-encoded; only the one that is a path keeps its slashes."""
    if not path:
        return template
    parts = []
    for part in template.split("/"):
        if not part.startswith("{"):
            parts.append(part)
            continue
        name, _, kind = part[1:-1].partition(":")
        text = str(path[name])
        if text in {"", ".", ".."}:  # what stands between slashes and is one of these changes which route is meant
            raise InvalidSpec(f"{name} must not be {text!r}")
        if "/" in text and kind != "path":  # the coordinator would take it for the end of one part of the path
            raise InvalidSpec(f"{name} must not hold '/': {text[:200]!r}")
        parts.append(quote(text, safe=_SAFE + "/" if kind == "path" else _SAFE))
    return "/".join(parts)


def _spell(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def understand(route: Route, status: int, content: bytes, *, shape: Any = ROUTE_SHAPE) -> Any:
    """The value of a good answer. `shape` overrides the route's; bytes stay bytes where there is none."""
    kind = route.response if shape is ROUTE_SHAPE else shape
    if kind is None:
        return content if content else None
    if status == 204:
        return None
    try:
        return codec.decode(content, kind, what="answer")
    except InvalidSpec as exc:
        raise Unavailable(
            f"what answered {route.name} does not speak this protocol: {exc}", hint="check that the URL is a coordinator's"
        ) from exc


def failure(status: int, content: bytes, headers: Mapping[str, str]) -> OstlerError:
    """The error of any other answer."""
    return restore(status, content, retry_after=_retry_after(headers.get("retry-after")))


def _retry_after(text: str | None) -> float | None:
    if text is None:
        return None
    if text.isdigit() and len(text) <= 6:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
