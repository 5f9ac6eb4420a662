"""Stored bytes as downloads: whole, or the range of them that was asked for."""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from ostler.coordinator.api.calls import Call
from ostler.model.errors import Gone, NotFound
from ostler.protocol import messages as m
from ostler.protocol.problems import MEDIA_TYPE, encode

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MEDIA = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,80}", re.IGNORECASE)


async def serve(call: Call, sha256: str, name: str, media: str) -> Response:
    """Bytes as a download that no browser will run, or the range of them that was asked for."""
    artifacts = call.services.artifacts
    size = await artifacts.size(sha256)
    if size is None:
        raise Gone(f"the bytes of {name} are no longer stored") if name != sha256 else NotFound(f"there is no blob {sha256}")
    headers = {
        "ETag": f'"{sha256}"',
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
    empty = call.scope["method"] == "HEAD" or start == end
    response = (
        Response(None, status, headers) if empty else StreamingResponse(await _begun(call, sha256, start, end), status, headers)
    )
    # Not by `media_type`, which would add a charset that nobody has told us.
    response.headers["Content-Type"] = media if _MEDIA.fullmatch(media) else "application/octet-stream"
    return response


async def _begun(call: Call, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The blocks of a file that is open already: from now on it may be removed. Raises NotFound where it is."""
    blocks = call.services.artifacts.read(sha256, start, end)
    first = await anext(blocks, b"")

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for block in call.while_admitted(blocks):
            yield block

    return whole()


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
