"""A miner on a real host: commands by the node's own user through polkit and D-Bus, its health, its crashes, and its missing program."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest

from e2e.fleet import until
from fleet import image, variants
from fleet.rig import NODE_UNIT
from fleet.test_install import TREE

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
PROGRAM = Path(__file__).with_name("xmrig.py")
UNIT = "[Unit]\nDescription=A miner\n[Service]\nExecStart=/usr/local/bin/xmrig\n"
OTHER = "[Unit]\nDescription=Another\n[Service]\nExecStart=/usr/bin/sleep infinity\n"
URL = "http://127.0.0.1:18080/2/summary"
RULES = "/etc/polkit-1/rules.d/50-ostler-services.rules"
SERVICES = {
    "xmrig": {
        "unit": "xmrig.service",
        "binary": "/usr/local/bin/xmrig",
        "candidates": ["/usr/local/bin/xmrig", "/usr/bin/xmrig"],
        "version": "^XMRig ",
        "grace": "0s",
        "health": [{"http": URL, "interval": "1s", "failures": 2}],
        "metrics": {"url": URL, "interval": "1s", "values": {"hashrate": "hashrate.total[0]", "good": "results.shares_good"}},
    },
    "ghost": {"unit": "ghost.service"},
}
# Both ways to systemd, asked as the node's own user in the node's own release.
WAYS = """
import asyncio, json
from ostler.model.service import Verb
from ostler.node.services.dbus import UnitsByBus
from ostler.node.services.systemctl import UnitsBySystemctl
from ostler.node.services.units import UnitTrouble

async def tried(units, verb, unit):
    accepted = []
    try:
        return await units.act(verb, unit, lambda: accepted.append(1)), len(accepted)
    except UnitTrouble as exc:
        return exc.trouble.value, len(accepted)

async def look(units):
    view = await units.look("xmrig.service")
    return view.load, view.active, view.sub, view.pid is not None, view.result

async def played(units):
    changes = []
    await units.watch(["xmrig.service", "ssh.service", "ghost.service"], lambda: changes.append(1))
    said = [await tried(units, Verb.STOP, "xmrig.service"), await look(units)]
    said += [await tried(units, Verb.START, "xmrig.service"), await look(units)]
    said += [await tried(units, Verb.RESTART, "xmrig.service"), await look(units)]
    said += [await tried(units, Verb.STOP, "ssh.service"), await tried(units, Verb.START, "ghost.service")]
    said += [(await units.look("ghost.service")).load, (await units.look("xmrig.service")).invocation != ""]
    said += [await units.booted()]
    await units.close()
    return said, len(changes)

async def main():
    (bus, told), (words, _) = await played(UnitsByBus()), await played(UnitsBySystemctl())
    lost = UnitsByBus("unix:path=/nonexistent")
    print(json.dumps({"bus": bus, "systemctl": words, "told": told, "lost": await tried(lost, Verb.STOP, "xmrig.service")}))

asyncio.run(main())
"""

# A unit's lines since they were looked at, as text, whether there is a place where they end, and whether they could be read.
JOURNAL = """
import json, subprocess, time
from ostler.node.services.journals import Journals

journals, said = Journals(), []
lines = journals.after("xmrig.service", None)
said.append((lines.text, lines.cursor is not None, lines.readable))
for again in (lines.readable, False):
    if again:
        subprocess.run(["systemctl", "restart", "xmrig"], check=True)
    until = time.monotonic() + 20
    while True:
        fresh = journals.after("xmrig.service", lines.cursor)
        kept = [line for line in fresh.text.splitlines() if line == "mining"]
        if kept or not again or time.monotonic() > until:
            break
        time.sleep(0.1)
    lines = fresh
    said.append(("\\n".join(kept), lines.cursor is not None, lines.readable))
print(json.dumps(said))
"""

AS_NODE = """
for one in $(find /sys/fs/cgroup -type d -name ostler-node.service); do echo $$ >$one/cgroup.procs; done
exec setpriv --reuid=ostler --regid=ostler --clear-groups -- "$@"
"""


class Miner:
    """A host with a miner, and its operator."""

    def __init__(self, operator, host):
        self.operator, self.host = operator, host
        token = {"Authorization": f"Bearer {operator.env['OSTLER_TOKEN']}"}
        self.http = httpx.Client(base_url=f"{operator.url}/api/v1", headers=token, timeout=60)

    def install(self, services=SERVICES):
        self.operator.know(miner={"vars": {"services": services}})
        done = self.operator.install("--yes", "--release", self.operator.first.release, host="miner")
        return done.stdout + done.stderr

    def do(self, verb, service="xmrig"):
        """A command: how it ended, and what was seen of the service then."""
        manifest = {"runner": "service", "command": service, "args": [verb], "requirements": {"node": "miner"}, "retries": 0}
        job = self.http.post("/jobs", json=manifest).raise_for_status().json()["items"][0]["job_id"]
        over = ("done", "failed", "expired")
        ended = until(lambda: (view := self.http.get(f"/jobs/{job}").json())["state"] in over and view, timeout=60, what=verb)
        said = self.http.get(f"/jobs/{job}/logs", params={"stream": "stdout"}).text
        return ended, json.loads(said) if said else {}

    def told(self, what, wanted):
        """What the coordinator was told of it, once `wanted` holds of that."""

        def look():
            seen = next(iter(self.http.get("/services/xmrig").raise_for_status().json()["items"]), None)
            if seen and wanted(seen):
                return seen
            time.sleep(0.1)  # the coordinator takes only so many calls a second
            return None

        return until(look, timeout=60, what=what)

    def show(self, name, unit="xmrig.service"):
        return self.host.exec("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def as_node(self, *argv):
        """As a process of the daemon's, in its unit: the node's own user, who has no way to become root."""
        return self.host.exec("sh", "-c", AS_NODE, "sh", *argv, check=False)


@pytest.fixture(scope="module")
def miner(testbed, operator):
    newer = {one.release for one in testbed.hosts.values()} - {image.own_release()}  # with another systemd and another polkit
    host = testbed.add("miner", newer=bool(newer))
    host.exec("tee", "/usr/bin/xmrig", stdin=PROGRAM.read_text())
    host.exec("chmod", "755", "/usr/bin/xmrig")
    host.exec("tee", "/etc/systemd/system/xmrig.service", stdin=UNIT)
    host.exec("tee", "/etc/systemd/system/other.service", stdin=OTHER)
    host.exec("systemctl", "daemon-reload")
    host.exec("systemctl", "start", "polkit")
    tree = host.exec("sh", "-c", TREE).stdout
    one = Miner(operator, host)
    said = one.install()
    assert "miner is a node" in said
    assert "50-ostler-services.rules" in said
    assert "warning" not in said
    yield one
    one.http.close()
    host.exec("systemctl", "stop", "xmrig")
    operator.fleet("uninstall", "--yes", "--end-jobs", host="miner", code=0)
    left = host.exec("sh", "-c", TREE).stdout
    testbed.remove(host)
    operator.know()
    operator.cli("node", "retire", "miner")
    assert left == tree  # the rule and the link are gone as well


def test_commands_are_carried_out_by_the_nodes_own_user(miner):
    host = miner.host
    assert host.exec("readlink", "/usr/local/bin/xmrig").stdout.strip() == "/usr/bin/xmrig"
    assert miner.operator.node("miner")["capabilities"]["services"] == ["xmrig", "ghost"]
    said = miner.operator.cli("service", "start", "xmrig", "--on", "miner", code=0).stdout
    assert re.search("miner .*done .*running", said), said
    for verb, state, active in (
        ("stop", "stopped", "inactive"),
        ("restart", "running", "active"),
    ):
        ended, seen = miner.do(verb)
        assert ended["state"] == "done", ended
        assert (seen["name"], seen["unit"], seen["state"]) == ("xmrig", "xmrig.service", state)
        assert miner.show("ActiveState") == active
    seen = miner.told("its health", lambda seen: seen["health"] == "healthy" and seen.get("metrics"))
    assert (seen["metrics"]["hashrate"], seen["desired"], seen["pid"]) == (1234.5, "running", int(miner.show("MainPID")))
    ended, _ = miner.do("start", "ghost")
    assert (ended["failure"]["code"], "no unit ghost.service" in ended["failure"]["message"]) == ("E_SERVICE", True)
    said = host.exec("systemd-analyze", "security", "--no-pager", NODE_UNIT, check=False).stdout
    assert float(re.search(r"exposure level for \S+: ([0-9.]+)", said)[1]) <= 3.0


REFUSED = [
    "systemctl stop other.service", "systemctl start other.service", f"systemctl restart {NODE_UNIT}", "systemctl start rescue.target",
    "systemctl stop ostler-keeper.service", "systemctl enable xmrig.service", "systemctl mask xmrig.service", "systemctl daemon-reload",
    "systemctl kill xmrig.service", "systemctl reload xmrig.service", "systemctl reset-failed xmrig.service",
    "systemctl set-property xmrig.service CPUWeight=1", "systemd-run true",
]  # fmt: skip


def test_polkit_permits_nothing_else(miner):
    """What the node's own user gets done beside its three verbs, and what another user does: nothing."""
    miner.do("start")
    pid = miner.show("MainPID")
    tries = "".join(f"{one.replace(' ', ' --no-ask-password ', 1)} </dev/null && echo DONE {one}\n" for one in REFUSED)
    done = miner.as_node("sh", "-c", tries)
    assert done.stdout == ""
    assert len(re.findall("access denied|authentication required|permission denied", done.stderr.lower())) == len(REFUSED), (
        done.stderr
    )
    plain = miner.host.exec("runuser", "-u", "plain", "--", "systemctl", "--no-ask-password", "stop", "xmrig", check=False)
    assert plain.returncode != 0
    assert (miner.show("ActiveState", "other.service"), miner.show("MainPID")) == ("inactive", pid)
    words = ("--quiet", "--wait", "--uid=ostler", "systemctl", "--no-ask-password", "restart", "xmrig.service")
    elsewhere = miner.host.exec("systemd-run", *words, check=False).returncode == 0  # as a job is, beside the daemon
    tells = int(miner.host.exec("pkcheck", "--version").stdout.split()[-1].split(".")[0]) >= 126
    assert elsewhere is not tells
    pid = miner.show("MainPID")
    assert miner.as_node("systemctl", "--no-ask-password", "restart", "xmrig.service").returncode == 0
    assert miner.show("MainPID") != pid


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("rm {rule} {note}", "is missing"),  # as on a host whose release of before knew no services
        pytest.param("rm {rule}", "is missing", marks=pytest.mark.long),
        pytest.param("sed -i s/xmrig.service/ssh.service/ {rule}", "was edited", marks=pytest.mark.long),
        pytest.param("chmod 600 {rule}", "was edited", marks=pytest.mark.long),  # polkit is no root
    ],
)
def test_a_rule_of_polkit_that_is_not_what_was_written_is_named_and_mended(miner, how, what):
    """Missing, edited so that it permits something else, or out of polkit's reach: status names it, and its command puts it right."""
    status = ("status", "--release", miner.operator.in_force("miner"), "--json")
    assert json.loads(miner.operator.fleet(*status, host="miner", code=0).stdout)["hosts"]["miner"]["findings"] == []
    written = miner.host.exec("stat", "--format=%a %U", RULES).stdout + miner.host.exec("cat", RULES).stdout
    miner.host.exec("sh", "-c", how.format(rule=RULES, note="/var/lib/ostler-update/permits.applied"))
    for words in (status, (*status, "--keep-config")):
        (finding,) = json.loads(miner.operator.fleet(*words, host="miner", code=1).stdout)["hosts"]["miner"]["findings"]
        assert finding["what"] == f"what polkit permits {what}"
    miner.operator.mend(finding["mend"])
    assert miner.host.exec("stat", "--format=%a %U", RULES).stdout + miner.host.exec("cat", RULES).stdout == written
    miner.operator.good_again("miner")
    assert miner.do("restart")[0]["state"] == "done"


def test_both_ways_to_systemd_say_the_same(miner):
    done = miner.as_node("/opt/ostler/current/bin/python", "-I", "-c", WAYS)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    stopped, runs = ["loaded", "inactive", "dead", False, "success"], ["loaded", "active", "running", True, "success"]
    expected = [["done", 1], stopped, ["done", 1], runs, ["done", 1], runs, ["denied", 0], ["missing", 0], "not-found", True]
    assert said["bus"].pop() == said["systemctl"].pop() != ""
    assert said["bus"] == expected
    assert said["systemctl"] == expected
    assert said["told"] > 0
    assert said["lost"] == ["unreachable", 0]


def test_the_journal_is_read_from_where_it_was_left_and_by_nobody_who_may_not(miner):
    miner.do("start")
    argv = ("/opt/ostler/current/bin/python", "-I", "-c", JOURNAL)
    done = miner.host.exec(*argv)
    assert json.loads(done.stdout) == [["", True, True], ["mining", True, True], ["", True, True]]
    assert json.loads(miner.as_node(*argv).stdout)[0] == ["", False, False]


def test_an_ill_miner_is_told_and_a_crashed_one_is_started_anew_after_a_while(miner):
    miner.do("start")
    miner.host.exec("touch", "/run/ill")
    seen = miner.told("its illness", lambda seen: seen["state"] == "unhealthy")
    assert f"{URL} answers 500" in seen["message"]
    miner.host.exec("rm", "/run/ill")
    miner.told("its health", lambda seen: seen["health"] == "healthy")
    before = miner.show("MainPID")
    miner.host.exec("systemctl", "kill", "--signal=SEGV", "xmrig")
    seen = miner.told("its crash", lambda seen: seen["state"] == "crashed" and seen["retry_s"])
    assert "signal 11" in seen["message"]
    assert 0 < seen["retry_s"] <= 10
    seen = miner.told("another one", lambda seen: seen["state"] == "running")
    assert (seen["restarts"], seen["pid"] != int(before)) == (1, True)


def test_a_stopped_one_stays_stopped_over_daemons(miner):
    assert miner.do("stop")[1]["desired"] == "stopped"
    miner.host.exec("systemctl", "kill", "--signal=KILL", NODE_UNIT)
    miner.operator.good_again("miner")
    seen = miner.do("status")[1]
    assert (seen["state"], seen["desired"]) == ("stopped", "stopped")
    assert miner.show("ActiveState") == "inactive"


def test_a_missing_program_is_told_and_the_daemon_stays_what_it_was(miner):
    miner.do("stop")
    miner.host.exec("mv", "/usr/bin/xmrig", "/root/")
    try:
        assert "warning: xmrig not found, its service will not work" in miner.install()
        seen = miner.told("its absence", lambda seen: seen["state"] == "missing")
        assert seen["message"] == "xmrig not found, its service will not work"
        ended, _ = miner.do("start")
        assert ended["failure"]["code"] == "E_SERVICE"
        assert "xmrig not found" in ended["failure"]["message"]
        assert miner.operator.health("miner")["status"] == "ok"
    finally:
        miner.host.exec("mv", "/root/xmrig", "/usr/bin/")
    assert miner.do("start")[0]["state"] == "done"


@pytest.mark.long
def test_what_is_declared_no_more_is_permitted_no_more(miner):
    assert "warning" not in miner.install({})
    try:
        assert miner.host.exec("ls", RULES, check=False).returncode != 0
        assert miner.as_node("systemctl", "--no-ask-password", "stop", "xmrig").returncode != 0
        assert miner.operator.node("miner")["capabilities"]["services"] == []
    finally:
        miner.install()
    assert miner.do("start")[0]["state"] == "done"


@pytest.mark.long
def test_what_is_wanted_comes_back_with_the_machine_and_what_is_not_does_not(miner):
    miner.do("start")
    miner.host.reboot()
    miner.told("a start by the node", lambda seen: seen["state"] == "running")
    miner.do("stop")
    miner.host.reboot()
    miner.operator.good_again("miner")
    assert miner.do("status")[1]["state"] == "stopped"


@pytest.mark.long
def test_a_way_back_brings_the_permission_back(miner):
    """A release that does not start, with a configuration that declares nothing: the host goes back from both."""
    bad = miner.operator.variant(variants.DOES_NOT_START)
    miner.operator.know(miner={"vars": {"services": {}}})
    try:
        done = miner.operator.update(bad, host="miner", window="20s")
        assert done.ends == {"miner": "unhealthy"}
        miner.operator.good_again("miner")
        assert '"xmrig.service"' in miner.host.exec("cat", RULES).stdout
        assert miner.do("restart")[0]["state"] == "done"
    finally:
        miner.install()
