"""Stored bytes as downloads: whole, or the range of them that was asked for."""

import re
from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from ostler.coordinator.api.calls import Call
from ostler.model.errors import Gone, NotFound
from ostler.model.release import Excerpt
from ostler.protocol import messages as m
from ostler.protocol.problems import MEDIA_TYPE, encode

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MEDIA = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,80}", re.IGNORECASE)


async def serve(call: Call, sha256: str, name: str, media: str, *, excerpt: Excerpt | None = None) -> Response:
    """Bytes as a download that no browser will run, or the range of them that was asked for; of an `excerpt` as if it were all."""
    artifacts = call.services.artifacts
    size = await artifacts.size(sha256)
    if size is None:
        raise Gone(f"the bytes of {name} are no longer stored") if name != sha256 else NotFound(f"there is no blob {sha256}")
    tag, pieces = (sha256, ((0, size),)) if excerpt is None else (excerpt.sha256, excerpt.pieces)
    size = size if excerpt is None else excerpt.size
    headers = {
        "ETag": f'"{tag}"',
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
    }
    wanted = _range(call, size, headers["ETag"])
    if wanted == (0, 0) and size:
        report = m.ProblemReport(
            title="Range not satisfiable", status=416, code="range_not_satisfiable", detail=f"{name} has {size} bytes"
        )
        return Response(encode(report), 416, {"Content-Range": f"bytes */{size}"}, MEDIA_TYPE)
    start, end = wanted or (0, size)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 200 if wanted is None else 206
    if call.scope["method"] == "HEAD" or start == end:
        response: Response = Response(None, status, headers)
    else:
        response = StreamingResponse(await _begun(call, sha256, _within(pieces, start, end)), status, headers)
    # Not by `media_type`, which would add a charset that nobody has told us.
    response.headers["Content-Type"] = media if _MEDIA.fullmatch(media) else "application/octet-stream"
    return response


async def _begun(call: Call, sha256: str, pieces: Sequence[tuple[int, int]]) -> AsyncIterator[bytes]:
    """The blocks of a file that is open already: from now on it may be removed. Raises NotFound where it is."""
    blocks = _blocks(call, sha256, pieces)
    first = await anext(blocks, b"")

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for block in call.while_admitted(blocks):
            yield block

    return whole()


async def _blocks(call: Call, sha256: str, pieces: Sequence[tuple[int, int]]) -> AsyncIterator[bytes]:
    for start, end in pieces:
        async for block in call.services.artifacts.read(sha256, start, end):
            yield block


def _within(pieces: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Where the bytes from `start` to before `end` of these pieces stand in the whole."""
    found, at = [], 0
    for begin, until in pieces:
        first, last = max(start - at, 0), min(end - at, until - begin)
        if first < last:
            found.append((begin + first, begin + last))
        at += until - begin
    return found


def _range(call: Call, size: int, etag: str) -> tuple[int, int] | None:
    """The one range asked for as (start, end), (0, 0) where it lies outside, None for the whole: RFC 9110 section 14."""
    header = call.header(b"range")
    if header is None or size == 0 or (call.header(b"if-range") or etag) != etag:
        return None
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) else (0, 0)
    start, end = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return (start, end) if start < size else (0, 0)
