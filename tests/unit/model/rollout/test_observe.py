"""A rollout whose hosts call in: from what they report to events, canaries and the end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.errors import InvalidTransition
from ostler.model.rollout.observe import Candidate, Moves, Outlook, Seen, Trial, look, outlook
from ostler.model.rollout.plan import Plan, Share
from ostler.model.rollout.progress import FAILURES, TERMINAL, Event, Phase, Progress, advance
from ostler.model.rollout.report import Report, Stage
from ostler.model.rollout.state import TERMINAL as ENDS
from ostler.model.rollout.state import TRANSITIONS, RolloutEvent, RolloutState
from ostler.model.rollout.state import advance as change

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "2.0-new", "1.0-old"
LONG = timedelta(hours=1)


def plan(*hosts: str, **more: object) -> Plan:
    return Plan(rollout_id="r1", release=NEW, hosts=hosts or ("a", "b"), **more)  # type: ignore[arg-type]


def said(stage: Stage, reason: str | None = None, **more: object) -> Seen:
    seen = Seen(report=Report(update_id="r1", release=NEW, stage=stage, reason=reason), release=OLD)
    return replace(seen, **more)  # type: ignore[arg-type]


def good() -> Seen:
    return said(Stage.GOOD, release=NEW, takes_work=True, trial=Trial.DONE)


def planned(of: Plan) -> dict[str, Progress]:
    return {host: Progress(host=host) for host in of.hosts}


def step(of: Plan, progress: dict[str, Progress], held: bool = False, **seen: Seen) -> Moves:
    return look(of, progress, seen, now=NOW, held=held)


def at(phase: Phase, *events: Event) -> dict[str, Progress]:
    """The one host of a plan, brought to a phase before now."""
    way = {
        Phase.LOCKING: [Event.BEGIN], Phase.UPLOADING: [Event.BEGIN, Event.DONE], Phase.SWITCHING: [Event.BEGIN, *[Event.DONE] * 2],
        Phase.GATING: [Event.BEGIN, *[Event.DONE] * 3], Phase.GOING_BACK: [Event.BEGIN, *[Event.DONE] * 3, Event.SICK],
    }  # fmt: skip
    host = Progress(host="a")
    for event in (*way[phase], *events):
        host = advance(host, event, now=NOW - LONG)
    return {"a": host}


def after(phase: Phase, seen: Seen) -> Progress:
    return step(plan("a"), at(phase), a=seen).progress["a"]


def test_the_canary_is_asked_first_and_the_others_once_it_is_good() -> None:
    of = plan("a", "b", "c")
    moves = step(of, planned(of))
    assert [(one.host, one.event) for one in moves.happened] == [("a", Event.BEGIN)]
    moves = step(of, dict(moves.progress), a=good())
    assert {host: one.phase for host, one in moves.progress.items()} == {
        "a": Phase.UPDATED, "b": Phase.LOCKING, "c": Phase.LOCKING
    }  # fmt: skip
    assert not moves.over
    moves = step(of, dict(moves.progress), b=good(), c=good())
    assert moves.over
    assert {one.phase for one in moves.progress.values()} == {Phase.UPDATED}


@pytest.mark.parametrize(
    ("stage", "phase"),
    [
        (Stage.FETCHING, Phase.UPLOADING), (Stage.ASKED, Phase.UPLOADING), (Stage.INSTALLING, Phase.UPLOADING),
        (Stage.ARMED, Phase.SWITCHING), (Stage.WATCHING, Phase.GATING), (Stage.HOLDING, Phase.GATING),
        (Stage.GOOD, Phase.GATING), (Stage.WENT_BACK, Phase.UNHEALTHY), (Stage.STUCK, Phase.UNHEALTHY), (Stage.REFUSED, Phase.FAILED),
    ],
)  # fmt: skip
def test_a_report_brings_a_host_to_the_phase_that_it_tells_of(stage: Stage, phase: Phase) -> None:
    """Whatever was missed in between: heartbeats are seldom."""
    ended = after(Phase.LOCKING, said(stage, "because"))
    assert ended.phase is phase
    assert ended.failed is (phase in FAILURES)
    if phase in FAILURES:
        assert ended.reason == "because"


def test_without_a_word_nothing_moves() -> None:
    for phase in (Phase.LOCKING, Phase.UPLOADING, Phase.SWITCHING, Phase.GATING, Phase.GOING_BACK):
        moves = step(plan("a"), at(phase), a=Seen(waited=timedelta(seconds=5)))
        assert moves.happened == ()


def test_good_is_only_what_the_heartbeat_and_a_canary_job_confirm() -> None:
    watched = said(Stage.WATCHING, release=NEW)
    assert step(plan("a"), at(Phase.GATING), a=watched).trials == ()  # it takes no work yet
    assert step(plan("a"), at(Phase.GATING), a=replace(watched, takes_work=True)).trials == ("a",)
    assert step(plan("a"), at(Phase.GATING), a=replace(watched, takes_work=True, silent=True)).trials == ()
    assert step(plan("a"), at(Phase.GATING), a=said(Stage.GOOD, release=NEW, takes_work=True)).trials == ("a",)
    assert after(Phase.GATING, said(Stage.GOOD, release=OLD, trial=Trial.DONE)).phase is Phase.GATING
    assert after(Phase.GATING, said(Stage.GOOD, release=NEW, trial=Trial.UNDER_WAY)).phase is Phase.GATING
    assert after(Phase.GATING, good()).phase is Phase.UPDATED


def test_a_failed_canary_job_sends_the_host_back_though_it_was_content() -> None:
    moves = step(plan("a"), at(Phase.GATING), a=replace(good(), trial=Trial.FAILED, trial_reason="E_DENY"))
    assert (moves.progress["a"].phase, moves.progress["a"].reason) == (Phase.GOING_BACK, "E_DENY")
    assert moves.progress["a"].failed
    back = step(plan("a"), dict(moves.progress), a=said(Stage.WENT_BACK, "asked to"))
    assert (back.progress["a"].phase, back.progress["a"].reason, back.over) == (Phase.UNHEALTHY, "E_DENY", True)
    refused = step(plan("a"), dict(moves.progress), a=said(Stage.REFUSED, "it is too late for that"))
    assert refused.progress["a"].phase is Phase.UNHEALTHY


@pytest.mark.parametrize(
    ("phase", "silent", "ends", "why"),
    [
        (Phase.LOCKING, False, Phase.FAILED, "has not taken the request up"),
        (Phase.LOCKING, True, Phase.UNREACHABLE, "not heard of for 600 s"),
        (Phase.UPLOADING, False, Phase.FAILED, "not through with that"),
        (Phase.SWITCHING, False, Phase.FAILED, "not through with that"),
        (Phase.SWITCHING, True, Phase.UNREACHABLE, "its watcher decides by itself"),
        (Phase.GATING, False, Phase.UNREACHABLE, "not decided in 600 s: it says nothing; its watcher goes on"),
        (Phase.GOING_BACK, False, Phase.UNREACHABLE, "did not go back"),
    ],
)
def test_patience_ends(phase: Phase, silent: bool, ends: Phase, why: str) -> None:
    ended = after(phase, Seen(waited=LONG, silent=silent))
    assert ended.phase is ends
    assert why in (ended.reason or "")


def test_what_holds_says_why_when_patience_ends() -> None:
    assert "no coordinator" in (after(Phase.GATING, said(Stage.HOLDING, "no coordinator", waited=LONG)).reason or "")
    assert "watching" in (after(Phase.GATING, said(Stage.WATCHING, waited=LONG)).reason or "")


def test_patience_begins_anew_with_each_phase() -> None:
    """What was waited for is over: that it took long says nothing of what comes next."""
    assert after(Phase.LOCKING, said(Stage.ARMED, waited=LONG)).phase is Phase.SWITCHING


def test_a_held_rollout_begins_no_host_and_ends_those_under_way() -> None:
    of = plan("a", "b")
    assert step(of, planned(of), held=True).happened == ()
    begun = dict(step(of, planned(of)).progress)
    moves = step(of, begun, held=True, a=good())
    assert (moves.progress["a"].phase, moves.progress["b"].phase) == (Phase.UPDATED, Phase.PLANNED)


def test_a_bad_canary_holds_all_others() -> None:
    of = plan("a", "b", "c")
    begun = dict(step(of, planned(of)).progress)
    moves = step(of, begun, a=said(Stage.WENT_BACK, "it crashed"))
    assert {host: one.phase for host, one in moves.progress.items()} == {
        "a": Phase.UNHEALTHY, "b": Phase.HELD, "c": Phase.HELD
    }  # fmt: skip
    assert moves.over
    assert moves.halted == "canary a failed"


STAGES = st.none() | st.sampled_from(Stage)


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.tuples(STAGES, st.booleans(), st.sampled_from(Trial), st.booleans())))
)
def test_whatever_is_reported_the_budget_and_the_width_hold(
    looks: list[dict[str, tuple[Stage | None, bool, Trial, bool]]],
) -> None:
    of = plan("a", "b", "c", "d", serial=Share(2), max_failures=Share(1))
    progress: dict[str, Progress] = planned(of)
    for one in looks:
        seen = {
            host: Seen(
                report=None if stage is None else Report(update_id="r1", release=NEW, stage=stage), release=NEW if new else OLD,
                trial=trial, waited=LONG if late else timedelta(),
            )
            for host, (stage, new, trial, late) in one.items()
        }  # fmt: skip
        moves = look(of, progress, seen, now=NOW, held=False)
        ended = {host for host, before in progress.items() if before.phase in TERMINAL}
        assert all(moves.progress[host] == progress[host] for host in ended)
        progress = dict(moves.progress)
        assert sum(one.phase not in TERMINAL and one.phase is not Phase.PLANNED for one in progress.values()) <= 2
        for host in progress.values():
            assert host.phase is not Phase.UPDATED or host.host in moves.progress
        if moves.over:
            assert all(host.phase in TERMINAL for host in progress.values())


def test_what_a_plan_says_of_a_node() -> None:
    fits, platforms = Candidate(host="a", release=OLD, platform="cp311-x86_64"), ("cp311-x86_64",)
    assert outlook(fits, NEW, platforms) == Outlook()
    for changes, event, why in (
        ({"release": NEW, "cordoned": ""}, Event.MATCHES, None),
        ({"cordoned": "broken fan"}, Event.EXCLUDE, "cordoned: broken fan"),
        ({"cordoned": ""}, Event.EXCLUDE, "cordoned: no reason given"),
        ({"silent": True}, Event.LOST, "not heard of"),
        ({"outside": "it speaks protocol 0"}, Event.REFUSED, "protocol 0"),
        ({"platform": None}, Event.REFUSED, "takes no releases from the coordinator"),
        ({"platform": "cp313-x86_64"}, Event.REFUSED, "nothing for cp313-x86_64, only cp311-x86_64"),
        ({"newer": True}, Event.REFUSED, f"release {NEW} is older than {OLD}, which runs there"),
        ({"busy": "r0"}, Event.REFUSED, "rollout r0 is not over there"),
    ):
        found = outlook(replace(fits, **changes), NEW, platforms)  # type: ignore[arg-type]
        assert found.event is event
        assert (why or "") in (found.reason or "")


def test_each_state_changes_as_the_table_says_and_no_other_way() -> None:
    assert {RolloutState.DONE, RolloutState.FAILED, RolloutState.ABORTED} == ENDS
    for state in RolloutState:
        for event in RolloutEvent:
            if (state, event) in TRANSITIONS:
                assert change("r1", state, event) is TRANSITIONS[state, event]
            else:
                with pytest.raises(InvalidTransition, match=f"rollout r1 is {state}: {event} is not possible"):
                    change("r1", state, event)
