"""Every (state, event) pair is decided, terminal is terminal, and only the table's edges exist."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model import attempt as attempts
from ostler.model import group as groups
from ostler.model import job as jobs
from ostler.model import node as nodes
from ostler.model.errors import InvalidTransition
from ostler.model.failures import Failure, FailureCode

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = Failure(FailureCode.EXIT, "exit code 3")


def make(module, state):
    return {
        jobs: lambda: jobs.Job(job_id="j", state=state, attempt=1, tries=1),
        attempts: lambda: attempts.Attempt(job_id="j", attempt=1, node_id="n", state=state),
        nodes: lambda: nodes.Node(node_id="n", state=state),
        groups: lambda: groups.Group(group_id="g", state=state),
    }[module]()


MACHINES = [
    (jobs, jobs.JobState, jobs.JobEvent),
    (attempts, attempts.AttemptState, attempts.AttemptEvent),
    (nodes, nodes.NodeState, nodes.NodeEvent),
    (groups, groups.GroupState, groups.GroupEvent),
]
PAIRS = [(module, state, event) for module, states, events in MACHINES for state in states for event in events]


@pytest.mark.parametrize(("module", "state", "event"), PAIRS, ids=lambda v: v.value if isinstance(v, StrEnum) else None)
def test_each_pair_is_decided(module, state, event):
    thing = make(module, state)
    target = module.TRANSITIONS.get((state, event))
    if target is None:
        with pytest.raises(InvalidTransition) as caught:
            module.advance(thing, event, now=NOW)
        assert state.value in str(caught.value)
        assert event.value in str(caught.value)
    else:
        assert module.advance(thing, event, now=NOW).state is target


@pytest.mark.parametrize(("module", "states", "events"), MACHINES)
def test_terminal_is_terminal_and_reachable(module, states, events):
    assert module.TERMINAL
    for state in module.TERMINAL:
        assert not [event for event in events if (state, event) in module.TRANSITIONS]
    reached = set(module.TRANSITIONS.values()) | {next(iter(states))}
    assert reached == set(states)


@given(st.lists(st.sampled_from(list(jobs.JobEvent)), max_size=60))
def test_any_walk_of_a_job_keeps_its_invariants(events):
    job = jobs.Job(job_id="j")
    for step, event in enumerate(events):
        before = job
        try:
            job = jobs.advance(
                job, event, now=NOW + timedelta(seconds=step), node_id="n", failure=FAILURE, due_at=NOW + timedelta(seconds=step)
            )
        except InvalidTransition:
            assert job is before
            continue
        assert job.attempt - before.attempt == (event is jobs.JobEvent.LEASE)
        undone = event is jobs.JobEvent.RETURN and before.state is jobs.JobState.ACKED
        assert job.tries - before.tries == (event is jobs.JobEvent.ACK) - undone
        assert job.tries <= job.attempt
        assert (job.finished_at is not None) == (job.state in jobs.TERMINAL)
        assert (job.due_at is not None) == (job.state is jobs.JobState.RETRY_WAIT)
        if before.state in jobs.TERMINAL:
            pytest.fail("a terminal job changed")


def test_a_returned_lease_costs_no_try():
    job = jobs.Job(job_id="j")
    for _ in range(3):
        job = jobs.advance(job, jobs.JobEvent.LEASE, now=NOW, node_id="n")
        job = jobs.advance(job, jobs.JobEvent.RETURN, now=NOW)
    assert (job.attempt, job.tries, job.node_id) == (3, 0, None)


def test_nor_does_one_that_was_acknowledged_before_it_arrived_and_never_did():
    job = jobs.advance(jobs.Job(job_id="j"), jobs.JobEvent.LEASE, now=NOW, node_id="n")
    job = jobs.advance(job, jobs.JobEvent.ACK, now=NOW)
    assert job.tries == 1
    job = jobs.advance(job, jobs.JobEvent.RETURN, now=NOW)
    assert (job.state, job.attempt, job.tries, job.node_id) == (jobs.JobState.QUEUED, 1, 0, None)


def test_a_failed_job_tells_since_when():
    job = jobs.Job(job_id="j", state=jobs.JobState.RUNNING, attempt=2)
    job = jobs.advance(job, jobs.JobEvent.FAIL, now=NOW, failure=FAILURE)
    assert job.failure == FAILURE
    with pytest.raises(InvalidTransition, match="2026-01-01"):
        jobs.advance(job, jobs.JobEvent.FINISH, now=NOW)


def test_an_attempt_ends_with_time_and_failure():
    attempt = attempts.Attempt(job_id="j", attempt=1, node_id="n", state=attempts.AttemptState.RUNNING)
    ended = attempts.advance(attempt, attempts.AttemptEvent.FAIL, now=NOW, failure=FAILURE)
    assert (ended.finished_at, ended.failure) == (NOW, FAILURE)


def test_every_attempt_state_has_a_word_of_the_source():
    words = {"IDLE", "PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE", "FAILED", "RETRY_WAIT"}
    assert set(attempts.SOURCE_WORDS) == set(attempts.AttemptState)
    assert set(attempts.SOURCE_WORDS.values()) <= words


def test_attempt_words_are_job_words():
    live = {state.value for state in attempts.LIVE}
    assert live == {state.value for state in jobs.LIVE}
    assert attempts.BEGUN < attempts.LIVE


def test_a_node_notes_when_and_why_it_changed():
    node = nodes.Node(node_id="n", state=nodes.NodeState.READY)
    same = nodes.advance(node, nodes.NodeEvent.BEAT, now=NOW)
    assert same is node
    drained = nodes.advance(node, nodes.NodeEvent.DRAIN, now=NOW, reason="new disk")
    assert (drained.changed_at, drained.reason) == (NOW, "new disk")


S = jobs.JobState


@pytest.mark.parametrize(
    ("children", "event"),
    [
        ({}, None),
        ({S.DONE: 0}, None),
        ({S.DONE: 3, S.RUNNING: 1}, None),
        ({S.DONE: 3}, groups.GroupEvent.FINISH),
        ({S.DONE: 3, S.FAILED: 1, S.CANCELLED: 1}, groups.GroupEvent.FAIL),
        ({S.EXPIRED: 1}, groups.GroupEvent.FAIL),
        ({S.DONE: 3, S.CANCELLED: 1}, groups.GroupEvent.CANCEL),
    ],
)
def test_a_group_is_what_its_children_are(children, event):
    assert groups.verdict(children) is event
