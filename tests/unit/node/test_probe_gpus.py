"""The parsers of GPU tools, on recordings from hardware and on outputs made from the documented formats (tests/recordings)."""

import dataclasses
from pathlib import Path

import pytest

from ostler.model.capabilities import Cuda, Ecc, Gpu, GpuProcess, Mig, MigInstance, MigProfile, foreign_mb, idle_gpus
from ostler.node.probe import amd, nvidia_smi
from ostler.node.probe.gpus import with_mig
from ostler.node.probe.pci import bus_id, numa_node

RECORDINGS = Path(__file__).parents[2] / "recordings/gpu-made-from-format"
RECORDED = RECORDINGS.with_name("gpu-recorded")


def made(name: str) -> str:
    return (RECORDINGS / name).read_text()


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_every_recording_is_labelled_as_made() -> None:
    text = made("README.md")
    assert "Nothing here came from hardware" in text
    for path in RECORDINGS.glob("*.xml"):
        assert "not recorded from hardware" in path.read_text()


# --- nvidia-smi on real cards --------------------------------------------------------------------------------------

H100 = Gpu(
    vendor="nvidia",
    name="NVIDIA H100 80GB HBM3",
    vram_mb=81559,
    cuda=Cuda(version="13.0", driver="580.159.04"),
    uuid="GPU-00000000-0000-4000-8000-000000000100",
    index=0,
    minor=0,
    bus_id="0000:41:00.0",
    driver="580.159.04",
    vram_free_mb=81079,
    utilisation_pct=0,
    temperature_c=35,
    mig=Mig(enabled=False, pending=False),
    ecc=Ecc(enabled=True, corrected=0, uncorrected=0),
)


def test_a_real_card_that_is_idle() -> None:
    (gpu,) = nvidia_smi.parse_query(recorded("h100-idle.xml"))
    assert gpu == H100
    assert idle_gpus([gpu]) == (gpu,)
    assert foreign_mb(gpu, []) == 480, "the driver's reserve"


def test_a_real_card_that_a_program_uses() -> None:
    (gpu,) = nvidia_smi.parse_query(recorded("h100-busy.xml"))
    process = GpuProcess(pid=4711, used_mb=20518, kind="compute", name="/usr/bin/python3")
    assert gpu == dataclasses.replace(H100, vram_free_mb=60553, temperature_c=36, processes=(process,))
    assert idle_gpus([gpu]) == ()
    assert foreign_mb(gpu, []) == 21006
    assert foreign_mb(gpu, [4711]) == 488


def test_a_real_card_after_a_programs_fault() -> None:
    (gpu,) = nvidia_smi.parse_query(recorded("h200-after-xid-31.xml"))
    assert (gpu.name, gpu.vram_mb, gpu.vram_free_mb, gpu.fault) == ("NVIDIA H200", 143771, 143156, "")
    assert gpu.ecc == Ecc(enabled=True, corrected=0, uncorrected=0)


def test_what_a_real_card_could_be_cut_into() -> None:
    profiles = nvidia_smi.parse_profiles(recorded("h100-mig-lgip.txt"))[0]
    assert [(one.name, one.vram_mb, one.total, one.free) for one in profiles] == [
        ("1g.10gb", 9984, 7, 7),
        ("1g.10gb+me", 9984, 1, 1),
        ("1g.20gb", 20091, 4, 4),
        ("2g.20gb", 20091, 3, 3),
        ("3g.40gb", 40448, 2, 2),
        ("4g.40gb", 40448, 1, 1),
        ("7g.80gb", 81152, 1, 1),
    ]
    *_, largest = nvidia_smi.parse_profiles(recorded("h200-mig-lgip.txt"))[0]
    assert (largest.name, largest.vram_mb) == ("7g.141gb", 143360)
    assert nvidia_smi.parse_list(recorded("h100-L.txt")) == {}, "it is not cut"


# --- nvidia-smi ----------------------------------------------------------------------------------------------------


def test_a_consumer_card() -> None:
    (gpu,) = nvidia_smi.parse_query(made("nvidia-smi-consumer.xml"))
    assert gpu == Gpu(
        vendor="nvidia",
        name="NVIDIA GeForce RTX 4060 Ti",
        vram_mb=16380,
        cuda=Cuda(version="12.3", driver="545.23.06"),
        uuid="GPU-00000000-0000-4000-8000-000000004060",
        index=0,
        minor=0,
        bus_id="0000:01:00.0",
        driver="545.23.06",
        vram_free_mb=15651,
        utilisation_pct=3,
        temperature_c=38,
        processes=(GpuProcess(pid=1412, used_mb=204, kind="graphics", name="/usr/lib/xorg/Xorg"),),
    )
    assert idle_gpus([gpu]) == (gpu,), "a desktop does not keep jobs away"


def test_two_cards_with_processes() -> None:
    first, second = nvidia_smi.parse_query(made("nvidia-smi-two-cards.xml"))
    assert [(one.index, one.minor, one.bus_id) for one in (first, second)] == [
        (0, 1, "0000:17:00.0"),
        (1, 0, "0000:65:00.0"),
    ]
    assert first.processes == (
        GpuProcess(pid=20001, used_mb=12000, name="python3"),
        GpuProcess(pid=20002, used_mb=6000, name="/opt/render & trace"),
    )
    assert foreign_mb(first, [20001]) == 24564 - 6000 - 12000, "the other process and the driver's reserve"
    assert foreign_mb(first, []) == 18564
    assert second.processes[0].used_mb is None
    assert foreign_mb(second, [20003]) == 1564, "what a process of ours takes is not told: it counts as foreign"
    assert idle_gpus([first, second]) == ()
    assert first.ecc == Ecc(enabled=False)


def test_a_card_cut_by_mig() -> None:
    cut, whole = nvidia_smi.parse_query(made("nvidia-smi-a100-mig.xml"))
    assert whole.mig == Mig(enabled=False, pending=True)
    assert cut.mig is not None
    assert [one.vram_mb for one in cut.mig.instances] == [19968, 4864, 4864]
    names = nvidia_smi.parse_list(made("nvidia-smi-a100-mig-L.txt"))
    profiles = nvidia_smi.parse_profiles(made("nvidia-smi-a100-mig-lgip.txt"))
    full = with_mig(cut, names, profiles).mig
    assert full is not None
    assert full.instances == (
        MigInstance(
            uuid="MIG-00000000-0000-5000-8000-000000000320",
            profile="3g.20gb",
            vram_mb=19968,
            vram_free_mb=19949,
            gpu_instance=2,
            compute_instance=0,
        ),
        MigInstance(
            uuid="MIG-00000000-0000-5000-8000-000000000105",
            profile="1g.5gb",
            vram_mb=4864,
            vram_free_mb=4858,
            gpu_instance=7,
            compute_instance=0,
        ),
        MigInstance(
            uuid="MIG-00000000-0000-5000-8000-000000000106",
            profile="1g.5gb",
            vram_mb=4864,
            vram_free_mb=2864,
            gpu_instance=8,
            compute_instance=0,
        ),
    )
    assert full.profiles == (
        MigProfile(name="1g.5gb", vram_mb=4864, total=7, free=2),
        MigProfile(name="1g.5gb+me", vram_mb=4864, total=1, free=0),
        MigProfile(name="3g.20gb", vram_mb=19968, total=2, free=0),
        MigProfile(name="7g.40gb", vram_mb=40192, total=1, free=0),
    )
    assert with_mig(whole, names, profiles) == whole
    assert cut.ecc == Ecc(enabled=True, corrected=0, uncorrected=0), "since the driver started, not since manufacture"


def test_a_list_that_does_not_fit_names_nothing() -> None:
    (cut, _) = nvidia_smi.parse_query(made("nvidia-smi-a100-mig.xml"))
    other = with_mig(cut, {cut.uuid or "": (nvidia_smi.MigName("3g.20gb", "MIG-x"),)}, {}).mig
    assert other is not None
    assert {one.uuid for one in other.instances} == {None}


def test_a_newer_driver_tells_the_uuids_itself() -> None:
    (gpu,) = nvidia_smi.parse_query(made("nvidia-smi-h100-mig-v13.xml"))
    assert gpu.mig is not None
    assert gpu.mig.instances[0].uuid == "MIG-00000000-0000-5000-8000-000000000340"
    assert gpu.ecc == Ecc(enabled=True, corrected=2, uncorrected=1)
    assert gpu.cuda == Cuda(version="13.1", driver="590.44.01")
    assert gpu.fault == ""


def test_memory_errors() -> None:
    retiring, pending, broken, counted = nvidia_smi.parse_query(made("nvidia-smi-ecc.xml"))
    assert retiring.ecc == Ecc(enabled=True, corrected=5, uncorrected=1, repair_pending=True)
    assert pending.ecc == Ecc(enabled=True, corrected=12, uncorrected=1, repair_pending=True)
    assert broken.ecc == Ecc(enabled=True, corrected=0, uncorrected=2, repair_failed=True)
    assert counted.ecc == Ecc(enabled=True, corrected=0, uncorrected=3)


def test_a_card_that_stopped_answering_and_one_with_odd_fields() -> None:
    gone, odd = nvidia_smi.parse_query(made("nvidia-smi-faulty.xml"))
    assert gone.fault == "Unknown Error"
    assert (gone.vram_mb, gone.vram_free_mb, gone.temperature_c, gone.mig, gone.ecc) == (0, None, None, None, None)
    assert gone.uuid == "GPU-00000000-0000-4000-8000-000000000065"
    assert gone.name == "unknown"
    assert odd.fault == ""
    assert (odd.vram_mb, odd.vram_free_mb, odd.temperature_c, odd.utilisation_pct) == (23034, None, None, None)
    assert odd.processes == ()
    assert foreign_mb(odd, []) == 23034, "a card that does not tell counts as full"


def test_a_card_that_cannot_be_opened() -> None:
    (gpu,) = nvidia_smi.parse_query(made("nvidia-smi-lost.txt"))
    assert gpu.bus_id == "0000:65:00.0"
    assert gpu.fault == "GPU is lost.  Reboot the system to recover this GPU"
    together = made("nvidia-smi-lost.txt") + made("nvidia-smi-two-cards.xml")
    assert [one.fault for one in nvidia_smi.parse_query(together)] == ["", ""], "the card at 65 answers in the document"
    other = made("nvidia-smi-lost.txt").replace("65", "b3") + made("nvidia-smi-two-cards.xml")
    assert [bool(one.fault) for one in nvidia_smi.parse_query(other)] == [False, False, True]


def test_no_driver_and_no_cards() -> None:
    with pytest.raises(ValueError, match="couldn't communicate"):
        nvidia_smi.parse_query(made("nvidia-smi-no-driver.txt"))
    with pytest.raises(ValueError, match="empty output"):
        nvidia_smi.parse_query("")
    with pytest.raises(ValueError, match="not XML"):
        nvidia_smi.parse_query("<nvidia_smi_log><gpu></nvidia_smi_log>")
    assert nvidia_smi.parse_query("No devices were found\n") == ()
    assert nvidia_smi.parse_query("<nvidia_smi_log><attached_gpus>0</attached_gpus></nvidia_smi_log>") == ()


@pytest.mark.parametrize(
    "path", [*sorted(RECORDINGS.glob("*.xml")), RECORDED / "h100-busy.xml"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_document_cut_anywhere_never_breaks_the_parser(path: Path) -> None:
    text = path.read_text()
    for end in range(0, len(text), 97):
        try:
            nvidia_smi.parse_query(text[:end] + "</nvidia_smi_log>")
        except ValueError:
            continue


def test_lists_of_odd_lines() -> None:
    listed = nvidia_smi.parse_list("GPU 0: X (UUID: GPU-1)\n  MIG 1g.5gb  Device  0: (UUID: MIG-1)\nGPU 1: Unknown Error\n"
                                   "  MIG 1g.5gb  Device  0: (UUID: MIG-2)\n")  # fmt: skip
    assert listed == {"GPU-1": (nvidia_smi.MigName("1g.5gb", "MIG-1"),)}
    assert nvidia_smi.parse_profiles("No MIG-supported devices found.") == {}


# --- AMD -----------------------------------------------------------------------------------------------------------


def test_amd_smi_of_rocm_6() -> None:
    good, silent = amd.parse_amd_smi(*(made(f"amd-smi-6-{part}.json") for part in ("list", "static", "metric", "process")))
    assert good == Gpu(
        vendor="amd",
        name="AMD Instinct MI300X",
        vram_mb=196592,
        uuid="00ff74a1-0000-1000-80aa-000000000001",
        index=0,
        bus_id="0000:05:00.0",
        driver="6.8.5",
        vram_free_mb=179439,
        utilisation_pct=94,
        temperature_c=57,
        numa_node=0,
        ecc=Ecc(enabled=True, corrected=3, uncorrected=0),
        processes=(GpuProcess(pid=4711, used_mb=16842, name="python3.11"),),
    )
    assert silent.fault == "its memory cannot be read"
    assert (silent.name, silent.bus_id, silent.numa_node, silent.ecc) == ("AMD GPU", "0000:26:00.0", None, None)


def test_amd_smi_of_rocm_7() -> None:
    (gpu,) = amd.parse_amd_smi(*(made(f"amd-smi-7-{part}.json") for part in ("list", "static", "metric", "process")))
    assert (gpu.name, gpu.vram_mb, gpu.vram_free_mb, gpu.temperature_c) == ("AMD Radeon RX 7900 XTX", 24560, 23500, 46)
    assert gpu.processes == (GpuProcess(pid=815, used_mb=512, name="ollama"),)
    assert gpu.cuda is None


def test_amd_smi_that_answers_only_part() -> None:
    (gpu,) = amd.parse_amd_smi(made("amd-smi-7-list.json"), made("amd-smi-7-static.json"), "")
    assert (gpu.vram_mb, gpu.vram_free_mb, gpu.fault) == (24560, None, "")
    for text in ("", "[]", "AMDSMI_STATUS_DRIVER_NOT_LOADED", "{", '{"gpu_data": [{"gpu": "N/A"}]}'):
        with pytest.raises(ValueError):  # noqa: PT011  # any message
            amd.parse_amd_smi(text, "", "")


def test_rocm_smi() -> None:
    good, silent = amd.parse_rocm_smi(made("rocm-smi.json"))
    assert good == Gpu(
        vendor="amd",
        name="AMD Instinct MI210",
        vram_mb=65520,
        uuid="0x1111111111111111",
        index=0,
        bus_id="0000:2f:00.0",
        driver="6.7.0",
        vram_free_mb=64492,
        utilisation_pct=12,
        temperature_c=36,
    )
    assert silent.fault
    assert silent.name == "0x740f"


def test_rocm_smi_of_an_older_release() -> None:
    (gpu,) = amd.parse_rocm_smi(made("rocm-smi-old-spelling.json"))
    assert (gpu.name, gpu.vram_mb, gpu.temperature_c) == ("Radeon RX 6800", 16368, 40)
    assert gpu.processes == (GpuProcess(pid=900, used_mb=16, name="blender"),)
    for text in ("", "[]", "{}", "no cards here"):
        with pytest.raises(ValueError):  # noqa: PT011
            amd.parse_rocm_smi(text)


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("00000000:65:00.0", "0000:65:00.0"),
        ("0000:65:00.0", "0000:65:00.0"),
        ("PCI:0000:B3:00", "0000:b3:00.0"),
        ("65:00.1", "0000:65:00.1"),
        ("00010000:03:00.0", "10000:03:00.0"),
        ("N/A", None),
        ("", None),
    ],
)
def test_addresses(text: str, plain: str | None) -> None:
    assert bus_id(text) == plain


def test_numa_nodes(tmp_path: Path) -> None:
    place = tmp_path / "bus/pci/devices/0000:65:00.0"
    place.mkdir(parents=True)
    (place / "numa_node").write_text("1\n")
    assert numa_node("0000:65:00.0", sys=tmp_path) == 1
    (place / "numa_node").write_text("-1\n")
    assert numa_node("0000:65:00.0", sys=tmp_path) is None
    assert numa_node("0000:66:00.0", sys=tmp_path) is None
    assert numa_node(None, sys=tmp_path) is None


def test_gpus_are_frozen() -> None:
    (gpu,) = nvidia_smi.parse_query(made("nvidia-smi-consumer.xml"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        gpu.name = "x"  # type: ignore[misc]
