"""Whose an orphan is, asked of real processes at moments that a test can choose."""

import subprocess

import pytest

from ostler.node.keeper import proc, tree
from ostler.node.keeper.tree import KEEPER_MARKER, MARKER, Orphans, WalkedTree

KEEPER = b"test-tree"


@pytest.fixture
def orphan():
    """A child that says of itself that it belongs to attempt `a`, and that no ancestry ties to it."""
    env = {MARKER.decode(): "a", KEEPER_MARKER.decode(): KEEPER.decode()}
    orphans = Orphans(KEEPER)
    child = subprocess.Popen(["/bin/sleep", "1000"], env=env, start_new_session=True)
    while not any(proc.environment(child.pid)):
        assert child.poll() is None
    yield orphans, child
    child.kill()
    child.wait()


def trees(orphans: Orphans, child: subprocess.Popen, *keys: str) -> list[WalkedTree]:
    """Attempts that began before the child, with roots that are no process."""
    began = proc.start_time(child.pid) - 1
    return [WalkedTree(key, 2**22 + number, began, orphans) for number, key in enumerate(keys, 1)]


def test_one_that_becomes_another_program_between_two_looks_is_not_killed_as_a_leftover(orphan, monkeypatch):
    orphans, child = orphan
    a, b = trees(orphans, child, "a", "b")
    looks = [[]]  # while a process executes a program it has no environment for a moment
    real = proc.environment
    monkeypatch.setattr(proc, "environment", lambda pid: looks.pop() if looks and pid == child.pid else real(pid))
    killed: list[int] = []
    monkeypatch.setattr(tree, "send", lambda pid, _number: killed.append(pid))
    orphans.claim()
    assert not looks
    assert not killed
    orphans.claim()
    assert a.living() == [child.pid]
    assert b.living() == []


def test_one_that_says_it_belongs_to_an_attempt_that_is_over_is_killed(orphan):
    orphans, child = orphan
    trees(orphans, child, "b", "c")
    orphans.claim()
    assert child.wait(30) == -9
