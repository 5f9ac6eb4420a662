"""Starts that wait for room: the next attempt begins with the end of the last one, without a way to the daemon and back.

Nothing waits here that its client would not know what to do with: it is let go of with the connection, and was never begun.
"""

from ostler.node.keeper.requests import Refusal, Start

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from ostler.node.keeper.server import Client

_MOST = 4096


class Waiting:
    """In the order in which they begin: those that shall be first, then the others, each as they came."""

    def __init__(self) -> None:
        self._queue: list[tuple[Client, int | None, Start]] = []
        self._first = 0  # how many of them shall be first

    def add(self, client: "Client", number: int | None, request: Start) -> None:
        """Let a start wait. Raises Refusal."""
        if any(one.key == request.key for _, _, one in self._queue):
            raise Refusal("exists", f"{request.key} waits already")
        if len(self._queue) >= _MOST:
            raise Refusal("busy", f"{_MOST} attempts wait for room already")
        if request.first:
            self._queue.insert(self._first, (client, number, request))
            self._first += 1
        else:
            self._queue.append((client, number, request))

    def next(self, running: int, *, stopping: bool) -> "tuple[Client, int | None, Start] | None":
        """Take out the one that may begin beside so many that run; when the keeper stops, any, to be told so."""
        if not self._queue or not (stopping or running < (self._queue[0][2].room or 1)):
            return None
        self._first = max(0, self._first - 1)
        return self._queue.pop(0)

    def take(self, key: str) -> "tuple[Client, int | None] | None":
        """Take out the one with this key, where there is one; returns whom to tell."""
        for at, (client, number, request) in enumerate(self._queue):
            if request.key == key:
                del self._queue[at]
                self._first -= at < self._first
                return client, number
        return None

    def drop(self, client: "Client") -> None:
        """Let go of all that a client asked for; it has gone away."""
        self._queue = [one for one in self._queue if one[0] is not client]
        self._first = sum(request.first for _, _, request in self._queue)
