"""An outage is told of when it begins, now and then, and when it is over; what flaps is told of no more often."""

import logging

import pytest

from ostler.runtime.clock import ManualClock
from ostler.runtime.outage import EVERY_S, Outage


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def told(caplog):
    caplog.set_level("INFO", "ostler.tests.outage")
    return lambda: [(one.message, one.attrs) for one in caplog.records]


def outage(clock):
    return Outage("down", "up", monotonic=clock.monotonic, logger=logging.getLogger("ostler.tests.outage"))


def test_its_beginning_how_often_since_and_its_end(clock, told):
    one = outage(clock)
    one.over()
    assert told() == []
    for _ in range(3):
        one.failed(error="away")
    assert told() == [("down", {"error": "away"})]
    clock.advance(EVERY_S)
    one.failed(error="away")
    assert told()[1:] == [("down", {"error": "away", "times": 3})]
    clock.advance(5)
    one.over()
    one.over()
    assert told()[2:] == [("up", {"times": 4, "after_s": EVERY_S + 5})]


def test_what_comes_and_goes_is_counted(clock, told):
    one = outage(clock)
    for _ in range(100):
        one.failed(error="full")
        one.over()
        clock.advance(EVERY_S / 50)
    assert [name for name, _ in told()] == ["down", "up", "down", "up"]
    assert told()[2][1]["times"] == 50
