"""What clients and executors share: one connection to the coordinator that outlives its absences, and one waiter for all futures."""

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ostler.assembly.endpoint import Endpoint, check_endpoint, find_endpoint
from ostler.model.errors import (
    AlreadyExists,
    CoordinatorUnreachable,
    InvalidSpec,
    NotFound,
    OstlerError,
    Problem,
    Rejected,
    Unavailable,
)
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient as Wire
from ostler.protocol.client import Client as Line
from ostler.protocol.routes import Route
from ostler.protocol.trust import Trust
from ostler.runtime.backoff import Backoff

PATIENCE_S = 3600.0  # as long as nodes ride out a coordinator that is away
FIRST_WAIT_S, LONG_WAIT_S = 0.02, 20.0
SHORT_WAIT_S = 0.2  # a job that is submitted in the middle of a wait that short is waited for behind it
FEW = 100  # jobs: asking about more than that is not for each fiftieth of a second
MAX_AWAITED = 10_000
_LOG = logging.getLogger("ostler.sdk")

Told = Callable[[m.Ended | OstlerError], None]


def endpoint_of(url: str | None, token: str | None, ca_file: Path | None) -> Endpoint:
    """What was given, else what the environment or the profile says. Raises Rejected where nothing names a coordinator, InvalidSpec
    for what is of another kind."""
    for name, value, kind in (("url", url, str), ("token", token, str), ("ca_file", ca_file, str | os.PathLike)):
        if value is not None and not isinstance(value, kind):
            what = "text" if kind is str else "a path"
            raise InvalidSpec("the client cannot be made", [Problem(name, f"must be {what}, not {type(value).__name__}")])
    if url is None:
        found = find_endpoint()
        return replace(found, token=token or found.token, ca_file=ca_file or found.ca_file)
    given = Endpoint(url=url.rstrip("/"), token=token, ca_file=ca_file, origin="the argument `url`")
    check_endpoint(given)
    return given


class Core:
    """Calls with patience, and the waiting for jobs. Everything happens in one event loop, but for what `here` is in the name of."""

    def __init__(self, endpoint: Endpoint, *, patience_s: float = PATIENCE_S) -> None:
        if isinstance(patience_s, bool) or not isinstance(patience_s, int | float) or not patience_s >= 0:
            raise InvalidSpec(
                "the client cannot be made", [Problem("patience_s", f"must be seconds, 0 or more, not {patience_s!r:.40}")]
            )
        self.endpoint = endpoint
        trust = Trust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)
        self.wire = Wire(endpoint.url, token=endpoint.token, trust=trust)
        self._line = Line(endpoint.url, token=endpoint.token, trust=trust)
        self._patience_s = patience_s
        self._met = False
        self._away = False
        self._closed = False
        self._waiter = Waiter(self)

    async def close(self) -> None:
        """End the waiting and close the connections."""
        self._closed = True
        await self._waiter.close()
        await self.wire.close()
        self._line.close()

    async def call(self, route: Route, message: Any = None, **more: Any) -> Any:
        """One call that may be made twice without harm.

        Until the coordinator has answered for the first time it must answer at once; later its absence is waited out for `patience_s`.
        Raises the error tree.
        """
        began, backoff = time.monotonic(), Backoff(min_s=0.1, max_s=5.0)
        while True:
            self._check()
            try:
                answer = await self.wire.call(route, message, **more)
            except OstlerError as exc:
                pause = self._pause(exc, began, backoff)
            else:
                self._note_presence()
                return answer
            await asyncio.sleep(pause)

    def call_here(self, route: Route, message: Any = None, **more: Any) -> Any:
        """`call` in a thread of the caller's own, which waits for it."""
        began, backoff = time.monotonic(), Backoff(min_s=0.1, max_s=5.0)
        while True:
            self._check()
            try:
                answer = self._line.call(route, message, **more)
            except OstlerError as exc:
                pause = self._pause(exc, began, backoff)
            else:
                self._note_presence()
                return answer
            time.sleep(pause)

    def _check(self) -> None:
        if self._closed:
            raise Rejected("this client is closed", hint="make another one")

    def _pause(self, exc: OstlerError, began: float, backoff: Backoff) -> float:
        """How long to wait before the next try; raises what was met where patience is at its end, or never began, or is not asked for."""
        self._met |= not isinstance(exc, CoordinatorUnreachable)  # a refusal is an answer, too
        if not isinstance(exc, Unavailable):
            raise exc
        self._check()
        pause = backoff.next_s() if exc.retry_after is None else max(exc.retry_after, backoff.min_s)
        if not self._met or time.monotonic() + pause - began > self._patience_s:
            raise exc
        self._note_absence(exc)
        return pause

    def _note_absence(self, exc: Unavailable) -> None:
        if not self._away and isinstance(exc, CoordinatorUnreachable):
            self._away = True
            _LOG.warning("%s; trying again for up to %.0f s", exc, self._patience_s)

    def _note_presence(self) -> None:
        self._met = True
        if self._away:
            self._away = False
            _LOG.warning("the coordinator answers again")

    async def submit(self, manifests: Sequence[Mapping[str, Any]], *, fresh: bool = False) -> None:
        """Submit all or none. One whose answer was lost is the same one when it is made again: by its key, or, where it is `fresh`, by its
        ids, which nobody else can have chosen. The coordinator then has no key to remember."""
        for again in (True, True, False):
            try:
                await self.call(routes.SUBMIT, list(manifests), **_mark(fresh))
            except Rejected as exc:
                if fresh and await self._there(manifests[0]["job_id"]):
                    return
                if not (fresh and again and isinstance(exc, AlreadyExists)):  # or the try that it met was undone
                    raise
            else:
                return

    def submit_here(self, manifests: Sequence[Mapping[str, Any]], *, fresh: bool = False) -> None:
        """`submit` in a thread of the caller's own, which waits for it."""
        for again in (True, True, False):
            try:
                self.call_here(routes.SUBMIT, list(manifests), **_mark(fresh))
            except Rejected as exc:
                if fresh and self._there_here(manifests[0]["job_id"]):
                    return
                if not (fresh and again and isinstance(exc, AlreadyExists)):
                    raise
            else:
                return

    async def _there(self, job_id: str) -> bool:
        """Whether a submission that was refused had been taken before, which may be why: its id exists, or it has filled a quota."""
        with contextlib.suppress(OstlerError):
            await self.call(routes.SHOW_JOB, job_id=job_id)
            return True
        return False

    def _there_here(self, job_id: str) -> bool:
        with contextlib.suppress(OstlerError):
            self.call_here(routes.SHOW_JOB, job_id=job_id)
            return True
        return False

    def watch(self, job_id: str, told: Told, contents: Collection[str] = ()) -> None:
        """Have `told` called once, when the job is over or cannot be waited for any more."""
        self._waiter.add(job_id, told, contents)

    def soon(self, follow: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Have `follow` called in the loop, where it watches a job; from any thread."""
        self._waiter.soon(follow, loop)

    def unwatch(self, job_id: str, told: Told) -> None:
        """This one waits for it no more."""
        self._waiter.drop(job_id, told)

    async def read(self, route: Route, **more: Any) -> bytes:
        """The whole answer to a call for bytes; a broken one is made again."""
        began, backoff = time.monotonic(), Backoff(min_s=0.1, max_s=5.0)
        while True:
            try:
                async with self.wire.download(route, **more) as answer:
                    return b"".join([block async for block in answer.blocks()])
            except Unavailable as exc:
                pause = self._pause(exc, began, backoff)
            await asyncio.sleep(pause)


def _mark(fresh: bool) -> dict[str, Any]:
    """Options of the calls: the tries of one submission bear the same key."""
    return {"keyed": False} if fresh else {"headers": {"Idempotency-Key": secrets.token_hex(16)}}


class Waiter:
    """Waits for any number of jobs with one call at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[str, list[tuple[Told, Collection[str]]]] = {}  # one job may have several futures
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._wait_s = FIRST_WAIT_S
        self._closed = False
        self._coming: deque[Callable[[], None]] = deque()
        self._soon_back = False  # a short call is under way, and what comes meanwhile is looked at behind it

    def soon(self, follow: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call `follow` in the loop. Who submits one job after the other need not wake it for each."""
        self._coming.append(follow)  # in front of the look at the flag: `_take_in` looks the other way around
        if not self._soon_back:
            loop.call_soon_threadsafe(self._take_in)

    def _take_in(self) -> None:
        self._soon_back = False
        with contextlib.suppress(IndexError):
            while True:
                self._coming.popleft()()

    def add(self, job_id: str, told: Told, contents: Collection[str]) -> None:
        """One more."""
        if self._closed:
            return
        self._open.setdefault(job_id, []).append((told, contents))
        self._wait_s = FIRST_WAIT_S if len(self._open) <= FEW else SHORT_WAIT_S
        self._news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def drop(self, job_id: str, told: Told) -> None:
        """One less."""
        left = [one for one in self._open.pop(job_id, ()) if one[0] is not told]
        if left:
            self._open[job_id] = left

    async def close(self) -> None:
        """All that are waited for are told so."""
        self._closed = True
        for told, _ in self._take(list(self._open)):
            told(Rejected("the client was closed while the job was waited for; the job goes on", hint="ask with another client"))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.sleep(0)  # so that what was told is told on

    async def _run(self) -> None:
        while self._open:
            try:
                answer = await self._ask()
            except OstlerError as exc:  # patience is at its end, or the credential is
                for told, _ in self._take(list(self._open)):
                    told(exc)
                return
            except Exception as exc:
                _LOG.exception("waiter_crashed")
                for told, _ in self._take(list(self._open)):
                    told(OstlerError(f"a bug in the waiting for jobs: {exc!r}"))
                return
            if answer is None:
                continue
            for ended in answer.items:
                for told, _ in self._take([ended.job.job_id]):
                    told(ended)
            for job_id in answer.missing:
                for told, _ in self._take([job_id]):
                    told(NotFound(f"there is no job {job_id} any more", hint="see `ostler job list`"))

    def _take(self, job_ids: Sequence[str]) -> list[tuple[Told, Collection[str]]]:
        return [one for job_id in job_ids for one in self._open.pop(job_id, ())]

    async def _ask(self) -> m.AwaitResponse | None:
        """One call; None where it was given up because there are more jobs now to wait for."""
        self._take_in()
        self._news.clear()
        ids = tuple(itertools.islice(self._open, MAX_AWAITED))
        if len(self._open) > len(ids):  # the others have their turn soon, and these come last then
            self._wait_s = SHORT_WAIT_S
            for job_id in ids:
                self._open[job_id] = self._open.pop(job_id)
        contents = {one for some in self._open.values() for _, wanted in some for one in wanted}
        wait_s = self._wait_s
        self._wait_s = min(wait_s * 2, LONG_WAIT_S)
        message = m.AwaitRequest(job_ids=ids, wait_s=wait_s, contents=tuple(sorted(contents)))
        self._soon_back, asked_at, loop = wait_s <= SHORT_WAIT_S, time.monotonic(), asyncio.get_running_loop()
        late = loop.call_later(wait_s + FIRST_WAIT_S, self._take_in)  # a call that is made again may take longer
        asking = asyncio.ensure_future(self._core.call(routes.AWAIT_JOBS, message, timeout_s=10.0))
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({asking, news}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done() and wait_s > SHORT_WAIT_S:
                return None
            answer: m.AwaitResponse = await asking
            if not answer.items and not answer.missing and time.monotonic() - asked_at < 0.9 * wait_s:
                await asyncio.sleep(SHORT_WAIT_S)  # a coordinator that is about to end holds no answer back
            return answer
        finally:
            news.cancel()
            late.cancel()
            self._take_in()
            if not asking.done():
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError, OstlerError):
                    await asking
