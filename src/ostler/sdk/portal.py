"""The thread behind blocking clients: one event loop for all calls, and one thread more in which futures end.

Futures end in a thread of their own, because what is attached to them (`add_done_callback`) is the caller's code: it may call the client
again, which waits for the loop.
"""

import asyncio
import encodings.idna  # noqa: F401 - a look-up loads it, and a child forked in that moment would wait for it for ever
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from ostler.model.errors import Rejected

T = TypeVar("T")
_LOG = logging.getLogger("ostler.sdk")


class Portal:
    """A door into an event loop that runs beside the caller's threads."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._ends: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.closed = False
        self._pid = os.getpid()
        self._threads = [
            threading.Thread(target=self._turn, name="ostler-calls", daemon=True),
            threading.Thread(target=self._end, name="ostler-futures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the loop and wait for it; Ctrl-C here ends it there."""
        try:
            self.check()
        except Rejected:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that has its threads and connections."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """Raises Rejected where nothing is to be had any more."""
        if self.forked:
            raise Rejected("this client belongs to the process that was forked", hint="make another one behind the fork")
        if self.closed or threading.current_thread() is self._threads[0]:
            raise Rejected("this client is closed", hint="make another one")

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Have it called in the loop."""
        self.loop.call_soon_threadsafe(call, *args)

    def end(self, call: Callable[[], None]) -> None:
        """Have it called where futures end."""
        self._ends.put(call)

    def ends_here(self) -> bool:
        """Whether the caller is a future's callback."""
        return threading.current_thread() is self._threads[1]

    def close(self) -> None:
        """What was to end has ended by then."""
        if self.closed:
            return
        self.closed = True
        self._ends.put(None)
        if not self.ends_here():
            self._threads[1].join()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._threads[0].join()
        self.loop.close()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())

    def _end(self) -> None:
        while (call := self._ends.get()) is not None:
            try:
                call()
            except BaseException:  # a callback's `sys.exit()`: the other futures still end
                _LOG.exception("a callback of a future failed")
