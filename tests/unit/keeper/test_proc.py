"""/proc parsed, on this very process and on names made to mislead."""

import os

from hypothesis import given
from hypothesis import strategies as st

from ostler.node.keeper import proc

REST = b" S 10 20 30 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3"


@given(st.binary(max_size=16))
def test_a_name_cannot_mislead(name):
    found = proc.parse_stat(b"5 (" + name + b")" + REST)
    assert (found.state, found.parent, found.group, found.session, found.start_time) == ("S", 10, 20, 30, 987654)
    assert not found.dead


def test_what_is_no_stat_is_none():
    assert proc.parse_stat(b"") is None
    assert proc.parse_stat(b"5 (sh) S 1") is None
    assert proc.stat(2**22 + 1) is None
    assert proc.start_time(2**22 + 1) == 0
    assert proc.children(2**22 + 1) == []
    assert proc.environment(2**22 + 1) == [b""]


def test_this_process():
    own = os.getpid()
    found = proc.stat(own)
    assert (found.parent, found.group, found.session) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert own in proc.all_pids()
    assert proc.resident_bytes([own]) > 1 << 20
    assert 1 << 20 < proc.proportional_bytes([own]) <= proc.resident_bytes([own]) + (64 << 20)
    assert proc.tasks_of_user(os.getuid()) >= 1
