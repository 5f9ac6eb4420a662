"""The keeper's memory over its own death."""

import json
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.keeper.attempt import lost_record
from ostler.node.keeper.journal import Journal, replace_file
from ostler.node.keeper.recovery import replay, written_record

START = {"pid": 5, "start_time": 7, "boot_id": "b", "started_at": 1.5, "record": None, "groups": []}
END = {"pid": 5, "start_time": 7, "started_at": 1.5, "exit_code": 0}


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_what_was_written_is_read_again(tmp_path):
    path = str(tmp_path / "journal")
    journal = Journal(path)
    assert journal.entries == []
    journal.append('{"a":1}\n')
    journal.later('{"b":2}\n')
    journal.append('{"c":3}\n')
    journal.later('{"d":4}\n')
    assert journal.flush()
    assert Journal(path).entries == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]


@given(st.integers(0, 60), st.binary(max_size=30))
def test_a_torn_or_spoilt_end_costs_no_more_than_itself(tmp_path_factory, cut, rubbish):
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = lines({"a": 1}, {"b": 2}, {"c": "three"}).encode()
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    journal = Journal(str(path))
    assert journal.entries == [{"a": 1}, {"b": 2}, {"c": "three"}][:complete]
    journal.append('{"d":4}\n')
    assert Journal(str(path)).entries[-1] == {"d": 4}
    path.write_bytes(whole + rubbish)
    assert Journal(str(path)).entries[:3] == [{"a": 1}, {"b": 2}, {"c": "three"}]


def test_it_starts_afresh_when_nothing_in_it_matters(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.append('{"a":1}\n')
    journal.empty()
    assert path.stat().st_size == 8  # not worth it yet
    journal.append(" " * 70_000 + "\n")
    journal.later('{"b":2}\n')
    journal.empty()
    assert journal.flush()
    assert path.stat().st_size == 0


def test_it_is_written_anew_when_it_has_grown(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(str(path))
    for _ in range(4):
        assert not journal.bloated
        journal.append(" " * (1 << 20) + "\n")
    assert journal.bloated
    journal.rewrite(['{"a":1}\n'])
    journal.append('{"b":2}\n')
    assert not journal.bloated
    assert path.read_text() == '{"a":1}\n{"b":2}\n'
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["journal"]


def test_what_is_written_in_part_is_taken_back(tmp_path):
    """As on a disk with three bytes left."""
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.append('{"a":1}\n')
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (11, hard))
    try:
        with pytest.raises(OSError, match="No space"):
            journal.append('{"b":2}\n')
        journal.later('{"c":3}\n')
        assert not journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.read_text() == '{"a":1}\n'
    assert journal.flush()
    assert path.read_text() == '{"a":1}\n{"c":3}\n'


def test_replay():
    entries = [
        {"start": START | {"key": "lost"}},
        {"start": START | {"key": "over"}},
        {"end": END | {"key": "over"}},
        {"start": START | {"key": "gone"}},
        {"end": END | {"key": "gone"}},
        {"forget": "gone"},
        {"start": START | {"key": "again"}},
        {"end": END | {"key": "again"}},
        {"start": START | {"key": "again", "pid": 9}},
        *({"start": 5}, {"end": {"key": "odd"}}, {"forget": None}, {}, {"start": {"key": 1}}),
    ]
    started, ended = replay(entries)
    assert {key: start["pid"] for key, start in started.items()} == {"lost": 5, "again": 9}
    assert set(ended) == {"over"}


def test_a_record_counts_for_its_own_process_alone(tmp_path):
    path = tmp_path / "exit.json"
    start = START | {"key": "a", "record": str(path)}
    assert written_record(START | {"key": "a"}) is None
    assert written_record(start) is None
    for text, counts in {
        "": False,
        "[]": False,
        json.dumps(END | {"key": "a", "pid": 6}): False,
        json.dumps(END | {"key": "b"}): False,
        json.dumps(END | {"key": "a"}): True,
    }.items():
        path.write_text(text)
        assert (written_record(start) is not None) == counts


def test_the_record_of_a_lost_one_says_no_more_than_is_known():
    record = lost_record(START | {"key": "a"}, now=11.5)
    assert (record["killed"], record["exit_code"], record["signal"], record["oom"]) == ("keeper-lost", None, None, None)
    assert (record["wall_s"], record["ended_at"], record["boot_id"]) == (10.0, 11.5, "b")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "exit.json"
    path.write_text("old")
    (tmp_path / "exit.json.new").write_text("left by one that was killed, and longer than the new one")
    replace_file(str(path), "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["exit.json"]
    (tmp_path / "exit.json.new").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(str(path), "through a link")
    assert path.read_text() == "new"
