"""Who is reading a job's logs right now: retention leaves those alone until they are through. Used in the event loop's thread only."""

import contextlib
from collections.abc import Collection, Iterator
from weakref import WeakSet

from ostler.model.errors import StoreBusy


class Hold:
    """Keeps a job's logs for as long as somebody has this object."""

    __slots__ = ("__weakref__",)


class Readers:
    """Holds by job. One ends with its object, so that no way out of a request can leave one behind."""

    def __init__(self) -> None:
        self._held: dict[str, WeakSet[Hold]] = {}
        self._going: set[str] = set()

    def hold(self, job_id: str) -> Hold:
        """Begin to read. Raises StoreBusy in the moment in which they are removed: whoever asks again is told so."""
        if job_id in self._going:
            raise StoreBusy(f"what job {job_id} left is being removed", retry_after=1)
        one = Hold()
        self._held.setdefault(job_id, WeakSet()).add(one)
        return one

    @contextlib.contextmanager
    def removing(self, job_ids: Collection[str]) -> Iterator[set[str]]:
        """Nobody begins to read these until it is over; answers those of them that nobody reads."""
        for job_id in [one for one, holds in self._held.items() if not holds]:
            del self._held[job_id]
        free = set(job_ids) - self._held.keys()
        self._going |= free
        try:
            yield free
        finally:
            self._going -= free
