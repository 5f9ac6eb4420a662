"""Threads that run where the event loop does."""

import os
import threading

import pytest

from ostler.runtime.affinity import Followers

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="a process that has one core has no choice")


@pytest.fixture
def followers():
    """One follower; the test's own thread is the loop."""
    one, there, over = Followers(), threading.Event(), threading.Event()

    def follow():
        one.join()
        there.set()
        over.wait()

    thread = threading.Thread(target=follow)
    thread.start()
    there.wait()
    yield one, thread
    os.sched_setaffinity(0, CORES)
    over.set()
    thread.join()


def test_a_follower_is_on_the_core_of_the_loop(followers):
    one, thread = followers
    assert os.sched_getaffinity(thread.native_id) == set(CORES), "until it is needed"
    for core in (*CORES[:2], CORES[0]):
        os.sched_setaffinity(0, {core})
        one.follow()
        assert os.sched_getaffinity(thread.native_id) == {core}
    assert os.sched_getaffinity(0) == {CORES[0]}, "the loop itself is the kernel's to move"


def test_where_it_does_not_go_all_are_as_free_as_the_loop(followers, monkeypatch):
    one, thread = followers
    os.sched_setaffinity(0, {CORES[0]})
    one.follow()
    os.sched_setaffinity(0, CORES)
    monkeypatch.setattr(one, "_where", lambda: 100_000)
    one.follow()
    assert os.sched_getaffinity(thread.native_id) == set(CORES)
    one.follow()
    assert os.sched_getaffinity(thread.native_id) == set(CORES), "it is not tried again"


def test_one_core_needs_no_followers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {CORES[0]})
    one = Followers()
    one.join()
    one.follow()
    monkeypatch.undo()
    assert os.sched_getaffinity(0) == set(CORES)
