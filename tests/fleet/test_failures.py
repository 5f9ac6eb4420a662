"""What can go wrong with a host or with the updater: each is told in a line that says what to do, and touches no other host."""

import json
import re

import pytest

from fleet import variants
from fleet.rig import Rollout

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]


def test_troubles_of_one_host_touch_no_other(installed):
    """One whose files are edited by hand, one whose /opt is read-only, one that hangs: a line each, and one command for the rest."""
    good = installed.in_force("mini-1")
    one, two, three = (installed.bed.hosts[f"mini-{number}"] for number in (1, 2, 3))
    one.exec("sh", "-c", "echo '# by hand' >> /etc/systemd/system/ostler-node.service; echo '# by hand' >> /etc/ostler/node.yaml")
    two.exec("sh", "-c", "mount --bind /opt/ostler /opt/ostler && mount -o remount,bind,ro /opt/ostler")
    three.pause()
    try:
        done = installed.fleet(
            "update", "--release", good, "--yes", "--canary", "0", "--max-failures", "2", "--window", "2s", code=1
        )
        assert re.search(r"mini-1 +updated", done.stdout), done.stdout
        assert re.search(r"mini-2 +failed .*cannot write to /opt/ostler/releases: read-only file system", done.stdout), (
            done.stdout
        )
        assert re.search(r"mini-3 +unreachable .*no SSH at", done.stdout), done.stdout
        assert "1 updated" in done.stdout
        again = re.search(r"try again: (ostler fleet update .*)", done.stderr)[1]
        assert again.endswith("--host mini-2,mini-3")
    finally:
        two.exec("umount", "/opt/ostler")
        three.unpause()
    assert "2 unchanged" in installed.mend(again).stdout


@pytest.mark.long
@pytest.mark.parametrize("phase", ["locking", "uploading", "switching", "gating", "confirming", "unlocking"])
def test_an_updater_that_is_killed_at_any_step_is_gone_on_with(installed, phase):
    """SIGKILL as the canary begins this step; `--resume` finds what was done, does the rest, and nothing is left locked."""
    good = installed.good(f"killed while {phase}")
    with installed.updating(good) as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == phase:
                break
        updater.kill()
    done = Rollout(installed.fleet("update", "--resume", "--json", code=0))
    assert set(done.ends.values()) == {"updated"}, done.text
    for name in installed.bed.hosts:
        facts = installed.facts(name)
        assert (facts["current"], facts["lock"], facts["update"]) == (good, None, None)
    again = installed.fleet("update", "--resume", code=3)
    assert "no rollout was interrupted" in again.stderr


@pytest.mark.long
def test_an_updater_that_is_killed_while_a_host_goes_back(installed):
    """The host is on its release of before, by itself; the resumed rollout says why, and holds the others."""
    before = installed.in_force("mini-1")
    with installed.updating(installed.variant(variants.DOES_NOT_START)) as updater:
        for line in updater.stdout:
            if json.loads(line).get("phase") == "going_back":
                break
        updater.kill()
    installed.good_again("mini-1")
    done = Rollout(installed.fleet("update", "--resume", "--json", code=1))
    assert done.ends == {"mini-1": "unhealthy", **dict.fromkeys([*installed.bed.hosts][1:], "held")}, done.text
    assert installed.in_force("mini-1") == before
    assert installed.facts("mini-1")["lock"] is None
