"""Workspaces that go from one attempt to the next: only those in which nothing was left, whatever somebody did in them."""

import fcntl
import os
import shutil

import pytest

from ostler.node import spares
from ostler.node.spares import Spares
from ostler.node.workspace import FOLDERS


@pytest.fixture
def pool(tmp_path):
    return Spares(tmp_path)


def used(pool, job_id="a", attempt=1):
    """One as an attempt that printed nothing has it."""
    made = pool.take(job_id, attempt)
    for name in ("stdout", "stderr"):
        os.close(os.open(made.logs / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    return made


def inode(workspace):
    return workspace.path.lstat().st_ino


@pytest.mark.parametrize("settled", [-1000.0, 1000.0])
def test_it_goes_from_one_to_the_next(pool, tmp_path, monkeypatch, settled):
    monkeypatch.setattr(spares, "SETTLED_S", settled)  # whether it is looked into each time
    first = used(pool)
    number = inode(first)
    for job_id in "bcd":
        assert pool.give_back(first)
        assert not first.path.exists()
        first = used(pool, job_id)
        assert (first.path, inode(first)) == (tmp_path / job_id, number)
        assert sorted(os.listdir(first.path)) == sorted(FOLDERS)
    assert pool.give_back(first)
    assert [name.startswith(".spare-node-") for name in os.listdir(tmp_path)] == [True]


def chmod(place):
    (place / "work").chmod(0o777)


def replaced(place):
    os.rename(place / "work", place / "gone")
    (place / "work").mkdir(0o700)
    (place / "gone").rmdir()


def linked(place):
    (place / "output").rmdir()
    (place / "output").symlink_to("/tmp")


def attribute(place):
    os.setxattr(place / "work", "user.left", b"x")


def attribute_of_a_log(place):
    os.setxattr(place / "logs/stdout.log", "user.left", b"x")


def link_of_a_log(place):
    os.link(place / "logs/stdout.log", place.parent / f"kept-{place.name}")


def dated(place):
    os.utime(place / "work", (1, 1))


def grown(place):
    """Everything is gone again, but for the size of the folder."""
    for number in range(300):
        (place / "work" / f"{number:0200}").touch()
    for one in (place / "work").iterdir():
        one.unlink()


def flags(place):
    handle = os.open(place / "work", os.O_RDONLY)
    fcntl.ioctl(handle, 0x40086602, (0x40).to_bytes(8, "little"))  # FS_IOC_SETFLAGS: FS_NODUMP_FL
    os.close(handle)


def attribute_of_the_root(place):
    os.setxattr(place, "user.left", b"x")


@pytest.mark.parametrize("settled", [-1000.0, 1000.0])
@pytest.mark.parametrize(
    "leave",
    [
        lambda place: (place / "work/.hidden").touch(),
        lambda place: (place / "output/made").mkdir(),
        lambda place: (place / "input/x").touch(),
        lambda place: (place / "logs/more.log").touch(),
        lambda place: (place / "logs/stderr.log").write_text("x"),
        lambda place: (place / "logs/stdout.log").unlink(),
        lambda place: (place / "exit.json").touch(),
        lambda place: shutil.rmtree(place / "work"),
        lambda place: place.chmod(0o711),
        chmod, replaced, linked, attribute, attribute_of_the_root, attribute_of_a_log, link_of_a_log, dated, grown, flags,
        lambda place: (place / "logs/stdout.log").chmod(0),
    ],
)  # fmt: skip
def test_one_in_which_something_was_left_stays(pool, tmp_path, monkeypatch, leave, settled):
    monkeypatch.setattr(spares, "SETTLED_S", settled)
    first = used(pool)
    for job_id in "bcd":  # trusted by then
        assert pool.give_back(first)
        first = used(pool, job_id)
    try:
        leave(first.path)
    except OSError as exc:
        pytest.skip(f"this file system has no such thing: {exc}")
    assert not pool.give_back(first)
    assert first.path.is_dir()
    assert inode(used(pool, "next")) != inode(first)


def test_one_comes_back_once(pool):
    made = pool.take("a", 1)
    assert pool.give_back(made)
    assert not pool.give_back(made)


def test_a_second_attempt_and_a_place_that_is_taken_get_their_own(pool, tmp_path):
    pool.give_back(used(pool))
    assert pool.take("b", 2).path == tmp_path / "b" / "attempt-2"
    (tmp_path / "c").mkdir()
    assert pool.take("c", 1).path == tmp_path / "c" / "attempt-1"
    assert not pool.give_back(pool.take("d", 2))


def test_one_is_made_beforehand_and_only_one(pool, tmp_path):
    pool.have_one()
    assert os.listdir(tmp_path) == []  # nothing was ever asked for here
    used(pool)
    pool.have_one()
    pool.have_one()
    [spare] = [name for name in os.listdir(tmp_path) if name.startswith(".spare-node-")]
    number = (tmp_path / spare).lstat().st_ino
    second = used(pool, "b")
    assert inode(second) == number
    assert pool.give_back(second)


def test_what_an_earlier_daemon_left_goes(tmp_path):
    (tmp_path / ".spare-node-7" / "work").mkdir(parents=True)
    (tmp_path / ".spare-worker").mkdir()
    assert Spares(tmp_path).take("a", 1).path == tmp_path / "a"
    assert sorted(os.listdir(tmp_path)) == [".spare-worker", "a"]


def test_a_root_that_was_taken_away_is_an_error_and_no_more(pool, tmp_path):
    pool.give_back(used(pool))
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        pool.take("b", 1)
