"""The host's facts, from texts and small directories."""

import os
import stat
from pathlib import Path

import pytest

from ostler.model.capabilities import Engine, Os
from ostler.node.probe import host

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu vme sse4_2 avx avx2 fma avx512f hypervisor
processor\t: 1
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes sha2 atomics asimddp sve
CPU implementer\t: 0x41
"""


def test_processors() -> None:
    assert host.parse_cpuinfo(INTEL) == (
        "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz",
        ("sse4_2", "avx", "avx2", "fma", "avx512f"),
    )
    assert host.parse_cpuinfo(ARM) == ("", ("aes", "asimd", "asimddp", "sve", "sha2", "atomics"))
    assert host.parse_cpuinfo("") == ("", ())


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7", 5), ("", 0)])
def test_ranges(text: str, count: int) -> None:
    assert host.count_ranges(text) == count


def test_numa_nodes(tmp_path: Path) -> None:
    place = tmp_path / "sys/devices/system/node"
    place.mkdir(parents=True)
    (place / "online").write_text("0-1\n")
    assert host.cpu(root=tmp_path).numa_nodes == 2
    assert host.cpu(root=tmp_path / "empty").numa_nodes == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('PRETTY_NAME="Debian"\nVERSION_ID="12"\nID=debian\n# x\n', Os(id="debian", version="12")),
        ("ID='arch'\n", Os(id="arch", version="")),
        ("", Os(id="linux", version="")),
    ],
)
def test_distributions(text: str, found: Os) -> None:
    assert host.parse_os_release(text) == found


def test_the_machine_id(tmp_path: Path) -> None:
    assert host.machine_id(root=tmp_path) == ""
    (tmp_path / "var/lib/dbus").mkdir(parents=True)
    (tmp_path / "var/lib/dbus/machine-id").write_text("old\n")
    assert host.machine_id(root=tmp_path) == "old"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("new\n")
    assert host.machine_id(root=tmp_path) == "new"


def test_engines(tmp_path: Path) -> None:
    assert host.engines(root=tmp_path, uid=1000, programs=str(tmp_path)) == ()
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\n")
    podman.chmod(0o755)
    own = tmp_path / "run/user/1000/podman"
    own.mkdir(parents=True)
    (tmp_path / "run/podman").mkdir()
    (tmp_path / "run/docker.sock").write_text("a file, no socket")
    for place in (own, tmp_path / "run/podman"):
        os.mknod(place / "podman.sock", stat.S_IFSOCK | 0o600)
    assert host.engines(root=tmp_path, uid=1000, programs=str(tmp_path)) == (
        Engine(name="podman", path=str(podman), socket=str(own / "podman.sock")),
    )
    (other,) = host.engines(root=tmp_path, uid=1001, programs="/nowhere")
    assert other == Engine(name="podman", path=None, socket=str(tmp_path / "run/podman/podman.sock"))


def test_disks(tmp_path: Path) -> None:
    there, later = host.disks([str(tmp_path), str(tmp_path / "a/b")])
    assert (there.free_mb, there.total_mb) == (later.free_mb, later.total_mb)
    assert there.total_mb >= there.free_mb > 0
    assert not there.read_only
    read_only = host.disk("/proc")
    assert read_only is not None
    assert read_only.free_mb == 0
