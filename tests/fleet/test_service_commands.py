"""One command, several real hosts: each gets it once, beside full slots and while it is drained; late ones and old ones are not done."""

import json

import pytest

from e2e.fleet import until
from fleet.rig import NODE_UNIT

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
UNIT = "[Unit]\nDescription=A service\n[Service]\nExecStart=/usr/bin/tail -f /dev/null\n"
SERVICES = {"web": {"unit": "web.service", "grace": "0s"}}


class Rigged:
    """Hosts that declare the service `web`, all that there are, and whoever commands it."""

    def __init__(self, operator, testbed):
        self.operator, self.hosts = operator, dict(sorted(testbed.hosts.items()))

    def all(self, *end):
        """The same end on each host."""
        return dict.fromkeys(self.hosts, end)

    def service(self, *words, code=0):
        """What `ostler service` says."""
        done = self.operator.cli("service", *words, "--json", code=code)
        return json.loads(done.stdout)

    def ends(self, *words, code=0):
        """What became of it on each host, and how the service was found there then."""
        return {one["node_id"]: (one["outcome"], one["state"]) for one in self.service(*words, code=code)["deliveries"]}

    def show(self, what="ActiveState"):
        """What systemd says on each host."""
        words = ("systemctl", "show", "--value", f"--property={what}", "web.service")
        return {name: host.exec(*words).stdout.strip() for name, host in self.hosts.items()}

    def start(self):
        assert self.ends("start", "web", "--on", "all") == self.all("done", "running")
        return self.show("InvocationID")


@pytest.fixture(scope="module")
def rigged(installed, testbed):
    one = Rigged(installed, testbed)
    for host in one.hosts.values():
        host.exec("tee", "/etc/systemd/system/web.service", stdin=UNIT)
        host.exec("systemctl", "daemon-reload")
        host.exec("systemctl", "start", "polkit")
    declared = {"vars": {"services": SERVICES, "node": {"heartbeat": {"interval_s": 2}, "resources": {"max_concurrent_cpu": 1}}}}
    installed.know(**{name.replace("-", "_"): declared for name in one.hosts})
    installed.install("--yes")
    installed.good_again(*one.hosts)
    yield one
    for host in one.hosts.values():
        host.exec("systemctl", "stop", "web.service")
    installed.know()
    installed.install("--yes")
    installed.good_again(*one.hosts)


def test_each_host_gets_it_once_and_all_is_seen(rigged):
    before = rigged.start()
    assert len(set(before.values())) == len(rigged.hosts)
    assert rigged.ends("restart", "web", "--on", "all") == rigged.all("done", "running")
    after = rigged.show("InvocationID")
    assert not set(before.values()) & set(after.values())
    assert set(rigged.show().values()) == {"active"}

    def seen():
        items = rigged.service("list", "web")["items"]
        return [(one["node_id"], one["state"], one["desired"]) for one in items] == [
            (name, "running", "running") for name in rigged.hosts
        ]

    until(seen, timeout=30, what="the coordinator knows of it")
    assert rigged.ends("stop", "web", "--on", "pool=default") == rigged.all("done", "stopped")
    assert set(rigged.show().values()) == {"inactive"}
    table = rigged.operator.cli("service", "status", "web", code=0).stdout.splitlines()
    assert [line.split()[::3] for line in table[1:]] == [[name, "stopped"] for name in rigged.hosts]


def test_exactly_one_is_any(rigged):
    before = rigged.start()
    ((name, end),) = rigged.ends("restart", "web", "--on", "any").items()
    assert end == ("done", "running")
    after = rigged.show("InvocationID")
    assert {one for one in rigged.hosts if before[one] != after[one]} == {name}


@pytest.mark.long
def test_full_drained_and_cordoned_hosts_obey(rigged):
    rigged.start()
    operator = rigged.operator
    job, pids = operator.sleeper("mini-1")
    operator.cli("node", "drain", "mini-2", code=0)
    until(lambda: operator.node("mini-2")["state"] == "drained", timeout=30, what="mini-2 is drained")
    operator.cli("node", "cordon", "mini-3", code=0)
    try:
        assert rigged.ends("stop", "web", "--on", "all") == rigged.all("done", "stopped")
        assert set(rigged.show().values()) == {"inactive"}
        assert operator.node("mini-2")["state"] == "drained"
        assert operator.pids("mini-1") == pids  # nobody had to make room
    finally:
        operator.cli("job", "cancel", job, code=0)
        operator.cli("node", "resume", "mini-2", code=0)
        operator.cli("node", "uncordon", "mini-3", code=0)
    operator.wait(job)


@pytest.mark.long
def test_a_late_stop_is_not_carried_out_when_the_node_is_back(rigged):
    rigged.start()
    host = rigged.hosts["mini-3"]
    host.exec("systemctl", "stop", NODE_UNIT)
    try:
        assert rigged.ends("stop", "web", "--on", "mini-3", "--ttl", "2s", code=1) == {"mini-3": ("expired", None)}
    finally:
        host.exec("systemctl", "start", NODE_UNIT)
    assert rigged.ends("status", "web", "--on", "mini-3") == {"mini-3": ("done", "running")}
    assert rigged.show()["mini-3"] == "active"


@pytest.mark.long
def test_the_newest_wish_counts_when_the_node_is_back(rigged):
    before = rigged.start()["mini-3"]
    host = rigged.hosts["mini-3"]
    host.exec("systemctl", "stop", NODE_UNIT)
    try:
        jobs = [
            rigged.service(verb, "web", "--on", "mini-3", "--no-wait")["deliveries"][0]["job_id"]
            for verb in ("stop", "restart", "stop", "start")
        ]
    finally:
        host.exec("systemctl", "start", NODE_UNIT)
    assert rigged.operator.wait(jobs[-1])["state"] == "done"
    assert [rigged.operator.job(job)["state"] for job in jobs] == ["cancelled", "cancelled", "cancelled", "done"]
    assert rigged.show("InvocationID")["mini-3"] == before  # it ran all the time


@pytest.mark.long
def test_a_host_that_stands_still_carries_out_what_it_was_given_and_then_the_newest(rigged):
    """Its poll was answered while it stood, so nobody knows whether it has begun."""
    before = rigged.start()["mini-3"]
    host = rigged.hosts["mini-3"]
    host.pause()
    try:
        jobs = [
            rigged.service(verb, "web", "--on", "mini-3", "--no-wait")["deliveries"][0]["job_id"]
            for verb in ("restart", "stop", "start")
        ]
    finally:
        host.unpause()
    states = [rigged.operator.wait(job)["state"] for job in jobs]
    assert states[1:] == ["cancelled", "done"]
    assert rigged.show()["mini-3"] == "active"
    assert (states[0] == "done") is (rigged.show("InvocationID")["mini-3"] != before)
