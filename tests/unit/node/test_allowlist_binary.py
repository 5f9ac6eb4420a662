"""Programs: only what root (or, where allowed, the node's own user) owns and nobody else can change."""

import hashlib
import os
from pathlib import Path

import pytest

from ostler.node.allowlist import Entry
from ostler.node.allowlist_binary import BinaryCheck

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")


def entry(path: Path | str, sha256: str | None = None) -> Entry:
    return Entry(name="tool", path=str(path), file="tool.yaml", sha256=sha256)


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A program whose folders are closed to others (pytest's own temporary folder lies below the sticky /tmp)."""
    file = tmp_path / "bin" / "tool"
    file.parent.mkdir(mode=0o755)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def check() -> BinaryCheck:
    return BinaryCheck(allow_own_binaries=True)


def test_a_program_of_the_system_is_fine():
    assert BinaryCheck().verify(entry("/bin/sh")) is None  # through links


def test_an_own_program_only_where_the_config_allows_it(tool, check):
    assert check.verify(entry(tool)) is None
    if os.geteuid() != 0:
        assert "only root may own" in str(BinaryCheck().verify(entry(tool)))


def test_what_is_no_program(tool, check):
    assert "No such file" in str(check.verify(entry(tool.with_name("none"))))
    assert "not a regular file" in str(check.verify(entry(tool.parent)))
    assert "not a regular file" in str(check.verify(entry("/dev/null"))) or "written to by others" in str(
        check.verify(entry("/dev/null"))
    )
    assert "is not a folder" in str(check.verify(entry(tool / "x")))
    tool.chmod(0o644)
    assert "is not executable" in str(check.verify(entry(tool)))


def test_others_must_not_be_able_to_write(tool, check):
    for mode in (0o775, 0o757):
        tool.chmod(mode)
        assert f"mode {mode:04o}" in str(check.verify(entry(tool)))
    tool.chmod(0o755)
    tool.parent.chmod(0o777)
    assert "can be written to by others" in str(check.verify(entry(tool)))
    tool.parent.chmod(0o1777)
    assert check.verify(entry(tool)) is None
    tool.parent.chmod(0o755)
    tool.parent.parent.chmod(0o777)
    assert "can be written to by others" in str(check.verify(entry(tool)))


@as_root
def test_the_group_of_a_folder_counts_unless_it_is_root(tool, check):
    tool.parent.chmod(0o775)
    assert check.verify(entry(tool)) is None
    os.chown(tool.parent, 0, 50)
    assert "can be written to by others" in str(check.verify(entry(tool)))


@as_root
def test_owners_along_the_way(tool, check):
    link = tool.parent / "link"
    link.symlink_to("tool")
    assert check.verify(entry(link)) is None
    os.chown(link, 1234, 1234, follow_symlinks=False)
    assert "belongs to user 1234" in str(check.verify(entry(link)))
    os.chown(tool, 1234, 0)
    assert "belongs to user 1234" in str(check.verify(entry(tool)))
    os.chown(tool, 0, 0)
    os.chown(tool.parent, 1234, 0)
    assert "belongs to user 1234" in str(check.verify(entry(tool)))


def test_a_link_is_followed_through_what_it_passes(tool, check, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "tool").symlink_to(tool)
    (tmp_path / "safe").symlink_to("open/../open/tool")
    assert "open can be written to by others" in str(check.verify(entry(tmp_path / "safe")))
    (tmp_path / "loop").symlink_to("loop")
    assert "loop of links" in str(check.verify(entry(tmp_path / "loop")))


def test_the_hash(tool, check):
    right = hashlib.sha256(tool.read_bytes()).hexdigest()
    assert check.verify(entry(tool, right)) is None
    assert check.verify(entry(tool, right)) is None
    problem = check.verify(entry(tool, "0" * 64))
    assert problem.path == "command.sha256"
    assert right in problem.message
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert check.verify(entry(tool, right)) is not None


def test_the_hash_is_remembered_until_the_file_changes(tool, check, monkeypatch):
    first = check.sha256(str(tool))
    # Counted at the hash itself: whether the file was read again is the point, and nothing outside shows it.
    asked = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *a: asked.append(1) or real(*a))
    assert check.sha256(str(tool)) == first
    assert asked == []
    os.utime(tool, ns=(1, 1))
    assert check.sha256(str(tool)) == first
    assert asked == [1]
