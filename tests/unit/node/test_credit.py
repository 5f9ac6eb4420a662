"""How much work a node asks for, accepts and starts."""

from hypothesis import given
from hypothesis import strategies as st

from ostler.model.attempt import AttemptState
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, Requirements, Runner
from ostler.node.attempts import AttemptTable, Live, Slots
from ostler.node.credit import (
    ACK_AHEAD_S,
    LEASE_AHEAD_S,
    OFFER_PATIENCE_S,
    Pace,
    acceptable,
    ahead,
    apart,
    asking,
    credit,
    plan_acks,
    should_replace,
    start_ahead,
    startable,
    taken,
)
from ostler.node.leases import Lease, Standing, standing
from ostler.protocol.messages import Held, Outcome


def live(name="j", gpus=0, offered_at=0.0, state=AttemptState.LEASED, refusal=None):
    one = Live(name, 1, Manifest(requirements=Requirements(gpus=gpus)), Lease(0.0, 45.0), offered_at, refusal=refusal)
    one.state = state
    return one


def command(name="c"):
    return Live(name, 1, Manifest(runner=Runner.SERVICE, command="xmrig", args=("stop",)), Lease(0.0, 45.0), 0.0)


def plan(limits, open_, offers, *, pace_s=None, prefetch=32, now=0.0, refusal=None, ending=None):
    return plan_acks(limits, open_, offers, pace_s=pace_s, prefetch=prefetch, now=now, refusal=refusal, ending=ending)


def test_outcomes_go_as_far_apart_as_what_the_node_still_has_takes():
    limits = Slots(2, 0)
    assert apart(limits, 0, 0, 0.002) < apart(limits, 0, 1, 0.002) < apart(limits, 2, 2, 0.002), (
        "those that wait for slots are some time"
    )
    assert apart(limits, 30, 2, 0.002) == 0.032
    assert apart(limits, 2, 2, 0.002) == apart(limits, 9, 2, 0.002) == 0.02, "a call for each costs more than the job"
    assert apart(limits, 128, 2, 0.002) == apart(limits, 2, 2, 10.0) == apart(limits, 1, 0, None) == 0.1, (
        "nobody waits for longer"
    )
    assert apart(Slots(0, 1), 1, 1, 0.03) == 0.06


def test_short_jobs_are_taken_ahead_and_long_ones_are_not():
    assert ahead(None, 2, 32, 0.25) == 0
    assert ahead(0.005, 2, 32, 0.25) == 32
    assert ahead(0.05, 2, 32, 0.25) == 10
    assert ahead(10.0, 2, 32, 0.25) == 0
    assert ahead(0.005, 0, 32, 0.25) == 0


def test_the_pace_is_the_median_of_recent_attempts():
    pace = Pace()
    for seconds in [0.01] * 10 + [60.0]:
        pace.add(seconds)
    assert pace.median_s == 0.01


def test_a_job_takes_a_slot_of_one_kind():
    assert taken([live(), live(gpus=2), live()]) == Slots(2, 2)
    assert credit(Slots(3, 4), [live(), live(gpus=2)], None, 32) == Slots(2, 2)
    assert credit(Slots(1, 0), [live(), live()], None, 32) == Slots(0, 0)


def test_a_command_to_a_service_takes_no_slot_and_begins_beside_full_ones():
    busy, one, other = [live("a"), live("b")], command(), live("c")
    assert taken([*busy, one]) == Slots(2, 0)
    assert credit(Slots(2, 0), [busy[0], one], None, 32) == Slots(1, 0)
    assert startable(Slots(2, 0), busy, [other, one]) == [one]
    assert startable(Slots(2, 0), [busy[0], command("running")], [other, one]) == [one, other]
    assert startable(Slots(0, 0), [], [one]) == [one]
    assert plan(Slots(0, 0), [one], [one]).accept == [one]
    assert plan(Slots(1, 0), [busy[0], one], [one]).accept == [one]
    drained = plan(Slots(2, 0), [one, other], [one, other], refusal="drained")
    assert (drained.accept, drained.decline) == ([one], [(other, "drained")])
    ending = plan(Slots(2, 0), [one], [one], refusal="the daemon is stopping", ending="the daemon is stopping")
    assert (ending.accept, ending.decline) == ([], [(one, "the daemon is stopping")])


def test_a_poll_gathers_credit_while_enough_work_lies_here():
    limits, half = Slots(2, 1), ahead(0.005, 2, 32, LEASE_AHEAD_S) // 2
    assert asking(Slots(2, 1), half, limits, 0.005, 32) == Slots(0, 1)
    assert asking(Slots(half, 1), half, limits, 0.005, 32) == Slots(half, 1)
    assert asking(Slots(2, 1), half - 1, limits, 0.005, 32) == Slots(2, 1)
    assert asking(Slots(2, 0), half, limits, 10.0, 32) == Slots(2, 0)


def test_an_open_poll_is_replaced_for_the_first_credit_and_for_the_last():
    assert should_replace(Slots(0, 0), Slots(1, 0))
    assert should_replace(Slots(1, 0), Slots(1, 1))
    assert should_replace(Slots(3, 1), Slots(0, 0))
    assert not should_replace(Slots(1, 0), Slots(5, 0))
    assert not should_replace(Slots(0, 0), Slots(0, 0))


def test_offers_are_accepted_as_far_as_slots_and_pace_go():
    offers = [live(f"j{i}") for i in range(5)]
    assert plan(Slots(2, 0), offers, offers).accept == offers[:2]
    assert plan(Slots(2, 0), offers, offers, pace_s=0.005).accept == offers


def roomed(name, *, latency=False, settling=False):
    one = live(name, state=AttemptState.RUNNING)
    one.room, one.latency, one.settling = 2, latency, settling
    return one


def test_a_few_are_handed_over_ahead_of_a_free_slot_where_all_that_runs_allows_it():
    limits = Slots(2, 0)
    working, waiting = [roomed("a"), roomed("b")], [live(f"w{i}") for i in range(6)]

    def chosen(working=working, waiting=waiting, ahead=2, cannot=()):
        return startable(limits, working, waiting, ahead=ahead, may_wait=lambda one: 2 * (one not in cannot))

    assert chosen() == waiting[:2]
    assert chosen(ahead=0) == []
    assert chosen([roomed("a")]) == waiting[:3]
    assert chosen([roomed("a", settling=True), roomed("b"), roomed("c")]) == waiting[:2]
    assert chosen([live("plain", state=AttemptState.RUNNING), roomed("b")]) == []
    assert chosen(cannot=waiting[:1]) == []  # the next slot is its, and nobody overtakes it
    assert chosen([roomed("a")], cannot=waiting[1:2]) == waiting[:1]
    assert chosen([roomed("a")], cannot=waiting[:1]) == waiting[:1]  # for the keeper one slot would be free beside it
    assert chosen([], cannot=waiting[:1]) == waiting[:2]


def test_a_latency_job_is_handed_over_whatever_waits_and_as_many_as_there_are_slots():
    hasty = [live(f"h{i}") for i in range(3)]
    for one in hasty:
        one.latency = True
    full = [roomed(f"r{i}") for i in range(6)]
    for ahead_ in (0, 4):
        assert startable(Slots(2, 0), full, hasty, ahead=ahead_, may_wait=lambda _: 2) == hasty[:2]
    assert startable(Slots(2, 0), [*full, roomed("h", latency=True)], hasty, ahead=4, may_wait=lambda _: 2) == hasty[:1]
    assert startable(Slots(2, 0), full, hasty, ahead=4, may_wait=lambda _: 0) == []


def test_how_much_is_handed_over_ahead():
    assert start_ahead(Slots(2, 0), 0.002, 128) == 20
    assert start_ahead(Slots(2, 0), 0.02, 128) == 2
    assert start_ahead(Slots(2, 0), 0.002, 0) == 0
    assert start_ahead(Slots(2, 0), 1.0, 128) == 0
    assert start_ahead(Slots(2, 0), None, 128) == 0


def test_a_latency_offer_gets_the_next_slot_whatever_was_accepted_before():
    limits = Slots(2, 0)
    batch = [live(f"b{i}", state=AttemptState.ACKED) for i in range(40)]
    offered = [live(f"o{i}") for i in range(3)]
    hasty = [live(f"h{i}") for i in range(3)]
    for one in hasty:
        one.latency = True
    found = plan(limits, [*batch, *offered, *hasty], [*hasty, *offered], pace_s=0.01, now=5.0)
    assert found.accept == hasty[:2]  # as many as begin with the next slots
    assert [one for one, _ in found.decline] == [hasty[2], *offered]  # the rest goes back as what found no slot does
    table = AttemptTable()
    for one in [*batch, *hasty]:
        one.state = AttemptState.ACKED
        table.add(one)
    assert table.waiting()[:4] == [*hasty, batch[0]]
    assert startable(limits, [], table.waiting()) == hasty[:2]


def test_acks_ahead_are_gathered():
    enough = ahead(0.005, 2, 32, ACK_AHEAD_S) // 2 + 2
    waiting = [live(f"w{i}", state=AttemptState.ACKED) for i in range(enough)]
    offers = [live(f"j{i}") for i in range(5)]
    assert plan(Slots(2, 0), [*waiting, *offers], offers, pace_s=0.005).accept == []
    assert plan(Slots(2, 0), [*waiting[:6], *offers], offers, pace_s=0.005).accept == offers


def test_a_poll_that_brings_more_accepts_all_of_it():
    limits, pace_s = Slots(2, 0), 0.001
    spare = ahead(pace_s, 2, 32, ACK_AHEAD_S)
    accepted = [live(f"w{i}", state=AttemptState.ACKED) for i in range(spare // 2 - 1)]
    working = [live(f"r{i}", state=AttemptState.RUNNING) for i in range(2 + 4)]  # four of them are being written down
    used = taken([*accepted, *working])
    asked = asking(credit(limits, [*accepted, *working], pace_s, 32), len(accepted), limits, pace_s, 32)
    assert asked.cpu == acceptable(limits, used, pace_s, 32) > 0


def test_what_waited_too_long_and_what_never_fits_is_handed_back():
    busy = [live("busy", state=AttemptState.RUNNING)]
    old, gpu = live("old", offered_at=0.0), live("gpu", gpus=1)
    found = plan(Slots(1, 0), [*busy, old, gpu], [old, gpu], now=OFFER_PATIENCE_S + 1)
    assert found.accept == []
    assert [one for one, _ in found.decline] == [old, gpu]
    assert plan(Slots(1, 0), [*busy, old], [old], now=1.0).decline == []


def test_a_draining_node_hands_everything_back_but_what_it_must_report():
    good, bad = live("good"), live("bad", refusal=Failure(FailureCode.SIGNATURE, "no"))
    found = plan(Slots(1, 0), [good, bad], [good, bad], refusal="drained")
    assert found.accept == [bad]
    assert found.decline == [(good, "drained")]


def test_nothing_offered_is_nothing_planned():
    found = plan(Slots(1, 0), [], [])
    assert (found.accept, found.decline) == ([], [])


def test_a_job_for_many_gpus_is_not_starved_by_later_ones_for_few():
    big, small, cpu = live("big", gpus=2), live("small", gpus=1), live("cpu")
    assert startable(Slots(1, 2), [live("other", gpus=1)], [big, small, cpu]) == [cpu]
    assert startable(Slots(1, 2), [], [big, small, cpu]) == [big, cpu]
    assert startable(Slots(0, 0), [], [cpu]) == []


@given(
    cpu=st.integers(0, 4),
    gpu=st.integers(0, 4),
    working=st.lists(st.integers(0, 3), max_size=6),
    waiting=st.lists(st.integers(0, 3), max_size=10),
)
def test_slots_are_never_exceeded(cpu, gpu, working, waiting):
    limits = Slots(cpu, gpu)
    before = [live(gpus=count) for count in working]
    chosen = startable(limits, before, [live(gpus=count) for count in waiting])
    used = taken([*before, *chosen])
    if any(one.gpu_count == 0 for one in chosen):
        assert used.cpu <= cpu
    if any(one.gpu_count for one in chosen):
        assert used.gpu <= gpu


def test_a_lease_without_an_end_is_always_renewed():
    assert standing(Lease(0.0, float("inf")), 1e9) is Standing.RENEWED


def test_the_table_knows_where_each_attempt_stands():
    table = AttemptTable()
    first, second = live("a"), Live("a", 2, Manifest(), Lease(0.0, 1.0), 0.0)
    table.add(first)
    table.add(second)
    assert table.held() == (Held("a", 1), Held("a", 2))
    assert table.of_job("a") == [first, second]
    assert table.has_offers
    table.accept(first)
    assert first.state is AttemptState.ACKED
    assert table.waiting() == [first]
    assert table.offered() == [second]
    table.begin(first)
    assert table.working() == [first]
    assert table.open() == [second, first]
    assert table.queued() == 1
    table.end(first, Outcome(job_id="a", attempt=1))
    assert table.over() == [first]
    assert table.get("a", 1) is first
    assert len(table) == 2
    table.remove(first)
    table.remove(first)
    table.remove(second)
    assert len(table) == 0
    assert table.of_job("a") == []
    assert table.get("a", 1) is None
    assert not table.has_offers
