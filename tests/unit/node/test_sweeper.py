"""What is removed when: by age, under disk pressure, and never what somebody still needs."""

import logging
import os
from datetime import UTC, datetime, timedelta

import pytest

from ostler.model.manifest import Manifest
from ostler.node.attempts import AttemptTable, Live
from ostler.node.config import WorkspaceConfig
from ostler.node.leases import Lease
from ostler.node.loops import sweeper as module
from ostler.node.loops.sweeper import PINNED, Remains, Sweeper, decide
from ostler.node.workspace import Found, Workspace
from ostler.runtime.clock import ManualClock

NOW = datetime(2026, 1, 10, tzinfo=UTC)


def remains(name, good, hours):
    return Remains(Found(None, name, 1, None, {}), good, NOW - timedelta(hours=hours))


def test_age_goes_by_how_it_ended_and_pressure_takes_the_oldest_success_first():
    old, young, failed, ancient = (
        remains("old", True, 30),
        remains("young", True, 1),
        remains("failed", False, 30),
        remains("ancient", False, 24 * 8),
    )
    younger = remains("younger", True, 0.5)
    due, rest = decide(
        [failed, younger, young, old, ancient], now=NOW, keep_success=timedelta(hours=24), keep_failed=timedelta(days=7)
    )
    assert due == [old, ancient]
    assert rest == [young, younger, failed]


@pytest.fixture
def swept(tmp_path):
    clock = ManualClock(NOW)
    table = AttemptTable()
    config = WorkspaceConfig(root=tmp_path, min_free_mb=0)
    told = []
    one = Sweeper(config=lambda: config, table=table, short=told.append, clock=clock, logger=logging.getLogger("t"))

    def make(name, state, hours, attempt=1):
        workspace = Workspace.create(tmp_path, name, attempt)
        workspace.write_state(state, at=NOW - timedelta(hours=hours))
        return workspace

    one.make, one.clock_, one.table_, one.told = make, clock, table, told
    return one


async def test_only_what_is_due_and_nobody_needs_is_removed(swept, tmp_path):
    gone = swept.make("gone", "done", 30)
    kept = [swept.make("young", "done", 1), swept.make("failed", "failed", 30), swept.make("pinned", "done", 300)]
    (kept[2].path / PINNED).touch()
    undelivered = swept.make("undelivered", "done", 300)
    swept.table_.add(Live("undelivered", 1, Manifest(), Lease(0, 1), 0))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "precious").write_text("mine")
    await swept.turn()
    assert not gone.path.exists()
    assert all(one.path.exists() for one in [*kept, undelivered])
    assert (tmp_path / "strange" / "precious").exists()
    assert swept.removed == 1
    assert swept.told == [False]


async def test_what_an_earlier_life_left_half_done_goes_as_a_failure(swept):
    half = swept.make("half", "running", 24 * 8)
    recent = swept.make("recent", "running", 24)
    await swept.turn()
    assert not half.path.exists()
    assert recent.path.exists()


async def test_what_never_got_a_word_in_it_goes_too(swept, tmp_path, monkeypatch):
    """The daemon died, or the disk was full, before `state.json` was written, and nobody holds the attempt any more."""

    def blank(name, hours, attempt=1):
        workspace = Workspace.create(tmp_path, name, attempt)
        (workspace.path / "exit.json").touch()
        at = (NOW - timedelta(hours=hours)).timestamp()
        os.utime(workspace.path, (at, at))
        return workspace

    old, recent, begun = blank("old", 24 * 8), blank("recent", 24), blank("begun", 0.01)
    second = swept.make("old", "done", 1, attempt=2)
    os.utime(old.path, (0, 0))
    pinned, mine, held = blank("pinned", 24 * 8), blank("mine", 24 * 8), blank("held", 24 * 8)
    (pinned.path / PINNED).touch()
    (mine.path / "precious").touch()
    for one in (pinned, mine):
        os.utime(one.path, (0, 0))
    swept.table_.add(Live("held", 1, Manifest(), Lease(0, 1), 0))
    await swept.turn()
    assert not old.work.exists()
    assert all(one.work.exists() for one in (recent, begun, second, pinned, mine, held))
    monkeypatch.setattr(module, "free_mb", lambda _: -1)  # a short disk
    await swept.turn()
    assert not recent.path.exists()
    assert all(one.work.exists() for one in (begun, pinned, mine, held))


async def test_a_clock_that_was_set_back_makes_nothing_immortal(swept):
    future = swept.make("future", "done", -1000)
    await swept.turn()
    assert future.path.exists()
    swept.clock_.advance(1100 * 3600)
    await swept.turn()
    assert not future.path.exists()


async def test_what_ended_while_the_clock_was_ahead_is_kept_no_longer_than_from_now(swept, tmp_path):
    """Its time has come long before the time that stands in it."""
    ahead, blank = swept.make("ahead", "done", -10_000), Workspace.create(tmp_path, "blank", 1)
    later = (NOW + timedelta(hours=10_000)).timestamp()
    os.utime(blank.path, (later, later))
    await swept.turn()
    swept.clock_.advance(23 * 3600)
    await swept.turn()
    assert ahead.path.exists()
    swept.clock_.advance(3600)
    await swept.turn()
    assert not ahead.path.exists()
    swept.clock_.advance(6 * 24 * 3600)
    await swept.turn()
    assert not blank.path.exists()


async def test_a_short_disk_takes_what_is_not_due(swept, monkeypatch):
    places = [swept.make("failed", "failed", 50), swept.make("old", "done", 20), swept.make("young", "done", 1)]
    free = iter([0, 0, 100, 100])
    monkeypatch.setattr(module, "free_mb", lambda root: next(free))
    swept._config = lambda: WorkspaceConfig(root=places[0].path.parent, min_free_mb=50)
    await swept.turn()
    assert [one.path.exists() for one in places] == [True, False, False]
    assert swept.told == [False]


async def test_a_disk_that_stays_short_is_told(swept, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "free_mb", lambda root: 1)
    swept._config = lambda: WorkspaceConfig(root=tmp_path, min_free_mb=50)
    await swept.turn()
    assert swept.told == [True]


async def test_a_strange_folder_is_reported_once(swept, tmp_path, caplog):
    (tmp_path / "..strange").mkdir()
    for _ in range(3):
        await swept.turn()
    assert [record.message for record in caplog.records].count("strange_folder_left_alone") == 1
