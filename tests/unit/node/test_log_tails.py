"""What of a log the coordinator has: offsets and hashes over any cut of it."""

import contextlib
import hashlib
import os

from hypothesis import given
from hypothesis import strategies as st

from ostler.node.log_tails import LogTail, ends, has_logs, open_tails
from ostler.protocol.messages import INLINE_LOG_BYTES


def log(root, text, stream="stdout"):
    (root / "logs").mkdir(exist_ok=True)
    path = root / "logs" / f"{stream}.log"
    path.write_bytes(text)
    return LogTail(stream, path)


def test_a_silent_stream_has_no_end(tmp_path):
    assert open_tails(tmp_path)[0].end() is None
    assert ends(open_tails(tmp_path)) == ()
    assert not has_logs(tmp_path)
    log(tmp_path, b"")
    assert not has_logs(tmp_path)
    log(tmp_path, b"x", "stderr")
    assert has_logs(tmp_path)
    assert [end.stream for end in ends(open_tails(tmp_path))] == ["stderr"]


def test_what_an_outcome_cannot_carry_is_shipped_first(tmp_path):
    tail = log(tmp_path, os.urandom(INLINE_LOG_BYTES + 1))
    assert ends([tail]) is None
    tail.take(tail.read(1))
    [end] = ends([tail])
    assert end.offset == 1
    assert len(end.tail) == INLINE_LOG_BYTES


def test_a_rewind_beyond_what_was_written_ends_where_that_ends(tmp_path):
    tail = log(tmp_path, b"abc")
    tail.rewind(10)
    assert tail.offset == 3


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    tail = LogTail("stdout", tmp_path / "link")
    with contextlib.suppress(OSError):
        assert b"secret" not in tail.read()


def test_a_fifo_in_the_place_of_a_log_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    tail = LogTail("stdout", tmp_path / "fifo")
    with contextlib.suppress(OSError):
        assert tail.read() == b""


@given(text=st.binary(max_size=2000), cuts=st.lists(st.integers(1, 500), max_size=8), back=st.integers(0, 2000))
def test_the_hash_is_that_of_the_whole_however_it_was_cut(tmp_path_factory, text, cuts, back):
    tail = log(tmp_path_factory.mktemp("log"), text)
    for cut in cuts:
        tail.take(tail.read(cut))
    if back < tail.offset:
        tail.rewind(back)
        assert tail.offset == back
    end = tail.end()
    if not text:
        assert end is None
    else:
        assert end.length == len(text)
        assert end.sha256 == hashlib.sha256(text).hexdigest()
        assert text[end.offset :] == end.tail
