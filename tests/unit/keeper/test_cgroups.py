"""Where a keeper's own cgroups are, from what the kernel says of mounts and membership."""

import shutil
from pathlib import Path

import pytest

from ostler.node.keeper.cgroups import Cgroups, Group, below, find, remove

HYBRID = """\
25 30 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw,mode=755
27 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
28 25 0:25 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,name=systemd
33 25 0:30 / /sys/fs/cgroup/pids rw,nosuid shared:17 - cgroup cgroup rw,pids
34 25 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:18 - cgroup cgroup rw,cpu,cpuacct
35 25 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:19 - cgroup cgroup rw,memory
36 25 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
"""
HYBRID_OWN = """\
9:name=systemd:/system.slice/keeper.service
8:pids:/system.slice/keeper.service
4:memory:/
3:cpu,cpuacct:/system.slice
2:freezer:/
0::/system.slice/keeper.service
"""
UNIFIED = "29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
CONTAINER = "812 800 0:31 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory\n"


def test_hybrid():
    v1, v2 = find(HYBRID, HYBRID_OWN)
    assert v1 == {
        "pids": "/sys/fs/cgroup/pids/system.slice/keeper.service",
        "memory": "/sys/fs/cgroup/memory",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/system.slice",
        "freezer": "/sys/fs/cgroup/freezer",
    }
    assert v2 == "/sys/fs/cgroup/unified/system.slice/keeper.service"


def test_unified():
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/keeper.service"
    assert find(UNIFIED, f"0::{path}\n") == ({}, f"/sys/fs/cgroup{path}")
    assert find(UNIFIED, "0::/\n") == ({}, "/sys/fs/cgroup")


def test_a_container_sees_a_part_of_the_hierarchy():
    assert find(CONTAINER, "4:memory:/docker/abc\n") == ({"memory": "/sys/fs/cgroup/memory"}, None)
    assert find(CONTAINER, "4:memory:/docker/abc/job\n") == ({"memory": "/sys/fs/cgroup/memory/job"}, None)


@pytest.mark.parametrize(
    ("root", "path", "directory"),
    [("/", "/", "/m"), ("/", "/a/b", "/m/a/b"), ("/a", "/a", "/m"), ("/a", "/a/b", "/m/b"), ("/a", "/ab", "/m/ab")],
)
def test_below(root, path, directory):
    assert below(root, "/m", path) == directory


def test_no_mounts_no_groups():
    assert find("", "") == ({}, None)
    assert Cgroups("none", {}).create("a", memory_mb=5, cpu_pct=5, processes=5) is None


def test_counters_as_the_kernel_writes_them(tmp_path):
    """Version 2's files with the controllers on, which this kernel may not have."""
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 1\n")
    (tmp_path / "memory.peak").write_text("68157440\n")
    group = Group([str(tmp_path)], v2=True, memory=str(tmp_path), pids=None, cpu=None)
    assert (group.memory_kills(), group.peak_bytes(), group.source) == (3, 65 << 20, "cgroup-v2")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("1048576\n")
    group = Group([str(tmp_path)], v2=False, memory=str(tmp_path), pids=None, cpu=None)
    assert (group.memory_kills(), group.peak_bytes(), group.source) == (4, 1 << 20, "cgroup-v1")
    unlimited = Group([str(tmp_path)], v2=False, memory=None, pids=None, cpu=None)
    assert (unlimited.memory_kills(), unlimited.peak_bytes()) == (0, 0)


def test_limits_as_the_kernel_wants_them(tmp_path):
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"):
        (tmp_path / name).touch()
    directory = str(tmp_path)
    Group([directory], v2=True, memory=directory, pids=directory, cpu=directory).limit(memory_mb=64, cpu_pct=150, processes=9)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "9",
    }


def plain(groups):
    group = groups.take("a", memory_mb=None, cpu_pct=None, processes=None)
    (Path(group.directories[0]) / "tasks").touch()
    return group


def test_a_group_without_limits_serves_the_next_attempt(tmp_path):
    groups = Cgroups("v1", {"pids": str(tmp_path)})
    group = plain(groups)
    _, entrance = group.open()
    assert groups.release(group, empty=True) == []
    again = groups.take("b", memory_mb=None, cpu_pct=None, processes=None)
    assert again is group
    assert again.open() == (None, entrance), "its door stays open"
    assert groups.take("c", memory_mb=None, cpu_pct=None, processes=None) is not group
    again.shut()


def test_a_group_that_was_limited_or_changed_serves_one_attempt(tmp_path):
    groups = Cgroups("v1", {"pids": str(tmp_path)})
    killed, nested, gone = plain(groups), plain(groups), plain(groups)
    killed.forbid_forks()
    (Path(nested.directories[0]) / "below").mkdir()
    for group in (killed, nested):
        groups.release(group, empty=True)
    assert groups.release(gone, empty=True) == []
    shutil.rmtree(gone.directories[0])
    fresh = groups.take("b", memory_mb=None, cpu_pct=None, processes=None)
    assert fresh not in (killed, nested, gone)
    groups.release(fresh, empty=False)
    assert groups.take("c", memory_mb=None, cpu_pct=None, processes=None) is not fresh, "processes are stuck in it"
    groups = Cgroups("v1", {"freezer": str(tmp_path / "freezer"), "memory": str(tmp_path / "memory")})
    (tmp_path / "memory").mkdir()
    few = groups.take("a", memory_mb=None, cpu_pct=None, processes=7)
    groups.release(few, empty=True)
    assert groups.take("b", memory_mb=None, cpu_pct=None, processes=8) is not few
    assert groups.take("c", memory_mb=None, cpu_pct=None, processes=None) is not few
    assert groups.take("d", memory_mb=None, cpu_pct=None, processes=7) is few


def test_numbers_of_processes_beyond_a_few_have_no_groups_of_their_own(tmp_path):
    groups = Cgroups("v1", {"freezer": str(tmp_path)})
    for number in range(1, 10):
        groups.release(groups.take("a", memory_mb=None, cpu_pct=None, processes=number), empty=True)
    assert len(list(tmp_path.iterdir())) == 4


def test_removal_takes_what_a_job_made_below(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "d").mkdir()
    assert remove(str(tmp_path / "a"))
    assert remove(str(tmp_path / "a"))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "held").write_text("as a group with processes in it")
    assert not remove(str(tmp_path / "e"))
