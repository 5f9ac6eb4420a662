"""Releases onto real hosts: under load, back from each kind of bad one, and on from an interruption."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from e2e.fleet import OSTLER, until
from fleet import variants
from ostler.fleet.host import bundle
from ostler.fleet.releases.keys import open_keys
from ostler.fleet.releases.store import ReleaseStore

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]
ROOT = Path(__file__).parents[2]
ALLOWED = {
    "sleep": {"command": {"path": "/usr/bin/sleep"}, "args": [["[0-9]{1,4}"]]},
}


class Installed:
    """A coordinator on this machine, hosts with the daemon in a first release, and the operator's side of it."""

    def __init__(self, testbed, folder: Path) -> None:
        self.bed, self.folder = testbed, folder
        self.hosts = testbed.hosts
        (folder / "coordinator.yaml").write_text(f"allow_insecure_listen: true\nlisten_host: {testbed.gateway}\nlisten_port: 0\n")
        places = {"XDG_STATE_HOME": "state", "XDG_DATA_HOME": "data", "HOME": "."}
        cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"  # the wheels that were fetched once
        self.env = {
            **os.environ,
            **{name: str(folder / where) for name, where in places.items()},
            "XDG_CACHE_HOME": cache,
            "NO_COLOR": "1",
        }
        self.coordinator = subprocess.Popen(
            [OSTLER, "coordinator", "--data", folder / "coordinator", "--config", folder / "coordinator.yaml"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.env,
        )  # fmt: skip
        line = next(line for line in self.coordinator.stdout if line.startswith("ready "))
        self.url = line.split()[1]
        self.env |= {"OSTLER_URL": self.url, "OSTLER_TOKEN": (folder / "coordinator/admin.token").read_text().strip()}
        self.store = folder / "data/ostler/releases"
        built = self.cli("release", "build", "--source", ROOT, "--json", timeout=500)
        if "could not be fetched" in built.stderr:
            self.stop()
            pytest.skip(f"no release can be built here: {built.stderr.strip()}")
        assert built.returncode == 0, built.stderr
        self.first = ReleaseStore(self.store).find(None)

    def cli(self, *args, timeout=300, stdin=None):
        return subprocess.run(
            [OSTLER, *map(str, args)], capture_output=True, text=True, env=self.env, timeout=timeout, input=stdin, check=False
        )

    def fleet(self, command, *args, timeout=400):
        return self.cli(
            "fleet",
            *command.split(),
            "-i",
            self.folder / "inventory.yml",
            "--known-hosts",
            self.bed.folder / "known_hosts",
            *args,
            timeout=timeout,
        )

    def variant(self, changes):
        keys = open_keys(self.folder / "data/ostler/release-keys")
        return variants.variant(self.first, self.store, keys, changes).release

    def update(self, release, *args, window="4s"):
        """Bring a release to the hosts; the canary is watched for three windows."""
        return self.fleet("update", "--release", release, "--yes", "--window", window, "--json", *args)

    def describe(self, **node):
        """Write the inventory; `node` are sections of all hosts' configurations, over what these tests need."""
        inventory = yaml.safe_load((self.bed.folder / "inventory.yml").read_text())
        own = {"sandbox": {"level": "process"}, "heartbeat": {"interval_s": 2}, **node}
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({**inventory, "vars": {"node": own}}))

    def install(self):
        """The first release on all hosts, as an operator does it."""
        self.describe()
        (self.folder / "allow").mkdir()
        for entry, content in ALLOWED.items():
            (self.folder / f"allow/{entry}.yaml").write_text(yaml.safe_dump(content))
        done = self.fleet("install", "--yes", "--release", self.first.release, "--allowlist", self.folder / "allow")
        assert done.returncode == 0, done.stdout + done.stderr

    def host_program(self, name, verb, *args, more=b""):
        program = bundle.program()
        done = subprocess.run(
            ["podman", "exec", "-i", self.hosts[name].container, *bundle.command(len(program), verb, *args)],
            input=program + more, capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (name, verb, done.stdout, done.stderr)
        return done.stdout

    def facts(self, name):
        return json.loads(self.host_program(name, "facts"))

    def sleeper(self, name):
        """A job that runs on this host until it is cancelled: its id, and its process there."""
        manifest = {
            "runner": "cli",
            "command": "/usr/bin/sleep",
            "args": ["900"],
            "timeout_s": 2000,
            "requirements": {"node": name},
        }
        (self.folder / "sleep.yaml").write_text(yaml.safe_dump(manifest))
        job = self.cli("job", "submit", self.folder / "sleep.yaml").stdout.split()[0]
        return job, until(lambda: self.pids(name), timeout=60, what=f"the job on {name}")

    def pids(self, name):
        return self.hosts[name].exec("pgrep", "-x", "sleep", check=False).stdout.split()

    def stop(self):
        self.coordinator.terminate()
        self.coordinator.wait(60)
        self.coordinator.stdout.close()

    def in_force(self, host):
        return Path(self.hosts[host].exec("readlink", "/opt/ostler/current").stdout.strip()).name

    def config(self, host):
        return self.hosts[host].exec("cat", "/etc/ostler/node.yaml").stdout

    def health(self, host):
        return self.facts(host)["health"] or {}


def ends(done):
    """How each host ended, as the last line of `--json` says."""
    assert done.stdout, done.stderr
    return {name: one["ended"] for name, one in json.loads(done.stdout.splitlines()[-1])["hosts"].items()}


def reasons(done):
    return {name: one["reason"] for name, one in json.loads(done.stdout.splitlines()[-1])["hosts"].items()}


@pytest.fixture(scope="module")
def installed(testbed, tmp_path_factory):
    """Hosts with the daemon in a first release. Each test leaves all of them on a good one, and no lock behind."""
    fleet = Installed(testbed, tmp_path_factory.mktemp("fleet"))
    try:
        fleet.install()
        yield fleet
    finally:
        fleet.stop()


def test_an_update_under_load_touches_no_job(installed):
    """The canary first, then the others; jobs keep their processes, the coordinator sees the new release, a second time nothing is done."""
    jobs = {name: installed.sleeper(name) for name in installed.hosts}
    good = installed.variant(variants.GOOD)
    done = installed.update(good)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ends(done) == dict.fromkeys(installed.hosts, "updated")
    began = [line["host"] for line in map(json.loads, done.stdout.splitlines()[:-1]) if line["event"] == "begin"]
    assert began[0] == "mini-1"
    for name, (job, pids) in jobs.items():
        assert installed.pids(name) == pids
        assert json.loads(installed.cli("job", "show", job, "--json").stdout)["state"] == "running"
        shown = json.loads(installed.cli("node", "show", name, "--json").stdout)
        assert shown["capabilities"]["release"] == good
        assert not shown["draining"]
        assert installed.facts(name)["lock"] is None
    again = installed.update(good)
    assert ends(again) == dict.fromkeys(installed.hosts, "current")
    for job, _ in jobs.values():
        installed.cli("job", "cancel", job)


@pytest.mark.long
def test_the_configuration_comes_along_and_goes_back_with_its_release(installed):
    """What the inventory says now is told, brought and judged; a release that cannot read it is not begun with, and one that does not
    start leaves the configuration of before."""
    before = installed.config("mini-2")
    release = installed.in_force("mini-2")
    installed.describe(heartbeat={"interval_s": 3}, tags=["new"])
    try:
        status = json.loads(installed.fleet("status", "--release", release, "--host", "mini-2", "--json").stdout)
        (finding,) = status["hosts"]["mini-2"]["findings"]
        assert re.fullmatch("configuration [0-9a-f]{8} → [0-9a-f]{8}: heartbeat.interval_s, tags", finding["what"])
        assert "interval_s: 2" not in json.dumps(status)
        bad = installed.variant(variants.DOES_NOT_START)
        done = installed.update(bad, "--host", "mini-2")
        assert ends(done) == {"mini-2": "unhealthy"}, done.stdout
        assert (installed.config("mini-2"), installed.in_force("mini-2")) == (before, release)
        older = installed.variant({"ostler/node/config.py": ("heartbeat: Heartbeat", "heart: Heartbeat")})
        done = installed.update(older, "--host", "mini-2")
        assert ends(done) == {"mini-2": "failed"}, done.stdout
        assert f"release {older} cannot read the configuration: " in reasons(done)["mini-2"]
        assert "heartbeat" in reasons(done)["mini-2"]
        assert (installed.config("mini-2"), installed.in_force("mini-2")) == (before, release)
        assert not installed.health("mini-2")["draining"]
        done = installed.update(release, "--host", "mini-2")
        assert ends(done) == {"mini-2": "updated"}, done.stdout
        assert "interval_s: 3" in installed.config("mini-2")
        assert ends(installed.update(release, "--host", "mini-2")) == {"mini-2": "current"}
        assert installed.fleet("status", "--release", release, "--host", "mini-2").returncode == 0
    finally:
        installed.describe()
    assert ends(installed.update(release, "--host", "mini-2")) == {"mini-2": "updated"}
    assert installed.config("mini-2") == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param(variants.DOES_NOT_START, "ostler-node.service|the daemon", id="does-not-start"),
        pytest.param(variants.LOOPS, "the daemon ended 2 times", id="loops", marks=pytest.mark.long),
        pytest.param(variants.RUNS_NO_JOB, "it cannot run a job: E_EXIT", id="runs-no-job", marks=pytest.mark.long),
    ],
)
def test_a_bad_release_goes_back_and_says_why(installed, changes, why):
    before = {name: installed.in_force(name) for name in installed.hosts}
    done = installed.update(installed.variant(changes), window="20s")
    assert done.returncode == 1, done.stdout + done.stderr
    assert ends(done) == {"mini-1": "unhealthy", **dict.fromkeys([*installed.hosts][1:], "held")}
    assert re.search(why, reasons(done)["mini-1"]), reasons(done)
    assert {name: installed.in_force(name) for name in installed.hosts} == before
    until(lambda: installed.health("mini-1").get("self_check") == "ok", timeout=60, what="the release before")
    assert installed.facts("mini-1")["lock"] is None


@pytest.mark.long
def test_what_the_coordinator_refuses_goes_back_though_the_host_let_it_stay(installed):
    """Its canary job is denied there, after the host's own window is over."""
    before = installed.in_force("mini-1")
    installed.hosts["mini-1"].exec("mv", "/etc/ostler/allowlist.d/ostler-canary.yaml", "/root/")
    installed.hosts["mini-1"].exec("systemctl", "reload", "ostler-node")
    try:
        good = installed.variant({variants.NODE: (variants.MAIN, variants.MAIN + "    # denied\n")})
        done = installed.update(good, "--host", "mini-1", window="1s")
        assert ends(done) == {"mini-1": "unhealthy"}, done.stdout
        assert "E_DENY" in reasons(done)["mini-1"]
        assert installed.in_force("mini-1") == before
        assert installed.facts("mini-1")["lock"] is None
    finally:
        installed.hosts["mini-1"].exec("mv", "/root/ostler-canary.yaml", "/etc/ostler/allowlist.d/")
        installed.hosts["mini-1"].exec("systemctl", "reload", "ostler-node")


@pytest.mark.long
def test_a_lost_coordinator_rolls_nothing_back(installed):
    """The release is good and no coordinator answers: the watcher holds, says so, and lets no second update in between."""
    good = installed.variant({variants.NODE: (variants.MAIN, variants.MAIN + "    # yet another\n")})
    installed.coordinator.send_signal(signal.SIGSTOP)
    try:
        done = installed.update(good, "--host", "mini-2", "--timeout", "75s", "--no-coordinator")
        assert ends(done) == {"mini-2": "unreachable"}, done.stdout
        assert "coordinator" in reasons(done)["mini-2"]
        assert installed.in_force("mini-2") == good
        assert installed.facts("mini-2")["update"]["state"] == "holding"
        other = installed.update(installed.first.release, "--host", "mini-2", "--no-coordinator")
        assert "is still being watched (holding)" in reasons(other)["mini-2"]
    finally:
        installed.coordinator.send_signal(signal.SIGCONT)
    until(
        lambda: (installed.facts("mini-2")["last"] or {}).get("state") == "good", timeout=120, what="a coordinator that is back"
    )
    assert installed.in_force("mini-2") == good


@pytest.mark.long
def test_an_updater_that_is_killed_is_gone_on_with(installed):
    """kill -9 in the middle of the switch; --resume finds what was done, and does the rest."""
    good = installed.variant({variants.NODE: (variants.MAIN, variants.MAIN + "    # one more\n")})
    command = [
        OSTLER,
        "fleet",
        "update",
        "-i",
        installed.folder / "inventory.yml",
        "--known-hosts",
        installed.bed.folder / "known_hosts",
    ]
    command += ["--release", good, "--yes", "--window", "4s", "--json"]
    updater = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=installed.env)
    for line in updater.stdout:
        if json.loads(line).get("phase") == "switching":
            updater.kill()
            break
    updater.wait(30)
    updater.stdout.close()
    done = installed.fleet("update", "--resume", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(ends(done).values()) == {"updated"}
    assert {installed.in_force(name) for name in installed.hosts} == {good}


@pytest.mark.long
def test_troubles_of_one_host_touch_no_other(installed):
    """One paused, one whose files are edited by hand, one fine: each is told in a line, and the command that is named mends it."""
    good = installed.in_force("mini-1")
    installed.hosts["mini-1"].exec(
        "sh", "-c", "echo '# by hand' >> /etc/systemd/system/ostler-node.service; echo '# by hand' >> /etc/ostler/node.yaml"
    )
    installed.hosts["mini-3"].pause()
    try:
        status = installed.fleet("status", "--release", good, "--json")
        found = json.loads(status.stdout)["hosts"]
        assert status.returncode == 1
        unit, config = (one["what"] for one in found["mini-1"]["findings"])
        assert unit == "ostler-node.service was edited"
        assert re.fullmatch("configuration, edited on the host, [0-9a-f]{8} → [0-9a-f]{8}: its form alone", config)
        assert {one["mend"] for one in found["mini-1"]["findings"]} == {"ostler fleet update --host mini-1"}
        assert found["mini-2"]["findings"] == []
        assert "no SSH at" in found["mini-3"]["error"]
        done = installed.update(good, "--canary", "0", "--max-failures", "1")
        assert ends(done) == {"mini-1": "updated", "mini-2": "current", "mini-3": "unreachable"}, done.stdout
    finally:
        installed.hosts["mini-3"].unpause()
    assert installed.fleet("status", "--release", good).returncode == 0


def test_what_is_executed_is_printed_first_and_nothing_changes(installed):
    before = {name: installed.facts(name)["releases"] for name in installed.hosts}
    good = installed.variant({variants.NODE: (variants.MAIN, variants.MAIN + "    # never sent\n")})
    done = installed.fleet("update", "--release", good, "--dry-run")
    assert done.returncode == 0
    assert "switch --rollout" in done.stdout
    assert {name: installed.facts(name)["releases"] for name in installed.hosts} == before
    refused = installed.fleet("update", "--release", good)
    assert refused.returncode == 2
    assert "say --yes" in refused.stderr


def test_commands_on_all_hosts(installed):
    done = installed.fleet("run", "--yes", "--", "/bin/sh", "-c", 'echo "$(id -un)" $HOSTNAME; hostname')
    assert sorted(done.stdout.split("\n"))[1:] == sorted(f"{name}: {line}" for name in installed.hosts for line in ("root", name))
    assert installed.fleet("logs", "-n", "1").stdout.count("mini-") >= len(installed.hosts)
    assert "no host is locked" in installed.fleet("lock status").stderr
    installed.host_program("mini-1", "lock", "--rollout", "eve", "--owner", "eve@laptop", "--message", "lunch")
    assert re.search(r"mini-1 +eve@laptop .*lunch", installed.fleet("lock status").stdout)
    refused = installed.update(installed.first.release, "--host", "mini-1")
    assert "locked by eve@laptop for" in reasons(refused)["mini-1"]
    broken = installed.fleet("lock break", "--host", "mini-1", "--why", "eve has gone home", "--yes")
    assert broken.stdout == "mini-1: the lock of eve@laptop (lunch) is broken\n"
