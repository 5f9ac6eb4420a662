"""What a host can do, judged from evidence; and each lack with what mends it."""

from dataclasses import replace

import pytest

from ostler.model.sandbox import BUILT_IN, SandboxLevel
from ostler.node.sandbox.abilities import Evidence, Trial, judge, parse_cgroup

GOOD = Evidence(
    root=False,
    machine_known=True,
    seccomp=True,
    landlock_abi=4,
    userns=True,
    cgroup="v2",
    bwrap_version=(0, 8, 0),
    bwrap=Trial(0),
)


def why(evidence: Evidence, level: str) -> tuple[str, str]:
    found = judge(evidence)
    assert level not in found.levels
    (missing,) = (one for one in found.missing if one.level == level)
    return missing.reason, missing.mend


def test_a_good_host() -> None:
    found = judge(GOOD)
    assert found.known_levels() == (SandboxLevel.NONE, SandboxLevel.PROCESS, SandboxLevel.BWRAP)
    assert found.bwrap == "0.8.0"
    assert not found.bwrap_userns
    assert (found.userns, found.seccomp, found.landlock_abi, found.cgroup) == (True, True, 4, "v2")


def test_sandboxes_of_our_own_need_no_bubblewrap() -> None:
    found = judge(replace(GOOD, own=True, bwrap_version=None))
    assert SandboxLevel.BWRAP in found.known_levels()
    assert found.bwrap == BUILT_IN


def test_every_level_is_either_there_or_missing_with_a_mend() -> None:
    for evidence in (GOOD, replace(GOOD, seccomp=False, bwrap_version=None, bwrap=None)):
        found = judge(evidence)
        named = [*found.levels, *(one.level for one in found.missing)]
        assert sorted(named) == sorted(SandboxLevel)
        assert all(one.reason and one.mend for one in found.missing)


def test_no_bubblewrap() -> None:
    assert why(replace(GOOD, bwrap_version=None, bwrap=None), "bwrap") == (
        "bubblewrap is not installed",
        "apt-get install bubblewrap",
    )


@pytest.mark.parametrize(
    ("sysctl", "value", "mend"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_namespaces_switched_off(sysctl: str, value: str, mend: str) -> None:
    refused = Trial(1, "bwrap: No permissions to create new namespace")
    reason, told = why(replace(GOOD, bwrap=refused, sysctls={sysctl: value}), "bwrap")
    assert mend in told
    assert "No permissions" in reason


def test_a_hanging_bwrap() -> None:
    reason, _ = why(replace(GOOD, bwrap=Trial(None)), "bwrap")
    assert "2 s" in reason


def test_in_a_container() -> None:
    reason, mend = why(replace(GOOD, bwrap=Trial(1)), "bwrap")
    assert "exit code 1" in reason
    assert "CAP_SYS_ADMIN" in mend


def test_root_that_needs_a_user_namespace() -> None:
    found = judge(replace(GOOD, root=True, bwrap=Trial(1, "not permitted"), in_userns=Trial(0)))
    assert "bwrap" in found.levels
    assert found.bwrap_userns


def test_no_filters() -> None:
    assert "CONFIG_SECCOMP_FILTER" in why(replace(GOOD, seccomp=False), "process")[1]
    assert "architecture" in why(replace(GOOD, machine_known=False), "process")[0]


ROOT = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:5 - cgroup cgroup rw,cpu\n"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
ELSEWHERE = "50 22 0:40 / /mnt/c rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("text", "kind"), [(ROOT + V2, "v2"), (ROOT + V1, "v1"), (ROOT + V1 + UNIFIED, "hybrid"), (ROOT + ELSEWHERE, "none")]
)
def test_cgroups(text: str, kind: str) -> None:
    assert parse_cgroup(text) == kind
