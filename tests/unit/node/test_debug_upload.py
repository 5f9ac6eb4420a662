"""What goes into the archive of a workspace, whatever a job left there."""

import os
import socket
import tarfile

import pytest

from ostler.node.debug_upload import pack


@pytest.fixture
def packed(tmp_path):
    workspace = tmp_path / "jobs" / "j1"
    for name in ("input", "work/deep/er", "output", "logs", "attempt-2/work"):
        (workspace / name).mkdir(parents=True)

    def pack_it():
        pack(workspace, tmp_path / "w.tar.gz")
        with tarfile.open(tmp_path / "w.tar.gz") as tar:
            return {one.name: (one, tar.extractfile(one).read() if one.isreg() else None) for one in tar}

    pack_it.workspace = workspace
    return pack_it


def test_files_and_folders_are_there_and_other_attempts_are_not(packed):
    (packed.workspace / "work/deep/er/file").write_bytes(b"content")
    (packed.workspace / "attempt-2/work/secret").write_text("of another attempt")
    found = packed()
    assert found["work/deep/er/file"][1] == b"content"
    assert "logs" in found
    assert not [name for name in found if name.startswith("attempt-2")]


def test_links_stay_links_and_nothing_outside_is_read(packed, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("secret")
    (packed.workspace / "work/file").symlink_to(tmp_path / "secret")
    (packed.workspace / "work/folder").symlink_to(tmp_path / "folder")
    found = packed()
    assert found["work/file"][0].issym()
    assert found["work/folder"][0].issym()
    assert not [name for name in found if "inside" in name]


def test_what_would_block_or_is_no_file_is_left_out(packed):
    os.mkfifo(packed.workspace / "work/fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(packed.workspace / "work/sock"))
        found = packed()
    assert "work/fifo" not in found
    assert "work/sock" not in found


def test_a_second_name_of_a_file_carries_its_bytes(packed):
    (packed.workspace / "work/a").write_bytes(b"same")
    os.link(packed.workspace / "work/a", packed.workspace / "work/b")
    found = packed()
    assert found["work/a"][1] == found["work/b"][1] == b"same"


def test_what_is_mostly_holes_is_named_and_not_packed(packed):
    with (packed.workspace / "work/big").open("wb") as file:
        file.truncate(1 << 40)
    with (packed.workspace / "work/small").open("wb") as file:
        file.truncate(1 << 20)
    found = packed()
    assert "work/big" not in found
    assert found["LEFT-OUT.txt"][1] == b"'work/big' is mostly holes\n"
    assert found["work/small"][1] == bytes(1 << 20)
