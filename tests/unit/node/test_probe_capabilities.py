"""The payload: the original contract exactly, additions beside it, and the sums that others need."""

from pathlib import Path

import msgspec

from ostler.model.capabilities import (
    Capabilities,
    Cpu,
    Cuda,
    Disk,
    Gpu,
    GpuProcess,
    HealthProblem,
    Load,
    foreign_mb,
    idle_gpus,
    usable_gpus,
    vram_free_mb,
    vram_total_mb,
)
from ostler.model.sandbox import SandboxAbilities, SandboxLevel
from ostler.node.probe import GpuReading, Xid, probe
from ostler.node.probe.probe import tags_of

# Section 7 of the original node specification, to the letter.
CONTRACT = """
{
  "node_id": "node-abc123",
  "version": "0.1.0",
  "cpu": {"cores": 16, "arch": "x86_64"},
  "memory_mb": 64000,
  "disk_free_mb": 250000,
  "gpu": [
    {
      "vendor": "nvidia", "name": "RTX 4060 Ti 16GB",
      "vram_mb": 16384,
      "cuda": {"version": "12.3", "driver": "545.23.06"}
    }
  ],
  "runners": ["cli", "python"],
  "tags": ["debian", "cuda", "cpu"]
}
"""


def subset(small: object, large: object) -> bool:
    """Whether each key of `small` stands in `large` with the same value, at every depth."""
    if isinstance(small, dict):
        return isinstance(large, dict) and all(key in large and subset(value, large[key]) for key, value in small.items())
    if isinstance(small, list):
        return isinstance(large, list) and len(small) == len(large) and all(map(subset, small, large))
    return type(small) is type(large) and small == large


def test_the_contract_is_understood_and_spoken() -> None:
    found = msgspec.json.decode(CONTRACT, type=Capabilities)
    assert found.gpu[0].cuda == Cuda(version="12.3", driver="545.23.06")
    assert found.gpu_count == 1
    assert subset(msgspec.json.decode(CONTRACT), msgspec.json.decode(msgspec.json.encode(found)))


def test_unknown_keys_of_a_newer_node_are_ignored() -> None:
    newer = msgspec.json.decode(CONTRACT)
    newer |= {"quantum": {"qubits": 3}, "sandbox": {"levels": ["bwrap", "microvm"], "moon": True}}
    newer["gpu"][0]["tensor_cores"] = 4
    newer["cpu"]["hybrid"] = True
    found = msgspec.convert(newer, Capabilities)
    assert found.sandbox.levels == ("bwrap", "microvm")
    assert found.sandbox.known_levels() == (SandboxLevel.BWRAP,)


def test_all_of_it_survives_the_wire() -> None:
    full = Capabilities(
        node_id="n",
        version="1",
        cpu=Cpu(cores=2, arch="aarch64", threads=4, features=("sve",)),
        memory_mb=1,
        disk_free_mb=2,
        gpu=(Gpu(vendor="amd", name="x", vram_mb=3, processes=(GpuProcess(pid=1),), xids=(79,)),),
        disks=(Disk(path="/", free_mb=1, total_mb=2),),
        sandbox=SandboxAbilities(levels=("none",)),
        health=(HealthProblem(code="disk_full", subject="/", message="m"),),
    )
    assert msgspec.json.decode(msgspec.json.encode(full), type=Capabilities) == full
    load = Load(load=0.5, free_mb=1, gpu_free=0, disk_free_mb=2, cpu_load=3.0, vram_free_mb=0)
    assert msgspec.json.decode(msgspec.json.encode(load), type=Load) == load
    assert set(msgspec.to_builtins(load)) >= {"load", "free_mb", "gpu_free"}, "section 8's heartbeat"


GOOD = Gpu(vendor="nvidia", name="a", vram_mb=1000, vram_free_mb=900)
BUSY = Gpu(
    vendor="nvidia",
    name="b",
    vram_mb=1000,
    vram_free_mb=300,
    processes=(GpuProcess(pid=7, used_mb=500), GpuProcess(pid=8, used_mb=150)),
)
LOST = Gpu(vendor="nvidia", name="c", vram_mb=1000, vram_free_mb=1000, fault="GPU is lost")
SILENT = Gpu(vendor="amd", name="d", vram_mb=500)


def test_sums_leave_out_what_is_of_no_use() -> None:
    all_of_them = (GOOD, BUSY, LOST, SILENT)
    assert usable_gpus(all_of_them) == (GOOD, BUSY, SILENT)
    assert idle_gpus(all_of_them) == (GOOD, SILENT)
    assert vram_total_mb(all_of_them) == 2500
    assert vram_free_mb(all_of_them) == 1200


def test_foreign_memory() -> None:
    assert foreign_mb(BUSY, {7}) == 200
    assert foreign_mb(BUSY, {7, 8}) == 50
    assert foreign_mb(BUSY, set()) == 700
    assert foreign_mb(SILENT, {7}) == 500
    lying = Gpu(vendor="nvidia", name="e", vram_mb=10, vram_free_mb=9, processes=(GpuProcess(pid=7, used_mb=5),))
    assert foreign_mb(lying, {7}) == 0


def test_tags() -> None:
    assert tags_of(["home"], "debian", [GOOD, SILENT]) == ("home", "debian", "cuda", "rocm", "cpu")
    assert tags_of(["cpu"], "debian", [LOST]) == ("cpu", "debian")


def test_a_probe_from_readings_made_elsewhere(tmp_path: Path) -> None:
    card = Gpu(vendor="nvidia", name="A30", vram_mb=24000, uuid="GPU-1", bus_id="0000:17:00.0")
    problem = HealthProblem(code="gpu_driver", subject="amd", message="m")
    found = probe(
        node_id="node-1",
        version="0.1.0",
        runners=["cli", "python"],
        tags=["home"],
        paths=[str(tmp_path / "not/there/yet"), "/"],
        sandbox=SandboxAbilities(levels=("none", "process")),
        gpus=GpuReading((card,), ("nvml",), (problem,)),
        xids=[Xid("0000:17:00.0", 79, at_s=5.0), Xid("0000:17:00.0", 31)],
    )
    assert found.gpu[0].xids == (79, 31)
    assert [one.code for one in found.health] == ["gpu_driver", "gpu_xid"]
    assert found.disks[0].free_mb == found.disk_free_mb > 0
    assert found.disks[0].path.endswith("not/there/yet")
    assert found.cpu.threads >= 1
    assert found.cpu.cores >= 1
    assert found.memory_mb > 0
    assert found.sandbox.levels == ("none", "process")
    assert "cuda" in found.tags
    assert found.runners == ("cli", "python")
    assert subset({"node_id": "node-1", "version": "0.1.0"}, msgspec.to_builtins(found))
