"""What can go wrong with a host or with the updater: each is told in a line that says what to do, and touches no other host."""

import contextlib
import json
import re
import signal

import pytest

from fleet import variants
from fleet.breaking import hanging_ssh, little_room, other_clock, other_host_key, paused, read_only
from fleet.rig import Rollout

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]


def said_of(host, done):
    """The line of the summary about a host."""
    return re.findall(rf"^{host} .*$", done.stdout, re.MULTILINE)[-1]


def retry(done):
    """The command that is offered for pasting."""
    return re.search(r"try again: (ostler fleet update .*)", done.stderr)[1]


def update(operator, release, *args):
    """Onto the first three hosts, as a person sees it; some of them fail."""
    words = ("--release", release, "--yes", "--canary", "0", "--max-failures", "3", "--window", "2s", *args)
    return operator.fleet("update", *words, host="mini-1,mini-2,mini-3", code=1)


def test_troubles_of_one_host_touch_no_other(installed):
    """One whose files are edited by hand, one whose /opt is read-only, one that hangs: a line each, and one command for the rest."""
    good = installed.in_force("mini-1")
    one, two, three = (installed.bed.hosts[f"mini-{number}"] for number in (1, 2, 3))
    one.exec("sh", "-c", "echo '# by hand' >> /etc/systemd/system/ostler-node.service; echo '# by hand' >> /etc/ostler/node.yaml")
    with read_only(two, "/opt/ostler"), paused(three):
        done = update(installed, good)
        assert re.match(r"mini-1 +updated", said_of("mini-1", done)), done.stdout
        assert "failed" in said_of("mini-2", done)
        assert "cannot write to /opt/ostler/releases: read-only file system" in said_of("mini-2", done)
        assert re.match(r"mini-3 +unreachable .*no SSH at", said_of("mini-3", done)), done.stdout
        assert retry(done).endswith("--host mini-2,mini-3")
    assert "2 unchanged" in installed.mend(retry(done)).stdout


def test_a_coordinator_that_cannot_be_asked_is_told_before_anything_begins(installed):
    """A stale token, or nobody who answers: in a dry run too."""
    good, before = installed.good("not asked"), installed.facts("mini-1")["releases"]
    words = ("--release", good, "--coordinator", installed.url)
    with installed.told(OSTLER_TOKEN="ostler_api_stale"):
        stale = [installed.fleet("update", *words, one, host="mini-1", code=3) for one in ("--dry-run", "--yes")]
    with installed.without_coordinator():
        silent = [installed.fleet("update", *words, one, host="mini-1", code=3) for one in ("--dry-run", "--yes")]
    for done in (*stale, *silent):
        assert "error: the coordinator, which is to judge the release, cannot be asked: " in done.stderr
        assert "`--no-coordinator` leaves its word out" in done.stderr
    assert "no answer from the coordinator at http://127.0.0.1:9" in silent[0].stderr
    dry = ("--dry-run", "--no-coordinator", "--coordinator", "http://127.0.0.1:9")
    warned = installed.fleet("update", "--release", good, *dry, host="mini-1", code=0).stderr
    assert "warning: the hosts are told of a coordinator that does not answer this machine: no answer from" in warned
    facts = installed.facts("mini-1")
    assert (facts["releases"], facts["lock"], facts["update"]) == (before, None, None)


def test_a_token_that_is_revoked_meanwhile_ends_no_rollout(installed):
    """The host keeps what its own watcher finds good; the summary says that the coordinator did not judge it, and no lock is left."""
    good = installed.good("revoked")
    made = json.loads(installed.cli("token", "create", "--role", "operator", "--name", "eve", "--json", code=0).stdout)
    with installed.told(OSTLER_TOKEN=made["token"]), installed.updating(good, "--canary", "0", host="mini-1") as updater:
        with installed.told(OSTLER_TOKEN=installed.admin):
            for line in updater.stdout:
                if json.loads(line).get("phase") == "locking":
                    installed.cli("token", "revoke", made["token_id"], code=0)
                    break
        last = json.loads([*updater.stdout][-1])["hosts"]["mini-1"]
        assert updater.wait(30) == 1
    assert last["ended"] == "unreachable"
    assert last["reason"].startswith("good by its own watcher, not judged by the coordinator: ")
    facts = installed.facts("mini-1")
    assert (facts["current"], facts["lock"], facts["update"]) == (good, None, None)
    assert installed.update(good, host="mini-1", code=0).ends == {"mini-1": "current"}


@pytest.mark.long
def test_an_updater_that_is_asked_to_end_says_how_to_go_on(installed):
    """SIGTERM, as by a service manager; Ctrl-C comes to the same."""
    good = installed.good("terminated")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with installed.updating(good, "--canary", "0", "--window", "20s", host="mini-1") as updater:
            for line in updater.stdout:
                if json.loads(line).get("phase") == "gating":
                    updater.send_signal(number)
                    break
            said = updater.stderr.read()
            assert (updater.wait(30), said.count("`ostler fleet update --resume` goes on")) == (code, 1), said
        assert Rollout(installed.fleet("update", "--resume", "--json", code=0)).ends["mini-1"] in {"updated", "current"}
        good = installed.good("interrupted")


@pytest.mark.long
def test_hosts_that_are_not_reached(installed, bare):
    """sshd that says nothing, a host key that is not the known one, a machine that is off: told apart, the others are updated."""
    good = installed.good("not reached")
    one, two = installed.bed.hosts["mini-1"], installed.bed.hosts["mini-2"]
    bare.kill()
    with hanging_ssh(one), other_host_key(two):
        words = ("--release", good, "--yes", "--canary", "0", "--max-failures", "9", "--window", "2s")
        done = installed.fleet("update", *words, host="mini-1,mini-2,mini-3,bare", code=1)
    bare.start()
    assert re.match(rf"mini-1 +unreachable .*no SSH at {one.address}:22 within 5 s", said_of("mini-1", done)), done.stdout
    assert re.match(
        rf"mini-2 +unreachable .*the host key of {two.address} is not the known one: it shows", said_of("mini-2", done)
    )
    assert re.search(r"ostler fleet trust .*--host mini-2", said_of("mini-2", done))
    assert re.match(r"mini-3 +updated", said_of("mini-3", done))
    assert re.match(r"bare +unreachable .*(no SSH at|cannot connect to)", said_of("bare", done))
    assert "1 updated, 3 unreachable" in done.stdout
    again = installed.mend(retry(done).replace(",bare", ""))
    assert "2 updated" in again.stdout


@pytest.mark.long
def test_hosts_that_refuse(installed):
    """No sudo, no room, a wrong clock: said before anything is changed, and what to do."""
    good = installed.good("refused")
    before = {name: installed.facts(name)["releases"] for name in installed.bed.hosts}
    installed.know(mini_1={"user": "plain"})
    try:
        with (
            little_room(installed.bed.hosts["mini-2"], "/opt/ostler/releases", 20),
            other_clock(installed.bed.hosts["mini-3"], 100),
        ):
            done = update(installed, good)
            assert re.match(r"mini-1 +failed .*plain cannot use sudo there: it asks for a password", said_of("mini-1", done)), (
                done.stdout
            )
            assert "NOPASSWD" in said_of("mini-1", done)
            assert re.match(
                r"mini-2 +failed .*\d+ MB are free for releases, \d+ are needed; `ostler fleet prune", said_of("mini-2", done)
            )
            assert "mini-2: " in installed.fleet("prune", "--keep", "1", host="mini-2", code=0).stdout
            assert re.match(r"mini-3 +failed .*its clock is \d+ s ahead; `timedatectl set-ntp true`", said_of("mini-3", done))
    finally:
        installed.know()
    assert {name: installed.facts(name)["releases"] for name in installed.bed.hosts} == before
    assert "3 updated" in installed.mend(retry(done)).stdout


@pytest.mark.long
def test_a_release_that_fills_the_disk_goes_back_on_the_full_disk(operator, bare):
    """All that an update writes lies on one file system, which the new release's daemon fills to the last byte."""
    moves = "".join(
        f"cp -a {place} /mnt{number}; mount --bind /mnt{number} {place}; "
        for number, place in (("/opt", "/opt"), ("/lib", "/var/lib"), ("/units", "/etc/systemd/system"))
    )
    bare.exec("sh", "-ec", f"mount -t tmpfs -o size=900m little /mnt; {moves}")
    operator.install("--yes", host="bare")
    before = operator.in_force("bare")
    job, pids = operator.sleeper("bare")
    done = operator.update(operator.variant(variants.FILLS_THE_DISK), host="bare", window="20s", code=1)
    assert done.ends == {"bare": "unhealthy"}, done.text
    assert operator.in_force("bare") == before
    assert "no space left" in done.text.lower()
    left_kb = int(bare.exec("df", "--output=avail", "/opt/ostler").stdout.split()[-1])
    assert left_kb < 8 << 10  # what filled it is still there; the way back had its own spare room
    bare.exec("rm", "/var/lib/ostler/fill")
    operator.good_again("bare")
    assert operator.facts("bare")["lock"] is None
    assert operator.pids("bare") == pids
    operator.cli("job", "cancel", job, code=0)
    assert operator.update(operator.good("room again"), host="bare", code=0).ends == {"bare": "updated"}


@pytest.mark.long
def test_a_host_whose_power_is_cut_while_it_is_watched_ends_well(installed):
    """Its watcher goes on after the boot, and so does the rollout."""
    good = installed.good("power")
    host = installed.bed.hosts["mini-2"]
    with installed.updating(good, "--canary", "0", host="mini-2") as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == "gating":
                host.kill()
                host.start()
                break
        last = [*updater.stdout][-1]
    assert json.loads(last)["hosts"]["mini-2"]["ended"] == "updated", last
    installed.good_again("mini-2")
    assert (installed.in_force("mini-2"), installed.facts("mini-2")["lock"]) == (good, None)


@pytest.mark.long
def test_ssh_that_hangs_while_a_host_is_watched_does_no_harm(installed):
    """It hangs for longer than the rollout waits: told as not reached. The host has become good by itself, and the same command goes on."""
    good = installed.good("hangs")
    host = installed.bed.hosts["mini-2"]
    with contextlib.ExitStack() as stack:
        updater = stack.enter_context(installed.updating(good, "--canary", "0", "--timeout", "20s", host="mini-2"))
        for line in updater.stdout:
            if json.loads(line).get("phase") == "gating":
                stack.enter_context(hanging_ssh(host))
                break
        told = json.loads([*updater.stdout][-1])["hosts"]["mini-2"]
    assert told["ended"] == "unreachable", told
    assert "its watcher goes on by itself" in told["reason"]
    installed.good_again("mini-2")
    assert installed.in_force("mini-2") == good
    assert installed.update(good, host="mini-2", code=0).ends == {"mini-2": "current"}
    assert installed.facts("mini-2")["lock"] is None


@pytest.mark.long
def test_a_second_operator_is_told_whose_turn_it_is(installed):
    """While one updates, another is refused with whose lock it is; what a dead one left is broken with a word why."""
    good, other = installed.good("first come"), installed.good("second come")
    with installed.updating(good) as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == "gating":
                break
        refused = installed.update(other, host="mini-1", code=1)
        assert re.match(r"locked by \w+@\S+ for \d+ s \(update\)", refused.reasons["mini-1"]), refused.text
        assert re.search(r"mini-1 +\w+@\S+ .*update", installed.fleet("lock status").stdout)
        ended = {name: one["ended"] for name, one in json.loads([*updater.stdout][-1])["hosts"].items()}
    assert ended == dict.fromkeys(installed.bed.hosts, "updated")
    assert "no host is locked" in installed.fleet("lock status").stderr
    installed.ask("mini-1", "lock", "--rollout", "eve", "--owner", "eve@laptop", "--message", "lunch")
    assert "locked by eve@laptop for" in installed.update(other, host="mini-1", code=1).reasons["mini-1"]
    broken = installed.fleet("lock break", "--why", "eve has gone home", "--yes", host="mini-1", code=0)
    assert broken.stdout == "mini-1: the lock of eve@laptop (lunch) is broken\n"


@pytest.mark.long
@pytest.mark.parametrize("phase", ["locking", "uploading", "switching", "gating", "confirming", "unlocking"])
def test_an_updater_that_is_killed_at_any_step_is_gone_on_with(installed, phase):
    """SIGKILL as the canary begins this step; `--resume` finds what was done, does the rest, and nothing is left locked."""
    good = installed.good(f"killed while {phase}")
    window = ("--window", "20s") if phase == "gating" else ()
    with installed.updating(good, *window, host="mini-1,mini-2") as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == phase:
                break
        updater.kill()
    done = Rollout(installed.fleet("update", "--resume", "--json", code=0))
    # A switch goes on without its updater, and what is watched becomes good: before the resumed one looks, or after.
    either = {"current", "updated"}
    ends = {"confirming": {"current"}, "unlocking": {"current"}, "switching": either, "gating": either}.get(phase, {"updated"})
    assert done.ends["mini-1"] in ends, done.text
    assert done.ends == {"mini-1": done.ends["mini-1"], "mini-2": "updated"}, done.text
    for name in done.ends:
        facts = installed.facts(name)
        assert (facts["current"], facts["lock"], facts["update"]) == (good, None, None)
    again = installed.fleet("update", "--resume", code=3)
    assert "no rollout was interrupted" in again.stderr


@pytest.mark.long
def test_an_updater_that_is_killed_while_a_host_goes_back(installed):
    """The host is on its release of before, by itself; the resumed rollout says why, and holds the others."""
    before = installed.in_force("mini-1")
    with installed.updating(installed.variant(variants.DOES_NOT_START), host="mini-1,mini-2") as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == "going_back":
                break
        updater.kill()
    installed.good_again("mini-1")
    done = Rollout(installed.fleet("update", "--resume", "--json", code=1))
    assert done.ends == {"mini-1": "unhealthy", "mini-2": "held"}, done.text
    assert installed.in_force("mini-1") == before
    assert installed.facts("mini-1")["lock"] is None


@pytest.mark.long
def test_wrong_usage_is_told_apart_from_hosts_that_fail(installed):
    """Exit code 2, and no host is looked at."""
    for words in (("--serial", "x"), ("--timeout", "soon"), ("--host", "mimi-1")):
        done = installed.fleet("update", "--yes", *words, code=2)
        assert "Traceback" not in done.stderr
