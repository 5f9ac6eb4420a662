"""Deleting and measuring what jobs leave: deep, locked, linked and full of surprises."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.node.trees import MAX_DEPTH, DiskUse, measure_tree, remove_tree

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def dig(top: Path, depth: int) -> None:
    """Folders in folders, further down than any path can say."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_all_kinds_of_entries_go(tmp_path):
    tree = tmp_path / "tree"
    for name in ("a/b/c", "a/empty", "d"):
        (tree / name).mkdir(parents=True)
    for name in ("f", "a/f", "a/b/f", "a/b/c/f"):
        (tree / name).write_text("x")
    os.mkfifo(tree / "a/fifo")
    (tree / b"a/\xff\xfe".decode(errors="surrogateescape")).write_text("x")
    remove_tree(tree)
    assert not tree.exists()
    remove_tree(tree)  # nothing there is no error


def test_no_link_is_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "link").symlink_to(outside)
    (tree / "loop").symlink_to(".")
    (tree / "hard").hardlink_to(outside / "precious")
    assert measure_tree(tree).entries == 4
    remove_tree(tree)
    assert (outside / "precious").read_text() == "x"
    (tmp_path / "itself").symlink_to(outside)
    remove_tree(tmp_path / "itself")
    assert not (tmp_path / "itself").is_symlink()
    assert (outside / "precious").exists()


def test_what_is_kept_stays_and_the_rest_goes(tmp_path):
    tree = tmp_path / "tree"
    for name in ("keep/inner", "go/keep"):
        (tree / name).mkdir(parents=True)
    remove_tree(tree, keep=lambda name: name == "keep")
    assert [str(p.relative_to(tree)) for p in sorted(tree.rglob("*"))] == ["keep", "keep/inner"]


def test_deeper_than_any_path_with_few_descriptors(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    dig(tree, 3000)
    used = measure_tree(tree)
    assert not used.complete
    assert used.entries == MAX_DEPTH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        remove_tree(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not tree.exists()


def test_what_the_tool_itself_would_use_as_names_is_no_trap(tmp_path):
    tree = tmp_path / "tree"
    (tree / ".removing-1" / "x" / ".removing-2").mkdir(parents=True)
    remove_tree(tree)
    assert not tree.exists()


LOCKED = """
import os, sys
from pathlib import Path
from ostler.node.trees import measure_tree, remove_tree
if os.geteuid() == 0:  # now that everything is imported, which another user might not be able to read
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
top = Path(sys.argv[1])
(top / "tree/locked/inner/innermost").mkdir(parents=True)
(top / "tree/locked/inner/f").write_text("x")
(top / "tree/readonly/inner").mkdir(parents=True)
(top / "tree/readonly/f").write_text("x")
for name in ("locked/inner/innermost", "locked/inner", "locked"):
    (top / "tree" / name).chmod(0)
(top / "tree/readonly/inner").chmod(0o500)
(top / "tree/readonly").chmod(0o500)
(top / "tree").chmod(0)
assert not measure_tree(top / "tree").complete
(top / "tree").chmod(0o500)
assert not measure_tree(top / "tree").complete
remove_tree(top / "tree")
assert not (top / "tree").exists()
"""


def test_folders_without_permissions_for_an_ordinary_user(tmp_path):
    # In a process of its own: root passes every permission, so root becomes somebody else there.
    top = tmp_path / "top"
    top.mkdir()
    top.chmod(0o777)
    opened = []
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
            opened.append(parent)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOCKED, str(top)],
            env={"PYTHONPATH": os.pathsep.join(map(str, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for parent in opened:
            parent.chmod(0o700)
    assert done.returncode == 0, done.stderr


@as_root
@pytest.mark.parametrize("place", ["mounted", "a/mounted"])
def test_a_mount_is_left_alone_and_the_rest_goes(tmp_path, place):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / place).mkdir(parents=True)
    (tree / "b").mkdir()
    subprocess.run(["mount", "--bind", precious, tree / place], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            remove_tree(tree)
        assert (precious / "file").exists()
        assert not (tree / "b").exists()
    finally:
        mounted = next(path for path in tree.rglob("mounted"))
        subprocess.run(["umount", mounted], check=True)
    remove_tree(tree)
    assert not tree.exists()


def test_measuring_counts_blocks_and_links_once(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "full").write_bytes(b"x" * 1_000_000)
    (tree / "again").hardlink_to(tree / "full")
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    used = measure_tree(tree)
    assert used.complete
    assert used.entries == 3
    assert 1_000_000 <= used.bytes < 1_200_000
    assert measure_tree(tmp_path / "none") == DiskUse(0, 0, complete=True)
    (tmp_path / "link").symlink_to(tree)
    assert measure_tree(tmp_path / "link") == DiskUse(0, 0, complete=False)
