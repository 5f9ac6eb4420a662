from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from ostler.cli.job_page import print_group, print_job, time_in_states
from ostler.model.attempt import AttemptState, Usage
from ostler.model.dependencies import Otherwise, Until
from ostler.model.failures import Failure, FailureCode
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.model.manifest import Runner
from ostler.protocol.messages import ArtifactEntry, AttemptView, DependencyView, EventView, GroupView, JobView

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


ATTEMPT = AttemptView(
    attempt=1, node_id="n1", state=AttemptState.FAILED, leased_at=at(1), acked_at=at(1.5), finished_at=at(9),
    failure=Failure(FailureCode.EXIT, "exit code 3"), exit_code=3, sandbox="bwrap",
    usage=Usage(prepare_s=0.5, wall_s=6.0, upload_s=0.25, cpu_user_s=2.0, cpu_system_s=0.5, peak_memory_mb=12.5, read_bytes=2048),
)  # fmt: skip
JOB = JobView(
    job_id="j-1", state=JobState.FAILED, runner=Runner.CLI, title="echo \x1b[31mhi", queue="default", priority=0,
    labels={"b": "2", "a": "1"}, submitted_at=T0, attempt=1, tries=1, node_id="n1", finished_at=at(9), failure=ATTEMPT.failure,
    exit_code=3, attempts=(ATTEMPT,), timeline=(EventView(id=1, at=at(0), kind="submitted", job_id="j-1"),),
    artifacts=(ArtifactEntry(path="out.txt", type="text/plain", size=3, sha256="0" * 64),),
)  # fmt: skip


def test_time_in_each_state_as_measured_by_the_node() -> None:
    assert time_in_states(ATTEMPT, (), at(100)) == [("leased", 0.5), ("preparing", 0.5), ("running", 6.0), ("uploading", 0.25)]


def test_time_in_each_state_while_it_runs() -> None:
    live = replace(ATTEMPT, state=AttemptState.RUNNING, finished_at=None, usage=None, failure=None)
    events = (
        EventView(id=1, at=at(2), kind="prepare", attempt=1),
        EventView(id=2, at=at(3), kind="start", attempt=1),
        EventView(id=3, at=at(3), kind="start", attempt=2),
    )
    assert time_in_states(live, events, at(10)) == [("leased", 0.5), ("acked", 0.5), ("preparing", 1.0), ("running", 7.0)]


def test_an_attempt_that_nobody_took() -> None:
    offered = replace(ATTEMPT, acked_at=None, finished_at=at(4), usage=None)
    assert time_in_states(offered, (), at(10)) == [("leased", 3.0)]


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    print_job(JOB, at(20))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    for part in (
        "state       failed", "labels      a=1, b=2", "exit code   3", "failure     E_EXIT: exit code 3",
        "what to do  Read `ostler job logs j-1`.",
        "leased 500ms preparing 500ms running 6.0s uploading 250ms", "12.5 MiB", "2.0 KiB", "bwrap", "E_EXIT", "submitted",
        "out.txt",
    ):  # fmt: skip
        assert part in said, part


def test_the_page_of_an_array(capsys) -> None:
    view = GroupView(
        group_id="g", state=GroupState.FAILED, count=12, counts={JobState.DONE: 10, JobState.FAILED: 2}, submitted_at=T0,
        finished_at=at(9), failures=(replace(JOB, job_id="g-3"), replace(JOB, job_id="g-7", exit_code=None)),
    )  # fmt: skip
    print_group(view, at(60))
    shown = capsys.readouterr().out
    assert "jobs       12: 10 done, 2 failed\n" in shown
    assert "(1m ago)" in shown
    assert "took       9.0s\n" in shown
    assert [line.split()[:4] for line in shown.splitlines()[-2:]] == [
        ["g-3", "failed", "3", "E_EXIT"],
        ["g-7", "failed", "-", "E_EXIT"],
    ]


def test_what_a_job_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    others = tuple(
        DependencyView(job_id=name, state=state, until=until, otherwise=Otherwise.CANCEL)
        for name, state, until in (("a", JobState.RUNNING, Until.SUCCESS), ("b", JobState.DONE, Until.DONE))
    )
    waits = JobView(
        job_id="j-2", state=JobState.QUEUED, runner=Runner.CLI, title="true", queue="default", priority=0, labels={}, submitted_at=T0,
        waiting=True, not_before=at(60), depends_on=others, dependents=others[:1],
    )  # fmt: skip
    print_job(waits, at(30))
    page = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "waits for 1 of the jobs that it depends on" in lines
    assert any(line.startswith("waits until 20") for line in lines)
    begin = lines.index("DEPENDS ON STATE UNTIL OTHERWISE")
    assert lines[begin + 1 : begin + 3] == ["a running success cancel", "b done done -"]
    assert "IS WAITED FOR BY STATE UNTIL OTHERWISE" in lines
    print_job(waits, at(61))
    assert "waits until" not in capsys.readouterr().out
