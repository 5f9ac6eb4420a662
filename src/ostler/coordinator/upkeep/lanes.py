"""Many small things at once, where each mostly waits for somebody else."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_lanes(lanes: int, items: Iterable[T], work: Callable[[T], R], *, large: Callable[[T], bool]) -> Iterator[tuple[T, R]]:
    """What `work` makes of each item, in their order: `lanes` of them at once, those that are `large` in this thread, which can be
    interrupted."""
    if lanes == 1:
        for item in items:
            yield item, work(item)
        return
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        try:
            for item in items:
                if large(item):
                    (done := Future[R]()).set_result(work(item))
                else:
                    done = pool.submit(work, item)
                waiting.append((item, done))
                while len(waiting) > 2 * lanes:
                    first, found = waiting.popleft()
                    yield first, found.result()
            while waiting:
                first, found = waiting.popleft()
                yield first, found.result()
        finally:
            pool.shutdown(cancel_futures=True)
