"""Who waits for what: topics that operations publish after their commit, and events that waiters sleep on.

Topics are tuples: ("queue",) new or requeued work; ("node", node_id) a directive or credit changed, or a command waits for it;
("job", job_id) its state changed; ("over", job_id) it came to its end; ("group", group_id) its last job is over;
("log", job_id, attempt) bytes arrived; ("token", token_id) it was revoked; ("events",) something was appended to the table of events. A
wake-up is a hint and carries nothing: the waiter reads the rows again, so a spurious or a doubled one does no harm. What other
coordinators publish on the same database comes from their own threads (`store.peers`); all other methods are called in the event loop's
thread.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

Topic = tuple[str | int, ...]


class Wakeups:
    """Wake-ups of this process; where several share a database, `peers` carries them from one to the other."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[Topic, set[asyncio.Event]] = {}
        self._closed = False

    def publish(self, topic: Topic) -> None:
        """Wake everyone who waits for this topic."""
        for event in self._waiting.get(topic, ()):
            event.set()

    def publish_all(self, topics: Iterable[Topic]) -> None:
        """Wake everyone who waits for one of these."""
        for topic in topics:
            self.publish(topic)

    def publish_from_afar(self, topics: Iterable[Topic]) -> None:
        """`publish_all` for another thread."""
        self._from_afar(self.publish_all, topics)

    def stir(self) -> None:
        """Wake everyone once, from another thread: something may have been published that nobody here was told of."""
        self._from_afar(self._stir)

    def _from_afar(self, act: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(act, *args)

    def _stir(self) -> None:
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()

    @asynccontextmanager
    async def subscribe(self, *topics: Topic) -> AsyncIterator[asyncio.Event]:
        """An event that each publication sets; the waiter clears it *before* it reads the rows, so that nothing is missed."""
        self._loop = asyncio.get_running_loop()
        event = asyncio.Event()
        if self._closed:
            event.set()
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in topics:
                waiting = self._waiting[topic]
                waiting.discard(event)
                if not waiting:
                    del self._waiting[topic]

    def wake_all(self) -> None:
        """Wake everyone, now and later: the coordinator is shutting down and no long poll may hold it up."""
        self._closed = True
        self._stir()

    @property
    def closed(self) -> bool:
        """True after `wake_all`: a waiter that wakes now should answer at once."""
        return self._closed
