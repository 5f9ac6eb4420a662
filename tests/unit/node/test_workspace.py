"""Workspaces: where attempts lie, what `state.json` says, and what a scan makes of anything that lies there."""

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from errno import EIO, ENOSPC, EROFS

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.attempt import AttemptState
from ostler.model.errors import InvalidSpec
from ostler.model.failures import FailureCode
from ostler.model.job import JobState
from ostler.node.workspace import MAX_HISTORY, WORDS, Owner, Workspace, disk_failure, scan

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECTION_11 = {"IDLE", "PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE", "FAILED", "RETRY_WAIT"}


def test_the_first_attempt_has_the_jobs_folder_and_later_ones_lie_in_it(tmp_path):
    first = Workspace.create(tmp_path, "j-1", 1)
    second = Workspace.create(tmp_path, "j-1", 2)
    assert first.path == tmp_path / "j-1"
    assert second.path == tmp_path / "j-1" / "attempt-2"
    assert Workspace.create(tmp_path, "j-2", 3).path == tmp_path / "j-2" / "attempt-3"
    for folder in (first.path, first.input, first.work, first.output, first.logs, second.path, second.work):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(p.name for p in second.path.iterdir()) == ["input", "logs", "output", "work"]


def test_a_folder_that_an_earlier_life_left_is_not_used_again(tmp_path):
    (tmp_path / "j-1").mkdir()
    assert Workspace.create(tmp_path, "j-1", 1).path == tmp_path / "j-1" / "attempt-1"
    assert Workspace.create(tmp_path, "j-1", 1).path == tmp_path / "j-1" / "attempt-1.2"
    assert Workspace.create(tmp_path, "j-1", 1).path == tmp_path / "j-1" / "attempt-1.3"
    assert {(f.job_id, f.attempt) for f in scan(tmp_path)} == {("j-1", 1)}


def test_no_link_is_taken_for_a_jobs_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "j-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Workspace.create(tmp_path / "root", "j-1", 2)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@given(job_id=st.text(max_size=20))
def test_job_ids_that_are_no_names_are_refused(tmp_path_factory, job_id):
    root = tmp_path_factory.mktemp("root")
    try:
        made = Workspace.create(root, job_id, 1)
    except InvalidSpec:
        assert list(root.iterdir()) == []
    else:
        assert made.path.parent == root
        assert made.path.name == job_id


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "../a", "-a", "a\n", "a\0", "a" * 129, "ü"])
def test_bad_job_ids(tmp_path, job_id):
    with pytest.raises(InvalidSpec):
        Workspace.create(tmp_path, job_id, 1)
    with pytest.raises(InvalidSpec):
        Workspace.create(tmp_path, "good", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_the_jobs_own_user_reaches_its_folders_and_no_others(tmp_path):
    for made in (
        Workspace.create(tmp_path, "j-1", 1, owner=Owner(1234, 1235)),
        Workspace.create(tmp_path, "j-1", 2, owner=Owner(1234, 1235)),
    ):
        for folder in (made.input, made.work, made.output):
            assert (folder.stat().st_uid, folder.stat().st_gid) == (1234, 1235)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert made.logs.stat().st_uid == 0
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o711
        assert stat.S_IMODE(made.path.parent.stat().st_mode) & 0o001 or made.path.parent == tmp_path
        made.write_state("running", at=NOW)
    assert [Workspace.resume(found).owner for found in scan(tmp_path)] == [Owner(1234, 1235)] * 2


def test_each_state_has_a_word_of_section_11():
    assert set(WORDS) >= {*AttemptState, *JobState}
    assert set(WORDS.values()) == SECTION_11


def test_the_state_file_tells_the_whole_story(tmp_path):
    made = Workspace.create(tmp_path, "j-1", 1)
    made.write_state("acked", at=NOW, lease="x")
    made.write_state("preparing", at=NOW + timedelta(seconds=1))
    made.write_state(AttemptState.RUNNING, at=NOW + timedelta(seconds=2), pid=42, state="mine", job_id="mine")
    assert json.loads((made.path / "state.json").read_text()) == {
        "job_id": "j-1",
        "attempt": 1,
        "state": "RUNNING",
        "node_state": "running",
        "at": "2026-01-02T03:04:07+00:00",
        "history": [
            ["ACKED", "2026-01-02T03:04:05+00:00"],
            ["PREP", "2026-01-02T03:04:06+00:00"],
            ["RUNNING", "2026-01-02T03:04:07+00:00"],
        ],
        "lease": "x",
        "pid": 42,
    }
    assert sorted(p.name for p in made.path.iterdir()) == ["input", "logs", "output", "state.json", "work"]
    assert stat.S_IMODE((made.path / "state.json").stat().st_mode) == 0o600


def test_the_story_goes_on_after_a_restart_and_stays_bounded(tmp_path):
    made = Workspace.create(tmp_path, "j-1", 1)
    for i in range(2 * MAX_HISTORY):
        made.write_state("running", at=NOW + timedelta(seconds=i), pid=7)
    (found,) = scan(tmp_path)
    again = Workspace.resume(found)
    again.write_state("done", at=NOW)
    told = json.loads((made.path / "state.json").read_text())
    assert len(told["history"]) == MAX_HISTORY
    assert told["history"][-1] == ["DONE", NOW.isoformat()]
    assert told["pid"] == 7


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path):
    made = Workspace.create(tmp_path, "j-1", 1)
    made.write_state("acked", at=NOW)
    (made.path / "state.json.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        made.write_state("running", at=NOW)
    assert scan(tmp_path)[0].state == "ACKED"


def test_a_scan_reports_what_it_cannot_read(tmp_path):
    good = Workspace.create(tmp_path, "good", 1)
    good.write_state("running", at=NOW, pid=1)
    Workspace.create(tmp_path, "good", 2).write_state("acked", at=NOW)
    for name, content in {
        "torn": b'{"job_id": "torn", "att',
        "empty": b"",
        "binary": b"\xff\x00\xfe",
        "other": b'{"job_id": "good", "attempt": 1, "state": "DONE"}',
        "list": b"[1]",
        "nested": b"[" * 100_000,
        "future": b'{"job_id": "future", "attempt": 1, "state": "DREAMING"}',
        "strange": b'{"job_id": "strange", "attempt": 1, "state": ["DONE"]}',
        "huge": b'{"x": "' + b"x" * (2 << 20) + b'"}',
    }.items():
        Workspace.create(tmp_path, name, 1)
        (tmp_path / name / "state.json").write_bytes(content)
    Workspace.create(tmp_path, "none", 1)
    os.mkfifo(Workspace.create(tmp_path, "fifo", 1).path / "state.json")
    (Workspace.create(tmp_path, "linked", 1).path / "state.json").symlink_to(good.path / "state.json")
    (tmp_path / "a file").write_text("x")
    (tmp_path / "link").symlink_to(good.path)
    found = {(f.job_id, f.attempt): f for f in scan(tmp_path)}
    assert (found["good", 1].state, found["good", 1].facts["pid"], found["good", 1].problem) == ("RUNNING", 1, None)
    assert (found["good", 2].state, found["good", 2].path.name) == ("ACKED", "attempt-2")
    for name, says in {
        "torn": "is torn",
        "empty": "is torn",
        "binary": "is torn",
        "list": "is torn",
        "nested": "is torn",
        "huge": "is torn",
        "other": "is about 'good'",
        "future": "does not know",
        "strange": "does not know",
        "none": "No such file",
        "fifo": "not a regular file",
        "linked": "cannot be read",
    }.items():
        assert found[name, 1].state is None
        assert says in found[name, 1].problem
    assert found["a file", 0].problem == found["link", 0].problem == "is not the folder of a job"
    assert scan(tmp_path / "nowhere") == []


@given(content=st.binary(max_size=200))
def test_a_scan_survives_any_state_file(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    made = Workspace.create(root, "j", 1)
    (made.path / "state.json").write_bytes(content)
    (found,) = scan(root)
    assert (found.problem is None) == (found.state is not None)


def test_removing_an_attempt_leaves_the_others(tmp_path):
    first, second, third = (Workspace.create(tmp_path, "j-1", n) for n in (1, 2, 3))
    (first.work / "attempt-9").mkdir()
    first.remove()
    assert sorted(p.name for p in (tmp_path / "j-1").iterdir()) == ["attempt-2", "attempt-3"]
    assert {f.attempt for f in scan(tmp_path)} == {2, 3}
    third.remove()
    assert second.work.exists()
    second.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []
    Workspace.create(tmp_path, "j-1", 1).remove()
    assert list(tmp_path.iterdir()) == []


def test_measuring_leaves_other_attempts_out(tmp_path):
    first, second = (Workspace.create(tmp_path, "j-1", n) for n in (1, 2))
    (second.work / "big").write_bytes(b"x" * 5_000_000)
    (first.output / "small").write_bytes(b"x" * 1000)
    assert first.measure().bytes < 1_000_000 < 5_000_000 <= second.measure().bytes
    assert first.measure().entries == 1


def test_what_a_disk_says():
    for errno, code in ((ENOSPC, FailureCode.DISK), (EROFS, FailureCode.DISK), (EIO, FailureCode.INTERNAL)):
        failure = disk_failure(OSError(errno, os.strerror(errno)), "writing x")
        assert failure.code is code
        assert failure.message.startswith("writing x: ")


def test_a_folder_that_the_sweeper_takes_away_meanwhile_is_made_again(tmp_path, monkeypatch):
    """It removes the last attempt of a job, and the job's folder with it, just when the next one is to be made there."""
    old = Workspace.create(tmp_path, "job", 2)
    mkdir, swept = os.mkdir, []

    def after_the_sweeper(path, mode=0o777):
        if str(path).endswith("attempt-3") and not swept:
            swept.append(old.remove())
        mkdir(path, mode)

    monkeypatch.setattr("ostler.node.workspace.os.mkdir", after_the_sweeper)
    made = Workspace.create(tmp_path, "job", 3)
    assert swept
    assert made.path == tmp_path / "job" / "attempt-3"
    assert made.work.is_dir()
