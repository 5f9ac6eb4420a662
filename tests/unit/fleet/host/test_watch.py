"""The watcher's judgement: it goes back from what fails by itself, and never because a coordinator is gone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.fleet.host.watch import CLOSED, CONTACT_S, HOLD_S, START_S, Sight, State, Verdict, Watch, judge

BEGAN = 1000.0
WATCH = Watch(update_id="u1", release="new", previous="old", window_s=45.0, began=BEGAN, bad_since=BEGAN)
OLD = {"release": "old", "self_check": "ok", "last_contact_s": 1.0}
NEW = {"release": "new", "self_check": "ok", "session": True, "last_contact_s": 1.0}
ALONE = NEW | {"last_contact_s": None}
GOOD = Sight(active="active", restarts=0, health=NEW)


@dataclass(frozen=True)
class End:
    watch: Watch
    verdict: Verdict
    after_s: float
    seen: tuple[Verdict, ...]


def follow(
    world: Callable[[float], Sight], *, watch: Watch = WATCH, limit_s: float = 2 * HOLD_S, reaches: bool | None = None
) -> End:
    """Look once a second until the watcher decides; what the predecessor reaches is known once it was asked."""
    asked, seen = False, []
    for second in range(int(limit_s)):
        sight = world(second)
        if asked:
            sight = replace(sight, predecessor_reaches=reaches)
        watch, verdict = judge(watch, sight, BEGAN + second)
        seen.append(verdict)
        asked = asked or verdict is Verdict.ASK_PREDECESSOR
        if verdict in (Verdict.KEEP, Verdict.GO_BACK):
            return End(watch, verdict, second, tuple(seen))
    return End(watch, Verdict.WAIT, limit_s, tuple(seen))


def test_a_release_that_is_good_for_the_window_stays() -> None:
    end = follow(lambda _: GOOD)
    assert (end.verdict, end.after_s, end.watch.state) == (Verdict.KEEP, 45, State.GOOD)
    assert end.seen.count(Verdict.RESUME) == 1


def test_it_takes_work_again_as_soon_as_it_is_good() -> None:
    end = follow(lambda second: GOOD if second >= 5 else replace(GOOD, active="activating", health=None))
    assert end.seen.index(Verdict.RESUME) == 5


def test_a_unit_that_failed_goes_back_at_once() -> None:
    end = follow(lambda _: Sight(active="failed", restarts=0, health=None))
    assert (end.verdict, end.after_s, end.watch.reason) == (Verdict.GO_BACK, 0, "the daemon's unit failed")


def test_the_loop_of_the_incident_goes_back() -> None:
    """Good for 30 seconds, then it ends, again and again; it is back before anybody looks."""
    end = follow(lambda second: replace(GOOD, restarts=int(second // 30)))
    assert (end.verdict, end.after_s, end.watch.reason) == (Verdict.GO_BACK, 60, "the daemon ended 2 times in 60 s")


def test_one_that_cannot_run_a_job_goes_back() -> None:
    end = follow(lambda _: replace(GOOD, health=NEW | {"self_check": "failed: bwrap: no such file"}))
    assert (end.verdict, end.watch.reason) == (Verdict.GO_BACK, "it cannot run a job: bwrap: no such file")


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (None, "does not answer /healthz"),
        (OLD, "answers /healthz as release old"),
        (NEW | {"self_check": "running"}, "does not finish its self-check"),
    ],
)
def test_one_that_never_shows_itself_goes_back(health: dict[str, Any] | None, words: str) -> None:
    end = follow(lambda _: Sight(active="active", restarts=0, health=health))
    assert end.verdict is Verdict.GO_BACK
    assert end.after_s == START_S + 1
    assert words in (end.watch.reason or "")


@pytest.mark.parametrize("reaches", [False, None])
def test_a_lost_coordinator_alone_changes_nothing(reaches: bool | None) -> None:
    end = follow(lambda _: replace(GOOD, health=ALONE), reaches=reaches, limit_s=600)
    assert end.verdict is Verdict.WAIT
    assert end.watch.state is State.HOLDING
    assert Verdict.GO_BACK not in end.seen


def test_it_is_kept_after_an_hour_without_a_coordinator_and_says_so() -> None:
    end = follow(lambda _: replace(GOOD, health=ALONE), reaches=False)
    assert (end.verdict, end.after_s) == (Verdict.KEEP, HOLD_S)
    assert "without a coordinator" in (end.watch.reason or "")


def test_one_that_only_the_release_before_would_let_in_goes_back() -> None:
    end = follow(lambda _: replace(GOOD, health=ALONE), reaches=True)
    assert (end.verdict, end.after_s) == (Verdict.GO_BACK, 2 * CONTACT_S + 2)
    assert "still answers old" in (end.watch.reason or "")
    assert end.seen.count(Verdict.TRY_ANEW) == 1


def test_a_coordinator_that_comes_back_and_answers_the_release_before_first_rolls_nothing_back() -> None:
    """The daemon waits for minutes before its next try; started anew, it tries at once."""
    watch, tried, seen = WATCH, None, []
    for second in range(600):
        let_in = tried is not None and second >= tried + 10
        sight = replace(GOOD, health=NEW if let_in else ALONE, predecessor_reaches=second >= 300)
        watch, verdict = judge(watch, sight, BEGAN + second)
        seen.append(verdict)
        if verdict is Verdict.TRY_ANEW:
            assert tried is None
            tried = second
        if verdict in (Verdict.KEEP, Verdict.GO_BACK):
            break
    assert (seen[-1], tried) == (Verdict.KEEP, 300)


def test_a_coordinator_that_comes_and_goes_gives_it_its_time_each_time() -> None:
    watch, seen = WATCH, []
    for second in range(900):
        watch, verdict = judge(watch, replace(GOOD, health=ALONE, predecessor_reaches=second % 60 == 59), BEGAN + second)
        seen.append(verdict)
    assert Verdict.GO_BACK not in seen
    assert seen.count(Verdict.TRY_ANEW) > 3


def test_one_that_is_sent_away_has_no_contact() -> None:
    sent_away = NEW | {"session": False}
    assert follow(lambda _: replace(GOOD, health=sent_away), reaches=True).verdict is Verdict.GO_BACK
    assert follow(lambda _: replace(GOOD, health=sent_away), reaches=False, limit_s=300).watch.state is State.HOLDING


def test_the_window_begins_anew_when_the_coordinator_is_back() -> None:
    end = follow(lambda second: GOOD if second >= 300 else replace(GOOD, health=ALONE), reaches=False)
    assert (end.verdict, end.after_s) == (Verdict.KEEP, 345)


def test_one_end_while_it_holds_gets_its_time() -> None:
    def world(second: float) -> Sight:
        ended = second >= 200
        coming = 200 <= second < 210
        return Sight(
            active="activating" if coming else "active",
            restarts=int(ended),
            health=None if coming else ALONE if second < 260 else NEW,
        )

    end = follow(world, reaches=False)
    assert end.verdict is Verdict.KEEP


def test_without_a_release_before_nobody_is_asked() -> None:
    end = follow(lambda _: replace(GOOD, health=ALONE), watch=replace(WATCH, previous=None), limit_s=300)
    assert Verdict.ASK_PREDECESSOR not in end.seen
    assert end.watch.state is State.HOLDING


def test_a_restart_by_hand_sets_the_counter_back() -> None:
    end = follow(lambda second: replace(GOOD, restarts=0 if second > 5 else 7), watch=replace(WATCH, restarts=7))
    assert end.verdict is Verdict.KEEP


LOOKS = st.lists(
    st.builds(
        Sight,
        active=st.sampled_from(["active", "activating", "inactive"]),
        restarts=st.just(0),
        health=st.sampled_from([NEW, ALONE, NEW | {"self_check": "ok", "last_contact_s": CONTACT_S + 1}]),
        predecessor_reaches=st.sampled_from([None, False]),
    ),
    max_size=200,
)


@given(LOOKS)
def test_no_sequence_without_a_fault_of_its_own_goes_back(looks: list[Sight]) -> None:
    """It is active in each look of an even second at least, and never ends: whatever the line does, it stays."""

    def steady() -> Iterator[Sight]:
        for number, look in enumerate(looks):
            yield replace(look, active="active") if number % 2 == 0 else look

    watch = WATCH
    for second, look in enumerate(steady()):
        watch, verdict = judge(watch, look, BEGAN + second)
        assert verdict is not Verdict.GO_BACK
        if verdict is Verdict.KEEP:
            assert watch.state in CLOSED
            return
