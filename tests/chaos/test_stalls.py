"""The measure of who stood still, on records as a run writes them."""

from types import SimpleNamespace

import pytest

from chaos.stalls import PLENTY, nobody_stood_still, stalls

LEASE_S = 5.0


@pytest.fixture
def evidence():
    """All is submitted in two calls, the second of which is answered late; a node hears of an attempt each second."""
    jobs = [f"j{number}" for number in range(PLENTY + 10)]
    history = [
        {"t": 0.0, "op": "submit", "event": "sent", "submission": 0},
        {"t": 0.5, "op": "submit", "event": "acknowledged", "submission": 0, "jobs": {"0": jobs[:-1]}},
        {"t": 1.0, "op": "submit", "event": "sent", "submission": 1},
        {"t": 3.0, "op": "submit", "event": "sent", "submission": 1},
        {"t": 4.0, "op": "submit", "event": "acknowledged", "submission": 1, "jobs": {"1": jobs[-1:]}},
    ]
    heard = [{"t": 5.0 + number, "node": "n", "ok": True, "call": "result"} for number in range(len(jobs))]
    attempts = {(job, 1): {"failure_code": None, "node_id": "n"} for job in jobs}
    return SimpleNamespace(history=history, heard=heard, attempts=attempts, run={"longest_stall_s": LEASE_S})


def test_who_goes_on_did_not_stall(evidence):
    assert stalls(evidence) == {"submitters": 3.0, "n": 1.0}
    assert list(nobody_stood_still(evidence)) == []


def test_a_node_that_gets_nothing_while_there_is_plenty_stalls_and_one_without_work_does_not(evidence):
    for one in evidence.heard[3:]:
        one["t"] += 6.0
    evidence.heard[-1]["t"] += 60.0
    assert stalls(evidence)["n"] == 7.0
    assert list(nobody_stood_still(evidence)) == ["n stood still for 7.0 s, 5 s are a lease"]


def test_a_caller_without_an_answer_and_a_lost_attempt_are_told_where_they_are_promised_against(evidence):
    evidence.history[-1]["t"] = 9.0
    evidence.attempts["j0", 1] |= {"failure_code": "E_LOST", "failure_message": "silent"}
    assert len(list(nobody_stood_still(evidence))) == 2
    evidence.run["longest_stall_s"] = None
    assert list(nobody_stood_still(evidence)) == []
