"""Calls as values: requests out of routes, errors there and back, events and forms in whatever pieces they come."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model import errors
from ostler.model.errors import Problem
from ostler.protocol import codec, problems, routes
from ostler.protocol import messages as m
from ostler.protocol.events import EventReader, ServerEvent
from ostler.protocol.exchange import failure, prepare, root_of, understand


@pytest.mark.parametrize(
    ("base", "root"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("https://h/api/v1", "https://h"),
        ("https://h/api/v1/", "https://h"),
        ("https://h/proxy/api/v1", "https://h/proxy"),
    ],
)
def test_the_base_may_name_the_routes_or_not(base, root):
    assert root_of(base) == root


def test_paths_are_encoded_and_only_paths_keep_slashes():
    path = {"job_id": "a b ä?#", "path": "x/y z?#%"}
    assert (
        prepare("http://h", routes.GET_ARTIFACT, path=path).url
        == "http://h/api/v1/jobs/a%20b%20%C3%A4%3F%23/artifacts/x/y%20z%3F%23%25"
    )
    assert prepare("http://h", routes.METRICS, path={}).url == "http://h/metrics"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_name_that_would_mean_another_route_is_refused(name):
    with pytest.raises(errors.InvalidSpec):
        prepare("http://h", routes.SHOW_JOB, path={"job_id": name})


@pytest.mark.parametrize(
    "more",
    [
        {"route": routes.SHOW_JOB, "path": {"job_id": "\udcff"}},
        {"route": routes.LIST_JOBS, "query": m.JobQuery(label="a=\udcff"), "path": {}},
        {"route": routes.CANCEL_JOB, "message": m.CancelRequest(reason="\udcff"), "path": {"job_id": "j"}},
    ],
)
def test_what_no_utf_8_can_say_is_told(more):
    with pytest.raises(errors.InvalidSpec, match="is not valid Unicode"):
        prepare("http://h", **more)


def test_queries_leave_out_what_is_not_asked():
    prepared = prepare("http://h", routes.LIST_JOBS, query=m.JobQuery(label="a=b&c", count=True), path={})
    assert prepared.url == "http://h/api/v1/jobs?label=a%3Db%26c&limit=50&count=true"
    assert prepare("http://h", routes.AWAIT_JOB, query=m.WaitQuery(wait_s=9), path={"job_id": "j"}).wait_s == 9


def test_an_answer_of_something_else_asks_for_a_look_at_the_url():
    assert failure(404, b"<html>", {}).hint == "check that the URL is a coordinator's"
    assert failure(503, b"<html>", {}).hint is None


def test_tokens_and_bodies():
    prepared = prepare("http://h", routes.PULL, m.PullRequest(node_id="n", wait_s=3), token="t", path={})
    assert prepared.headers["Authorization"] == "Bearer t"
    assert prepared.headers["Content-Type"] == "application/json"
    assert codec.decode(prepared.content, m.PullRequest).node_id == "n"
    assert prepared.wait_s == 3
    raw = prepare("http://h", routes.APPEND_LOG, b"x", path={"job_id": "j", "attempt": 1, "stream": "stdout"})
    assert (raw.content, raw.headers["Content-Type"]) == (b"x", "application/octet-stream")


def kinds(root=errors.OstlerError):
    return [root, *(found for child in root.__subclasses__() if child.__module__ == root.__module__ for found in kinds(child))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind):
    more = {
        errors.InvalidSpec: {"problems": [Problem("a[0].b", "is wrong", line=3)]},
        errors.OffsetMismatch: {"offset": 7},
        errors.Unauthenticated: {"challenge": "c"},
    }.get(kind, {})
    error = kind("what happened", hint="do this", **more)
    back = failure(error.status, problems.encode(problems.describe(error)), {"retry-after": "7"})
    assert type(back) is kind
    assert (back.message, back.hint) == ("what happened", "do this")
    for name, value in more.items():
        assert getattr(back, name) == (tuple(value) if isinstance(value, list) else value)
    if isinstance(back, errors.Unavailable):
        assert back.retry_after == 7


BY_STATUS = {
    302: errors.Rejected, 400: errors.Rejected, 401: errors.Unauthenticated, 404: errors.NotFound, 413: errors.TooLarge,
    418: errors.Rejected, 429: errors.NoCapacity, 500: errors.Unavailable, 502: errors.Unavailable, 503: errors.Unavailable,
}  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), BY_STATUS.items())
@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b"[]", b"\xff", b'{"detail": 7}'])
def test_answers_of_something_else_are_understood_by_their_status(status, kind, content):
    assert type(failure(status, content, {})) is kind


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12.0), ("soon", None), ("-1", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("9" * 30, None)]
)
def test_retry_after(text, value):
    assert failure(503, b"", {"retry-after": text}).retry_after == value


def test_an_answer_that_is_none_is_not_the_callers_mistake():
    with pytest.raises(errors.Unavailable, match="does not speak"):
        understand(routes.VERSION, 200, b"<html>")
    assert understand(routes.APPEND_LOG, 204, b"") is None
    assert understand(routes.VERSION, 200, b'{"a": 1}', shape=dict) == {"a": 1}
    assert understand(routes.VERSION, 200, b"raw", shape=None) == b"raw"


STREAM = (
    b': hello\n\nid: 1.5\nevent: log\ndata: {"a": 1}\n\n\n'
    b"event: x\ndata:one\ndata: two\r\n\r\nretry: 5\ndata\n\ndata: \xc3\xa4\n\n"
)
EVENTS = [
    ServerEvent("log", '{"a": 1}', "1.5"),
    ServerEvent("x", "one\ntwo", "1.5"),
    ServerEvent("message", "", "1.5"),
    ServerEvent("message", "ä", "1.5"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_stream_is_cut(places):
    edges = [0, *sorted(places), len(STREAM)]
    reader = EventReader()
    found = [event for start, end in pairwise(edges) for event in reader.feed(STREAM[start:end])]
    assert found == EVENTS
    assert reader.ident == "1.5"
