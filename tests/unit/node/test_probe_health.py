"""Xids, and what is wrong with a machine."""

import os
from pathlib import Path

import pytest

from ostler.model.capabilities import Disk, Ecc, Gpu, quarantined
from ostler.node.probe import health
from ostler.node.probe.xid import FATAL, MEANINGS, KernelLine, KernelLog, Xid, parse_log, parse_record

RECORDINGS = Path(__file__).parents[2] / "recordings/gpu-made-from-format"


def lines() -> list[KernelLine]:
    found = (parse_record(line) for line in (RECORDINGS / "kmsg-xid.txt").read_text().splitlines())
    return [line for line in found if line is not None]


def test_xids_in_the_kernel_log() -> None:
    assert parse_log(lines()) == (
        Xid("0000:17:00.0", 31, 20001, "python3", 52.00001),
        Xid("0000:17:00.0", 43, 20001, "python3", 53.0),
        Xid("0000:65:00.0", 79, None, "", 88.0),
        Xid("0000:65:00.0", 79, None, "", 88.0005),
        Xid("0000:86:00.0", 48, None, "", 90.0),
        Xid("0000:b3:00.0", 79, None, "", 95.000002),
    )


def test_a_real_xid_is_the_programs_matter_and_the_card_goes_on() -> None:
    text = (RECORDINGS.with_name("gpu-recorded") / "h200-kmsg-xid-31.txt").read_text()
    (xid,) = parse_log(line for one in text.splitlines() if (line := parse_record(one)) is not None)
    assert xid == Xid("0000:41:00.0", 31, 4711, "python3", 92.06688)
    card = Gpu(vendor="nvidia", name="NVIDIA H200", vram_mb=143771, bus_id="0000:41:00.0")
    (told,) = health.with_xids([card], [xid])
    assert told.xids == (31,)
    assert health.problems(gpus=[told], disks=[], xids=[xid]) == ()


def test_a_program_cannot_forge_an_xid() -> None:
    assert parse_record("12,970,91000000,-;NVRM: Xid (PCI:0000:17:00): 79, pid=1") is None
    assert parse_record("4,970,91000000,-;NVRM: Xid (PCI:0000:17:00): 79") is not None


@pytest.mark.parametrize("record", ["", "garbage", "6,1;x", "a,b,c,-;x", " SUBSYSTEM=pci"])
def test_odd_records(record: str) -> None:
    assert parse_record(record) is None


def test_only_some_xids_condemn_a_card() -> None:
    assert not Xid("0000:17:00.0", 31).fatal
    assert Xid("0000:17:00.0", 79).fatal
    assert not Xid("0000:17:00.0", 9999).fatal
    assert set(MEANINGS) >= FATAL
    assert str(Xid("0000:17:00.0", 79)) == "Xid 79 on 0000:17:00.0: GPU has fallen off the bus"
    assert "catalogue" in str(Xid("0000:17:00.0", 9999))


def test_the_log_is_read_once(tmp_path: Path) -> None:
    """A FIFO stands in for /dev/kmsg: each write is read as one record, and what was read is gone."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    log = KernelLog(path)
    assert log.readable
    writer = os.open(path, os.O_WRONLY)
    try:
        assert log.new_xids() == ()
        os.write(writer, b"4,980,95000000,-;NVRM: Xid (PCI:0000:17:00): 79, pid=7, name=x, GPU has fallen off the bus.\n")
        assert log.new_xids() == (Xid("0000:17:00.0", 79, 7, "x", 95.0),)
        assert log.new_xids() == ()
        for at in range(3):
            os.write(writer, b"4,981,%d000000,-;NVRM: Xid (PCI:0000:17:00): 31, pid=8\n" % (96 + at))
            assert log.xids() == (Xid("0000:17:00.0", 79, 7, "x", 95.0), Xid("0000:17:00.0", 31, 8, "", 96.0 + at))
        assert log.new_xids() == ()
    finally:
        os.close(writer)
        log.close()
    assert not log.readable
    assert log.new_xids() == ()


def test_a_log_that_may_not_be_read(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "missing")
    assert not log.readable
    assert log.new_xids() == ()
    log.close()


GPU = Gpu(vendor="nvidia", name="A30", vram_mb=24000, uuid="GPU-1", bus_id="0000:17:00.0", ecc=Ecc(enabled=True))
DISK = Disk(path="/jobs", free_mb=100, total_mb=1000, free_inodes=5)


def codes(**given: object) -> list[tuple[str, bool]]:
    everything = {"gpus": [], "disks": [], "xids": []} | given
    return [(one.code, one.quarantine) for one in health.problems(**everything)]  # type: ignore[arg-type]


def test_a_good_machine_has_no_problems() -> None:
    assert codes(gpus=[GPU], disks=[DISK], xids=[Xid("0000:17:00.0", 31)]) == []


def test_disks() -> None:
    assert codes(disks=[Disk(path="/jobs", free_mb=5, total_mb=9, read_only=True)]) == [("disk_read_only", True)]
    assert codes(disks=[Disk(path="/jobs", free_mb=0, total_mb=9)]) == [("disk_full", False)]
    assert codes(disks=[Disk(path="/jobs", free_mb=5, total_mb=9, free_inodes=0)]) == [("disk_full", False)]


@pytest.mark.parametrize(
    ("ecc", "expected"),
    [
        (Ecc(enabled=True, corrected=900), []),
        (Ecc(enabled=True, uncorrected=2), [("gpu_memory", False)]),
        (Ecc(enabled=True, uncorrected=2, repair_pending=True), [("gpu_memory", True)]),
        (Ecc(enabled=True, repair_failed=True), [("gpu_memory", True)]),
        (None, []),
    ],
)
def test_memory_errors(ecc: Ecc | None, expected: list[tuple[str, bool]]) -> None:
    assert codes(gpus=[Gpu(vendor="nvidia", name="A30", vram_mb=1, ecc=ecc)]) == expected


def test_a_faulty_card_and_fatal_xids_quarantine() -> None:
    assert codes(gpus=[Gpu(vendor="nvidia", name="x", vram_mb=0, fault="GPU is lost")]) == [("gpu_fault", True)]
    twice = [Xid("0000:17:00.0", 79, at_s=1.0), Xid("0000:17:00.0", 79, at_s=2.0), Xid("0000:17:00.0", 13)]
    assert codes(xids=twice) == [("gpu_xid", True)]
    found = health.problems(gpus=[], disks=[Disk(path="/j", free_mb=0, total_mb=9)], xids=twice)
    assert [one.code for one in quarantined(found)] == ["gpu_xid"]


def test_xids_are_told_with_their_card() -> None:
    logged = [Xid("0000:17:00.0", 31), Xid("0000:65:00.0", 79), Xid("0000:17:00.0", 31), Xid("0000:17:00.0", 13)]
    (gpu,) = health.with_xids([GPU], logged)
    assert gpu.xids == (31, 13)
