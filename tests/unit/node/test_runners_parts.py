"""The pure parts of the runners: environment, limits, who is ended for the disk; and standard output kept as a file."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.manifest import Manifest, Policy, Requirements
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import ResourceLimits
from ostler.node.runners import limits
from ostler.node.runners.cli import copy_stdout
from ostler.node.runners.environment import dangerous, environment
from ostler.node.runners.watch import WORTH_ENDING_MB, decide
from ostler.protocol.ports import AttemptTask


def task(**manifest):
    return AttemptTask(
        job_id="j",
        attempt=2,
        manifest=Manifest(**manifest),
        root="/w/j",
        sandbox=SandboxLevel.NONE,
        timeout_s=1,
        gpus=("GPU-a",),
    )


def test_what_the_node_says_of_an_attempt_cannot_be_replaced():
    env = environment(
        task(env={"OSTLER_JOB_ID": "other", "CUDA_VISIBLE_DEVICES": "0", "LANG": "de_AT.UTF-8", "COLOUR": "blue"}), tmp="/tmp"
    )
    assert env["OSTLER_JOB_ID"] == "j"
    assert env["OSTLER_ATTEMPT"] == "2"
    assert env["CUDA_VISIBLE_DEVICES"] == env["NVIDIA_VISIBLE_DEVICES"] == "GPU-a"
    assert env["LANG"] == "de_AT.UTF-8"
    assert env["COLOUR"] == "blue"
    assert env["HOME"] == "/w/j/work"


def test_a_job_of_an_array_knows_its_number():
    env = environment(task(array_index=0, array_count=3, env={"OSTLER_ARRAY_INDEX": "9"}), tmp="/tmp")
    assert (env["OSTLER_ARRAY_INDEX"], env["OSTLER_ARRAY_COUNT"]) == ("0", "3")
    assert not {"OSTLER_ARRAY_INDEX", "OSTLER_ARRAY_COUNT"} & environment(task(), tmp="/tmp").keys()


def test_variables_that_make_trusted_code_run_other_code():
    bad = [
        "LD_PRELOAD",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PATH",
        "BASH_ENV",
        "NODE_OPTIONS",
        "GIT_SSH_COMMAND",
        "OSTLER_JOB_ID",
        "HOME",
    ]
    assert dangerous([*bad, "COLOUR", "OMP_NUM_THREADS", "LANG", "LDAP_HOST_X", "TZ"]) == sorted(bad)


def test_limits_are_the_least_of_what_is_said():
    node = ResourceLimits(mem_soft_mb=1000, disk_mb=None, log_mb=256, grace_s=10)
    assert limits.memory_mb(Manifest(), node) == 1000
    assert limits.memory_mb(Manifest(requirements=Requirements(memory_mb=300)), node) == 300
    both = Manifest(requirements=Requirements(memory_mb=300), policy=Policy(memory_mb=200))
    assert limits.memory_mb(both, node) == 200
    assert limits.memory_mb(Manifest(policy=Policy(memory_mb=4000)), node) == 1000
    assert limits.memory_mb(Manifest(), ResourceLimits()) is None
    assert limits.disk_mb(Manifest(policy=Policy(disk_mb=7)), node) == 7
    assert limits.disk_mb(Manifest(), node) is None
    assert limits.log_mb(Manifest(policy=Policy(log_mb=1000)), node) == 256
    assert limits.grace_s(Manifest(policy=Policy(grace_s=0.5)), node) == 0.5
    assert limits.grace_s(Manifest(policy=Policy(grace_s=60)), node) == 10


uses = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 1e6), max_size=6)


@given(uses, st.floats(0, 2000), st.data())
def test_who_is_ended_for_the_disk(used, free_mb, data):
    quotas = {key: data.draw(st.integers(1, 10**6)) for key in used if data.draw(st.booleans())}
    ended = decide(used, quotas, free_mb=free_mb, min_free_mb=1000)
    over = {key for key, quota in quotas.items() if used[key] > quota}
    assert over <= set(ended)
    if over or free_mb >= 1000:
        assert set(ended) == over
    elif ended:
        (key,) = ended
        assert used[key] == max(used.values()) >= WORTH_ENDING_MB
    assert all(reason.startswith("disk: ") and len(reason) <= 100 for reason in ended.values())


def test_an_attempt_that_hides_its_data_is_over_any_quota():
    assert decide({"a": float("inf")}, {"a": 5}, free_mb=10, min_free_mb=1) == {"a": "disk: inf MB, quota 5"}


@pytest.fixture
def root(tmp_path):
    for name in ("input", "work", "output", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "logs/stdout.log").write_bytes(b"said\n" * 1000)
    return tmp_path


def copy(root, name="out"):
    copy_stdout(str(root), f"{root}/logs/stdout.log", name)


def test_standard_output_becomes_a_file(root):
    copy(root)
    assert (root / "output/out").read_bytes() == b"said\n" * 1000
    assert os.listdir(root / "output") == ["out"]
    assert (root / "output/out").stat().st_nlink == 1


def test_an_input_of_that_name_is_not_the_jobs_own_file(root):
    (root / "input/out").write_text("given")
    (root / "work/out").symlink_to("../input/out")
    copy(root)
    assert (root / "output/out").read_bytes() == b"said\n" * 1000


@pytest.mark.parametrize("place", ["work", "output"])
def test_the_jobs_own_file_stays(root, place):
    (root / place / "out").write_text("own")
    copy(root)
    assert [(one, (root / one / "out").read_text()) for one in ("work", "output") if (root / one / "out").exists()] == [
        (place, "own")
    ]


def test_a_copy_that_was_cut_short_is_made_anew(root):
    (root / "output/.stdout.new").write_text("half")
    copy(root)
    assert (root / "output/out").read_bytes() == b"said\n" * 1000
    assert os.listdir(root / "output") == ["out"]


def test_no_link_is_followed(root, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("safe")
    (root / "output/.stdout.new").symlink_to(victim)
    copy(root)
    assert victim.read_text() == "safe"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for one in (root / "output").iterdir():
        one.unlink()
    (root / "output").rmdir()
    (root / "output").symlink_to(elsewhere)
    with pytest.raises(OSError, match="Not a directory"):
        copy(root)
    assert os.listdir(elsewhere) == []
