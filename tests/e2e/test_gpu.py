"""Jobs on a real NVIDIA card: what they see of it, what those see that did not ask, and who else uses it.

Runs where there is a card; there is no double of one here.
"""

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

from e2e.fleet import TASKS, until
from ostler.node.probe import GpuReader
from ostler.node.probe.command import Commands
from ostler.node.probe.nvml import NvmlFailed

pytestmark = [pytest.mark.hardware, pytest.mark.xdist_group("card")]
CARD = TASKS / "card.py"
HELD_MB = 4096
NO_DEVICE = re.compile("CUresult (100|304)")  # CUDA_ERROR_NO_DEVICE; where /proc is read-only it does not get that far


def no_nvml():
    raise NvmlFailed("not asked in this test")


@pytest.fixture(scope="module")
def cards():
    """The cards of this machine as the probe sees them before anything uses one."""
    reader = GpuReader()
    try:
        found = [gpu for gpu in reader.read().gpus if gpu.vendor == "nvidia"]
    finally:
        reader.close()
    if not found:
        pytest.skip("no NVIDIA GPU in this machine")
    return found


@contextmanager
def foreign(mb):
    """A program that Ostler knows nothing of, with so much of the first card's memory."""
    with subprocess.Popen([sys.executable, CARD, str(mb)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == "held\n"
            yield program.pid
        finally:
            program.stdin.close()


def shown(script):
    """A shell job that tells its variable, its device nodes and then what a script finds."""
    return f'echo "cuda=$CUDA_VISIBLE_DEVICES"; for one in /dev/nvidia[0-9]*; do [ -e $one ] && echo $one; done; {script}; true'


def test_a_job_that_asks_for_a_gpu_sees_its_own(cards, sandboxed):
    smi = Commands().find("nvidia-smi")
    job = sandboxed.sh(shown(f"{smi} -L"), requirements={"gpu": True})
    assert sandboxed.wait(job)["state"] == "done", sandboxed.log(job, "stderr")
    told = sandboxed.log(job).splitlines()
    own = {gpu.uuid: gpu for gpu in cards}[told[0].removeprefix("cuda=")]
    assert told[1] == f"/dev/nvidia{own.minor}", "its own card's device node, and no other's"
    assert [line for line in told if line.startswith("GPU ")] == [f"GPU 0: {own.name} (UUID: {own.uuid})"]


def test_a_job_that_does_not_ask_sees_none(cards, sandboxed):
    smi = Commands().find("nvidia-smi")
    job = sandboxed.sh(shown(f"{smi} -L || echo refused"))
    sandboxed.wait(job)
    told = sandboxed.log(job).splitlines()
    assert told[0] == "cuda="
    assert told[-1] == "refused"
    assert not any(gpu.uuid in line for gpu in cards for line in told)
    assert not any(line.startswith("/dev/nvidia") for line in told)
    job = sandboxed.submit({"runner": "python", "task": "card", "retries": 0})
    assert sandboxed.wait(job)["failure"]["code"] == "E_TASK"
    assert NO_DEVICE.search(sandboxed.log(job, "stderr"))


@pytest.mark.parametrize("level", ["bwrap", "process", "none"])
def test_cuda_computes_in_the_sandbox(cards, own_fleet, level):
    with own_fleet(level=level) as fleet:
        job = fleet.submit({"runner": "python", "task": "card", "params": {"mb": HELD_MB}, "requirements": {"gpu": True}})
        assert fleet.wait(job)["state"] == "done", fleet.log(job, "stderr")
        (uuid,) = fleet.log(job).split()
        assert uuid in [gpu.uuid for gpu in cards]
        job = fleet.submit({"runner": "python", "task": "card", "retries": 0})
        assert fleet.wait(job)["state"] == "failed"
        assert NO_DEVICE.search(fleet.log(job, "stderr"))


def test_library_and_command_tell_the_same_of_a_foreign_program(cards):
    by_library, by_command = GpuReader(), GpuReader(open_nvml=no_nvml)
    try:
        before = by_library.read().gpus[0]
        with foreign(HELD_MB) as pid:
            seen = by_library.read().gpus[0], by_command.read().gpus[0]
        for gpu in seen:
            assert before.vram_free_mb - gpu.vram_free_mb >= HELD_MB
            (process,) = [one for one in gpu.processes if one.pid == pid]
            assert process.kind == "compute"
            assert process.used_mb is None or process.used_mb >= HELD_MB
        one, other = seen
        assert abs(one.vram_free_mb - other.vram_free_mb) <= 1, "one rounds"
        names = {process.pid: process.name for process in other.processes}  # the library does not tell them
        named = [replace(process, name=names[process.pid]) for process in one.processes]
        alike = {"vram_free_mb": 0, "temperature_c": 0, "utilisation_pct": 0}
        assert replace(one, processes=tuple(named), **alike) == replace(other, **alike)
    finally:
        by_library.close()


def test_memory_that_a_foreign_program_holds_is_not_given_to_a_job(cards, sandboxed):
    """The node has looked long before: what counts is the card at the moment of the start."""
    if len(cards) != 1:
        pytest.skip("several GPUs in this machine: the job would take another one")
    free_mb = cards[0].vram_free_mb
    wanted = {
        "runner": "python", "task": "card", "params": {"mb": HELD_MB}, "requirements": {"vram_mb": free_mb - HELD_MB // 2},
        "retries": 0,
    }  # fmt: skip
    with foreign(HELD_MB):
        job = sandboxed.submit(wanted)
        failure = sandboxed.wait(job)["failure"]
        assert failure["code"] == "E_NOGPU"
        assert f"free of {cards[0].vram_mb}" in failure["message"]
        small = sandboxed.submit({**wanted, "requirements": {"vram_mb": HELD_MB}})
        assert sandboxed.wait(small)["state"] == "done", "there is room for this one beside it"
    job = sandboxed.submit(wanted)
    assert sandboxed.wait(job)["state"] == "done", "the moment that the other has ended"


def test_a_job_that_fails_for_foreign_memory_is_tried_again(cards, sandboxed):
    if len(cards) != 1:
        pytest.skip("several GPUs in this machine: the job would take another one")
    need = {"vram_mb": cards[0].vram_free_mb - HELD_MB // 2}
    with foreign(HELD_MB):
        job = sandboxed.sh("true", requirements=need, retries={"max": 20, "max_backoff_s": 1})
        sandboxed.wait_state(job, "retry_wait")
    view = sandboxed.wait(job)
    assert view["state"] == "done"
    assert view["attempt"] > 1


def test_more_than_there_is_waits_and_says_why(cards, sandboxed):
    job = sandboxed.sh("true", requirements={"vram_mb": cards[0].vram_mb * 4})
    told = until(lambda: "video memory" in (said := sandboxed.cli("job", "explain", job).stdout) and said, what="a reason")
    assert "no node has enough GPUs" in told
    assert sandboxed.job(job)["state"] == "queued"
    sandboxed.cli("job", "cancel", job)


def test_the_node_tells_of_its_card(cards, sandboxed):
    (node,) = sandboxed.nodes()
    shown = sandboxed.cli("node", "show", node["node_id"]).stdout
    assert cards[0].name in shown
