"""A bare host becomes a node under systemd and a bare host again, by the commands that an operator types."""

import json
import re

import pytest

from e2e.fleet import until
from fleet.engine import ROOT
from fleet.rig import NODE_UNIT

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
TREE = "find /etc /opt /var/lib /usr -xdev \\( -type f -exec sha256sum {} + \\) -o -printf '%y %m %U %G %p %l\\n' | sort"
UNITS = "/etc/systemd/system"
EAT = "x=; while :; do x=$x$x$(head -c 8000000 /dev/zero | tr '\\0' x); done"
TOKENS = "grep -rls '[o]stler_join_' /etc /var/lib/ostler /var/lib/ostler-update /proc/[0-9]*/cmdline /proc/[0-9]*/environ; true"


def pid_of(host):
    return host.exec("systemctl", "show", "--value", "--property=MainPID", NODE_UNIT).stdout.strip()


def test_nodes_stay_as_they_are_when_they_are_installed_again(installed, host):
    told = installed.health("mini-1")
    assert (told["status"], told["self_check"], told["node_id"]) == ("ok", "ok", "mini-1")
    before = pid_of(host)
    assert "mini-1 is a node (nothing had to be changed)" in installed.install("--yes", host="mini-1").stdout
    assert pid_of(host) == before
    assert host.exec("sh", "-c", TOKENS).stdout == ""


def test_what_the_release_would_refuse_is_told_and_the_node_goes_on_as_it_was(installed, host):
    """An allowlist entry with mistakes, a configuration with what the host does not have: by an installation, and by an update."""
    before, config = pid_of(host), installed.config("mini-1")
    entry = "/etc/ostler/allowlist.d/by-hand.yaml"
    host.exec("tee", entry, stdin="comand: {path: /usr/bin/true}\nfoo: 1\n")
    try:
        said = installed.install("--yes", host="mini-1", code=1).stderr
        found = re.search(rf"^mini-1: release \S+ does not accept the allowlist: {entry}:1: .*, and \d more$", said, re.MULTILINE)
        assert found, said
        assert re.search(rf"^  {entry}:2: .*foo", said, re.MULTILINE), said
        words = ("--release", installed.good("refused entry"), "--yes", "--canary", "0")
        done = installed.fleet("update", *words, host="mini-1", code=1)
        row = re.search(r"^mini-1 +failed .*$", done.stdout, re.MULTILINE)[0]
        assert re.search(rf"does not accept the allowlist: {entry}:1: .*, and \d more$", row), row
        assert done.stderr.count(f"  {entry}:2: ") == 1, done.stderr
        assert installed.facts("mini-1")["lock"] is None
    finally:
        host.exec("rm", entry)
    installed.know(mini_1={"vars": {"node": {"runners": {"python": {"enable": True, "task_paths": ["/srv/none"]}}}}})
    try:
        said = installed.install("--yes", host="mini-1", code=1).stderr
        assert re.search(r"would not start with the configuration: node.yaml:\d+: .*: /srv/none is not a directory", said), said
    finally:
        installed.know()
    assert (pid_of(host), installed.config("mini-1")) == (before, config)
    assert installed.health("mini-1")["session"]


def test_a_job_runs_in_its_sandbox_and_outlives_daemons(installed, host):
    installed.cli("secret", "set", "word", stdin="hush-hush", code=0)
    script = "cat $OSTLER_SECRETS_DIR/word; while [ ! -e stop ]; do sleep 0.1; done; echo over"
    fields = {"policy": {"sandbox": "bwrap"}, "requirements": {"node": "mini-1"}}
    job = installed.submit(script, secrets=[{"name": "word", "file": "word"}], **fields)
    installed.wait(job, "running")
    find = f"pgrep -f -u ostler 'echo over' | sort | head -n 40; ls -d /var/lib/ostler/jobs/{job}"
    before = host.exec("sh", "-c", find).stdout
    assert len(before.split()) > 2
    host.exec("systemctl", "restart", NODE_UNIT)
    host.exec("systemctl", "kill", "--signal=KILL", NODE_UNIT)
    installed.good_again("mini-1")
    assert host.exec("sh", "-c", find).stdout == before
    host.exec("runuser", "-u", "ostler", "--", "touch", f"/var/lib/ostler/jobs/{job}/work/stop")
    assert installed.wait(job)["state"] == "done"
    log = installed.cli("job", "logs", job).stdout
    assert log.endswith("over\n")
    assert "hush" not in log


def test_python_tasks_run_in_warm_workers_under_the_units(installed, host):
    """One process for both calls; the daemon that is started anew hands the third to it as well, or to another one."""
    host.exec(
        "sh",
        "-c",
        "mkdir -p /srv/tasks && cat > /srv/tasks/which.py",
        stdin="import os\n\n\ndef run():\n    print(os.getpid())\n",
    )
    runners = {"python": {"enable": True, "task_paths": ["/srv/tasks"]}}
    installed.know(mini_1={"vars": {"node": {"runners": runners}}})
    try:
        installed.install("--yes", host="mini-1")
        installed.good_again("mini-1")

        def call():
            return installed.ran({"runner": "python", "task": "which", "requirements": {"node": "mini-1"}})

        workers = [call(), call()]
        assert workers[0].strip().isdigit()
        assert len(set(workers)) == 1, "it is kept for the next one"
        host.exec("systemctl", "restart", NODE_UNIT)
        installed.good_again("mini-1")
        assert call().strip().isdigit()
    finally:
        installed.know()
        installed.install("--yes", host="mini-1")
        installed.good_again("mini-1")


@pytest.mark.long
def test_a_daemon_that_hangs_is_killed_by_systemd_and_the_next_one_adopts_the_job(installed, host):
    """WatchdogSec: it stands still, and nobody but systemd notices; its unit is as the release has it but for a shorter patience."""
    drop_in = "/run/systemd/system/ostler-node.service.d/patience.conf"
    host.exec("sh", "-c", f"mkdir -p $(dirname {drop_in}); printf '[Service]\\nWatchdogSec=4\\n' > {drop_in}")
    try:
        host.exec("systemctl", "daemon-reload")
        host.exec("systemctl", "restart", NODE_UNIT)
        installed.good_again("mini-1")
        job, pids = installed.sleeper("mini-1")
        before = pid_of(host)
        host.exec("kill", "-STOP", before)
        until(lambda: pid_of(host) not in {before, "0"}, timeout=90, what="another daemon")
        installed.good_again("mini-1")
        assert installed.pids("mini-1") == pids
        view = installed.job(job)
        assert (view["state"], len(view["attempts"])) == ("running", 1)
        said = host.exec("journalctl", "--no-pager", "--unit", NODE_UNIT, "--lines", "60").stdout
        assert "Watchdog timeout" in said
        installed.cli("job", "cancel", job, code=0)
        until(lambda: not installed.pids("mini-1"), timeout=60, what="the end of the job")
    finally:
        host.exec("rm", "-r", "/run/systemd/system/ostler-node.service.d")
        host.exec("systemctl", "daemon-reload")
        host.exec("systemctl", "restart", NODE_UNIT)
        installed.good_again("mini-1")


@pytest.mark.long
def test_the_units_are_as_closed_as_the_documentation_says(installed, host):
    """Of the daemon at most 3.0; the keeper's figure stands in docs/how-to/install-with-systemd.md."""
    page = (ROOT / "docs/how-to/install-with-systemd.md").read_text()
    for name, most in ((NODE_UNIT, 3.0), ("ostler-keeper.service", None)):
        said = host.exec("systemd-analyze", "security", "--no-pager", name, check=False).stdout
        exposure = float(re.search(r"exposure level for \S+: ([0-9.]+)", said)[1])
        assert most is None or exposure <= most
        told = float(re.search(rf"`{name}` \| ([0-9.]+) \|", page)[1])
        assert abs(exposure - told) <= 0.25  # releases of systemd differ in what they count


@pytest.mark.long
def test_a_job_that_eats_memory_is_ended_for_that(installed):
    job = installed.submit(EAT, policy={"memory_mb": 64}, retries=0, requirements={"node": "mini-1"})
    ended = installed.wait(job)
    assert (ended["state"], ended["failure"]["code"]) == ("failed", "E_OOM")


@pytest.mark.long
def test_a_node_that_lost_its_key_comes_back_by_the_line_that_is_printed(installed, host):
    """Seen while the daemon still has it in memory, and after it made another one that nobody knows."""

    def finding():
        done = installed.fleet("status", "--release", installed.in_force("mini-1"), "--json", host="mini-1", code=1)
        return json.loads(done.stdout)["hosts"]["mini-1"]["findings"][0]

    host.exec("rm", "/var/lib/ostler/node/node.key")
    gone = finding()
    assert gone["what"] == "the node's key is gone from its disk"
    host.exec("systemctl", "restart", NODE_UNIT)
    until(lambda: installed.health("mini-1").get("enrolled") is False, timeout=60, what="a refusal")
    refused = finding()
    assert refused["what"].startswith("not enrolled: the coordinator refuses this node's key")
    assert "`ostler node retire mini-1`" in installed.install("--yes", host="mini-1", code=1).stderr
    retire, install = refused["mend"].split(" && ")
    assert (retire, gone["mend"]) == ("ostler node retire mini-1", refused["mend"])
    installed.cli(*retire.split()[1:], code=0)
    installed.mend(f"{install} --allowlist {installed.folder / 'allow'}")
    installed.good_again("mini-1")
    assert installed.node("mini-1")["state"] == "ready"
    installed.fleet("status", "--release", installed.in_force("mini-1"), host="mini-1", code=0)


def test_nothing_is_left(operator, bare):
    """Byte by byte, but for the journal; and not while a job runs, unless told. What is shown first is what is done. A directory that
    somebody else has anything in is refused before that, and an empty one is taken over meanwhile."""
    bare.exec("sh", "-c", "mkdir -p /var/lib/ostler && touch /var/lib/ostler/mine")
    said = operator.install("--yes", host="bare", code=1).stderr
    assert "bare: cannot write to /var/lib/ostler: it belongs to root, and the node runs as the user ostler" in said
    assert "`mv /var/lib/ostler /var/lib/ostler.before`" in said
    assert bare.exec("ls", "/opt/ostler", check=False).stdout == ""
    bare.exec("rm", "/var/lib/ostler/mine")
    tree = bare.exec("sh", "-c", TREE).stdout
    assert "--digest" in operator.install("--dry-run", "--verbose", host="bare").stdout
    assert bare.exec("sh", "-c", TREE).stdout == tree
    assert "bare is a node (user ostler, " in operator.install("--yes", host="bare").stdout
    guarded = operator.fleet("firewall", "--allow", "10.0.0.0/8", "--yes", host="bare", code=0).stdout
    assert "rules in force; the daemon listens for its own host alone" in guarded
    operator.wait(operator.submit("sleep 600", requirements={"node": "bare"}), "running")
    operator.fleet("uninstall", "--yes", host="bare", code=1)
    assert operator.health("bare")["running"] == 1
    bare.exec("touch", f"{UNITS}/.ostler-spare")  # of a switch that was cut off before it had written down that it began
    more = f"{UNITS}/ostler-keeper.service.d/more.conf"
    bare.exec("sh", "-ec", f"mkdir -p $(dirname {more}); printf '[Service]\\nNice=1\\n' > {more}")
    said = operator.fleet("uninstall", "--yes", "--end-jobs", host="bare", code=0).stdout
    assert "the journal of ostler-node.service" in said
    assert ", node retired; left: " in said
    assert more in said
    bare.exec("rm", "-r", more.rpartition("/")[0])
    assert operator.node("bare")["state"] == "retired"
    assert bare.exec("sh", "-c", TREE).stdout == tree
    assert bare.exec("pgrep", "-f", "ostler", check=False).stdout == ""
    assert bare.exec("nft", "list", "ruleset").stdout == ""
    assert bare.exec("sh", "-c", "ls -d /dev/shm/ostler* /run/ostler*; id ostler", check=False).stdout == ""
    assert "nothing had to be changed" in operator.fleet("uninstall", "--yes", host="bare", code=0).stdout
    with operator.without_coordinator():
        said = operator.fleet("uninstall", "--yes", host="bare", code=1).stderr
        assert "bare: the host is bare, but the coordinator still knows node bare: " in said
        assert "later: ostler node retire bare" in said
        assert "nothing had to be changed" in operator.fleet("uninstall", "--yes", "--keep-node", host="bare", code=0).stdout
