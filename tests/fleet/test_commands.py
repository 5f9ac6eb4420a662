"""What an operator does on many hosts beside rollouts, on real ones: new keys, a guarded health port, what an old keeper still needs."""

import json
import re
import urllib.request

import pytest

from e2e.fleet import until

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
KEY, OLD = "/var/lib/ostler/node/node.key", "/var/lib/ostler/node/node.key.old"
# Arguments and environment of every process that comes up, for as long as the file is there.
RECORD = """
touch /run/recording
while [ -e /run/recording ]; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; done | tr '\\0' '\\n' | sort -u > /run/seen
touch /run/recorded
"""


def secret_of(pem):
    """The private part, as it stands in the file."""
    return re.search("-----BEGIN PRIVATE KEY-----\n(.+)\n-----END", pem)[1]


def test_all_nodes_get_new_keys_and_no_secret_is_seen(installed, host):
    shown = installed.fleet("rotate-credentials", "--dry-run", "--verbose", code=0).stdout
    assert shown.count("rotate-key --wait 60") == len(installed.bed.hosts)
    before = {name: one.exec("cat", KEY).stdout for name, one in installed.bed.hosts.items()}
    job, pids = installed.sleeper("mini-1")
    host.exec("tee", "/run/record.sh", stdin=RECORD)
    host.exec("systemd-run", "--collect", "sh", "/run/record.sh")
    until(lambda: host.exec("ls", "/run/recording", check=False).stdout, what="the record")
    try:
        done = installed.fleet("rotate-credentials", "--yes", "--json", code=0)
    finally:
        host.exec("rm", "-f", "/run/recording")
    until(lambda: host.exec("ls", "/run/recorded", check=False).stdout, what="the end of the record")
    said = {one["host"]: one for one in json.loads(done.stdout)}
    assert set(said) == set(installed.bed.hosts)
    after = {name: one.exec("cat", KEY).stdout for name, one in installed.bed.hosts.items()}
    seen = host.exec("cat", "/run/seen").stdout
    assert "rotate-key" in seen
    logs = host.exec("journalctl", "--no-pager", "--output=cat").stdout + (installed.folder / "coordinator.log").read_text()
    for name in installed.bed.hosts:
        assert after[name] != before[name]
        assert said[name]["proven"]
        assert said[name]["key_id"] != said[name]["previous"]
        assert installed.health(name)["session"]
        for pem in (before[name], after[name]):
            assert secret_of(pem) not in seen + logs + done.stdout + done.stderr
    assert host.exec("sh", "-c", f"stat --format='%a %U' {KEY}; ls {OLD} 2>/dev/null; true").stdout == "600 ostler\n"
    assert installed.pids("mini-1") == pids
    assert installed.job(job)["state"] == "running"
    installed.cli("job", "cancel", job, code=0)
    rows = json.loads(installed.cli("audit", "list", "--action", "replace_key", "--json", code=0).stdout)["items"]
    assert {one["target"] for one in rows} == set(installed.bed.hosts)


def test_the_doctor_sees_a_coordinator_beyond_loopback(installed):
    found = {one["name"]: one for one in json.loads(installed.cli("doctor", "--json").stdout)}
    assert found["coordinator"]["state"] == found["token"]["state"] == "ok", found
    installed.env, env = {**installed.env, "OSTLER_TOKEN": "ost_api_" + "x" * 43}, installed.env
    try:
        found = {one["name"]: one for one in json.loads(installed.cli("doctor", "--json", code=1).stdout)}
    finally:
        installed.env = env
    assert found["coordinator"]["state"] == "ok", found  # it is alive; what is wrong is the token
    assert (found["token"]["state"], found["token"]["text"]) == ("fail", "was answered 401")


@pytest.mark.long
def test_a_host_that_loses_its_power_while_its_key_is_replaced_is_let_in_again(installed):
    host = installed.bed.hosts["mini-2"]
    drop_in = "/run/systemd/system/ostler-node.service.d/never.conf"  # it stays in the middle: no daemon opens a session
    host.exec("sh", "-c", f"mkdir -p $(dirname {drop_in}); printf '[Service]\\nExecStartPre=/bin/false\\n' > {drop_in}")
    host.exec("systemctl", "daemon-reload")
    try:
        failed = installed.fleet("rotate-credentials", "--yes", host="mini-2", code=1)
        assert "ostler-node" in failed.stderr
        assert re.search("again: ostler fleet rotate-credentials -i .* --host mini-2", failed.stderr)
        host.exec("ls", OLD)
        host.kill()
    finally:
        host.start()
    installed.good_again("mini-2")
    assert installed.health("mini-2")["session"]
    assert "node mini-2 has the key" in installed.fleet("rotate-credentials", "--yes", host="mini-2", code=0).stdout
    host.exec("sh", "-c", f"! ls {OLD}")


@pytest.mark.long
def test_what_the_keeper_was_started_from_is_never_pruned(installed):
    """Two updates later its release is neither the one in force nor the one before, and its parts are loaded yet."""
    name = "mini-3"
    keeper = "tr '\\0' ' ' < /proc/$(systemctl show --value --property=MainPID ostler-keeper)/cmdline"
    [release] = re.findall("/opt/ostler/releases/([^/]+)/bin/python", installed.bed.hosts[name].exec("sh", "-c", keeper).stdout)[
        :1
    ]
    before = installed.in_force(name)
    for word in ("one later", "two later", "three later"):
        assert installed.update(installed.good(word), host=name).ends == {name: "updated"}
    removed = installed.fleet("prune", "--keep", "1", host=name, code=0).stdout
    assert removed.startswith(f"{name}: removed ")
    assert release not in removed
    assert release in installed.facts(name)["releases"]
    assert release != installed.in_force(name)
    assert installed.update(before, host=name).ends == {name: "updated"}


def configure(installed, name, config):
    """By hand, as it is not for the inventory that these tests are."""
    installed.bed.hosts[name].exec("tee", "/etc/ostler/node.yaml", stdin=config)
    installed.bed.hosts[name].exec("systemctl", "restart", "ostler-node")
    installed.good_again(name)


def reaches(host):
    """Whether this machine gets an answer of the host's health port."""
    try:
        with urllib.request.urlopen(f"http://{host.address}:7481/healthz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.long
def test_the_health_port_is_for_given_networks_alone(installed):
    """Seen from this machine and from a neighbour; SSH goes on, a reboot changes nothing, and what was made goes again."""
    first, second = installed.bed.hosts["mini-1"], installed.bed.hosts["mini-2"]
    before = first.exec("nft", "list", "ruleset").stdout
    config = installed.config("mini-1")
    try:
        configure(installed, "mini-1", config + "health: {listen: '0.0.0.0:7481'}\n")
        assert reaches(first)
        shown = installed.fleet("firewall", "--allow", "192.0.2.0/24", "--dry-run", host="mini-1", code=0).stdout
        assert 'iifname != "lo" tcp dport 7481 ip saddr != { 192.0.2.0/24 } counter drop' in shown
        assert first.exec("nft", "list", "ruleset").stdout == before
        words = ("--allow", second.address, "--allow", "2001:db8::/32", "--yes")
        said = installed.fleet("firewall", *words, host="mini-1", code=0).stdout
        assert f"rules in force; closed for {installed.bed.gateway}, as it should be" in said
        assert "nothing had to be changed; closed" in installed.fleet("firewall", *words, host="mini-1", code=0).stdout
        assert not reaches(first)
        first.exec("systemctl", "disable", "--now", "ostler-firewall")
        words_of_status = ("--release", installed.in_force("mini-1"), "--keep-config", "--json")
        told = json.loads(installed.fleet("status", *words_of_status, host="mini-1", code=1).stdout)["hosts"]["mini-1"][
            "findings"
        ]
        (open_,) = [one for one in told if one["what"].startswith("ostler-firewall.service is inactive")]
        assert reaches(first)
        installed.mend(open_["mend"])
        assert not reaches(first)
        get = f"import urllib.request; print(urllib.request.urlopen('http://{first.address}:7481/healthz', timeout=5).status)"
        assert second.exec("python3", "-c", get).stdout == "200\n"
        assert first.exec("python3", "-c", get.replace(first.address, "127.0.0.1")).stdout == "200\n"
        first.reboot()
        installed.good_again("mini-1")
        assert not reaches(first)
        said = installed.fleet("firewall", "--allow", f"{installed.bed.gateway}/32", "--yes", host="mini-1", code=0).stdout
        assert f"open for {installed.bed.gateway}, as it should be" in said
        assert "ostler-firewall.service" in installed.fleet("firewall", "--remove", "--yes", host="mini-1", code=0).stdout
        assert "nothing had to be changed" in installed.fleet("firewall", "--remove", "--yes", host="mini-1", code=0).stdout
        assert first.exec("nft", "list", "ruleset").stdout == before
        assert first.exec("sh", "-c", "ls /etc/ostler/*.nft /etc/systemd/system/ostler-firewall* 2>/dev/null; true").stdout == ""
    finally:
        configure(installed, "mini-1", config)


@pytest.mark.long
def test_a_host_without_nftables_and_a_port_of_others_are_refused(installed):
    host = installed.bed.hosts["mini-2"]
    host.exec("mv", "/usr/sbin/nft", "/usr/sbin/nft.away")
    try:
        said = installed.fleet("firewall", "--allow", "10.0.0.0/8", "--yes", host="mini-2", code=1).stderr
        assert "nft is not on this host: `apt-get install nftables` brings it" in said
    finally:
        host.exec("mv", "/usr/sbin/nft.away", "/usr/sbin/nft")
    config = host.exec("cat", "/etc/ostler/node.yaml").stdout
    try:
        host.exec("tee", "/etc/ostler/node.yaml", stdin=config + "health: {listen: '0.0.0.0:22'}\n")
        said = installed.fleet("firewall", "--allow", "10.0.0.0/8", "--yes", host="mini-2", code=1).stderr
        assert "port 22 is the one of SSH" in said
        assert host.exec("nft", "list", "ruleset").stdout == ""
    finally:
        host.exec("tee", "/etc/ostler/node.yaml", stdin=config)
