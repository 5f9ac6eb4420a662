"""The verdict over an attempt's end, from every kind of record that the keeper writes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.failures import FailureCode
from ostler.node.keeper_client import ExitRecord
from ostler.node.runners.ending import Circumstances, ending, lost
from ostler.node.runners.task_ending import TaskRecord, died_of_backstop, parse_task_record, read_task_record, task_ending

C = FailureCode
PLAIN = Circumstances(timeout_s=60, memory_mb=512, log_mb=16, file_mb=100, free_mb=5000)
WRAPPED = Circumstances(timeout_s=60, memory_mb=512, log_mb=16, wrapped=True, free_mb=5000)
WATCHDOG = {"source": "watchdog", "limit_mb": 512, "peak_mb": 530.2}
KERNEL = {"source": "cgroup1", "limit_mb": 512, "peak_mb": 512.0}


def record(**facts):
    """A record as the keeper sends it, through the same decoding."""
    shape = {
        "key": "j/1",
        "pid": 7,
        "start_time": 1,
        "boot_id": "b",
        "exit_code": None,
        "signal": None,
        "killed": None,
        "oom": None,
        "wall_s": 12.5,
        "cpu_user_s": 1.0,
        "cpu_system_s": 0.5,
        "peak_memory_mb": 33.0,
        "read_bytes": 10,
        "written_bytes": 20,
        "leftovers_killed": 0,
        "started_at": 1.0,
        "ended_at": 13.5,
    }
    return msgspec.convert(shape | facts, ExitRecord)


def test_success():
    end = ending(record(exit_code=0), PLAIN)
    assert (end.failure, end.cancelled, end.exit_code, end.signal) == (None, False, 0, None)
    assert (end.usage.wall_s, end.usage.cpu_user_s, end.usage.peak_memory_mb, end.usage.written_bytes) == (12.5, 1.0, 33.0, 20)


@pytest.mark.parametrize(
    ("facts", "about", "code", "said"),
    [
        ({"exit_code": 3}, PLAIN, C.EXIT, "ended with exit code 3"),
        ({"exit_code": 127}, PLAIN, C.EXIT, "exit code 127"),
        ({"exit_code": 137}, PLAIN, C.EXIT, "exit code 137"),  # not guessed to be a signal where there is no bwrap
        ({"signal": 9}, PLAIN, C.SIGNAL, "killed by SIGKILL from outside; not by Ostler, and not by the memory limit"),
        ({"signal": 15}, PLAIN, C.SIGNAL, "killed by SIGTERM from outside"),
        ({"signal": 11}, PLAIN, C.SIGNAL, "crashed with SIGSEGV"),
        ({"signal": 31}, PLAIN, C.SIGNAL, "SIGSYS: a system call that no job may make"),
        ({"signal": 36}, PLAIN, C.SIGNAL, "SIGRTMIN+2"),
        ({"signal": 25}, PLAIN, C.OUTPUT, "larger than the 100 MB that it may"),
        ({"exit_code": 137}, WRAPPED, C.SIGNAL, "killed by SIGKILL from outside (told by the sandbox as exit code 137)"),
        ({"exit_code": 139}, WRAPPED, C.SIGNAL, "crashed with SIGSEGV (told by the sandbox as exit code 139)"),
        ({"exit_code": 255}, WRAPPED, C.EXIT, "exit code 255"),
        ({"exit_code": 183}, WRAPPED, C.EXIT, "exit code 183"),  # as ffmpeg ends over a file that is none
        ({"signal": 15, "killed": "timeout"}, PLAIN, C.TIMEOUT, "ran 12.5 s, longer than its limit of 60 s"),
        ({"exit_code": 0, "killed": "timeout"}, PLAIN, C.TIMEOUT, "limit of 60 s"),
        ({"signal": 9, "killed": "memory", "oom": WATCHDOG}, PLAIN, C.OOM, "limit of 512 MB (at most 530 MB) and was killed"),
        ({"signal": 9, "oom": KERNEL}, PLAIN, C.OOM, "by the kernel's record"),
        ({"exit_code": 1, "oom": KERNEL}, PLAIN, C.OOM, "limit of 512 MB"),  # a child was killed and the program gave up
        ({"exit_code": 137, "oom": KERNEL}, WRAPPED, C.OOM, "limit of 512 MB"),
        ({"signal": 15, "killed": "log"}, PLAIN, C.OUTPUT, "grew over 16 MB"),
        ({"signal": 9, "killed": "disk: 612 MB, quota 500"}, PLAIN, C.DISK, "612 MB, quota 500"),
        ({"killed": "keeper-lost"}, PLAIN, C.LOST, "keeper died"),
        ({"signal": 15, "killed": "shutdown"}, PLAIN, C.LOST, "shut down"),
        ({"signal": 15, "killed": "lost"}, PLAIN, C.LOST, "ended by the node: lost"),
        ({"stuck_pids": [7]}, PLAIN, C.LOST, "neither an exit code nor a signal"),
    ],
)
def test_each_cause_of_death(facts, about, code, said):
    end = ending(record(**facts), about)
    assert end.failure is not None
    assert end.failure.code is code
    assert said in end.failure.message


def test_a_job_without_memory_limit_is_told_so():
    assert "since it has none" in ending(record(signal=9), Circumstances(timeout_s=1)).failure.message


def test_memory_evidence_of_a_child_is_no_failure_of_a_program_that_went_on_to_succeed():
    assert ending(record(exit_code=0, oom=KERNEL), PLAIN).failure is None


def test_cancelled_is_neither_success_nor_failure():
    for facts in ({"signal": 15}, {"exit_code": 0}, {"exit_code": 1, "oom": KERNEL}, {}):
        end = ending(record(killed="cancel", **facts), PLAIN)
        assert (end.failure, end.cancelled) == (None, True)


def test_a_failure_on_a_full_disk_is_the_disks():
    full = Circumstances(timeout_s=60, free_mb=0.2)
    for facts in ({"exit_code": 1}, {"signal": 7}):
        assert ending(record(**facts), full).failure.code is C.DISK
    assert "had 0.2 MB free right after" in ending(record(exit_code=1), full).failure.message
    assert ending(record(exit_code=0), full).failure is None
    assert ending(record(signal=9, killed="memory", oom=WATCHDOG), full).failure.code is C.OOM


def test_what_bwrap_says_of_itself():
    said = "bwrap: execvp /opt/x: No such file or directory\n"
    about = Circumstances(timeout_s=60, wrapped=True, said=said)
    assert ending(record(exit_code=1), about).failure.code is C.START
    assert "execvp /opt/x: No such file" in ending(record(exit_code=1), about).failure.message
    about = Circumstances(timeout_s=60, wrapped=True, said="bwrap: Can't mount proc on /newroot/proc: No\n")
    assert ending(record(exit_code=1), about).failure.code is C.SANDBOX
    unwrapped = Circumstances(timeout_s=60, said=said)
    assert ending(record(exit_code=1), unwrapped).failure.code is C.EXIT


records = st.builds(
    record,
    exit_code=st.one_of(st.none(), st.integers(0, 255)),
    signal=st.one_of(st.none(), st.integers(1, 64)),
    killed=st.sampled_from([None, "timeout", "memory", "log", "disk: x", "cancel", "shutdown", "keeper-lost", "journal", "x y"]),
    oom=st.sampled_from([None, WATCHDOG, KERNEL, {"source": "v2", "limit_mb": None, "peak_mb": 1.0}]),
    wall_s=st.floats(0, 1e6),
)
abouts = st.builds(
    Circumstances,
    timeout_s=st.floats(0.1, 1e6),
    memory_mb=st.one_of(st.none(), st.integers(1, 10**6)),
    log_mb=st.one_of(st.none(), st.integers(1, 10**6)),
    file_mb=st.one_of(st.none(), st.integers(1, 10**6)),
    wrapped=st.booleans(),
    said=st.sampled_from(["", "bwrap: execvp x: y", "bwrap: z", "hello\n"]),
    free_mb=st.one_of(st.none(), st.floats(0, 10)),
)


@given(records, abouts)
def test_every_record_gives_exactly_one_verdict(one, about):
    end = ending(one, about)
    success = end.failure is None and not end.cancelled
    assert success + (end.failure is not None) + end.cancelled == 1
    assert success == (one.exit_code == 0 and one.killed is None)
    assert end.cancelled == (one.killed == "cancel")
    if end.failure is not None:
        assert end.failure.message
        assert (end.failure.code is C.OOM) <= (one.oom is not None or one.killed == "memory")
        assert (end.failure.code is C.TIMEOUT) == (one.killed == "timeout")


def test_lost_says_why():
    assert lost("nobody saw it").failure.code is C.LOST


# --- tasks ---

DONE = TaskRecord(key="j/1", outcome="done", wall_s=1.5, peak_memory_mb=20)
RAISED = TaskRecord(key="j/1", outcome="exception", type="ValueError", message="no")


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        (RAISED, C.TASK, "ValueError: no"),
        (TaskRecord(key="j/1", outcome="exception", type="KeyboardInterrupt"), C.TASK, "KeyboardInterrupt"),
        (TaskRecord(key="j/1", outcome="exit", exit_code=4), C.EXIT, "left with exit code 4"),
        (TaskRecord(key="j/1", outcome="refused", code="E_DENY", message="no such task"), C.DENY, "no such task"),
        (TaskRecord(key="j/1", outcome="refused", code="E_WHAT"), C.INTERNAL, "refused"),
        (TaskRecord(key="j/1", outcome="later"), C.INTERNAL, "later"),
        (None, C.LOST, "neither"),
    ],
)
def test_what_a_warm_worker_tells(task, code, said):
    end = task_ending(task, None, PLAIN)
    assert end.failure.code is code
    assert said in end.failure.message


def test_a_task_that_is_done():
    end = task_ending(DONE, None, PLAIN)
    assert (end.failure, end.exit_code, end.usage.wall_s, end.usage.peak_memory_mb) == (None, 0, 1.5, 20)
    assert task_ending(TaskRecord(key="j/1", outcome="exit", exit_code=0), None, PLAIN).failure is None


def test_a_task_that_failed_on_a_full_disk():
    end = task_ending(RAISED, None, Circumstances(timeout_s=1, free_mb=0.0))
    assert end.failure.code is C.DISK
    assert "ValueError: no" in end.failure.message


def test_the_keepers_word_comes_before_the_tasks():
    assert task_ending(DONE, record(signal=15, killed="timeout"), PLAIN).failure.code is C.TIMEOUT
    assert task_ending(DONE, record(signal=15, killed="cancel"), PLAIN).cancelled
    assert task_ending(RAISED, record(signal=9, oom=KERNEL), PLAIN).failure.code is C.OOM
    assert task_ending(RAISED, record(exit_code=1), PLAIN).failure.code is C.TASK
    assert task_ending(DONE, record(exit_code=0), PLAIN).failure is None
    assert task_ending(DONE, record(signal=11), PLAIN).failure.code is C.SIGNAL  # crashed after run() returned
    assert task_ending(None, record(exit_code=3), PLAIN).failure.code is C.EXIT
    assert task_ending(None, record(exit_code=0), PLAIN).failure.code is C.TASK
    assert task_ending(RAISED, record(exit_code=1), PLAIN).usage.wall_s == 12.5


def test_a_worker_killed_by_its_own_timer_is_a_timeout():
    assert died_of_backstop(record(signal=9, wall_s=10.0), kill_s=10.2).killed == "timeout"
    assert died_of_backstop(record(signal=9, wall_s=5.0), kill_s=10.2).killed is None
    assert died_of_backstop(record(signal=9, wall_s=11.0, oom=KERNEL), kill_s=10.2).killed is None
    assert died_of_backstop(record(signal=9, wall_s=11.0), kill_s=0).killed is None


def test_a_task_record_is_believed_only_if_it_is_one(tmp_path):
    path = tmp_path / "task.json"
    good = msgspec.json.encode(DONE)
    path.write_bytes(good)
    assert read_task_record(str(path), "j/1") == DONE
    assert read_task_record(str(path), "other/1") is None
    for content in (b"", b"{", b'{"key":"j/1"}', b"[" * 100000, good + b"x", b'{"key":"j/1","outcome":"done","wall_s":"long"}'):
        assert parse_task_record(content, "j/1") is None
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_task_record(str(link), "j/1") is None
    assert read_task_record(str(tmp_path / "absent"), "j/1") is None
    assert read_task_record(str(tmp_path), "j/1") is None


@given(
    st.one_of(
        st.none(),
        st.builds(
            TaskRecord,
            key=st.just("j/1"),
            outcome=st.sampled_from(["done", "exception", "exit", "refused", "?"]),
            exit_code=st.one_of(st.none(), st.integers(0, 255)),
            code=st.sampled_from(["", "E_SPEC"]),
        ),
    ),
    st.one_of(st.none(), records),
    abouts,
)
def test_every_task_gives_exactly_one_verdict(task, process, about):
    end = task_ending(task, process, about)
    assert not (end.failure is not None and end.cancelled)
    if end.failure is None and not end.cancelled:
        assert task is not None
        assert task.outcome == "done" or (task.outcome == "exit" and task.exit_code == 0)
        assert process is None or (process.exit_code == 0 and process.killed is None)
