"""What comes in: request bodies and queries, read within limits before anything looks at their meaning."""

import math
import re
from array import array
from collections.abc import AsyncIterator
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl

from msgspec.structs import fields
from starlette.types import Receive, Scope

from ostler.model.errors import InvalidSpec, OstlerError, Problem, TooLarge
from ostler.protocol import codec

JSON_LIMIT = 16 * 2**20  # where a route takes gigabytes as a form, its JSON is no larger than this
MAX_DEPTH = 64
MAX_VALUES = 2_000_000  # of all lists and objects together, and they themselves
MAX_QUERY = 64
MAX_PAGE = 1000
# One without an end reaches to the end of the body: to fail there would mean to begin anew at every quote in it.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
_HUGE = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}(?![0-9.eE])")

T = TypeVar("T")


class ClientGone(OstlerError):
    """The caller closed the connection before its request was whole; there is nobody to answer."""

    code = "client_gone"
    status = 499


class Body:
    """A request's body as it arrives; never more than `limit` bytes of it."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0
        self.length = _content_length(scope)
        self.finished = self.length == 0 or (self.length is None and not _is_chunked(scope))

    def check_announced(self) -> None:
        """Refuses a body that says itself that it is too large, before any of it is read."""
        if self.length is not None and self.length > self._limit:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request body is larger than the {self._limit} bytes that this route takes")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body piece by piece; raises TooLarge at the first byte too many."""
        self.check_announced()
        while not self.finished:
            if chunk := await self._next():
                yield chunk

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the connection was closed in the middle of the request")
        chunk: bytes = message.get("body", b"")
        self.finished = not message.get("more_body", False)
        self._seen += len(chunk)
        if self._seen > self._limit:
            raise self._too_large()
        return chunk

    async def drop(self) -> bool:
        """Reads on to the end without keeping anything; False where the caller is gone."""
        while not self.finished:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            self.finished = not message.get("more_body", False)
        return True

    async def whole(self, limit: int | None = None) -> bytes:
        """All of it at once."""
        if limit is not None:
            self._limit = min(self._limit, limit)
        self.check_announced()
        parts = [] if self.finished else [await self._next()]  # nearly always this is all
        while not self.finished:
            parts.append(await self._next())
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)  # the HTTP parser let only digits through
    return None


def _is_chunked(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" for name, _ in scope["headers"])


def guard_values(raw: bytes) -> None:
    """Refuses more values than a body may hold: in memory they take a hundred times what they take in a body."""
    if len(raw) <= MAX_VALUES:
        return
    structure = _structure(raw)
    opened, closed = structure.count(b"{") + structure.count(b"["), structure.count(b"}") + structure.count(b"]")
    if structure.count(b",") + max(opened, closed) > MAX_VALUES:
        raise TooLarge(
            f"the body holds more than {MAX_VALUES} values",
            hint="upload what is long as an input file, or send it in several calls",
        )


def guard_depth(raw: bytes) -> None:
    """Refuses nesting deeper than 64: no reader of ours, here or on a node, should have to take it."""
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return
    steps = array("b", _structure(raw).translate(_TO_STEPS, b","))  # up or down: how high they lead is found by C loops alone
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise InvalidSpec("the body is nested too deeply", [Problem("", f"lists and objects nest at most {MAX_DEPTH} deep")])


def guard_numbers(raw: bytes) -> None:
    """Refuses whole numbers that no column holds, before they reach one."""
    # Nearly no body has so many digits in a row, and two C loops find that out ten times as fast as an expression.
    if _LONG in raw.translate(_TO_ZERO) and _HUGE.search(raw) and _HUGE.search(_STRING.sub(b"", raw)):
        raise InvalidSpec("the body holds a number out of range", [Problem("", "numbers have at most 18 digits")])


_LONG, _TO_ZERO = b"0" * 19, bytes.maketrans(b"123456789", b"0" * 9)
_TO_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{},"')


def _structure(raw: bytes) -> bytes:
    """The brackets and commas that stand in no string.

    In C loops alone: without escapes an even number of quotes stands in front of each of them, and pairs of quotes without anything
    between them may go, whether they are the ends of one string or of two.
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = raw.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    return b"".join(structure.split(b'"')[::2])


def decode_json(raw: bytes, shape: type[T]) -> T:
    """JSON to a message; raises InvalidSpec with the field's path."""
    guard_values(raw)
    guard_depth(raw)
    guard_numbers(raw)
    return codec.decode(raw or b"{}", shape)


@cache
def _numbers(shape: type[Any]) -> frozenset[str]:
    """The fields that hold a number."""
    hints = get_type_hints(shape)
    return frozenset(name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)})


def decode_query(query_string: bytes, shape: type[T]) -> T:
    """A query to its message: unknown names are refused with the known ones, since a mistyped filter would match everything."""
    try:
        pairs = parse_qsl(query_string.decode(), keep_blank_values=True, max_num_fields=MAX_QUERY, errors="strict")
    except (ValueError, UnicodeDecodeError) as exc:
        raise InvalidSpec("the query cannot be read", [Problem("", str(exc))]) from exc
    given: dict[str, Any] = dict(pairs)
    known = [field.name for field in fields(shape)]  # type: ignore[arg-type]
    problems = [Problem(name, f"is not known here; known are {', '.join(known)}") for name in given if name not in known]
    for name, value in given.items():
        if name in _numbers(shape) and _HUGE.search(value.encode()):  # type: ignore[arg-type]
            problems.append(Problem(name, "is out of range"))
    if problems:
        raise InvalidSpec("the query is not what this route takes", problems)
    result = codec.convert(given, shape, what="query")
    for name in ("limit", "offset", "attempt", "wait_s", "since_s"):
        number = getattr(result, name, None)
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise InvalidSpec("the query is not what this route takes", [Problem(name, "must be 0 or more")])
    return result
