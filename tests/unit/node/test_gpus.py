"""Which GPUs an attempt gets; one of the driver's files is recorded from a card, the other made from the documented format."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Requirements
from ostler.node.gpus import Card, choose, device_nodes, device_paths, gpu_environment, parse_driver_card

SMALL = Card(uuid="GPU-a", vram_mb=8000, used_mb=10)
LARGE = Card(uuid="GPU-b", vram_mb=24000, used_mb=10)
BUSY = Card(uuid="GPU-c", vram_mb=24000, used_mb=20000)
SICK = Card(uuid="GPU-d", vram_mb=24000, fault="Xid 79: it fell off the bus")
CARDS = (BUSY, LARGE, SICK, SMALL)
INFORMATION = """\
Model: \t\t NVIDIA GeForce RTX 4060 Ti
IRQ:   \t\t 154
GPU UUID: \t GPU-0d2f3b5c-1111-2222-3333-444455556666
Video BIOS: \t 95.06.25.00.9e
Bus Type: \t PCIe
Bus Location: \t 0000:01:00.0
Device Minor: \t 3
GPU Excluded:\t No
"""


def test_a_job_without_gpu_gets_none():
    assert choose(CARDS, Requirements()) == ()


def test_the_emptiest_comes_first_and_the_smaller_of_two_alike():
    assert choose(CARDS, Requirements(gpu=True)) == ("GPU-a",)
    assert choose(CARDS, Requirements(gpus=2)) == ("GPU-a", "GPU-b")
    assert choose(CARDS, Requirements(gpus=3)) == ("GPU-a", "GPU-b", "GPU-c")


def test_vram_is_asked_of_free_memory():
    assert choose(CARDS, Requirements(vram_mb=12000)) == ("GPU-b",)
    refused = choose((BUSY, SMALL), Requirements(vram_mb=12000))
    assert isinstance(refused, Failure)
    assert "GPU-c: has 4000 MB free of 24000" in refused.message
    assert "GPU-a: has 8000 MB" in refused.message


def test_held_and_faulty_cards_are_left_out_and_named():
    assert choose(CARDS, Requirements(gpu=True), held={"GPU-a"}) == ("GPU-b",)
    refused = choose(CARDS, Requirements(gpus=4), held={"GPU-a"})
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.NOGPU
    assert refused.message.startswith("needs 4 GPUs, 2 can be had")
    assert "GPU-d: Xid 79" in refused.message
    assert "GPU-a: held by another attempt" in refused.message


cards = st.lists(
    st.builds(
        Card,
        uuid=st.text("abcdef0123456789", min_size=4, max_size=4),
        vram_mb=st.integers(0, 50000),
        used_mb=st.integers(0, 50000),
        fault=st.sampled_from([None, None, "ECC"]),
    ),
    unique_by=lambda card: card.uuid,
    max_size=8,
)


@given(cards, st.integers(0, 5), st.integers(0, 30000), st.data())
def test_a_choice_is_exact_fitting_and_independent_of_the_order(some, count, vram_mb, data):
    need = Requirements(gpus=count, vram_mb=vram_mb)
    held = set(data.draw(st.lists(st.sampled_from([card.uuid for card in some] or ["x"]))))
    chosen = choose(some, need, held=held)
    assert choose(list(reversed(some)), need, held=held) == chosen or isinstance(chosen, Failure)
    fitting = {card.uuid: card for card in some if not card.fault and card.uuid not in held and card.free_mb >= vram_mb}
    if isinstance(chosen, Failure):
        assert len(fitting) < need.gpu_count
        return
    assert len(chosen) == len(set(chosen)) == need.gpu_count
    assert set(chosen) <= set(fitting)
    if chosen:
        most_used = max(fitting[uuid].used_mb for uuid in chosen)
        assert all(card.used_mb >= most_used for uuid, card in fitting.items() if uuid not in chosen)


@pytest.mark.parametrize(
    ("uuids", "cuda", "toolkit"),
    [((), "", "void"), (("GPU-a",), "GPU-a", "GPU-a"), (("GPU-a", "GPU-b"), "GPU-a,GPU-b", "GPU-a,GPU-b")],
)
def test_a_job_sees_its_own_cards_alone(uuids, cuda, toolkit):
    env = gpu_environment(uuids)
    assert (env["CUDA_VISIBLE_DEVICES"], env["NVIDIA_VISIBLE_DEVICES"]) == (cuda, toolkit)


def test_the_drivers_file_gives_uuid_and_minor():
    assert parse_driver_card(INFORMATION) == ("GPU-0d2f3b5c-1111-2222-3333-444455556666", 3)
    recorded = Path(__file__).parents[2] / "recordings/gpu-recorded/h100-information.txt"
    assert parse_driver_card(recorded.read_text()) == ("GPU-00000000-0000-4000-8000-000000000100", 0)
    assert parse_driver_card("Model: x\n") is None
    assert parse_driver_card("GPU UUID: GPU-1\nDevice Minor: ??\n") is None


def test_device_nodes_are_those_of_the_chosen_cards(tmp_path):
    present = {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"}
    assert device_paths(("GPU-b",), {"GPU-a": 0, "GPU-b": 1}, present) == ("/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert device_paths((), {"GPU-a": 0}, present) == ()
    card = tmp_path / "driver" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text(INFORMATION)
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "nvidia3").touch()
    found = device_nodes(("GPU-0d2f3b5c-1111-2222-3333-444455556666",), driver=tmp_path / "driver", dev=dev)
    assert found == ("/dev/nvidia3",)
    assert device_nodes((), driver=tmp_path / "driver", dev=dev) == ()
