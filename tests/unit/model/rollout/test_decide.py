"""Rollout decisions: canaries first, a width, one budget over everything, and an end for each host."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.errors import InvalidSpec, InvalidTransition
from ostler.model.rollout.decide import Begin, Carry, Leave, decide
from ostler.model.rollout.plan import Plan, Share
from ostler.model.rollout.progress import FAILURES, IN_FLIGHT, TERMINAL, TRANSITIONS, Event, Phase, Progress, advance

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAY = (Phase.LOCKING, Phase.UPLOADING, Phase.SWITCHING, Phase.GATING, Phase.CONFIRMING, Phase.UNLOCKING)


def plan(hosts: int = 4, **changes: object) -> Plan:
    return Plan(rollout_id="r1", release="0.2.0-abc", hosts=tuple(f"h{number}" for number in range(hosts)), **changes)  # type: ignore[arg-type]


def planned(of: Plan) -> dict[str, Progress]:
    return {host: Progress(host=host) for host in of.hosts}


def through(progress: Progress, *events: Event) -> Progress:
    for event in events:
        progress = advance(progress, event, now=NOW, reason=f"because of {event}")
    return progress


def run(
    of: Plan, outcome: Callable[[str, Phase], Event] = lambda host, phase: Event.DONE
) -> tuple[dict[str, Progress], list[list[str]]]:
    """Carry out each decision until the rollout is over: the ends, and which hosts began together."""
    progress, waves = planned(of), []
    for _ in range(100 * len(of.hosts) + 10):
        decision = decide(of, progress)
        began = []
        for action in decision.actions:
            match action:
                case Begin(host):
                    began.append(host)
                    progress[host] = advance(progress[host], Event.BEGIN, now=NOW)
                case Leave(host, event, reason):
                    progress[host] = advance(progress[host], event, now=NOW, reason=reason)
                case Carry(host, phase):
                    progress[host] = advance(progress[host], outcome(host, phase), now=NOW, reason="it is so")
        assert sum(host.phase in IN_FLIGHT for host in progress.values()) <= of.width
        waves += [began] if began else []
        if decision.over:
            return progress, waves
    raise AssertionError(progress)


def test_the_canary_goes_first_and_the_others_together() -> None:
    ends, waves = run(plan())
    assert waves == [["h0"], ["h1", "h2", "h3"]]
    assert {host.phase for host in ends.values()} == {Phase.UPDATED}


def test_at_most_serial_hosts_are_under_way() -> None:
    _, waves = run(plan(5, canary=0, serial=Share(50, percent=True)))
    assert [len(wave) for wave in waves] == [2, 2, 1]


def test_a_failed_canary_holds_all_others_whatever_the_budget() -> None:
    ends, _ = run(
        plan(max_failures=Share(100, percent=True)), lambda _, phase: Event.SICK if phase is Phase.GATING else Event.DONE
    )
    assert ends["h0"].phase is Phase.UNHEALTHY
    assert [ends[f"h{number}"].phase for number in (1, 2, 3)] == [Phase.HELD] * 3
    assert ends["h1"].reason == "canary h0 failed"


def test_a_canary_that_cannot_be_reached_says_nothing_of_the_release() -> None:
    ends, waves = run(plan(max_failures=Share(1)), lambda host, _: Event.LOST if host == "h0" else Event.DONE)
    assert ends["h0"].phase is Phase.UNREACHABLE
    assert waves[1] == ["h1", "h2", "h3"]


def test_hosts_under_way_are_brought_to_an_end_when_the_budget_is_spent() -> None:
    sick = {"h0", "h1"}
    ends, _ = run(
        plan(6, canary=0, serial=Share(3), max_failures=Share(1)),
        lambda host, phase: Event.SICK if host in sick and phase is Phase.SWITCHING else Event.DONE,
    )
    phases = [ends[f"h{number}"].phase for number in range(6)]
    assert phases == [Phase.UNHEALTHY, Phase.UNHEALTHY, Phase.UPDATED, Phase.HELD, Phase.HELD, Phase.HELD]
    assert ends["h3"].reason == "2 of 6 hosts failed, --max-failures is 1"


def test_a_host_that_goes_back_counts_before_it_is_back() -> None:
    of = plan(3, canary=0, serial=Share(1))
    progress = planned(of) | {"h0": through(Progress(host="h0"), Event.BEGIN, Event.DONE, Event.DONE, Event.DONE, Event.SICK)}
    decision = decide(of, progress)
    assert decision.halted
    assert decision.actions == (
        *(Leave(host, Event.HOLD, decision.halted) for host in ("h1", "h2")),
        Carry("h0", Phase.GOING_BACK),
    )


def test_excluded_hosts_are_listed_and_are_no_canaries() -> None:
    of = plan(excluded={"h0": "paused in the inventory"})
    ends, waves = run(of)
    assert ends["h0"].phase is Phase.EXCLUDED
    assert ends["h0"].reason == "paused in the inventory"
    assert waves[0] == ["h1"]


def test_a_busy_host_is_not_given_a_second_step() -> None:
    of = plan(1)
    progress = {"h0": advance(Progress(host="h0"), Event.BEGIN, now=NOW)}
    assert decide(of, progress, busy={"h0"}).actions == ()


def test_where_nothing_failed_the_canary_may_match_already() -> None:
    of = plan()
    progress = planned(of) | {"h0": through(Progress(host="h0"), Event.MATCHES)}
    assert [action for action in decide(of, progress).actions if isinstance(action, Begin)] == [Begin(f"h{n}") for n in (1, 2, 3)]


@given(
    hosts=st.integers(1, 12),
    canary=st.integers(0, 3),
    serial=st.none() | st.builds(Share, st.integers(1, 5)),
    budget=st.integers(0, 4),
    faults=st.dictionaries(st.integers(0, 11), st.tuples(st.sampled_from(WAY), st.sampled_from(list(Event))), max_size=8),
)
def test_each_host_comes_to_one_end_within_the_budget(
    hosts: int, canary: int, serial: Share | None, budget: int, faults: dict[int, tuple[Phase, Event]]
) -> None:
    of = plan(hosts, canary=canary, serial=serial, max_failures=Share(budget))

    def outcome(host: str, phase: Phase) -> Event:
        at, event = faults.get(int(host[1:]), (None, Event.DONE))
        return event if phase is at and (phase, event) in TRANSITIONS else Event.DONE

    ends, waves = run(of, outcome)
    assert all(host.phase in TERMINAL for host in ends.values())
    failed = sum(host.phase in FAILURES for host in ends.values())
    assert failed <= of.budget + of.width  # those that were under way when the budget was spent
    assert sorted(name for wave in waves for name in wave) == sorted(
        host.host for host in ends.values() if host.phase not in (Phase.HELD, Phase.EXCLUDED)
    )


def test_ends_are_ends() -> None:
    assert {Phase.CURRENT, Phase.UPDATED, Phase.EXCLUDED, Phase.HELD} | FAILURES == TERMINAL
    with pytest.raises(InvalidTransition, match="host h0 is updated"):
        advance(Progress(host="h0", phase=Phase.UPDATED), Event.BEGIN, now=NOW)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ((Event.BEGIN, Event.REFUSED), Phase.FAILED),
        ((Event.BEGIN, Event.DONE, Event.REFUSED, Event.DONE), Phase.FAILED),
        ((Event.BEGIN, Event.DONE, Event.DONE, Event.DONE, Event.WENT_BACK, Event.LOST), Phase.UNHEALTHY),
        ((Event.BEGIN, Event.DONE, Event.DONE, Event.SICK, Event.REFUSED), Phase.UNHEALTHY),
        ((Event.BEGIN, Event.DONE, Event.DONE, Event.DONE, Event.REFUSED, Event.DONE), Phase.UNREACHABLE),
        ((Event.BEGIN, *[Event.DONE] * 5, Event.LOST), Phase.UPDATED),
    ],
)
def test_what_happened_before_the_unlocking_is_the_end(events: tuple[Event, ...], end: Phase) -> None:
    progress = through(Progress(host="h"), *events)
    assert progress.phase is end
    if end in FAILURES:
        assert progress.reason


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "1.5", "3 %", "1" * 7])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is neither a number of hosts"):
        Share.parse(text)


def test_shares() -> None:
    assert Share.parse(" 25% ").of(16, least=1) == 4
    assert Share.parse("10%").of(4, least=1) == 1
    assert str(Share.parse("3")) == "3"


@pytest.mark.parametrize(
    "wrong", [{"hosts": ("a", "a")}, {"canary": -1}, {"serial": Share(0)}], ids=["twice", "canary", "serial"]
)
def test_a_plan_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec):
        Plan(**({"rollout_id": "r", "release": "x", "hosts": ("a",)} | wrong))  # type: ignore[arg-type]


def test_canaries_are_watched_for_longer() -> None:
    of = plan()
    assert of.window_for("h0") == timedelta(seconds=45)
    assert of.window_for("h1") == timedelta(seconds=15)
