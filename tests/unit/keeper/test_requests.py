"""What requests may say; the mistakes one by one are tried on the socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.keeper.requests import Fields, Kill, Limits, Refusal, Start, checked_key

LEAST = {"key": "j/1", "argv": ["true"], "env": {}, "cwd": "/", "stdout": "/o", "stderr": "/e"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_the_least_that_can_be_said():
    start = Start(Fields(LEAST))
    assert (start.key, start.argv, start.env, start.cwd, start.stdin, start.record) == ("j/1", [b"true"], {}, "/", None, None)
    assert (start.no_new_privs, start.seccomp, start.uid, start.gid, start.open) == (False, None, None, None, [])
    assert (start.limits.grace_s, start.limits.wall_s, start.limits.memory_mb) == (10.0, None, None)


def test_unknown_fields_are_let_pass_and_unknown_limits_named():
    start = Start(Fields(LEAST | {"news": 1, "limits": {"nice": 3, "of_tomorrow": 5, "of_yesterday": None}}))
    assert start.limits.unknown == ["of_tomorrow"]


@pytest.mark.parametrize(
    ("argv", "said", "wrapper"),
    [
        (["/usr/bin/bwrap"], None, True),
        (["bwrap"], None, True),
        (["/usr/bin/true"], None, False),
        (["/usr/bin/bwrap"], False, False),
        (["my-jail"], True, True),
    ],
)
def test_bwrap_is_known_for_a_wrapper(argv, said, wrapper):
    assert Start(Fields(LEAST | {"argv": argv, "wrapper": said})).wrapper is wrapper


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, None),
        ({"io_class": "idle"}, (3, 0)),
        ({"io_class": "best-effort"}, (2, 4)),
        ({"io_class": "realtime", "io_level": 0}, (1, 0)),
        ({"io_class": "idle", "io_level": 6}, (3, 0)),
        ({"io_level": 7}, (2, 7)),
    ],
)
def test_io_priority(said, meant):
    assert Limits(Fields(said, "limits")).io == meant


def refused_as(kind, members) -> str | None:
    try:
        kind(Fields(members))
    except Refusal as refusal:
        return refusal.code
    return None


@given(st.dictionaries(st.sampled_from([*LEAST, "limits", "open", "stdin", "uid", "wrapper", "seccomp", "record"]), JSON))
def test_any_start_is_taken_or_refused(members):
    assert refused_as(Start, LEAST | members) in (None, "invalid")


@given(st.dictionaries(st.sampled_from(["key", "reason", "grace_s"]), JSON))
def test_any_kill_is_taken_or_refused(members):
    assert refused_as(Kill, {"key": "a", "reason": "b"} | members) in (None, "invalid")


@given(st.text(max_size=30))
def test_keys_are_visible_ascii(key):
    try:
        assert checked_key(Fields({"key": key})) == key
    except Refusal:
        assert not key or any(not "!" <= letter <= "~" or letter == "=" for letter in key)


def test_a_refusal_as_reply():
    assert Refusal("exec", "no", number=2, step="exec").as_reply() == {
        "code": "exec",
        "message": "no",
        "errno": 2,
        "step": "exec",
    }
    assert Refusal("exists", "yes").as_reply() == {"code": "exists", "message": "yes"}


def test_the_environment_is_bytes_and_each_mistake_has_its_name():
    start = Start(Fields(LEAST | {"env": {"A": "1", "EMPTY": "", "\xfc": "\xe4\udcff", "X=Y"[:1]: "="}}))
    assert start.env == {b"A": b"1", b"EMPTY": b"", "\xfc".encode(): "\xe4".encode() + b"\xff", b"X": b"="}
    for env, said in (
        ({"A": 1}, "env.A: must be a string"), ({"": "x"}, "env: a name must not be empty"), ({"A=B": "x"}, "env: a name must not be"),
        ({"A": "x\0"}, "env.A: must not contain NUL"), ({"A\0": "x"}, "env: must not contain NUL"),
        ({"A": "\ud800"}, "env.A: cannot be encoded"), ({"A": None}, "env.A: must be a string"), ({"A": ["x"]}, "env.A: must be a string"),
    ):  # fmt: skip
        with pytest.raises(Refusal, match=said):
            Start(Fields(LEAST | {"env": {"B": "y", **env}}))


def test_limits_that_are_spelled_alike_are_read_once_and_others_are_not_taken_for_them():
    def limits(**members):
        return Start(Fields(LEAST | {"limits": members})).limits

    assert limits(nice=1, cpus=[0]) is limits(nice=1, cpus=[0])
    assert limits(nice=1).nice == 1
    for nice in (True, 1.0):
        with pytest.raises(Refusal, match=r"limits\.nice: must be a whole number"):
            limits(nice=nice)
    assert limits(nice=1, cpus=[0]).cpus == [0]
    for number in range(200):
        assert limits(nice=number % 20, wall_s=number).wall_s == number
