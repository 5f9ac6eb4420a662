"""The line of open polls: who is woken for new work, and how many."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ostler.coordinator.api import pulls
from ostler.coordinator.operations.takers import Asking, Takers
from ostler.coordinator.store.wakeups import Wakeups
from ostler.model.errors import StoreBusy

LOGGER = logging.getLogger("ostler.tests")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - turns of the loop are all that is waited for
        await asyncio.sleep(0)


class Line:
    """A line in which each poll goes back to sleep after it was woken; `woken` says whose turn it was, `asked` how many were looked at."""

    def __init__(self, able: set[str] | None) -> None:
        self.wakeups = Wakeups()
        self.able, self.woken, self.asked = able, [], 0
        self.line = pulls.PullLine(self.wakeups, self._takers, logger=LOGGER)
        self.looked_at_all = asyncio.Event()
        self.queued = frozenset({7})
        self.rounds = 0
        self.polls = 0

    async def _takers(self, some: Sequence[Asking]) -> Takers:
        await asyncio.sleep(0)
        self.asked += len(some)
        if self.asked >= self.polls - pulls.ABREAST:
            self.looked_at_all.set()
        self.rounds += not some
        if self.able is None:
            raise StoreBusy("the disk is full")
        return Takers(self.queued, {one.node_id for one in some if one.node_id in self.able})

    @asynccontextmanager
    async def asking(self, slots: Sequence[int]) -> AsyncIterator[None]:
        async def poll(number: int, free: int) -> None:
            wake = asyncio.Event()
            with self.line.join(f"n{number}", wake, free) as pull:
                while True:
                    await wake.wait()
                    wake.clear()
                    self.woken.append(f"n{number}")
                    pull.turned()

        self.polls = len(slots)
        tasks = [asyncio.create_task(poll(number, free)) for number, free in enumerate(slots)]
        tasks.append(asyncio.create_task(self.line.run()))
        await until(lambda: len(self.line._line) == len(slots))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_job_that_nobody_can_run_wakes_a_few_and_not_all():
    line = Line(able=set())
    async with line.asking([1] * 2000):
        line.wakeups.publish(("queue",))
        await line.looked_at_all.wait()
    assert line.woken == [f"n{number}" for number in range(pulls.ABREAST)]


async def test_those_behind_who_could_take_it_are_woken():
    able = {"n700", "n1500", "n1501"}
    line = Line(able)
    async with line.asking([1] * 2000):
        line.wakeups.publish(("queue",))
        await line.looked_at_all.wait()
        await until(lambda: able <= set(line.woken))
    assert line.woken[pulls.ABREAST :] == ["n700", "n1500", "n1501"]


async def test_who_has_a_free_slot_goes_before_who_has_none():
    line = Line(able={"n3"})
    async with line.asking([0, 0, 0, 0, *[0] * 20, 2, 1]):
        assert line.line.others_ask("n24")
        assert not Line(set()).line.others_ask("n24")
        line.wakeups.publish(("queue",))
        await line.looked_at_all.wait()
        await until(lambda: "n3" in line.woken)
    assert line.woken == ["n24", "n25", "n3"]


async def test_where_nothing_is_left_nobody_further_is_looked_at():
    line = Line(able=set())
    line.queued = frozenset()
    async with line.asking([1] * 2000):
        line.wakeups.publish(("queue",))
        await until(lambda: line.rounds == 1)
        line.wakeups.publish(("queue",))
        await until(lambda: line.rounds == 2)
    assert set(line.woken) == {f"n{number}" for number in range(pulls.ABREAST)}
    assert line.asked == 0


async def test_who_was_found_unfit_is_not_looked_at_again_for_the_same_jobs():
    line = Line(able=set())
    async with line.asking([1] * 2000):
        line.wakeups.publish(("queue",))
        await line.looked_at_all.wait()
        looked, rounds = line.asked, line.rounds
        line.wakeups.publish(("queue",))
        await until(lambda: line.rounds == rounds + 2 or line.wakeups.publish(("queue",)))
        assert line.asked == looked  # the same jobs: nobody
        line.line.changed("n1000")
        line.queued, line.able = frozenset({7}), {"n1000"}
        line.wakeups.publish(("queue",))
        await until(lambda: line.woken.count("n1000") == 2)  # by itself, and as one who could take it now
        assert line.asked == looked + 1
        line.queued = frozenset({7, 8})
        line.looked_at_all.clear()
        line.asked = 0
        line.wakeups.publish(("queue",))
        await line.looked_at_all.wait()  # another kind of job: everybody


async def test_credit_and_leaving_change_who_asks():
    line = pulls.PullLine(Wakeups(), Line(set())._takers, logger=LOGGER)
    wake = asyncio.Event()
    with line.join("a", wake, 0), line.join("b", asyncio.Event(), 0, 1):
        assert not line.others_ask("b")
        assert line.others_ask("a")
        line.credit("a", 2)
        assert wake.is_set()
        assert line.others_ask("b")
        with line.join("a", asyncio.Event(), 0):
            assert not line.others_ask("b")
    assert not line.others_ask("c")


async def test_a_store_that_cannot_tell_leaves_nobody_asleep():
    line = Line(able=None)
    async with line.asking([1] * 30):
        line.wakeups.publish(("queue",))
        await until(lambda: len(set(line.woken)) == 30)
    assert sorted(line.woken) == sorted({f"n{number}" for number in range(30)})
