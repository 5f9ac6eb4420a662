"""Artifacts: taken where they are files of the job, refused where they are anything else."""

import asyncio
import hashlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Artifact
from ostler.node.outputs import Output, collect, collect_now
from ostler.node.workspace import Workspace

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and chown need root")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "secret").write_text("secret")
    return Workspace.create(tmp_path / "jobs", "j-1", 1)


def take(space: Workspace, path: str, **more) -> Failure | Output:
    result = collect_now([Artifact(path=path, **more)], space.path)
    return result if isinstance(result, Failure) else result[0]


def refused(space: Workspace, path: str, says: str, **more) -> None:
    failure = take(space, path, **more)
    assert isinstance(failure, Failure)
    assert failure.code is FailureCode.OUTPUT
    assert says in failure.message
    assert path[:100] in failure.message


async def test_files_are_found_measured_and_hashed(space):
    (space.output / "a.txt").write_text("from output")
    (space.work / "a.txt").write_text("from work")
    (space.work / "deep" / "er").mkdir(parents=True)
    (space.work / "deep" / "er" / "big").write_bytes(b"x" * 3_000_001)
    (space.work / "empty").touch()
    wanted = [
        Artifact(path="a.txt", type="text/plain"),
        Artifact(path="deep/er/big"),
        Artifact(path="none", optional=True),
        Artifact(path="empty"),
    ]
    a, big, empty = await collect(wanted, space.path)
    assert a == Output("a.txt", "text/plain", 11, hashlib.sha256(b"from output").hexdigest(), space.output / "a.txt")
    assert (big.size, big.sha256) == (3_000_001, hashlib.sha256(b"x" * 3_000_001).hexdigest())
    assert big.file == space.work / "deep" / "er" / "big"
    assert (empty.size, empty.sha256) == (0, hashlib.sha256().hexdigest())
    assert await collect([], space.path / "not even there") == ()


def test_a_missing_one_is_told_with_what_is_there(space):
    for i in range(9):
        (space.work / f"f{i}").touch()
    refused(space, "out.mp4", "is missing; output/ holds nothing and work/ holds 'f")
    assert ", …" in take(space, "out.mp4").message
    refused(space, "f1/below", "is missing")


def test_links_that_stay_inside_are_followed(space):
    (space.input / "in").write_text("in")
    (space.work / "real").mkdir()
    (space.work / "real" / "file").write_text("file")
    (space.output / "a").symlink_to("../work/real/file")
    (space.output / "b").symlink_to(space.work / "real" / "file")
    (space.output / "c").symlink_to("b")
    (space.work / "folder").symlink_to("real")
    (space.work / "d").symlink_to("./real/../../input/./in")
    for path in ("a", "b", "c", "folder/file"):
        assert take(space, path).file == space.work / "real" / "file"
    assert take(space, "d").file == space.input / "in"


def test_links_that_leave_are_refused(space, tmp_path):
    outside = "outside of the job's folders"
    for name, target in {
        "passwd": "/etc/passwd",
        "climb": "../../../secret",
        "climb-all": "../" * 50 + "etc/passwd",
        "absolute": str(tmp_path / "secret"),
        "sibling": f"{space.path}x/secret",
        "back": f"{space.work}/../../../secret",
        "state": "../state.json",
        "logs": "../logs/exec.log",
        "root": "/",
    }.items():
        (space.work / name).symlink_to(target)
        refused(space, name, outside)
        refused(space, name, repr(target)[:100])
    (space.work / "top").symlink_to("..")
    refused(space, "top", "a folder, not a regular file")
    (space.work / "chain").symlink_to("climb")
    refused(space, "chain", outside)
    (space.work / "etc").symlink_to("/etc")
    refused(space, "etc/passwd", outside)
    (space.work / "dangling").symlink_to("nothing")
    refused(space, "dangling", "a link to 'nothing', which is not there")
    refused(space, "dangling", "not there", optional=True)
    (space.work / "loop").symlink_to("loop")
    refused(space, "loop", "loop of links")
    (space.work / "self").symlink_to("self/x")
    refused(space, "self", "loop of links")


def test_the_jobs_own_folders_replaced_by_links(space):
    space.output.rmdir()
    space.output.symlink_to("/etc")
    refused(space, "passwd", "outside of the job's folders")


def test_what_is_no_regular_file_is_refused_without_opening_it(space):
    os.mkfifo(space.work / "fifo")
    (space.work / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(space.work)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        refused(space, "socket", "is a socket, not a regular file")
    refused(space, "fifo", "is a FIFO, not a regular file")
    refused(space, "folder", "is a folder, not a regular file")
    (space.output / "to-fifo").symlink_to("../work/fifo")
    refused(space, "to-fifo", "a link to '../work/fifo', a FIFO")
    (space.output / "to-folder").symlink_to("../work/")
    refused(space, "to-folder", "a folder, not a regular file")


@as_root
def test_devices_and_files_of_others(space, tmp_path):
    os.mknod(space.work / "zero", 0o020666, os.makedev(1, 5))
    refused(space, "zero", "is a character device")
    os.mknod(space.work / "disk", 0o060666, os.makedev(7, 0))
    refused(space, "disk", "is a block device")
    for folder in (space.work, space.output):
        os.chown(folder, 1234, 1234)
    (space.work / "shadow").hardlink_to(tmp_path / "secret")
    refused(space, "shadow", "hard link to a file of user 0")
    (space.work / "own").write_text("x")
    os.chown(space.work / "own", 1234, 1234)
    (space.work / "own2").hardlink_to(space.work / "own")
    assert take(space, "own2").size == 1


def test_sizes(space):
    with (space.work / "sparse").open("wb") as file:
        file.truncate(2 << 20)
    assert take(space, "sparse", max_mb=2).size == 2 << 20
    refused(space, "sparse", "more than its max_mb of 1", max_mb=1)
    (space.work / "more").write_bytes(b"x" * (1 << 20))
    both = [Artifact(path="sparse"), Artifact(path="more")]
    assert len(collect_now(both, space.path, max_total_mb=3)) == 2
    assert "all artifacts together" in collect_now(both, space.path, max_total_mb=2).message


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "", ".", "a//b", "a/", "-x", "a\0b", "x" * 256, "a/" * 600 + "b", "\ud800"]
)
def test_paths_that_cannot_be_declared(space, path):
    failure = take(space, path)
    assert isinstance(failure, Failure)
    assert failure.code is FailureCode.OUTPUT
    failure.message.encode()


def test_a_job_can_only_fail_itself(space):
    """Links made to exhaust: too long a step, too many steps."""
    (space.work / "long").symlink_to("x" * 300)
    refused(space, "long", "cannot be opened")
    here = os.open(space.work, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=here)
        here, before = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(os.open("f", os.O_CREAT, dir_fd=here))
    os.close(here)
    (space.work / "deep").symlink_to("d/" * 200 + "f")
    refused(space, "deep", "deeper than 64 folders")


def test_no_descriptor_is_left_open(space):
    (space.work / "a" / "b").mkdir(parents=True)
    (space.work / "a" / "b" / "c").write_text("x")
    (space.work / "x").symlink_to("a/b/../b/c")
    (space.work / "y").symlink_to(f"{space.work}/a/b/../../nothing")
    before = len(os.listdir("/proc/self/fd"))
    take(space, "x")
    take(space, "y")
    take(space, "a/b/none")
    take(space, "a/b")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_workspace_that_is_gone(space):
    space.remove()
    assert take(space, "x").code is FailureCode.INTERNAL


STEP = st.sampled_from(
    ["..", ".", "a", "b", "work", "output", "input", "etc", "passwd", "secret", "jobs", "j-1", "link0", "link1"]
)


@given(targets=st.lists(st.tuples(st.booleans(), st.lists(STEP, min_size=1, max_size=8)), min_size=2, max_size=2))
def test_no_maze_of_links_leads_out(tmp_path_factory, targets):
    """Whatever two links say: what is taken is what the kernel finds too, and lies in the job's folders."""
    top = tmp_path_factory.mktemp("maze")
    (top / "secret").write_text("secret")
    space = Workspace.create(top, "j-1", 1)
    (space.work / "a").mkdir()
    (space.work / "a" / "b").write_text("b")
    (space.output / "a").write_text("a")
    for i, (absolute, steps) in enumerate(targets):
        (space.work / f"link{i}").symlink_to((f"{space.path}/" if absolute else "") + "/".join(steps))
    for path in ("link0", "link1", "link0/b", "link1/a"):
        result = take(space, path)
        if isinstance(result, Output):
            real = (space.work / path).resolve(strict=True)
            assert result.file.resolve() == result.file == real
            assert real.relative_to(space.path).parts[0] in {"input", "work", "output"}


async def test_the_loop_turns_while_a_large_file_is_hashed(space):
    with (space.work / "large").open("wb") as file:
        file.truncate(256 << 20)
    turns = 0
    task = asyncio.create_task(collect([Artifact(path="large")], space.path))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
    assert (await task)[0].size == 256 << 20
