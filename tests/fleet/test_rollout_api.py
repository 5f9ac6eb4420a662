"""Releases onto real hosts that no SSH reaches: fetched from the coordinator by the daemon, verified and switched by root, judged there."""

import json
import re

import pytest

from fleet import variants
from fleet.variants import MAIN, NODE

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True), pytest.mark.long]
NAMES = ("mini-1", "mini-2")
SSH = ("ssh.socket", "ssh.service")


@pytest.fixture
def unreachable(installed):
    """Two hosts whose sshd is gone; the coordinator knows the release keys."""
    installed.cli("release", "push", installed.first.release, "--trust", code=0)
    for name in NAMES:
        installed.bed.hosts[name].exec("systemctl", "stop", *SSH, check=False)
    yield installed
    for name in NAMES:
        installed.bed.hosts[name].exec("systemctl", "start", "ssh.service")
        installed.bed.hosts[name].wait()


def start(operator, release, *args, code):
    """Push and roll out; the rollout as it ended, by node."""
    operator.cli("release", "push", release, code=0)
    nodes = [word for name in NAMES for word in ("--node", name)]
    done = operator.cli("rollout", "start", release, *nodes, "--yes", "--window", "2s", "--json", *args, code=code)
    view = json.loads(done.stdout.splitlines()[-1])
    return {host["node_id"]: host for host in view["hosts"]}, view


def test_a_good_release_comes_and_a_bad_one_goes_back_by_itself(unreachable):
    before = {name: unreachable.in_force(name) for name in NAMES}
    good = unreachable.good("through the coordinator")
    jobs = {name: unreachable.sleeper(name) for name in NAMES}
    hosts, view = start(unreachable, good, code=0)
    assert {name: host["phase"] for name, host in hosts.items()} == dict.fromkeys(NAMES, "updated"), view
    for name in NAMES:
        assert unreachable.in_force(name) == good != before[name]
        assert unreachable.node(name)["release"] == good
        assert set(jobs[name][1]) <= set(unreachable.pids(name))
        assert unreachable.facts(name)["lock"] is None
    unreachable.cli("job", "cancel", *(job for job, _ in jobs.values()), code=0)

    hosts, view = start(unreachable, unreachable.variant(variants.DOES_NOT_START), code=1)
    assert {name: host["phase"] for name, host in hosts.items()} == {"mini-1": "unhealthy", "mini-2": "held"}, view
    assert view["reason"] == "canary mini-1 failed"
    assert "the daemon" in hosts["mini-1"]["reason"]
    assert "this release does not start" in hosts["mini-1"]["detail"]
    unreachable.good_again(*NAMES)
    assert {unreachable.in_force(name) for name in NAMES} == {good}

    older = unreachable.variant({NODE: (MAIN, MAIN + "    # of yesterday\n")}, older_s=86_400)
    unreachable.cli("release", "push", older, code=0)
    said = unreachable.cli("rollout", "start", older, "--node", "mini-1", "--node", "mini-2", "--yes", code=3)
    assert f"release {older} is older than {good}, which node mini-1 runs and 1 other node something newer" in said.stderr
    assert f"`ostler fleet update --release {older}`" in said.stderr
    assert said.stdout == ""

    host = unreachable.bed.hosts["mini-1"]
    said = host.exec("stat", "--format=%U %G %a", "/opt/ostler/update.json", "/var/lib/ostler/update").stdout
    assert said == "root ostler 640\nostler ostler 700\n"
    exposed = host.exec("systemd-analyze", "security", "--no-pager", "ostler-update.service", check=False).stdout
    assert float(re.search(r"exposure level for \S+: ([0-9.]+)", exposed)[1]) <= 4.0, exposed


def test_what_the_coordinator_thinks_worse_of_than_the_host_is_undone(unreachable):
    """Its canary job is denied there: the node is asked to go back, and root lets it, since the update came this way."""
    host, before = unreachable.bed.hosts["mini-1"], unreachable.in_force("mini-1")
    host.exec("mv", "/etc/ostler/allowlist.d/ostler-canary.yaml", "/root/")
    host.exec("systemctl", "reload", "ostler-node")
    try:
        hosts, view = start(unreachable, unreachable.good("denied through the coordinator"), code=1)
    finally:
        host.exec("mv", "/root/ostler-canary.yaml", "/etc/ostler/allowlist.d/")
        host.exec("systemctl", "reload", "ostler-node")
    assert {name: host["phase"] for name, host in hosts.items()} == {"mini-1": "unhealthy", "mini-2": "held"}, view
    assert "E_DENY" in hosts["mini-1"]["reason"]
    unreachable.good_again("mini-1")
    assert unreachable.in_force("mini-1") == before
