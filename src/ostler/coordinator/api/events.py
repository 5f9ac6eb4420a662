"""The endpoint for events: pages, and followers who are told for as long as they stay."""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from ostler.coordinator.api.calls import Call
from ostler.coordinator.api.feed import Told
from ostler.coordinator.api.sse import HEADERS, KEEP_ALIVE, MEDIA_TYPE, mark
from ostler.coordinator.operations import events as ops
from ostler.coordinator.operations.views import check_limit, write_cursor
from ostler.model.errors import Rejected
from ostler.protocol import messages as m

KEEP_ALIVE_S = 15.0
MAX_WINDOWS = 20  # that one page may take: a filter that matches nothing must not read the whole table in one call


async def list_events(call: Call) -> m.EventPage | Response:
    """One page, or server-sent events where the caller follows."""
    query = call.query(m.EventQuery)
    check_limit(query.limit)
    follow = query.follow or MEDIA_TYPE in (call.header(b"accept") or "").lower()
    if follow and (last := call.header(b"last-event-id")):
        query = m.EventQuery(after=last, job=query.job, node=query.node, group=query.group, kind=query.kind)
    start = await call.read(ops.begin, query, call.owner)
    if follow:
        return StreamingResponse(_follow(call, start), 200, HEADERS, MEDIA_TYPE)
    return await _page(call, start, query.limit)


async def _page(call: Call, start: ops.Start, limit: int) -> m.EventPage:
    items: list[m.FleetEvent] = []
    after, more, windows = start.after, True, 0
    while more and windows < MAX_WINDOWS:
        window = await call.read(ops.window, after, start.wanted.job_seq)
        windows += 1
        for one in window.found:
            if start.wanted.takes(one):
                if len(items) == limit:
                    return m.EventPage(items=tuple(items), next_cursor=items[-1].cursor, more=True)
                items.append(one.event)
        after, more = window.end, window.more
    return m.EventPage(items=tuple(items), next_cursor=write_cursor(after), more=more)


async def _follow(call: Call, start: ops.Start) -> AsyncIterator[bytes]:
    """Windows of events as they come. The waiter clears its event before it reads, so that nothing that is committed meanwhile is missed.

    Each turn tells the place that was reached, so that whoever comes back begins there, however little of it was for them.
    """
    store, feed, wanted = call.services.store, call.services.feed, start.wanted
    after, behind = start.after, True
    yield mark(write_cursor(after))
    with feed.follower():
        async with call.subscribe(("events",)) as event:
            while True:
                event.clear()
                try:
                    await call.readmit()
                    told = await feed.after(after, wanted.job_seq, at_once=behind)
                except Rejected:
                    return  # the token is revoked, or events were deleted before they were read: whoever comes back is told so
                if text := _chosen(told, wanted):
                    yield text
                elif told.window.end != after:
                    yield mark(write_cursor(told.window.end))
                after, behind = told.window.end, told.window.more
                if behind:
                    continue
                if store.wakeups.closed:
                    return
                while not event.is_set():
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_S):
                            await event.wait()
                    except TimeoutError:
                        yield KEEP_ALIVE
                        break  # and see whether the caller may still listen


def _chosen(told: Told, wanted: ops.Filter) -> bytes:
    return b"".join(text for one, text in zip(told.window.found, told.texts, strict=True) if wanted.takes(one))
