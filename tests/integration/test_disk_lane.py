"""The lane for short disk work: what is asked for comes in order, and is answered also when the lane closes."""

import threading

import pytest

from ostler.node.disk_lane import MAX_BATCH, DiskLane


async def test_work_is_done_in_the_order_in_which_it_was_asked_for():
    lane, done = DiskLane(), []
    asked = [lane.do(done.append, number) for number in range(3 * MAX_BATCH)]
    asked.append(lane.do(lambda: "last"))
    assert await asked[-1] == "last"
    assert done == list(range(3 * MAX_BATCH))
    assert all(one.done() for one in asked)
    await lane.close()


async def test_one_that_fails_stops_no_other():
    lane = DiskLane()
    refused, fine = lane.do(int, "x"), lane.do(int, "7")
    assert await fine == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await refused
    await lane.close()


async def test_what_was_asked_for_is_done_before_the_lane_closes():
    lane, done = DiskLane(), []
    asked = lane.do(done.append, "late")
    await lane.close()
    assert done == ["late"]
    await asked


async def test_an_idle_lane_lets_the_caller_do_it_and_a_busy_one_keeps_the_order():
    lane, done, gate = DiskLane(), [], threading.Event()

    def work(name: str) -> str:
        done.append((name, threading.current_thread() is threading.main_thread()))
        return name

    first = lane.do_here(work, "here")
    assert first.done()
    held = lane.do(gate.wait, 20)
    later = lane.do_here(work, "later")
    assert not later.done()
    gate.set()
    assert await held
    assert [await first, await later] == ["here", "later"]
    assert done == [("here", True), ("later", False)]
    failed = lane.do_here(int, "x")
    assert failed.done()
    with pytest.raises(ValueError, match="invalid literal"):
        await failed
    await lane.close()
