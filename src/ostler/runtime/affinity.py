"""Threads of one interpreter run one at a time, so another core gains them nothing: each hand-over of the interpreter would carry what both
have in their caches from one core to the other. Those that work for an event loop therefore run on the core on which it runs.
"""

import ctypes
import os
import threading
from collections.abc import Callable


class Followers:
    """Threads that are kept on the event loop's core: the kernel may move the loop, and they follow.

    For threads that do short pieces of work, nearly all of it in the interpreter. Without effect where a process may use one core alone,
    and where the system cannot say on which core a thread is.
    """

    def __init__(self) -> None:
        self._threads: list[int] = []
        self._core = -1
        self._where = _where()

    def join(self) -> None:
        """The calling thread is one of them, for as long as it lives."""
        self._threads.append(threading.get_native_id())
        self._core = -1

    def follow(self) -> None:
        """Called by the loop before it wakes one of them."""
        if self._where is None or (core := self._where()) == self._core:
            return
        self._core = core
        try:
            for thread in self._threads:
                os.sched_setaffinity(thread, (core,))
        except OSError:  # the core is about to go, or is not for us any more
            self._where = None
            self._let_go()

    def _let_go(self) -> None:
        for thread in self._threads:
            try:
                os.sched_setaffinity(thread, os.sched_getaffinity(0))
            except OSError:  # it has ended
                continue


def _where() -> Callable[[], int] | None:
    """What tells the calling thread's core."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    try:
        # PyDLL: it takes less than giving the interpreter away and getting it back.
        return ctypes.PyDLL(None).sched_getcpu
    except AttributeError:  # another C library
        return None
