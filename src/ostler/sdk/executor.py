"""`ostler.Executor`: the contract of `concurrent.futures` over the fleet."""

import asyncio
import atexit
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import Executor as FuturesExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from ostler.model.errors import AlreadyExists, InvalidSpec, OstlerError, Problem, Rejected, TooLarge
from ostler.model.manifest import Requirements, RetryPolicy
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.sdk import calls
from ostler.sdk.calls import Arguments, Call, Results
from ostler.sdk.client import Client
from ostler.sdk.core import Told
from ostler.sdk.manifests import Fields, named, plain

P = ParamSpec("P")
T = TypeVar("T")

MAX_BATCH = 500
MAX_BATCH_BYTES = 8 * 2**20
LAST_S = 10.0
_OWN = frozenset({"job_id", "runner", "task", "params", "code", "command", "args", "artifacts", "array"})
ERRANDS = 8  # calls about single jobs at the same time: results too large to come along, cancellations


_executors: "weakref.WeakSet[Executor]" = weakref.WeakSet()


@atexit.register
def _send_what_is_left() -> None:
    """A program that ends without `shutdown` leaves its calls to the fleet: what was submitted is sent."""
    for one in list(_executors):
        one.flush()


class CallFuture(Future[T]):
    """A function's call on the fleet. `cancel()` ends a running one too; `job_id` names its job for `ostler job show`."""

    def __init__(self, job_id: str, forsake: "Callable[[CallFuture[T]], None]") -> None:
        super().__init__()
        self.job_id = job_id
        self._forsake = forsake

    def cancel(self) -> bool:
        """Give it up, wherever it is. False where it is over."""
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self._forsake(self)
        return True


@dataclass(eq=False, slots=True)
class _Entry:
    """One call on its way. `sent` once a coordinator may have it."""

    future: CallFuture[Any]
    manifest: dict[str, Any]
    size: int
    sent: bool = False
    over: bool = False
    told: Told | None = None


class Executor(FuturesExecutor):
    """Calls functions on the nodes of a fleet; `submit`, `map`, `shutdown` and their futures behave as in `concurrent.futures`.

    A function goes by its name: it must be at the top level of a module in the nodes' task folders, which are trusted; `submit` also
    takes the name itself, `"MODULE:FUNCTION"`. Arguments and results are data (numbers, text, bytes, lists, tuples, dicts, sets, dates).
    `by_value=True` sends functions and arguments themselves, to nodes whose configuration allows it. `results="pickle"` also takes
    results of other classes: whoever runs the nodes can then run code here, so only say it for nodes that you trust.

    What a function raises is raised here, with the traceback on the node as its cause; an end that is not the function's doing (its node
    was lost and no retry was left, no node has it, its time was over) is JobFailed. Lost nodes and restarts of the coordinator are ridden
    out: the same call may then run more than once, and its result counts once. `retries` also repeats calls that raised.

    At most `max_pending` calls are open; `submit` waits for room. All other arguments are fields of the calls' manifests. Without a
    `client` it has one of its own, which goes where the command line goes.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        max_pending: int = 10_000,
        by_value: bool = False,
        results: Results = "data",
        requirements: Requirements | Fields | None = None,
        retries: int | RetryPolicy | Fields | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> None:
        if client is not None and not isinstance(client, Client):
            raise InvalidSpec(f"client must be an ostler.Client, not {type(client).__name__}")
        if own := sorted(_OWN & fields.keys()):
            raise InvalidSpec(
                "an executor cannot be made so", [Problem(name, "is the executor's own, for each call") for name in own]
            )
        if not isinstance(max_pending, int) or max_pending < 1:
            raise InvalidSpec("max_pending must be 1 or more")
        if not isinstance(by_value, bool):
            raise InvalidSpec(f"by_value must be True or False, not {by_value!r:.40}")
        if results not in {"data", "pickle"}:
            raise InvalidSpec(f"results must be 'data' or 'pickle', not {results!r}")
        given = {"requirements": requirements, "retries": retries, "timeout_s": timeout_s, **fields}
        self._extra = plain({name: value for name, value in given.items() if value is not None})
        self._by_value, self._results, self._max_pending = by_value, results, max_pending
        self._own = client is None
        self._client = client or Client()
        self._portal, self._core = self._client.door()
        self._room = threading.Condition()
        self._open: dict[CallFuture[Any], _Entry] = {}
        self._waiting: deque[_Entry] = deque()
        self._sending = False  # whether the loop is about to send, or sends
        self._closed = False
        self._errands: set[asyncio.Task[None]] = set()
        self._few = asyncio.Semaphore(ERRANDS)
        try:
            self._portal.run(
                self._core.call(routes.LIST_JOBS, query=m.JobQuery(limit=1))
            )  # a wrong address or token is told here
        except BaseException:
            if self._own:
                self._client.close()
            raise
        _executors.add(self)

    # --- the contract ---

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[T]: ...
    @overload
    def submit(self, fn: str, /, *args: Any, **kwargs: Any) -> CallFuture[Any]: ...
    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Call `fn(*args, **kwargs)` on some node. Raises RuntimeError after shutdown, InvalidSpec for what cannot be sent."""
        return self._submit(Call(fn, [(args, kwargs)]))

    @overload
    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]: ...
    @overload
    def map(self, fn: str, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1) -> Iterator[Any]: ...
    def map(
        self, fn: Callable[..., Any] | str, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """The results of `fn` over the items, in order. `chunksize` calls go as one job, whose calls fail together.

        All are submitted at once. Raises TimeoutError `timeout` seconds after this call; leaving the iterator cancels what is open.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        end = None if timeout is None else time.monotonic() + timeout
        items: Iterator[Arguments] = ((args, {}) for args in zip(*iterables, strict=False))
        futures: deque[CallFuture[Any]] = deque()
        try:
            if chunksize == 1:
                futures.extend(self._submit(Call(fn, [one])) for one in items)
            else:
                while chunk := list(itertools.islice(items, chunksize)):
                    futures.append(self._submit(Call(fn, chunk, batch=True)))
        except BaseException:
            _cancel(futures)
            raise
        return _results(futures, end, many=chunksize > 1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait` until all are over. `cancel_futures` ends those that are not, also running ones."""
        with self._room:
            self._closed = True
            left = list(self._open) if cancel_futures else []
        _cancel(left)
        if wait:
            with self._room:
                while self._open:
                    self._room.wait()
            self._end()
        else:
            threading.Thread(target=self.shutdown, name="ostler-shutdown", daemon=True).start()

    def _end(self) -> None:
        if self._portal.closed or self._portal.forked:
            return
        self._portal.run(self._errands_done())
        if self._own:
            self._client.close()

    async def _errands_done(self) -> None:
        while self._errands or self._sending:
            await asyncio.wait(self._errands) if self._errands else await asyncio.sleep(0.001)

    def flush(self, timeout: float = LAST_S) -> None:
        """Returns when what was submitted so far is with the coordinator, or the time is over."""
        if not self._portal.closed and not self._portal.forked:
            with suppress(TimeoutError, CancelledError, OstlerError):
                self._portal.run(asyncio.wait_for(self._errands_done(), timeout))

    # --- in the callers' threads ---

    def _submit(self, call: Call) -> CallFuture[Any]:
        manifest = calls.manifest_of(call, by_value=self._by_value, results=self._results, extra=self._extra)
        manifest, _ = named(manifest, "call")
        size = len(codec.encode(manifest))
        calls.check_size(manifest, size)
        future: CallFuture[Any] = CallFuture(manifest["job_id"], self._forsake)
        entry = _Entry(future, manifest, size)
        if self._portal.forked:
            self._portal.check()
        with self._room:
            # A callback that submits must not wait for room that only the thread which it stands in can make.
            while not self._closed and len(self._open) >= self._max_pending and not self._portal.ends_here():
                self._room.wait()
            if self._closed or self._portal.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._open[future] = entry
            self._waiting.append(entry)
            begin, self._sending = not self._sending, True
        if begin:
            self._portal.soon(self._begin_sending)
        return future

    def _forsake(self, future: CallFuture[Any]) -> None:
        with self._room:
            entry = self._open.get(future)
            if entry is None or entry.over:
                return
            entry.over = True
        self._portal.soon(self._cancel_job, entry)
        self._portal.end(lambda: self._close(entry))

    # --- where futures end ---

    def _close(self, entry: _Entry, end: Callable[[], None] | None = None) -> None:
        """Make room, and have the future end: in this order, since its callbacks may submit."""
        with self._room:
            if self._open.pop(entry.future, None) is None:
                return
            self._room.notify_all()
        future = entry.future
        if future.cancelled():
            future.set_running_or_notify_cancel()
        elif end is not None:
            with suppress(InvalidStateError):  # cancelled at this very moment
                end()

    def _settle(self, entry: _Entry, job: m.JobView, contents: Mapping[str, bytes]) -> None:
        try:
            result = calls.result_of(job, contents, results=self._results)
        except CancelledError:
            entry.over = True
            Future.cancel(entry.future)
            self._close(entry)
        except BaseException as exc:  # what a pickle raises may be anything
            raised = exc
            self._close(entry, lambda: entry.future.set_exception(raised))
        else:
            self._close(entry, lambda: entry.future.set_result(result))

    # --- in the loop ---

    def _begin_sending(self) -> None:
        self._errand(self._send())

    def _errand(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _send(self) -> None:
        while batch := self._next_batch():
            await self._submit_batch(batch)

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        size = 0
        with self._room:
            while self._waiting and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
                entry = self._waiting.popleft()
                if not entry.over:
                    entry.sent = True
                    batch.append(entry)
                    size += entry.size
            if not batch:
                self._sending = False
        return batch

    async def _submit_batch(self, batch: Sequence[_Entry]) -> None:
        try:
            await self._core.submit([one.manifest for one in batch], fresh=True)
        except (InvalidSpec, TooLarge, AlreadyExists) as exc:
            await self._without(batch, exc)
        except OstlerError as exc:
            for one in batch:
                self._refuse(one, exc)
        except Exception as exc:  # a future that never ends would be worse than one that ends oddly
            for one in batch:
                self._refuse(one, exc)
        else:
            for one in batch:
                one.manifest = {}  # its arguments need no memory any more
                if one.over:
                    self._cancel_job(one)
                else:
                    self._watch(one)

    async def _without(self, batch: Sequence[_Entry], exc: Rejected) -> None:
        """A coordinator takes all calls or none: those with a mistake are refused, and the others go again."""
        bad = calls.problem_indices(exc.problems) if isinstance(exc, InvalidSpec) else set()
        if len(batch) > 1 and not bad:  # it does not say which
            half = len(batch) // 2
            await self._submit_batch(batch[:half])
            await self._submit_batch(batch[half:])
            return
        for number, one in enumerate(batch):
            if number in bad or len(batch) == 1:
                self._refuse(one, exc)
        if rest := [one for number, one in enumerate(batch) if number not in bad and len(batch) > 1]:
            await self._submit_batch(rest)

    def _refuse(self, entry: _Entry, exc: Exception) -> None:
        self._portal.end(lambda: self._close(entry, lambda: entry.future.set_exception(exc)))

    def _watch(self, entry: _Entry) -> None:
        def told(news: m.Ended | OstlerError) -> None:
            if isinstance(news, OstlerError):
                self._refuse(entry, news)
                return
            lacking = [one.path for one in news.job.artifacts if one.path in wanted and one.path not in news.contents]
            if lacking:
                self._errand(self._fetch(entry, news, lacking))
            else:
                self._portal.end(lambda: self._settle(entry, news.job, news.contents))

        wanted = calls.contents_of(self._results)
        entry.told = told
        self._core.watch(entry.future.job_id, told, wanted)

    async def _fetch(self, entry: _Entry, news: m.Ended, paths: Sequence[str]) -> None:
        contents = dict(news.contents)
        try:
            async with self._few:
                for path in paths:
                    contents[path] = await self._core.read(routes.GET_ARTIFACT, job_id=news.job.job_id, path=path)
        except OstlerError as exc:
            self._refuse(entry, exc)
            return
        self._portal.end(lambda: self._settle(entry, news.job, contents))

    def _cancel_job(self, entry: _Entry) -> None:
        if entry.told is not None:
            self._core.unwatch(entry.future.job_id, entry.told)
        if entry.sent:
            self._errand(self._cancel(entry.future.job_id))

    async def _cancel(self, job_id: str) -> None:
        async with self._few:
            with suppress(OstlerError):  # over already
                await self._core.call(routes.CANCEL_JOB, m.CancelRequest(reason="its future was cancelled"), job_id=job_id)


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for one in futures:
        one.cancel()


def _results(futures: deque[CallFuture[Any]], end: float | None, *, many: bool) -> Iterator[Any]:
    try:
        while futures:
            result = futures[0].result() if end is None else futures[0].result(max(0.0, end - time.monotonic()))
            futures.popleft()
            if many:
                yield from result
            else:
                yield result
    finally:
        _cancel(futures)
