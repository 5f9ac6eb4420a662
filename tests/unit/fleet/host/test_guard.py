"""The guard of a host's updates among processes: not waited for, waited for a while, or for as long as it takes."""

import threading

import pytest

from ostler.fleet.host.lock import guarded
from ostler.fleet.host.places import Places
from ostler.fleet.host.refusals import Refused


@pytest.fixture
def held(tmp_path):
    """Places whose switch is under way, and what ends it."""
    places, begun, over = Places(tmp_path), threading.Event(), threading.Event()

    def switch():
        with guarded(places, "switch"):
            begun.set()
            over.wait()

    thread = threading.Thread(target=switch)
    thread.start()
    begun.wait()
    yield places, over
    over.set()
    thread.join()


def test_who_does_not_wait_is_refused(held):
    places, _ = held
    for wait_s in (0.0, 0.2):
        with pytest.raises(Refused, match="at this moment") as refused, guarded(places, "switch", wait_s=wait_s):
            pass
        assert refused.value.code == "busy"
    with guarded(places, "another"):
        pass


@pytest.mark.parametrize("wait_s", [60.0, None])
def test_who_waits_goes_on_behind_it(held, wait_s):
    places, over = held
    threading.Timer(0.05, over.set).start()
    with guarded(places, "switch", wait_s=wait_s):
        assert over.is_set()
    with guarded(places, "switch", wait_s=0.0):
        pass
