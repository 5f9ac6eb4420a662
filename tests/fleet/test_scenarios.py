"""What went wrong on real hosts once, played again; docs/explanation/fleet-scenarios.md says which test stands for which sentence."""

import pytest

from e2e.fleet import until
from fleet import variants
from fleet.rig import NODE_UNIT

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]
XMRIG = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'XMRig 6.21.0' && exit\nexec tail -f /dev/null\n"
UNIT = "[Service]\nExecStart=/usr/local/bin/xmrig\n"
SERVICES = {
    "xmrig": {
        "unit": "xmrig.service",
        "binary": "/usr/local/bin/xmrig",
        "candidates": ["/usr/local/bin/xmrig", "/usr/bin/xmrig"],
        "version": "^XMRig ",
    }
}


def test_a_daemon_that_crashes_every_thirty_seconds_is_mended_by_an_update(installed):
    """'Current state: Crashing every 30 seconds. Expected: After update, starts processing commands.'"""
    host = installed.bed.hosts["mini-1"]
    before = installed.in_force("mini-1")
    broken = installed.put("mini-1", installed.variant(variants.LOOPS))
    host.exec("sh", "-c", f"ln -sfn releases/{broken} /opt/ostler/current; systemctl restart {NODE_UNIT}")

    def restarts():
        return int(host.exec("systemctl", "show", "--value", "--property=NRestarts", NODE_UNIT).stdout)

    until(restarts, timeout=90, what="a crash")
    assert installed.update(before, host="mini-1", code=0).ends == {"mini-1": "updated"}
    assert installed.wait(installed.submit("echo works", requirements={"node": "mini-1"}))["state"] == "done"


def test_a_services_program_is_linked_where_its_unit_expects_it(installed):
    """'XMRig in /usr/bin: symlink created, service works.' 'XMRig in /usr/local/bin: no symlink needed, works directly.' 'XMRig not
    installed: warn but continue.'"""
    elsewhere, there, nowhere = (installed.bed.hosts[f"mini-{number}"] for number in (1, 2, 3))
    for host, place in ((elsewhere, "/usr/bin/xmrig"), (there, "/usr/local/bin/xmrig")):
        host.exec("tee", place, stdin=XMRIG)
        host.exec("chmod", "755", place)
    for host in (elsewhere, there):
        host.exec("tee", "/etc/systemd/system/xmrig.service", stdin=UNIT)
        host.exec("systemctl", "daemon-reload")
    installed.know(**{f"mini_{number}": {"vars": {"services": SERVICES}} for number in (1, 2, 3)})
    good = installed.good("with services")
    try:
        done = installed.fleet("update", "--release", good, "--yes", "--window", "2s", code=0)
        assert f"{len(installed.bed.hosts)} updated" in done.stdout
        assert "warning: mini-3: xmrig not found, its service will not work" in done.stderr
        assert elsewhere.exec("readlink", "/usr/local/bin/xmrig").stdout == "/usr/bin/xmrig\n"
        assert there.exec("readlink", "/usr/local/bin/xmrig", check=False).stdout == ""
        assert nowhere.exec("ls", "/usr/local/bin/xmrig", check=False).returncode != 0
        for host in (elsewhere, there):
            host.exec("systemctl", "start", "xmrig")
            assert host.exec("systemctl", "is-active", "xmrig").stdout == "active\n"
        # On an unchanged host a link that is lost is made again.
        elsewhere.exec("rm", "/usr/local/bin/xmrig")
        assert installed.update(good, host="mini-1,mini-2", code=0).ends == {"mini-1": "updated", "mini-2": "current"}
        assert elsewhere.exec("readlink", "/usr/local/bin/xmrig").stdout == "/usr/bin/xmrig\n"
    finally:
        for host in (elsewhere, there):
            host.exec(
                "sh", "-c", "systemctl stop xmrig; rm -f /usr/bin/xmrig /usr/local/bin/xmrig /etc/systemd/system/xmrig.service"
            )
            host.exec("systemctl", "daemon-reload")
        installed.settle()


def test_a_host_without_the_service_says_what_to_do_first(operator, bare):
    """'Orchestrator service not installed: detect and fail gracefully. "Run install.sh first".'"""
    before = bare.exec("sh", "-c", "ls -R /opt /etc/systemd/system /var/lib").stdout
    done = operator.fleet("update", "--release", operator.first.release, "--yes", host="bare", code=1)
    assert "the service is not installed: run `ostler fleet install` first" in done.stdout
    assert bare.exec("sh", "-c", "ls -R /opt /etc/systemd/system /var/lib").stdout == before
    operator.install("--yes", host="bare")
    assert "1 unchanged" in operator.fleet("update", "--release", operator.first.release, "--yes", host="bare", code=0).stdout
