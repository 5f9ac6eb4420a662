"""Hosts that drift in many ways at once: each is named with the command that mends it, and these commands mend them."""

import json
import re

import pytest

from e2e.fleet import until
from fleet.breaking import other_clock
from fleet.rig import NODE_UNIT
from ostler.protocol.messages import PROTOCOL, PROTOCOL_MIN

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]
PROGRAM = "#!/bin/sh\\necho XMRig 6.21.0\\n"
SERVICES = {
    "xmrig": {
        "unit": "xmrig.service",
        "binary": "/usr/local/bin/xmrig",
        "candidates": ["/usr/local/bin/xmrig", "/usr/bin/xmrig"],
        "version": "^XMRig ",
    }
}
# What the daemon of this release says that it speaks is of a later world.
LATER = {"ostler/node/health.py": ('"protocol": m.PROTOCOL,', '"protocol": 99,')}


def findings(operator, *args, code):
    """What differs on each host, and the command that is named for it."""
    told = json.loads(operator.fleet("status", *args, "--json", code=code).stdout)["hosts"]
    return {name: {one["what"]: one["mend"] for one in host["findings"]} for name, host in told.items()}


def test_nine_kinds_of_drift_are_named_and_mended(installed):
    hosts = [installed.bed.hosts[f"mini-{number}"] for number in (1, 2, 3)]
    one, two, three = hosts
    good = installed.good("wanted")
    installed.know(mini_2={"vars": {"services": SERVICES}})
    assert set(installed.update(good, code=0).ends.values()) == {"updated"}
    foreign, strange = installed.good("foreign"), installed.variant(LATER)
    for release in (foreign, strange):
        installed.put(two.name, release)
    wanted = ("--release", good)
    try:
        one.exec("sh", "-c", "echo '# by hand' >> /etc/systemd/system/ostler-keeper.service")  # 1: a unit
        one.exec("sed", "-i", "s/interval_s: 2/interval_s: 7/", "/etc/ostler/node.yaml")  # 2: the configuration
        one.exec("systemctl", "stop", NODE_UNIT)  # 3: a daemon that was stopped
        two.exec(
            "sh", "-c", f"printf '{PROGRAM}' > /usr/bin/xmrig; chmod 755 /usr/bin/xmrig"
        )  # 4: a service's program is elsewhere
        two.exec(
            "sh", "-c", f"ln -sfn releases/{strange} /opt/ostler/current; systemctl restart {NODE_UNIT}"
        )  # 5, 6: release, protocol
        until(lambda: installed.health(two.name).get("release") == strange, timeout=60, what="the foreign release")
        three.exec("ln", "-sfn", f"releases/{installed.put(three.name, foreign)}", "/opt/ostler/current")  # 7: a stale daemon
        stale = "import json,sys; p='/var/lib/ostler-update/lock.json'; d=json.load(open(p)); d['beat_at']-=400; json.dump(d,open(p,'w'))"
        installed.ask(three.name, "lock", "--rollout", "eve", "--owner", "eve@laptop", "--message", "lunch")
        three.exec("python3", "-c", stale)  # 8: a lock that nobody holds any more
        with other_clock(three, -90):  # 9: the clock
            found = findings(installed, *wanted, code=1)
        reach = f"-i {installed.inventory} --known-hosts {installed.bed.folder / 'known_hosts'}"
        update = f"ostler fleet update {reach} --release {good} --host {{}}".format
        run = f"ostler fleet run {reach} --host {{}} -- {{}}".format
        assert found["mini-1"].pop("ostler-keeper.service was edited") == update("mini-1")
        (config,) = [what for what in found["mini-1"] if what.startswith("configuration, edited on the host")]
        assert found["mini-1"] == {
            config: update("mini-1"),
            f"{NODE_UNIT} is inactive": run("mini-1", f"systemctl restart {NODE_UNIT}"),
        }
        assert found["mini-2"] == {
            f"release {strange}, not {good}": update("mini-2"),
            "/usr/local/bin/xmrig is missing, the program is at /usr/bin/xmrig": update("mini-2"),
            f"it speaks protocol 99, current are {PROTOCOL_MIN} to {PROTOCOL}": update("mini-2"),
        }
        clock = next(what for what in found["mini-3"] if "clock" in what)
        assert re.fullmatch(r"its clock is \d+ s behind", clock)
        assert found["mini-3"].pop(clock) == run("mini-3", "timedatectl set-ntp true")
        assert found["mini-3"] == {
            f"release {foreign}, not {good}": update("mini-3"),
            f"the daemon still runs {good}": run("mini-3", f"systemctl restart {NODE_UNIT}"),
            "locked by eve@laptop, who is silent": f"ostler fleet lock break {reach} --host mini-3 --why …",
        }
        lock, *others = sorted(
            {mend for host in found.values() for mend in host.values()}, key=lambda one: "lock break" not in one
        )
        installed.mend(lock.replace("…", "eve-has-gone"))
        for mend in others:
            installed.mend(mend)
        assert findings(installed, *wanted, code=0) == {name: {} for name in installed.bed.hosts}
        assert two.exec("readlink", "/usr/local/bin/xmrig").stdout.strip() == "/usr/bin/xmrig"
    finally:
        installed.ask(three.name, "break-lock", "--why", "over", "--owner", "test")
        two.exec("rm", "-f", "/usr/bin/xmrig", "/usr/local/bin/xmrig")
        installed.settle()
