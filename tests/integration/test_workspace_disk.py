"""Workspaces on a disk that is full: of bytes, and of inodes."""

import os
import subprocess
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path

import pytest

from ostler.model.failures import FailureCode
from ostler.node.workspace import Workspace, disk_failure, scan

NOW = datetime(2026, 1, 2, tzinfo=UTC)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def disk(tmp_path: Path):
    """A file system of 64 KiB and 11 inodes."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=11", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_workspace_that_cannot_be_made_leaves_nothing(disk):
    kept = Workspace.create(disk, "j-1", 1)
    kept.write_state("running", at=NOW)
    for job_id, attempt in (("j-2", 1), ("j-3", 2), ("j-1", 2)):
        with pytest.raises(OSError, match="No space") as caught:
            Workspace.create(disk, job_id, attempt)
        assert caught.value.errno == ENOSPC
        assert disk_failure(caught.value, "making the workspace").code is FailureCode.DISK
        assert sorted(os.listdir(disk)) == ["j-1"]
    kept.write_state("done", at=NOW)
    assert [(found.path, found.state) for found in scan(disk)] == [(kept.path, "DONE")]


def test_a_state_that_has_no_room_leaves_the_old_one_whole(disk):
    made = Workspace.create(disk, "j-1", 1)
    made.write_state("running", at=NOW)
    with (made.work / "all").open("wb", buffering=0) as file:
        assert file.write(bytes(1 << 20)) < 1 << 20
    with pytest.raises(OSError, match="No space"):
        made.write_state("done", at=NOW)
    assert not (made.path / "state.json.new").exists()
    assert scan(disk)[0].state == "RUNNING"
    made.remove()
    assert os.listdir(disk) == []
