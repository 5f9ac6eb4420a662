"""Releases onto real hosts: under load, back from each kind of bad one, and what else is done on all hosts at once."""

import json
import os
import re
import signal
import time

import pytest

from e2e.fleet import until
from fleet import variants
from ostler.fleet.releases.store import ReleaseStore

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]


def test_an_update_under_load_touches_no_job(installed):
    """The canary first, then the others; jobs keep their processes, the coordinator sees the new release, a second time nothing is done."""
    jobs = {name: installed.sleeper(name) for name in installed.bed.hosts}
    good = installed.good("under load")
    done = installed.update(good, code=0)
    assert done.ends == dict.fromkeys(installed.bed.hosts, "updated"), done.text
    began = [one["host"] for one in done.events if one["event"] == "begin"]
    assert began[0] == "mini-1"
    for name, (job, pids) in jobs.items():
        assert installed.pids(name) == pids
        assert installed.job(job)["state"] == "running"
        shown = installed.node(name)
        assert shown["capabilities"]["release"] == good
        assert not shown["draining"]
        assert installed.facts(name)["lock"] is None
    again = installed.update(good, code=0)
    assert again.ends == dict.fromkeys(installed.bed.hosts, "current")
    installed.cli("job", "cancel", *(job for job, _ in jobs.values()))


def test_a_host_whose_slots_are_all_taken_is_updated_too(installed):
    """Its canary job would wait for the end of jobs that take hours."""
    slots = installed.node("mini-1")["cpu_slots"]
    jobs = [installed.sleeper("mini-1")[0] for _ in range(slots)]
    pids = until(lambda: len(found := installed.pids("mini-1")) == slots and found, timeout=60, what="a full host")
    done = installed.update(installed.good("full"), host="mini-1", code=0)
    assert done.ends == {"mini-1": "updated"}, done.text
    assert installed.pids("mini-1") == pids
    installed.cli("job", "cancel", *jobs, code=0)


def test_only_what_a_host_lacks_is_sent_and_what_was_edited_there_is_not_kept(installed):
    """The libraries are those of the release before: sent without them, linked there; one that was edited by hand has all of them sent."""
    host, before = installed.bed.hosts["mini-2"], installed.in_force("mini-2")
    places = "/opt/ostler/releases/{}/lib/python3.11/site-packages/msgspec/__init__.py"
    linked, edited = installed.good("lacking"), installed.good("edited")
    shown = installed.fleet("update", "--release", linked, "--dry-run", "--verbose", host="mini-2", code=0).stdout
    sent = int(re.search(r"install --digest \S+ < \((\d+) bytes", shown)[1])
    assert sent < ReleaseStore(installed.store).find(linked).size / 4
    assert installed.update(linked, host="mini-2").ends == {"mini-2": "updated"}
    host.exec("test", places.format(before), "-ef", places.format(linked))
    whole = host.exec("sha256sum", places.format(linked)).stdout.split()[0]
    host.exec(
        "sh",
        "-ec",
        f"for file in {places.format('*')}; do cp $file /tmp/new; echo '# by hand' >> /tmp/new; mv /tmp/new $file; done",
    )
    assert installed.update(edited, host="mini-2").ends == {"mini-2": "updated"}
    assert host.exec("sha256sum", places.format(edited)).stdout.split()[0] == whole
    host.exec(
        "sh",
        "-c",
        f"for file in {places.format('*')}; do cp --remove-destination {places.format(edited)} $file; done",
        check=False,
    )
    assert installed.update(before, host="mini-2").ends == {"mini-2": "updated"}  # as the others have it


@pytest.mark.long
def test_the_configuration_comes_along_and_goes_back_with_its_release(installed):
    """What the inventory says now is told, brought and judged; a release that cannot read it is not begun with, and one that does not
    start leaves the configuration of before."""
    before = installed.config("mini-2")
    release = installed.in_force("mini-2")
    installed.know(node={"heartbeat": {"interval_s": 3}, "tags": ["new"]})
    try:
        status = json.loads(installed.fleet("status", "--release", release, "--json", host="mini-2").stdout)
        (finding,) = status["hosts"]["mini-2"]["findings"]
        assert re.fullmatch("configuration [0-9a-f]{8} → [0-9a-f]{8}: heartbeat.interval_s, tags", finding["what"])
        assert "interval_s: 2" not in json.dumps(status)
        done = installed.update(installed.variant(variants.DOES_NOT_START), host="mini-2")
        assert done.ends == {"mini-2": "unhealthy"}, done.text
        assert (installed.config("mini-2"), installed.in_force("mini-2")) == (before, release)
        older = installed.variant({"ostler/node/config.py": ("heartbeat: Heartbeat", "heart: Heartbeat")})
        done = installed.update(older, host="mini-2")
        assert done.ends == {"mini-2": "failed"}, done.text
        assert f"release {older} cannot read the configuration: " in done.reasons["mini-2"]
        assert "heartbeat" in done.reasons["mini-2"]
        assert (installed.config("mini-2"), installed.in_force("mini-2")) == (before, release)
        assert not installed.health("mini-2")["draining"]
        done = installed.update(release, host="mini-2")
        assert done.ends == {"mini-2": "updated"}, done.text
        assert "interval_s: 3" in installed.config("mini-2")
        assert installed.update(release, host="mini-2").ends == {"mini-2": "current"}
        installed.fleet("status", "--release", release, host="mini-2", code=0)
        installed.know(node={"heartbeat": {"interval_s": 4}})
        assert (
            "mini-2 is a node (/etc/ostler/node.yaml)" in installed.install("--yes", "--release", release, host="mini-2").stdout
        )
        assert "interval_s: 4" in installed.config("mini-2")
    finally:
        installed.know()
    assert installed.update(release, host="mini-2").ends == {"mini-2": "updated"}
    assert installed.config("mini-2") == before


def test_a_release_that_does_not_start_goes_back_and_its_journal_is_shown(installed):
    before = {name: installed.in_force(name) for name in installed.bed.hosts}
    bad = installed.variant(variants.DOES_NOT_START)
    done = installed.fleet("update", "--release", bad, "--yes", "--window", "2s", code=1)
    assert re.search(r"mini-1 +unhealthy .*systemctl restart ostler-node.service", done.stdout), done.stdout
    assert re.search(r"mini-3 +not begun .*canary mini-1 failed", done.stdout), done.stdout
    assert "mini-1, the last lines of its journal:" in done.stderr
    assert "this release does not start" in done.stderr
    assert re.search(rf"try again: ostler fleet update .* --release {bad} --host mini-1,mini-2,mini-3", done.stderr)
    assert {name: installed.in_force(name) for name in installed.bed.hosts} == before
    installed.good_again("mini-1")
    assert installed.facts("mini-1")["lock"] is None
    assert (
        f"release {bad} was found bad on mini-1: systemctl restart" in installed.fleet("status", "--release", bad, code=1).stderr
    )


@pytest.mark.long
def test_a_configuration_that_finds_no_coordinator_goes_back(installed):
    """The release before, with its own configuration, still reaches it; the release is the same here."""
    before, release = installed.config("mini-2"), installed.in_force("mini-2")
    installed.know(node={"coordinator": {"base_url": "http://127.0.0.1:9/api/v1"}})
    try:
        done = installed.update(release, "--no-coordinator", host="mini-2")
        assert done.ends == {"mini-2": "unhealthy"}, done.text
        assert "the coordinator does not let it in, and still answers" in done.reasons["mini-2"]
    finally:
        installed.know()
    assert installed.config("mini-2") == before
    installed.good_again("mini-2")
    assert installed.update(release, host="mini-2").ends == {"mini-2": "current"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "why", "wrote"),
    [
        pytest.param(variants.LOOPS, "the daemon ended 2 times", "status=1/FAILURE", id="loops"),
        pytest.param(variants.RUNS_NO_JOB, "it cannot run a job: E_EXIT", "self_check_failed", id="runs-no-job"),
    ],
)
def test_a_release_that_only_seems_good_goes_back_and_says_why(installed, changes, why, wrote):
    before = {name: installed.in_force(name) for name in installed.bed.hosts}
    done = installed.update(installed.variant(changes), window="20s", code=1)
    assert done.ends == {"mini-1": "unhealthy", **dict.fromkeys([*installed.bed.hosts][1:], "held")}, done.text
    assert re.search(why, done.reasons["mini-1"]), done.reasons
    assert wrote in "\n".join(done.details("mini-1").splitlines()[-12:])  # the release before has written nothing yet
    assert {name: installed.in_force(name) for name in installed.bed.hosts} == before
    installed.good_again("mini-1")
    assert installed.facts("mini-1")["lock"] is None


@pytest.mark.long
def test_what_the_coordinator_refuses_goes_back_though_the_host_let_it_stay(installed):
    """Its canary job is denied there, after the host's own window is over."""
    before = installed.in_force("mini-1")
    installed.bed.hosts["mini-1"].exec("chmod", "go+w", "/usr/bin/true")  # nobody executes what others may change
    try:
        done = installed.update(installed.good("denied"), host="mini-1", window="1s")
        assert done.ends == {"mini-1": "unhealthy"}, done.text
        assert "E_DENY" in done.reasons["mini-1"]
        assert installed.in_force("mini-1") == before
        assert installed.facts("mini-1")["lock"] is None
    finally:
        installed.bed.hosts["mini-1"].exec("chmod", "go-w", "/usr/bin/true")


@pytest.mark.long
@pytest.mark.timeout(1200, func_only=True)
def test_a_lost_coordinator_rolls_nothing_back(installed):
    """The release is good and no coordinator answers: the watcher holds, says so, and lets no second update in between.

    TESTBED_OUTAGE_S=600 has it away for ten minutes.
    """
    good = installed.good("alone")
    installed.coordinator.send_signal(signal.SIGSTOP)
    back = time.monotonic() + float(os.environ.get("TESTBED_OUTAGE_S", "0"))
    try:
        done = installed.update(good, "--timeout", "75s", "--no-coordinator", host="mini-2")
        assert done.ends == {"mini-2": "unreachable"}, done.text
        assert "coordinator" in done.reasons["mini-2"]
        time.sleep(max(0.0, back - time.monotonic()))
        assert installed.in_force("mini-2") == good
        assert installed.facts("mini-2")["update"]["state"] == "holding"
        other = installed.update(installed.first.release, "--no-coordinator", host="mini-2")
        assert "is still being watched (holding)" in other.reasons["mini-2"]
    finally:
        installed.coordinator.send_signal(signal.SIGCONT)
    until(lambda: installed.facts("mini-2")["update"] is None, timeout=120, what="a coordinator that is back")
    assert installed.facts("mini-2")["last"]["state"] == "good"
    assert installed.in_force("mini-2") == good


def test_what_is_executed_is_printed_first_and_nothing_changes(installed):
    before = installed.facts("mini-2")["releases"]
    other = installed.variant(variants.DOES_NOT_START)
    done = installed.fleet("update", "--release", other, "--dry-run", "--verbose", code=0)
    assert done.stdout.count("switch --rollout") == len(installed.bed.hosts)
    said = installed.fleet("update", "--release", other, "--dry-run", code=0).stdout
    assert said.count("switch and restart: no new work; release, units and configuration are exchanged together") == 1
    assert "python3" not in said
    assert installed.facts("mini-2")["releases"] == before
    refused = installed.fleet("update", "--release", other, code=2)
    assert "say --yes" in refused.stderr


def test_commands_on_all_hosts(installed):
    hosts = installed.bed.hosts
    done = installed.fleet("run", "--yes", "--", "/bin/sh", "-c", 'echo "$(id -un)" $HOSTNAME; hostname')
    assert sorted(done.stdout.split("\n"))[1:] == sorted(f"{name}: {line}" for name in hosts for line in ("root", name))
    assert installed.fleet("logs", "-n", "1").stdout.count("mini-") >= len(hosts)
