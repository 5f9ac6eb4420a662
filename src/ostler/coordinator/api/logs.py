"""Endpoints for logs: nodes append at an offset, people read from one, or follow until the job is over."""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from ostler.coordinator.api import sse
from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.operations import leases, reads
from ostler.coordinator.operations.readers import Hold
from ostler.coordinator.store.store import Store
from ostler.model.errors import InvalidSpec, Problem, Unauthenticated
from ostler.model.job import TERMINAL
from ostler.protocol import messages as m

BLOCK = 256 * 1024
KEEP_ALIVE_S = 15.0
SHA256_BYTES = 32


# --- from nodes --------------------------------------------------------------------------------------------------------------


async def append_log(call: Call) -> Answer:
    """Bytes at an offset; the last call of a stream adds its length and checksum."""
    store, config, node = call.services.store, call.services.config, call.node
    offset = _number(call, "Upload-Offset")
    if offset is None:
        raise InvalidSpec("the append is not valid", [Problem("Upload-Offset", "is missing: at which byte do these begin?")])
    stream = call.path["stream"]
    final = _end(call, stream, offset)
    data = await call.body.whole()
    length = await store.write(
        leases.append_log, node.node_id, call.path["job_id"], int(call.path["attempt"]), stream, offset, data, final,
        boot_epoch=node.boot_epoch, max_bytes=config.max_log_bytes,
    )  # fmt: skip
    return Answer(None, headers={"Upload-Offset": str(length)})


def _number(call: Call, name: str) -> int | None:
    text = call.header(name.lower().encode())
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidSpec("the append is not valid", [Problem(name, "must be a number of bytes")])
    return int(text)


def _end(call: Call, stream: str, offset: int) -> m.LogEnd | None:
    length, checksum = _number(call, "Upload-Length"), call.header(b"upload-checksum")
    if length is None and checksum is None:
        return None
    digest = b""
    kind, _, encoded = (checksum or "").partition(" ")
    with contextlib.suppress(binascii.Error, ValueError):
        digest = base64.b64decode(encoded, validate=True)
    if length is None or kind != "sha256" or len(digest) != SHA256_BYTES:
        problem = Problem(
            "Upload-Checksum", "the last append has Upload-Length and Upload-Checksum: sha256 and 32 bytes in base64"
        )
        raise InvalidSpec("the append is not valid", [problem])
    return m.LogEnd(stream=stream, length=length, sha256=digest.hex(), offset=offset)


# --- to people ---------------------------------------------------------------------------------------------------------------


async def read_log(call: Call) -> Response:
    """Plain bytes, or server-sent events with `follow=true`."""
    query, job_id, store = call.query(m.LogQuery), call.path["job_id"], call.services.store
    hold = call.services.readers.hold(job_id)
    facts = await call.read_job(reads.log_facts, query.stream, query.attempt)
    if query.follow and call.scope["method"] == "GET":
        attempt, offset = _resume(call, facts, query)
        events = _follow(call, job_id, query, attempt, offset, hold=hold)
        return StreamingResponse(events, 200, sse.HEADERS, sse.MEDIA_TYPE)
    end = facts.length if query.limit is None else min(facts.length, query.offset + query.limit)
    start = min(query.offset, end)
    headers = {
        "Content-Length": str(end - start),
        "Upload-Offset": str(end),
        "Ostler-Attempt": str(facts.attempt),
        "Ostler-Log-Finished": "true" if facts.finished and end == facts.length else "false",
        "X-Content-Type-Options": "nosniff",
    }
    whole = start == 0 and end == facts.length
    if not whole and end > start:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{facts.length if facts.finished else '*'}"
    status = 200 if whole else 206
    if start == end or call.scope["method"] == "HEAD":
        return Response(None, status, headers, "text/plain")
    return StreamingResponse(
        call.while_admitted(_blocks(store, job_id, query.stream, facts.attempt, start=start, end=end, hold=hold)),
        status,
        headers,
        "text/plain",
    )


# What is streamed has the hold as an argument alone: it ends with the stream, however that ends.


async def _blocks(
    store: Store, job_id: str, stream: str, attempt: int, *, start: int, end: int, hold: Hold
) -> AsyncIterator[bytes]:
    while start < end:
        block = await store.read(reads.read_log, job_id, attempt, stream, start, min(BLOCK, end - start))
        if not block:
            return
        start += len(block)
        yield block


def _resume(call: Call, facts: reads.LogFacts, query: m.LogQuery) -> tuple[int, int]:
    """Where to go on: after the reader's last event, whose id is "attempt.offset"; an offset alone is of this attempt."""
    attempt, _, offset = (call.header(b"last-event-id") or "").rpartition(".")
    if not (offset.isascii() and offset.isdigit() and len(offset) <= 18):
        return facts.attempt, query.offset
    if not attempt:
        return facts.attempt, int(offset)
    if not (attempt.isascii() and attempt.isdigit() and len(attempt) <= 9):
        return facts.attempt, query.offset
    return int(attempt), int(offset)


async def _follow(call: Call, job_id: str, query: m.LogQuery, attempt: int, offset: int, *, hold: Hold) -> AsyncIterator[bytes]:
    """Events `attempt`, `log` and `end`; goes on to the next attempt where one was not asked for by number.

    The waiter clears its event before it reads, so bytes that arrive in between are found on the next turn.
    """
    told, store = 0, call.services.store
    while True:
        async with call.subscribe(("job", job_id), ("log", job_id, attempt)) as event:
            while True:
                event.clear()
                try:
                    await call.readmit()
                except Unauthenticated:
                    return  # whoever goes on after its last event is told why not
                job = await store.read(reads.job_state, job_id)
                facts = await store.read(reads.log_facts, job_id, query.stream, attempt) if attempt else None
                if attempt and told != attempt:
                    told = attempt
                    yield sse.event("attempt", {"job_id": job_id, "attempt": attempt}, f"{attempt}.{offset}")
                while facts is not None and offset < facts.length:
                    data = await store.read(
                        reads.read_log, job_id, attempt, query.stream, offset, min(BLOCK, facts.length - offset)
                    )
                    data = data if facts.finished else data[: len(data) - _torn(data)]
                    if not data:
                        break
                    content = {
                        "attempt": attempt,
                        "stream": query.stream,
                        "offset": offset,
                        "text": data.decode("utf-8", "replace"),
                        "data": base64.b64encode(data).decode(),
                    }
                    offset += len(data)
                    yield sse.event("log", content, f"{attempt}.{offset}")
                over = job.state in TERMINAL
                moved_on = query.attempt is None and job.attempt > attempt
                done = facts is None or facts.finished
                if moved_on and done:
                    break
                if done and (over or query.attempt is not None):
                    yield sse.event(
                        "end", {"job_id": job_id, "state": job.state.value, "attempt": attempt, "exit_code": job.exit_code}
                    )
                    return
                if store.wakeups.closed:
                    return
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await event.wait()
                except TimeoutError:
                    yield sse.KEEP_ALIVE
        attempt, offset = await store.read(reads.next_attempt, job_id, attempt), 0


def _torn(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not whole yet; they wait for the rest of it."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        width = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if width > back else 0
    return 0
