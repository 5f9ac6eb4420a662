"""Server-sent events as a reader sees them, however the stream is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.errors import CoordinatorUnreachable
from ostler.protocol.events import EventReader, Place

STREAM = b"id: a\n\n: hello\n\nid: b\nevent: x\ndata: one\ndata: two\n\nid: c\r\ndata: three\r\n\r\n: keep-alive\n\nid: d\n\n"
WHOLE = [("x", "one\ntwo", "b"), ("message", "three", "c")]


def said(events):
    return [(one.kind, one.data, one.ident) for one in events]


@given(st.lists(st.integers(0, len(STREAM))))
def test_pieces_make_no_difference(cuts):
    places = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [one for begin, end in itertools.pairwise(places) for one in reader.feed(STREAM[begin:end])]
    assert said(found) == WHOLE
    assert reader.ident == "d"


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_what_breaks_off_is_asked_for_again(cut):
    """A server that goes on after the id that it is shown, and a connection that breaks after `cut` bytes."""
    place = Place(60.0)
    assert "Last-Event-ID" not in place.headers()
    found = place.feed(STREAM[:cut])
    after = place.headers().get("Last-Event-ID")
    rest = {None: STREAM, "a": STREAM[7:], "b": STREAM[STREAM.index(b"id: c") :], "c": b"id: d\n\n", "d": b""}[after]
    assert said([*found, *place.feed(rest)]) == WHOLE


def test_patience():
    now = 0.0
    place = Place(10.0, clock=lambda: now)
    lost = CoordinatorUnreachable("gone", retry_after=4.0)
    assert place.pause(lost) == 4.0
    now = 7.0
    with pytest.raises(CoordinatorUnreachable):
        place.pause(lost)
    place.feed(b": keep-alive\n\n")
    assert place.pause(lost) == 4.0
