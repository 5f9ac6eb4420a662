"""When a node gives an attempt up: earlier than anyone else could get it, unless nobody runs who could give it away."""

from hypothesis import given
from hypothesis import strategies as st

from ostler.node.leases import RIDE_OUT_S, Lease, Standing, standing, worth_asking, worth_renewing

times = st.floats(0, 10_000)


@given(sent_at=times, lease_s=st.floats(1, 600), silent_s=times)
def test_in_silence_it_ends_before_the_lease_does(sent_at, lease_s, silent_s):
    found = standing(Lease(sent_at, lease_s), sent_at + silent_s)
    if silent_s >= lease_s:
        assert found is Standing.GIVEN_UP
    if silent_s < lease_s / 2:
        assert found is Standing.RENEWED


@given(lease_s=st.floats(10, 600), silent_s=st.floats(0, RIDE_OUT_S - 1), ago_s=st.floats(0, 4))
def test_a_refusal_is_as_good_as_a_renewal(lease_s, silent_s, ago_s):
    now = 1000.0 + silent_s
    assert standing(Lease(1000.0, lease_s), now, refused_at=now - ago_s) is not Standing.GIVEN_UP


def test_but_not_for_ever():
    now = 1000.0 + RIDE_OUT_S
    assert standing(Lease(1000.0, 45.0), now, refused_at=now) is Standing.GIVEN_UP


def test_an_old_refusal_helps_no_more():
    assert standing(Lease(1000.0, 45.0), 1100.0, refused_at=1070.0) is Standing.UNRENEWED
    assert standing(Lease(1000.0, 45.0), 1110.0, refused_at=1070.0) is Standing.GIVEN_UP


def test_the_port_is_asked_in_time():
    assert not worth_asking(Lease(1000.0, 45.0), 1020.0)
    assert worth_asking(Lease(1000.0, 45.0), 1023.0)


def test_a_lease_that_an_old_poll_brought_is_renewed_at_once():
    assert not worth_renewing(1000.0, 1010.0, 45.0)
    assert worth_renewing(1000.0, 1012.0, 45.0)
