"""Probing with real programs, threads and a real (if FAKE) library: nothing that a driver does may block the node."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from ostler.model.capabilities import Capabilities, Gpu, GpuProcess
from ostler.node.probe import GpuReader, GpuReading, KernelLog, LoadGauge, probe
from ostler.node.probe.command import Commands
from ostler.node.probe.nvml import Nvml, NvmlFailed

RECORDINGS = Path(__file__).parents[1] / "recordings"
MADE = RECORDINGS / "gpu-made-from-format"


def no_nvml() -> Nvml:
    raise NvmlFailed("none in this test")


@pytest.fixture
def tools(tmp_path: Path) -> Callable[..., None]:
    """Writes stand-ins for the vendors' programs: a shell script by name."""

    def write(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}\n")
        path.chmod(0o755)

    return write


def reader(tmp_path: Path, **changes: object) -> GpuReader:
    commands = Commands(search=f"{tmp_path}:/usr/bin:/bin", patience_s=1.0)
    return GpuReader(commands, **{"open_nvml": no_nvml, "patience_s": 1.0, "sys": tmp_path} | changes)  # type: ignore[arg-type]


def printing(name: str) -> str:
    return f"cat {MADE / name}"


# --- programs ------------------------------------------------------------------------------------------------------


def test_a_program_that_hangs_is_given_up(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("nvidia-smi", "sleep 1000 & wait")
    commands = Commands(search=f"{tmp_path}:/usr/bin:/bin", patience_s=0.3)
    output = commands.run("nvidia-smi")
    assert output.code is None
    assert "0.3 s" in output.errors


def test_a_program_that_cannot_die_is_not_started_again(
    tmp_path: Path, tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in a wedged driver takes no SIGKILL. No test can make one, so the kill is what is left out here."""
    tools("nvidia-smi", f"echo x >> {tmp_path}/starts; exec sleep 1000")
    commands = Commands(search=f"{tmp_path}:/usr/bin:/bin", patience_s=0.3)
    spared: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: spared.append(pid))
    assert commands.run("nvidia-smi").code is None
    second = commands.run("nvidia-smi")
    assert (second.code, second.errors) == (None, "an earlier run of it still hangs")
    assert (tmp_path / "starts").read_text() == "x\n"
    monkeypatch.undo()
    os.killpg(spared[0], 9)
    (stuck,) = commands._stuck.values()
    stuck.wait(10)
    tools("nvidia-smi", "echo well")
    assert commands.run("nvidia-smi").text == "well\n", "once it is gone, it is tried again"


def test_programs_see_a_plain_environment(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("tool", "env; exit 3")
    output = Commands(search=f"{tmp_path}:/usr/bin:/bin").run("tool")
    assert output.code == 3
    assert {line.split("=")[0] for line in output.text.splitlines()} <= {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
    assert Commands(search=str(tmp_path)).run("missing").code == 127
    (tmp_path / "broken").write_text("#!/nonexistent\n")
    (tmp_path / "broken").chmod(0o755)
    assert Commands(search=str(tmp_path)).run("broken").code == 126


# --- readers -------------------------------------------------------------------------------------------------------


def test_without_any_tool_there_are_no_gpus(tmp_path: Path) -> None:
    assert reader(tmp_path).read() == GpuReading()


def test_nvidia_smi_is_the_fallback(tmp_path: Path, tools: Callable[..., None]) -> None:
    place = tmp_path / "bus/pci/devices/0000:65:00.0"
    place.mkdir(parents=True)
    (place / "numa_node").write_text("1\n")
    tools("nvidia-smi", printing("nvidia-smi-two-cards.xml"))
    reading = reader(tmp_path).read()
    assert reading.sources == ("nvidia-smi",)
    assert reading.problems == ()
    assert [gpu.numa_node for gpu in reading.gpus] == [None, 1]


def test_nvidia_smi_with_mig(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools(
        "nvidia-smi",
        f"""
        case "$*" in
            "-q -x") cat {MADE}/nvidia-smi-a100-mig.xml;;
            "-L") cat {MADE}/nvidia-smi-a100-mig-L.txt;;
            "mig -lgip") cat {MADE}/nvidia-smi-a100-mig-lgip.txt;;
        esac""",
    )
    cut, _ = reader(tmp_path).read().gpus
    assert cut.mig is not None
    assert cut.mig.instances[0].uuid == "MIG-00000000-0000-5000-8000-000000000320"
    assert len(cut.mig.profiles) == 4


def test_nvidia_smi_without_a_driver_is_a_problem_and_no_quarantine(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("nvidia-smi", printing("nvidia-smi-no-driver.txt") + "; exit 9")
    reading = reader(tmp_path).read()
    assert reading.gpus == ()
    (problem,) = reading.problems
    assert (problem.code, problem.quarantine) == ("gpu_driver", False)
    assert "couldn't communicate" in problem.message


def test_a_driver_that_starts_to_hang_takes_its_cards_out(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("nvidia-smi", printing("nvidia-smi-consumer.xml"))
    reading = reader(tmp_path)
    assert reading.read().problems == ()
    tools("nvidia-smi", "exec sleep 1000")
    hanging = reading.read()
    (gpu,) = hanging.gpus
    assert (gpu.fault, gpu.uuid) == ("does not answer", "GPU-00000000-0000-4000-8000-000000004060")
    (problem,) = hanging.problems
    assert (problem.code, problem.quarantine) == ("gpu_unresponsive", True)


def test_amd_smi_and_its_predecessor(tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("rocm-smi", printing("rocm-smi.json"))
    assert reader(tmp_path).read().sources == ("rocm-smi",)
    tools("amd-smi", f"cat {MADE}/amd-smi-6-$1.json")
    reading = reader(tmp_path).read()
    assert reading.sources == ("amd-smi",)
    assert reading.gpus[0].name == "AMD Instinct MI300X"
    tools("amd-smi", "echo 'invalid arguments' >&2; exit 2")
    assert reader(tmp_path).read().sources == ("rocm-smi",)
    tools("rocm-smi", "echo ERROR: no amdgpu; exit 1")
    assert [one.code for one in reader(tmp_path).read().problems] == ["gpu_driver"]


def test_an_nvml_that_hangs_costs_one_thread_once(tmp_path: Path) -> None:
    opened, release = [], threading.Event()

    def hang() -> Nvml:
        opened.append(1)
        release.wait(60)
        raise NvmlFailed("at last")

    reading = reader(tmp_path, open_nvml=hang, patience_s=0.2)
    try:
        for _ in range(3):
            (problem,) = reading.read().problems
            assert problem.code == "gpu_unresponsive"
        assert len(opened) == 1
    finally:
        release.set()
    (thread,) = [one for one in [reading._hanging] if one is not None]
    thread.join(10)
    assert reading.read().problems == (), "it is tried again, and found to be of no use"
    reading.close()


# --- NVML: the real binding over a FAKE library --------------------------------------------------------------------

READ = """
import sys, msgspec
from ostler.node.probe import GpuReader
from ostler.node.probe.command import Commands
reader = GpuReader(Commands(search="/nonexistent"), patience_s=2.0)
readings = [reader.read() for _ in range(int(sys.argv[1]))]
cheap = reader.cheap
reader.close()
print(msgspec.json.encode([readings, cheap]).decode())
"""


@pytest.fixture(scope="module")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[GpuReading], bool]]:
    """Reads in a process of its own that finds the FAKE library first."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the FAKE libnvidia-ml.so.1 (apt-get install gcc)")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    built = {}
    for name, flags in (("new", []), ("old", ["-DOLD"])):
        place = tmp_path_factory.mktemp(name)
        library = place / "libnvidia-ml.so.1"
        source = RECORDINGS / "fake_nvml.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, "-o", library, source], check=True)
        built[name] = place

    def read(mode: str, *, times: int = 1, library: str = "new") -> tuple[list[GpuReading], bool]:
        env = {
            "FAKE_NVML": mode,
            "LD_LIBRARY_PATH": str(built[library]),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [sys.executable, "-c", READ, str(times)], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout, type=tuple[list[GpuReading], bool])

    return read


def test_nvml_reads_all_that_placement_needs(fake_nvml: Callable[..., tuple[list[GpuReading], bool]]) -> None:
    ((reading,), cheap) = fake_nvml("good")
    assert cheap
    assert reading.sources == ("nvml",)
    first, second = reading.gpus
    assert (first.name, first.uuid, first.index, first.minor) == ("NVIDIA A100-SXM4-40GB", "GPU-fake-0", 0, 1)
    assert (first.bus_id, second.bus_id) == ("0000:65:00.0", "0000:b3:00.0")
    assert first.cuda is not None
    assert (first.cuda.version, first.cuda.driver) == ("12.4", "550.54.14")
    assert (first.vram_mb, first.vram_free_mb, first.utilisation_pct, first.temperature_c) == (40960, 30000, 88, 51)
    assert first.ecc is not None
    assert (first.ecc.corrected, first.ecc.uncorrected, first.ecc.repair_pending) == (7, 2, True)
    assert first.processes == (GpuProcess(pid=4711, used_mb=8000), GpuProcess(pid=4712, used_mb=None))
    assert first.mig is not None
    assert not first.mig.enabled
    assert second.utilisation_pct is None
    assert second.mig is not None
    assert [(one.uuid, one.profile, one.gpu_instance, one.vram_mb) for one in second.mig.instances] == [
        ("MIG-fake-10", "3g.20gb", 2, 19968),
        ("MIG-fake-11", "1g.5gb", 9, 19968),
    ]
    assert [(one.name, one.total, one.free) for one in second.mig.profiles] == [("1g.5gb", 7, 3), ("3g.20gb", 2, 1)]


def test_nvml_of_an_old_driver(fake_nvml: Callable[..., tuple[list[GpuReading], bool]]) -> None:
    ((reading,), _) = fake_nvml("good", library="old")
    first, _ = reading.gpus
    assert (first.vram_mb, first.vram_free_mb, first.temperature_c) == (40960, 30000, 50)
    assert [one.pid for one in first.processes] == [4711, 4712]


def test_a_card_that_is_lost_keeps_its_name_and_does_not_take_the_other_with_it(
    fake_nvml: Callable[..., tuple[list[GpuReading], bool]],
) -> None:
    (readings, _) = fake_nvml("lost", times=3)
    for reading in readings[1:]:
        gone, good = reading.gpus
        assert (gone.fault, gone.uuid, gone.vram_mb, gone.vram_free_mb) == ("GPU is lost", "GPU-fake-0", 40960, 0)
        assert gone.processes == ()
        assert good.fault == ""


@pytest.mark.parametrize("mode", ["driver", "mismatch"])
def test_an_nvml_without_its_driver_is_of_no_use(fake_nvml: Callable[..., tuple[list[GpuReading], bool]], mode: str) -> None:
    assert fake_nvml(mode) == ([GpuReading()], False)


def test_an_nvml_that_hangs_does_not_keep_the_process_from_ending(
    fake_nvml: Callable[..., tuple[list[GpuReading], bool]],
) -> None:
    ((reading,), _) = fake_nvml("hang")
    assert [one.code for one in reading.problems] == ["gpu_unresponsive"]


# --- load ----------------------------------------------------------------------------------------------------------


class SlowReader(GpuReader):
    """A reader that waits to be let go, and counts."""

    def __init__(self) -> None:
        super().__init__(open_nvml=no_nvml)
        self.go = threading.Event()
        self.done = threading.Event()
        self.calls = 0

    def read(self) -> GpuReading:
        self.calls += 1
        self.go.wait(60)
        self.done.set()
        return GpuReading((Gpu(vendor="nvidia", name="x", vram_mb=1000, vram_free_mb=800),), ("fake",))


def test_the_load_never_waits_for_a_gpu() -> None:
    now = [0.0]
    slow = SlowReader()
    first = GpuReading((Gpu(vendor="nvidia", name="x", vram_mb=1000, vram_free_mb=500),), ("fake",))
    gauge = LoadGauge(slow, path="/", first=first, every_by_command=timedelta(seconds=10), clock=lambda: now[0])
    try:
        assert (gauge.load().vram_free_mb, slow.calls) == (500, 0), "the probe's own reading is fresh"
        now[0] = 11.0
        load = gauge.load()
        assert not slow.done.is_set()
        assert (load.gpu_free, load.vram_free_mb) == (1, 500)
        now[0] = 25.0
        assert gauge.load().gpu_free == 1
        assert slow.calls == 1, "not a second one beside it"
        now[0] = 40.0
        late = gauge.load()
        assert (late.gpu_free, late.vram_free_mb) == (0, 0), "a reading that does not come back counts as taken"
    finally:
        slow.go.set()
    assert slow.done.wait(10)
    assert gauge._thread is not None
    gauge._thread.join(10)
    assert gauge.load().vram_free_mb == 800
    assert gauge.reading.sources == ("fake",)


def test_the_load_of_this_machine() -> None:
    gauge = LoadGauge(GpuReader(), path="/not/there")
    load = gauge.load()
    assert load.free_mb > 0
    assert load.disk_free_mb > 0
    assert load.load >= 0
    assert 0 <= load.cpu_load <= 100


def test_a_probe_of_this_machine_survives_the_wire() -> None:
    found = probe(node_id="n", version="1")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Capabilities) == found
    assert found.os.id
    assert found.kernel
    assert found.hostname


def test_the_kernel_log_of_this_machine() -> None:
    log = KernelLog()
    if not log.readable:
        pytest.skip("this user may not read /dev/kmsg (kernel.dmesg_restrict)")
    try:
        log.new_xids()
        assert log.new_xids() == ()
    finally:
        log.close()


@pytest.mark.hardware
def test_a_real_card() -> None:
    """Runs where there is one, as tests/e2e/test_gpu.py does; what two of them printed lies in tests/recordings/gpu-recorded."""
    reading = GpuReader().read()
    if not reading.gpus:
        pytest.skip("no GPU in this machine")
    for gpu in reading.gpus:
        assert gpu.fault == ""
        assert gpu.vram_mb > 0
        assert gpu.uuid
        assert gpu.bus_id
        assert gpu.vendor != "nvidia" or (gpu.cuda is not None and gpu.cuda.version and gpu.cuda.driver)
    if shutil.which("nvidia-smi"):
        by_command = GpuReader(open_nvml=no_nvml).read()
        told = [(gpu.uuid, gpu.bus_id, gpu.minor, gpu.driver) for gpu in by_command.gpus]
        assert told == [(gpu.uuid, gpu.bus_id, gpu.minor, gpu.driver) for gpu in reading.gpus]
        for one, other in zip(by_command.gpus, reading.gpus, strict=True):
            assert abs(one.vram_mb - other.vram_mb) <= 1
