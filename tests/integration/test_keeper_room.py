"""Starts that wait at the keeper for room: who begins when, who takes them back, and what becomes of them without their client."""

import json

import pytest

from integration.keeper_rig import Keeper, folder

LONG = ("sleep", "1000")


@pytest.fixture
def keeper():
    with folder() as where:
        keeper = Keeper(where)
        yield keeper
        keeper.close()


@pytest.fixture
def line(keeper):
    return keeper.line()


def ask(line, op, **members) -> int:
    """A request whose answer is not waited for."""
    number = next(line.numbers)
    line.send(json.dumps({"id": number, "op": op, **members}).encode() + b"\n")
    return number


def keys(line) -> list[str]:
    return sorted(child["key"] for child in line.ask("list")["children"] if child["running"])


def test_one_begins_with_the_end_of_another(keeper, line):
    line.start(**keeper.spec("a", *LONG, room=1))
    begins = ask(line, "start", **keeper.spec("b", *LONG, room=1))
    line.start(**keeper.spec("beside", *LONG))  # asks for no room, and takes none
    assert keys(line) == ["a", "beside"]
    line.ask("kill", key="a", reason="test", grace_s=0)
    assert line.answer(begins)["pid"]
    assert line.record("a")["killed"] == "test"
    assert keys(line) == ["b", "beside"]


def test_they_begin_in_their_order_after_those_that_shall_be_first(keeper, line):
    line.start(**keeper.spec("a", *LONG, room=1))
    *_, last = [ask(line, "start", **keeper.spec(key, "true", room=1, first=key < "d")) for key in ("d", "b", "c", "e")]
    line.ask("kill", key="a", reason="test", grace_s=0)
    assert line.answer(last)["pid"]
    ended = [line.record(key) for key in "abcde"]
    assert sorted(ended, key=lambda record: record["started_at"]) == ended


@pytest.mark.parametrize("op", ["kill", "withdraw"])
def test_one_that_waits_can_be_taken_back(keeper, line, op):
    line.start(**keeper.spec("a", *LONG, room=1))
    waits = ask(line, "start", **keeper.spec("b", *LONG, room=1))
    again = line.ask("start", **keeper.spec("b", *LONG, room=1))
    assert again["error"]["code"] == "exists"
    taken = ask(line, op, key="b", **({"reason": "test"} if op == "kill" else {}))
    assert line.answer(waits)["error"]["code"] == "withdrawn"
    assert line.answer(taken)["running"] is False
    line.ask("kill", key="a", reason="test", grace_s=0)
    line.record("a")
    assert keys(line) == []


def test_what_runs_is_not_withdrawn(keeper, line):
    line.start(**keeper.spec("a", *LONG, room=1))
    assert line.ask("withdraw", key="a")["running"] is True
    assert keys(line) == ["a"]


def test_what_waits_goes_with_its_client(keeper, line):
    line.start(**keeper.spec("a", *LONG, room=1))
    other = keeper.line()
    ask(other, "start", **keeper.spec("b", *LONG, room=1))
    assert other.ask("ping")["ok"]
    other.close()
    waits = ask(line, "start", **keeper.spec("c", *LONG, room=1))
    line.ask("kill", key="a", reason="test", grace_s=0)
    assert line.answer(waits)["pid"]
    assert keys(line) == ["c"]


def test_a_keeper_that_stops_starts_nothing_that_waits(keeper, line):
    line.start(**keeper.spec("a", *LONG, room=1, limits={"grace_s": 0.1}))
    waits = ask(line, "start", **keeper.spec("b", *LONG, room=1))
    ask(line, "shutdown")
    assert line.answer(waits)["error"]["code"] == "stopping"
    assert line.record("a")["killed"] == "shutdown"
    keeper.process.wait(30)
