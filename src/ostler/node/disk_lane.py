"""Short disk work beside the event loop: one thread, answers in batches.

A `mkdir` takes ten microseconds, or thirty seconds on a disk that some job floods. It must never hold up a heartbeat; and a
thread of the pool per call would cost more than the call. Long work (hashing, removing trees) belongs into `asyncio.to_thread`.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]
_Order = tuple["asyncio.Future[Any]", Callable[[], Any]]
MAX_BATCH = 16  # answers that wait for each other, so that the first is not held up for long


class DiskLane:
    """`await lane.do(work, …)` runs one call after the other in the lane's thread. Started in the event loop's thread.

    What is asked for in one turn of the loop is handed over together: waking the thread costs more than a `mkdir`.
    """

    def __init__(self, *, name: str = "disk") -> None:
        self._queue: SimpleQueue[list[_Order] | None] = SimpleQueue()
        self._asked: list[_Order] = []
        self._open = 0  # calls that are not answered
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Resolves to what `work` returns, or raises what it raises."""
        done: asyncio.Future[T] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append((done, lambda: work(*args, **kwargs)))
        self._open += 1
        return done

    def do_here(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """The same in the caller's own thread, where the lane is idle: for when nothing is held up by a slow disk but this very work.
        Two changes of thread on a cold core take ten times as long as the work itself."""
        if self._open:
            return self.do(work, *args, **kwargs)
        done: asyncio.Future[T] = self._loop.create_future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done

    def _hand_over(self) -> None:
        if self._asked:
            asked, self._asked = self._asked, []
            self._queue.put(asked)

    async def close(self, *, patience_s: float = 5.0) -> None:
        """End the thread after what waits; a disk that hangs is not waited for."""
        self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, patience_s)

    def _run(self) -> None:
        answers: list[_Answer] = []
        while (asked := self._queue.get()) is not None:
            for done, work in asked:
                try:
                    answers.append((done, work(), None))
                except Exception as exc:
                    answers.append((done, None, exc))
                if len(answers) >= MAX_BATCH:
                    answers = self._answered(answers)
            if self._queue.empty():
                answers = self._answered(answers)
        self._answered(answers)

    def _answered(self, answers: list[_Answer]) -> list[_Answer]:
        if answers:
            with contextlib.suppress(RuntimeError):  # the event loop was closed without waiting
                self._loop.call_soon_threadsafe(self._resolve, answers)
        return []

    def _resolve(self, answers: list[_Answer]) -> None:
        self._open -= len(answers)
        for done, result, failure in answers:
            if done.done():
                continue
            if failure is None:
                done.set_result(result)
            else:
                done.set_exception(failure)
