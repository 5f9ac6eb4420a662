"""Services, as far as they are decided purely: declarations, states, health, restarts, and what systemd's tools print."""

import re
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.assembly.resolve import resolve_node
from ostler.model.errors import InvalidSpec
from ostler.model.failures import FailureCode
from ostler.model.service import Desired, Health, ServiceState, Verb
from ostler.node.config import MetricsConfig, ProbeConfig, RestartConfig, ServiceConfig
from ostler.node.probe.command import Output
from ostler.node.services import journals, systemctl
from ostler.node.services.judging import Seen, condition, judge
from ostler.node.services.paths import pick, steps
from ostler.node.services.restarts import FIRST_S, MOST_S, WELL_S, Condition, Restarts, decide, delay_s
from ostler.node.services.rules import service_problems
from ostler.node.services.standing import Standing, Terms, advance, overall
from ostler.node.services.units import Trouble, UnitTrouble, UnitView, unit_object
from ostler.node.services.verdicts import verdict
from ostler.node.services.wishes import Wish, Wishes

XMRIG = ServiceConfig(
    unit="xmrig.service",
    binary=Path("/usr/local/bin/xmrig"),
    candidates=(Path("/usr/bin/xmrig"),),
    version="^XMRig ",
    health=(ProbeConfig(http="http://127.0.0.1:8080/2/summary"), ProbeConfig(tcp="[::1]:3333")),
    metrics=MetricsConfig(url="http://localhost:8080/2/summary", values={"hashrate": "hashrate.total[0]"}),
)
SUMMARY = {"hashrate": {"total": [1234.5, None]}, "results": {"shares_good": 7, "up": True, "huge": 10**400}}


def mistakes(**services):
    return {problem.path: problem.message for problem in service_problems(services)}


def test_the_how_to_shows_a_good_declaration(tmp_path):
    page = (Path(__file__).parents[3] / "docs/how-to/run-services.md").read_text()
    shown = re.search(r"```yaml\n(services:.*?)```", page, re.DOTALL)[1]
    (tmp_path / "node.yaml").write_text(f"coordinator: {{base_url: 'http://127.0.0.1:7070'}}\n{shown}")
    config = resolve_node(tmp_path / "node.yaml", env={}).value
    assert config.services["miner"].metrics.values["shares_good"] == "results.shares_good"


def test_a_mistake_is_told_with_its_line(tmp_path):
    file = tmp_path / "node.yaml"
    file.write_text("coordinator: {base_url: 'http://127.0.0.1:7070'}\nservices:\n  a:\n    unit: a.socket\n    helth: []\n")
    with pytest.raises(InvalidSpec, match="did you mean 'health'"):
        resolve_node(file, env={})
    file.write_text(file.read_text().replace("    helth: []\n", "    health: [{tcp: x}]\n"))
    with pytest.raises(InvalidSpec) as caught:
        resolve_node(file, env={})
    assert [(one.path, one.line) for one in caught.value.problems] == [("services.a.unit", 4), ("services.a.health[0].tcp", 5)]


def test_a_good_declaration_has_no_mistake():
    assert mistakes(xmrig=XMRIG) == {}


@pytest.mark.parametrize(
    "unit",
    [
        "xmrig", "xmrig.socket", "../xmrig.service", "/etc/xmrig.service", "miner@0.service", "miner@.service", "xmrig.service\n",
        ".service",
        '"];evil();//.service', "a b.service", "-x.service", "xmrig.service.service\\x2d", "ostler-node.service", "ostler-keeper.service",
        "xmríg.service", "x" * 250 + ".service", "",
    ],
)  # fmt: skip
def test_a_unit_is_a_plain_name_and_none_of_the_nodes_own(unit):
    assert "services.a.unit" in mistakes(a=ServiceConfig(unit=unit))


def test_every_mistake_is_told_at_once():
    found = mistakes(
        **{
            "a b": ServiceConfig(unit="a.service"),
            "two": ServiceConfig(unit="a.service", candidates=(Path("/usr/bin/x"),), version="("),
            "three": ServiceConfig(
                unit="c.service",
                binary=Path("../x"),
                grace=timedelta(days=2),
                restart=RestartConfig(limit=0),
                health=(
                    ProbeConfig(),
                    ProbeConfig(http="http://10.0.0.1/", tcp="127.0.0.1:1"),
                    ProbeConfig(tcp="192.0.2.1:80", interval=timedelta(0), failures=0),
                    ProbeConfig(command=("true",), timeout=timedelta(hours=1)),
                    ProbeConfig(log="["),
                    ProbeConfig(http="https://127.0.0.1/"),
                ),
                metrics=MetricsConfig(url="http://127.0.0.1:8080/a b", values={"a b": "x", "c": "..", "d": "x[y]"}),
            ),
        }
    )
    assert set(found) == {
        "services", "services.two.unit", "services.two.candidates", "services.two.version", "services.three.binary",
        "services.three.grace", "services.three.restart.limit", "services.three.health[0]", "services.three.health[1]",
        "services.three.health[1].http", "services.three.health[2].tcp", "services.three.health[2].interval",
        "services.three.health[2].failures", "services.three.health[3].command", "services.three.health[3].timeout",
        "services.three.health[4].log", "services.three.health[5].http", "services.three.metrics.url", "services.three.metrics.values",
        "services.three.metrics.values.c", "services.three.metrics.values.d",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hashrate.total[0]", 1234.5), ("hashrate.total[1]", None), ("hashrate.total[2]", None), ("results.shares_good", 7.0),
        ("results.up", None), ("results.huge", None), ("results", None), ("results[0]", None), ("hashrate.total.x", None),
        ("no.such", None),
    ],
)  # fmt: skip
def test_a_number_is_picked_by_its_path(path, value):
    assert pick(SUMMARY, path) == value


def test_a_path_may_begin_with_a_place_in_a_list():
    assert steps("[1].a[0][2]") == (1, "a", 0, 2)
    assert pick([0, {"a": [[1, 2, 3]]}], "[1].a[0][2]") == 3.0


@given(st.text(max_size=12))
def test_any_text_is_a_path_or_refused(text):
    try:
        assert steps(text)
    except ValueError:
        return
    pick(SUMMARY, text)


# --- health ---


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(1, 5), st.floats(0, 30))
def test_a_probe_changes_its_mind_by_enough_answers_in_a_row_alone(answers, failures, successes, grace_s):
    """Of a service that runs since 0 and is asked each second."""
    standing, terms = Standing(), Terms(failures, successes)
    for second, good in enumerate(answers):
        before = standing
        standing = advance(before, None if good else "bad", now=second, started_at=0, grace_s=grace_s, terms=terms)
        if standing.health is before.health:
            continue
        assert standing.health is (Health.HEALTHY if good else Health.UNHEALTHY)
        needed = failures if not good else successes if before.health is Health.UNHEALTHY else 1
        assert answers[second + 1 - needed : second + 1] == [good] * needed
        assert good or second >= grace_s


def test_a_service_is_as_ill_as_its_illest_probe():
    good, bad = Standing(Health.HEALTHY), Standing(Health.UNHEALTHY, 0, "no answer")
    assert overall([]) == (Health.HEALTHY, "")
    assert overall([good, Standing()]) == (Health.UNKNOWN, "")
    assert overall([good, bad, Standing()]) == (Health.UNHEALTHY, "no answer")


# --- states ---

VIEWS = {
    ("active", "running"): ServiceState.RUNNING,
    ("active", "exited"): ServiceState.RUNNING,
    ("reloading", "reload"): ServiceState.RUNNING,
    ("activating", "start"): ServiceState.STARTING,
    ("activating", "auto-restart"): ServiceState.RESTARTING,
    ("deactivating", "stop-sigterm"): ServiceState.STOPPING,
    ("inactive", "dead"): ServiceState.STOPPED,
    ("failed", "failed"): ServiceState.CRASHED,
}


@pytest.mark.parametrize(("shown", "state"), VIEWS.items())
def test_systemds_words_become_ours(shown, state):
    view = UnitView(load="loaded", active=shown[0], sub=shown[1], result="success")
    assert judge(Seen(unit="x.service", view=view, health=Health.HEALTHY))[0] is state


def seen(active="failed", *, load="loaded", result="success", **fields):
    return judge(Seen(unit="x.service", view=UnitView(load=load, active=active, result=result, status=9), **fields))


def test_what_is_known_beside_systemds_words_counts():
    assert seen("active", health=Health.UNHEALTHY, ill="no answer") == (ServiceState.UNHEALTHY, "no answer")
    assert seen("activating", doing=Verb.RESTART)[0] is ServiceState.RESTARTING
    assert seen("deactivating", doing=Verb.RESTART)[0] is ServiceState.RESTARTING
    assert seen("inactive", absent="xmrig not found") == (ServiceState.MISSING, "xmrig not found")
    assert seen("active", absent="xmrig not found")[0] is ServiceState.RUNNING
    assert seen("inactive", load="not-found") == (ServiceState.MISSING, "there is no unit x.service on this host")
    assert seen("inactive", load="masked") == (ServiceState.MISSING, "x.service is masked")
    assert seen("failed", result="timeout", desired=Desired.STOPPED)[0] is ServiceState.STOPPED
    assert "ended by itself or was stopped on the host" in seen("inactive", desired=Desired.RUNNING)[1]


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ("exit-code", "exit code 9"),
        ("signal", "signal 9"),
        ("oom-kill", "lack of memory"),
        ("start-limit-hit", "any more"),
        ("new", "new"),
    ],
)
def test_how_it_ended_is_told_apart(result, word):
    assert word in seen(result=result, desired=Desired.RUNNING)[1]


def test_only_crashes_and_where_wanted_illness_are_mended():
    for state in ServiceState:
        for sick in (False, True):
            expected = {ServiceState.RUNNING: Condition.WELL, ServiceState.CRASHED: Condition.DOWN}.get(state, Condition.OTHER)
            if state is ServiceState.UNHEALTHY and sick:
                expected = Condition.SICK
            assert condition(state, restart_sick=sick) is expected


FAILED = UnitView(load="loaded", active="failed", result="exit-code", status=3)
RUNS = UnitView(load="loaded", active="active")


@pytest.mark.parametrize(
    ("verb", "end", "view", "code", "word"),
    [
        (Verb.START, "done", RUNS, None, ""),
        (Verb.STOP, "done", FAILED, None, ""),
        (Verb.START, "skipped", RUNS, None, ""),
        (Verb.START, "done", FAILED, FailureCode.SERVICE, "x.service did not start: it ended with exit code 3"),
        (Verb.RESTART, "failed", FAILED, FailureCode.SERVICE, "exit code 3"),
        (Verb.START, "skipped", replace(RUNS, active="inactive"), FailureCode.SERVICE, "systemd says: skipped"),
        (Verb.START, "dependency", replace(RUNS, active="inactive"), FailureCode.SERVICE, "depends on"),
        (Verb.START, "canceled", RUNS, FailureCode.SERVICE, "something else was asked"),
        (Verb.STOP, "timeout", RUNS, FailureCode.TIMEOUT, "in the time that systemd gives it"),
    ],
)
def test_what_systemd_says_becomes_a_verdict(verb, end, view, code, word):
    failure = verdict("x.service", verb, end, view, None)
    assert (failure.code if failure else None) is code
    assert failure is None or word in failure.message


# --- restarts ---


def play(looks, *, limit=1000):
    """When a service is started anew, by looks as (seconds since the one before, condition, wanted)."""
    restarts, now, at = Restarts(), 0.0, []
    for gap, found, wanted in looks:
        now += gap
        decision = decide(restarts, found, wanted=wanted, limit=limit, now=now)
        restarts = decision.restarts
        if decision.now:
            assert wanted
            assert found in {Condition.DOWN, Condition.SICK}
            at.append(now)
    return at


looks = st.lists(
    st.tuples(st.one_of(st.floats(0, 20), st.floats(0, 700)), st.sampled_from(Condition), st.just(True)), max_size=200
)


@given(looks)
def test_no_sequence_of_observations_makes_a_storm(sequence):
    """Never twice within 10 s; and at most six times in any ten minutes, whatever it does in between."""
    at = play(sequence)
    assert all(later - earlier >= FIRST_S - 1e-6 for earlier, later in pairwise(at))
    assert all(sum(start <= one < start + WELL_S - 1e-6 for one in at) <= 6 for start in at)


@given(looks, st.integers(1, 5))
def test_the_cap_holds_until_it_was_well_for_long(sequence, limit):
    sequence = [(gap, Condition.OTHER if found is Condition.WELL else found, True) for gap, found, _ in sequence]
    assert len(play(sequence, limit=limit)) <= limit


def test_the_waits_double_and_begin_afresh_after_health():
    assert [delay_s(n) for n in range(7)] == [10, 20, 40, 80, 160, MOST_S, MOST_S]
    down = [(1.0, Condition.DOWN, True)] * 200
    assert play(down)[:4] == [11.0, 32.0, 73.0, 154.0]
    well = [(1.0, Condition.WELL, True)] * int(WELL_S + 2)
    at = play([*down[:40], *well, *down[:12]])
    assert at[-1] - (40 + len(well)) == 11.0


def test_what_nobody_wants_is_left_alone_and_forgotten():
    assert play([(1.0, Condition.DOWN, False)] * 1000) == []
    before = Restarts(count=3, tries=3, due_at=5.0)
    assert decide(before, Condition.DOWN, wanted=False, limit=9, now=9.0).restarts == Restarts()
    given_up = decide(replace(before, due_at=None), Condition.DOWN, wanted=True, limit=3, now=9.0)
    assert (given_up.now, given_up.restarts.gave_up) == (False, True)


# --- wishes ---


def test_a_wish_outlives_the_daemon_and_tells_a_reboot(tmp_path):
    first = Wishes(tmp_path)
    assert (first.of("xmrig"), first.is_new("@1")) == (Wish(), False)
    first.settle("@1")
    first.keep("xmrig", Wish(Desired.STOPPED, 2, 1))
    again = Wishes(tmp_path)
    assert (again.of("xmrig"), again.is_new("@1"), again.is_new("@2")) == (Wish(Desired.STOPPED, 2, 1), False, True)
    again.settle("@2")
    assert (Wishes(tmp_path).is_new("@2"), again.of("xmrig").desired) == (False, Desired.STOPPED)


def test_what_is_torn_counts_as_nothing_asked_and_a_full_disk_keeps_the_old(tmp_path):
    (tmp_path / "services.json").write_text('{"boot": "@1", "services": {"xm')
    one = Wishes(tmp_path)
    assert one.of("xmrig") == Wish()
    (tmp_path / ".services.json.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        one.keep("xmrig", Wish(Desired.RUNNING))
    assert one.of("xmrig") == Wish()


# --- systemd's tools ---


def test_the_path_of_a_unit_is_systemds():
    assert unit_object("xmrig.service") == "/org/freedesktop/systemd1/unit/xmrig_2eservice"
    assert unit_object("3proxy-a_b.service") == "/org/freedesktop/systemd1/unit/_33proxy_2da_5fb_2eservice"


def test_what_systemctl_shows_is_read():
    text = "LoadState=loaded\nActiveState=failed\nSubState=failed\nMainPID=0\nResult=exit-code\nExecMainStatus=3\nNRestarts=2\n"
    text += "InvocationID=ab\n"
    assert systemctl.read_view(text) == UnitView(
        load="loaded", active="failed", sub="failed", result="exit-code", status=3, restarts=2, invocation="ab"
    )
    assert systemctl.read_view("LoadState=not-found\nActiveState=inactive\n").load == "not-found"
    assert systemctl.command(Verb.STOP, "x.service") == ["systemctl", "--no-ask-password", "stop", "--", "x.service"]


@pytest.mark.parametrize(
    ("code", "said", "trouble"),
    [
        (1, "Failed to start xmrig.service: Access denied\nSee system logs", Trouble.DENIED),
        (4, "Failed to stop x.service: Interactive authentication required.", Trouble.DENIED),
        (5, "Failed to start nope.service: Unit nope.service not found.", Trouble.MISSING),
        (1, "Failed to start x.service: Unit x.service is masked.", Trouble.MASKED),
        (1, "Failed to connect to bus: No such file or directory", Trouble.UNREACHABLE),
        (127, "systemctl: not found", Trouble.UNREACHABLE),
        (1, "Something else", Trouble.FAILED),
    ],
)
def test_what_systemctl_refuses_is_told_apart(code, said, trouble):
    with pytest.raises(UnitTrouble) as caught:
        systemctl.read_end(Output(code, errors=said), "x.service")
    assert caught.value.trouble is trouble


def test_how_a_job_ended_is_read():
    assert systemctl.read_end(Output(0), "x.service") == "done"
    assert systemctl.read_end(Output(None), "x.service") == "timeout"
    said = "Job for x.service failed because the control process exited with error code.\nSee ..."
    assert systemctl.read_end(Output(1, errors=said), "x.service") == "failed"
    assert systemctl.read_end(Output(1, errors="A dependency job for x.service failed."), "x.service") == "dependency"
    assert systemctl.read_end(Output(1, errors="Job for x.service canceled."), "x.service") == "canceled"


def test_the_journal_is_read_from_where_it_was_left_or_not_at_all():
    found = journals.read(Output(0, "one\ntwo\n-- cursor: s=1;i=2\n"))
    assert (found.text, found.cursor, found.readable) == ("one\ntwo", "s=1;i=2", True)
    assert journals.read(Output(0, "-- No entries --\n")).text == ""
    hint = "Hint: You are currently not seeing messages from other users and the system.\n"
    assert not journals.read(Output(0, "mine\n", hint)).readable
    assert not journals.read(Output(1, "", "No journal files were opened due to insufficient permissions.")).readable
    assert "--after-cursor=s=1" in journals.since("x.service", "s=1")
    assert journals.read(Output(1)).cursor is None
