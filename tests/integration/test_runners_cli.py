"""The cli runner over a real keeper: what is refused, how programs run, how they end and why."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from integration.runner_rig import Rig, alive, text, until
from ostler.model.errors import KeeperUnreachable
from ostler.model.failures import FailureCode
from ostler.model.manifest import Policy, Requirements
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import CliRunnerConfig, ResourceLimits
from ostler.node.runners.cli import CliRunner

C = FailureCode
BWRAP, PROCESS, NONE = SandboxLevel.BWRAP, SandboxLevel.PROCESS, SandboxLevel.NONE
PYTHON = "/usr/bin/python3"

ENTRIES = {
    "sh": """
        command: {path: /bin/sh}
        args: [{match: ["-c"]}, {match: [".*"], allow_slash: true, allow_colon: true, allow_dash: true}]
        env: [COLOUR]
    """,
    "echo": """
        command: {path: /bin/echo}
        args: [["[a-z]+"]]
        stdout: said.txt
    """,
    "short": """
        command: {path: /bin/sleep, name: short}
        args: [["[0-9]+"]]
        max_runtime_s: 1
    """,
    "boxed": """
        command: {path: /bin/echo, name: boxed}
        sandbox: bwrap
    """,
    "cat": """
        command: {path: /bin/cat}
        stdin: list.txt
    """,
    "summed": f"""
        command: {{path: /bin/true, name: summed, sha256: "{hashlib.sha256(Path("/bin/true").read_bytes()).hexdigest()}"}}
    """,
    "wrong": f"""
        command: {{path: /bin/true, name: wrong, sha256: "{"0" * 64}"}}
    """,
    "true": """
        command: {path: /bin/true}
    """,
    "little": """
        command: {path: /bin/sh, name: little}
        args: [{match: ["-c"]}, {match: [".*"], allow_slash: true, allow_colon: true, allow_dash: true}]
        max_output_mb: 1
    """,
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the keeper is Linux's")


def needs_bwrap(rig):
    if BWRAP.value not in rig.abilities.levels:
        pytest.skip("no bwrap on this machine (apt-get install bubblewrap)")


@pytest.fixture
def allowlist(tmp_path):
    folder = tmp_path / "allowlist.d"
    folder.mkdir()
    for name, entry in ENTRIES.items():
        (folder / f"{name}.yaml").write_text(textwrap.dedent(entry))
    return CliRunnerConfig(allowlist_dir=folder)


@pytest.fixture
async def make(tmp_path, allowlist):
    rigs = []

    def make(**settings):
        folder = tmp_path / f"rig-{len(rigs)}"
        folder.mkdir()
        rigs.append(Rig(folder, cli=allowlist, **settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.close()


@pytest.fixture
def rig(make):
    return make()


async def runner_of(rig):
    runner = CliRunner(await rig.processes())
    runner.load()
    return runner


def _mount(folder):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode


async def run(rig, runner, **manifest):
    """One job to its end."""
    task = rig.task(by=runner, **manifest)
    failure = await runner.start(task)
    assert failure is None, failure
    return task, await runner.wait(task, lambda news: None)


def sh(script, **more):
    return {"command": "sh", "args": ("-c", script), **more}


async def test_a_program_runs_in_its_folder_with_its_streams_kept(rig):
    runner = await runner_of(rig)
    task, end = await run(rig, runner, **sh("pwd; echo oops >&2; echo made > made.txt; readlink /proc/self/fd/0"))
    assert (end.failure, end.cancelled, end.exit_code) == (None, False, 0)
    assert text(task) == f"{task.root}/work\n/dev/null\n"
    assert text(task, "stderr") == "oops\n"
    assert (Path(task.root) / "work/made.txt").read_text() == "made\n"
    assert end.usage.wall_s > 0
    assert await runner.alive(task)
    await runner.forget(task)


async def test_the_environment_is_built_from_nothing(rig, monkeypatch):
    monkeypatch.setenv("DAEMONS_OWN", "secret")
    runner = await runner_of(rig)
    task, _ = await run(rig, runner, **sh("env", env={"COLOUR": "blue"}))
    env = dict(line.split("=", 1) for line in text(task).splitlines())
    keepers = {name: env.pop(name) for name in list(env) if name in {"OSTLER_ATTEMPT_KEY", "OSTLER_KEEPER"}}
    assert keepers["OSTLER_ATTEMPT_KEY"] == "job-1/1"
    assert env == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": f"{task.root}/work",
        "TMPDIR": f"{task.root}/work",
        "PWD": f"{task.root}/work",
        "COLOUR": "blue",
        "OSTLER_JOB_ID": "job-1",
        "OSTLER_ATTEMPT": "1",
        "OSTLER_INPUT_DIR": f"{task.root}/input",
        "OSTLER_OUTPUT_DIR": f"{task.root}/output",
        "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }


@pytest.mark.parametrize(
    ("manifest", "code", "said"),
    [
        ({"command": "rm"}, C.DENY, "rm"),
        ({"command": "echo", "args": ("A",)}, C.DENY, "[a-z]+"),
        ({"command": "echo", "args": ("a",), "env": {"LD_PRELOAD": "x"}}, C.DENY, "LD_PRELOAD"),
        ({"command": "wrong"}, C.DENY, "sha256"),
        ({"command": "true", "policy": Policy(sandbox=SandboxLevel.UNIT)}, C.SANDBOX, "unit"),
    ],
)
async def test_what_is_refused(rig, manifest, code, said):
    runner = await runner_of(rig)
    task = rig.task(**manifest)
    for failure in (runner.refuse(task.manifest), await runner.start(task)):
        assert failure is not None
        assert failure.code is code
        assert said in failure.message
    assert not await runner.alive(task)


async def test_a_good_sum_and_a_reload(rig, allowlist):
    runner = await runner_of(rig)
    assert runner.refuse(rig.task(command="summed").manifest) is None
    assert runner.refuse(rig.task(command="true").manifest) is None
    assert "true" in runner.commands()
    (allowlist.allowlist_dir / "true.yaml").unlink()
    runner.load()
    assert runner.refuse(rig.task(command="true").manifest).code is C.DENY


async def test_a_runner_that_is_switched_off(tmp_path):
    folder = tmp_path / "off"
    folder.mkdir()
    rig = Rig(folder, cli=CliRunnerConfig(enable=False))
    try:
        runner = await runner_of(rig)
        assert "switched off" in runner.refuse(rig.task(command="true").manifest).message
    finally:
        await rig.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_program_of_somebody_else_is_not_started_even_if_it_was_before(rig, allowlist):
    program = rig.folder / "tool"
    shutil.copy("/bin/true", program)
    (allowlist.allowlist_dir / "tool.yaml").write_text(f"command: {{path: {program}}}\n")
    runner = await runner_of(rig)
    task = rig.task(command="tool")
    before = runner.refuse(task.manifest)
    os.chown(program, 65534, 65534)
    failure = await runner.start(task)
    assert failure.code is C.DENY
    assert before is None or before.code is C.DENY  # where the way to the temporary folder is open to others


@pytest.mark.parametrize(
    ("script", "code", "said", "exit_code", "signal"),
    [
        ("exit 3", C.EXIT, "exit code 3", 3, None),
        ("kill -9 $$", C.SIGNAL, "SIGKILL from outside", None, 9),
        ("kill -SEGV $$", C.SIGNAL, "crashed with SIGSEGV", None, 11),
        ("exit 137", C.EXIT, "exit code 137", 137, None),
    ],
)
async def test_the_cause_of_death(rig, script, code, said, exit_code, signal):
    _, end = await run(rig, await runner_of(rig), **sh(script))
    assert (end.failure.code, end.exit_code, end.signal) == (code, exit_code, signal)
    assert said in end.failure.message


async def test_a_timeout_ends_the_whole_tree(rig):
    runner = await runner_of(rig)
    pidfile = rig.folder / "pid"
    script = f"setsid sh -c 'echo $$ > {pidfile}; exec sleep 600' & trap '' TERM; sleep 600; sleep 600"
    _, end = await run(rig, runner, **sh(script, timeout_s=0.5, policy=Policy(grace_s=0.3)))
    assert end.failure.code is C.TIMEOUT
    assert "limit of 0.5 s" in end.failure.message
    assert not alive(int(pidfile.read_text()))


async def test_an_entry_may_allow_less_time_than_is_asked(rig):
    runner = await runner_of(rig)
    task = rig.task(by=runner, command="short", args=("600",), timeout_s=3600.0)
    assert runner.timeout_s(task.manifest) == 1
    assert await runner.start(task) is None
    end = await runner.wait(task, lambda news: None)
    assert end.failure.code is C.TIMEOUT
    assert "limit of 1 s" in end.failure.message


async def test_cancel_is_gentle_first(rig):
    runner = await runner_of(rig)
    task = rig.task(**sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done"))
    assert await runner.start(task) is None
    waiting = asyncio.create_task(runner.wait(task, lambda news: None))
    await until(lambda: text(task), "it is ready")
    await runner.kill(task, reason="cancel", grace_s=10)
    end = await waiting
    assert (end.cancelled, end.failure) == (True, None)
    assert text(task) == "ready\nbye\n"


async def test_killing_what_is_not_there_is_no_error(rig):
    runner = await runner_of(rig)
    task = rig.task(command="true")
    await runner.kill(task, reason="cancel", grace_s=0)
    assert not await runner.alive(task)


async def test_memory_over_the_limit_is_oom_with_evidence(rig):
    program = "x = bytearray(400 << 20)\nx[::4096] = b'1' * len(x[::4096])\nprint('survived')"
    runner = await runner_of(rig)
    script = f'{PYTHON} -c "{program}"'.replace("\n", "; ")
    task, end = await run(rig, runner, **sh(script, policy=Policy(memory_mb=100)))
    assert end.failure is not None, text(task)
    assert end.failure.code is C.OOM
    assert "limit of 100 MB" in end.failure.message


async def test_what_is_required_of_memory_is_also_the_limit(rig):
    runner = await runner_of(rig)
    script = f"{PYTHON} -c \"x = bytearray(400 << 20); x[::4096] = b'1' * len(x[::4096])\""
    _, end = await run(rig, runner, **sh(script, requirements=Requirements(memory_mb=100)))
    assert end.failure.code is C.OOM


async def test_output_streams_have_a_cap(rig):
    runner = await runner_of(rig)
    _, end = await run(rig, runner, **sh("exec yes", policy=Policy(log_mb=2)))
    assert end.failure.code is C.OUTPUT
    assert "grew over 2 MB" in end.failure.message


async def test_a_file_larger_than_the_entry_allows(rig):
    runner = await runner_of(rig)
    script = "exec dd if=/dev/zero of=big bs=1M count=3 2>/dev/null"
    _, end = await run(rig, runner, command="little", args=("-c", script))
    assert end.failure.code is C.OUTPUT
    assert "larger than the 1 MB" in end.failure.message


async def test_a_quota_of_the_workspace(rig):
    runner = await runner_of(rig)
    script = "dd if=/dev/zero of=a bs=1M count=20 2>/dev/null; exec sleep 600"
    _, end = await run(rig, runner, **sh(script, policy=Policy(disk_mb=5)))
    assert end.failure.code is C.DISK
    assert "quota 5" in end.failure.message


@pytest.fixture
async def small(make):
    """A rig whose workspaces lie on a small file system of their own, and that file system's place."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    rig = make()
    place = rig.config.workspace.root
    if await asyncio.to_thread(_mount, place):
        pytest.skip("this machine does not let root mount a tmpfs")
    yield rig, place
    await asyncio.to_thread(subprocess.run, ["umount", str(place)], check=True)


async def test_a_full_disk_is_seen_after_the_failure(small):
    rig, _ = small
    runner = await runner_of(rig)
    _, end = await run(rig, runner, **sh("exec dd if=/dev/zero of=a bs=1M count=20"))
    assert end.failure.code is C.DISK
    assert "exit code 1" in end.failure.message


async def test_a_disk_without_room_for_the_log_is_the_machines_trouble(small):
    rig, place = small
    runner = await runner_of(rig)
    task = rig.task(by=runner, **sh("true"))
    full = ["mount", "-o", "remount,nr_inodes=7", str(place)]  # the workspace has six
    await asyncio.to_thread(subprocess.run, full, check=True)
    (place / "last").touch()
    failure = await runner.start(task)
    assert failure is not None
    assert failure.code is C.DISK
    assert "stdout" in failure.message


async def test_standard_output_is_also_a_file(rig):
    runner = await runner_of(rig)
    task, end = await run(rig, runner, command="echo", args=("hello",))
    assert end.failure is None
    assert (Path(task.root) / "output/said.txt").read_text() == "hello\n"
    task, _ = await run(rig, runner, **sh("echo mine", stdout="all.txt"))
    assert (Path(task.root) / "output/all.txt").read_text() == "mine\n"
    task, end = await run(rig, runner, **sh("head -c 3000000 /dev/zero", stdout="large"))
    assert (Path(task.root) / "output/large").stat().st_size == 3000000
    assert sorted(one.name for one in (Path(task.root) / "output").iterdir()) == ["large"]


async def test_what_the_job_wrote_itself_is_not_replaced(rig):
    runner = await runner_of(rig)
    for script in ("echo own > $OSTLER_OUTPUT_DIR/f; echo log", "echo own > f; echo log"):
        task, end = await run(rig, runner, **sh(script, stdout="f"))
        assert end.failure is None
        found = [one for one in (Path(task.root) / "output/f", Path(task.root) / "work/f") if one.exists()]
        assert [one.read_text() for one in found] == ["own\n"]


async def test_standard_output_is_not_written_through_links(rig):
    runner = await runner_of(rig)
    victim = rig.folder / "victim"
    victim.mkdir()
    _, end = await run(rig, runner, **sh(f"rmdir $OSTLER_OUTPUT_DIR; ln -s {victim} $OSTLER_OUTPUT_DIR; echo x", stdout="f"))
    assert end.failure.code is C.OUTPUT
    assert list(victim.iterdir()) == []


async def test_standard_input_from_the_working_directory(rig):
    runner = await runner_of(rig)
    task = rig.task(command="cat")
    failure = await runner.start(task)
    assert failure.code is C.INPUT
    assert "list.txt" in failure.message
    (Path(task.root) / "work/list.txt").write_text("one\ntwo\n")
    assert await runner.start(task) is None
    assert (await runner.wait(task, lambda news: None)).failure is None
    assert text(task) == "one\ntwo\n"


async def test_the_same_attempt_is_not_started_twice(rig):
    runner = await runner_of(rig)
    task = rig.task(**sh("exec sleep 600"))
    assert await runner.start(task) is None
    failure = await runner.start(task)
    assert failure.code is C.START
    await runner.kill(task, reason="cancel", grace_s=0)
    assert (await runner.wait(task, lambda news: None)).cancelled


async def test_a_program_that_cannot_be_executed(rig, allowlist):
    program = rig.folder / "script"
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(0o755)
    runner = await runner_of(rig)
    (allowlist.allowlist_dir / "script.yaml").write_text(f"command: {{path: {program}}}\n")
    runner.load()
    task = rig.task(command="script")
    if runner.refuse(task.manifest):
        pytest.skip("the temporary folder is writable by others, so nothing in it may be started")
    failure = await runner.start(task)
    assert failure.code is C.START
    assert "No such file" in failure.message


# --- bwrap ---


async def test_a_program_in_bwrap(make):
    rig = make(level=BWRAP)
    needs_bwrap(rig)
    runner = await runner_of(rig)
    script = (
        "pwd; echo $TMPDIR; touch /etc/x 2>/dev/null || echo refused; ls /proc | grep -c '^[0-9]'; touch $OSTLER_OUTPUT_DIR/made"
    )
    task, end = await run(rig, runner, **sh(script))
    assert end.failure is None, text(task, "stderr")
    lines = text(task).splitlines()
    assert lines[:3] == [f"{task.root}/work", "/tmp", "refused"]
    assert int(lines[3]) < 8
    assert (Path(task.root) / "output/made").exists()


async def test_an_entrys_level_holds_whatever_the_caller_chose(rig):
    needs_bwrap(rig)
    runner = await runner_of(rig)
    task = rig.task(command="boxed", sandbox=NONE)
    assert runner.level(task.manifest) is BWRAP
    assert await runner.start(task) is None
    end = await runner.wait(task, lambda news: None)
    assert end.failure is None


@pytest.mark.parametrize(
    ("script", "code", "said", "exit_code", "signal"),
    [
        ("exit 3", C.EXIT, "exit code 3", 3, None),
        ("sleep 0; kill -9 $$", C.SIGNAL, "told by the sandbox as exit code 137", None, 9),
        ("exit 127", C.EXIT, "exit code 127", 127, None),
    ],
)
async def test_the_cause_of_death_in_bwrap(make, script, code, said, exit_code, signal):
    rig = make(level=BWRAP)
    needs_bwrap(rig)
    _, end = await run(rig, await runner_of(rig), **sh(f"sh -c '{script}'; exit $?" if "kill" not in script else script))
    assert (end.failure.code, end.exit_code, end.signal) == (code, exit_code, signal)
    assert said in end.failure.message


async def test_cancel_and_timeout_in_bwrap(make):
    rig = make(level=BWRAP)
    needs_bwrap(rig)
    runner = await runner_of(rig)
    task = rig.task(**sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done"))
    assert await runner.start(task) is None
    waiting = asyncio.create_task(runner.wait(task, lambda news: None))
    await until(lambda: text(task), "it is ready")
    await runner.kill(task, reason="cancel", grace_s=10)
    assert (await waiting).cancelled
    assert text(task) == "ready\nbye\n"
    _, end = await run(rig, runner, **sh("exec sleep 600", timeout_s=0.3))
    assert end.failure.code is C.TIMEOUT


async def test_a_program_that_the_sandbox_does_not_show(make, allowlist):
    rig = make(level=BWRAP)
    needs_bwrap(rig)
    program = rig.folder / "script"
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(0o755)
    (allowlist.allowlist_dir / "script.yaml").write_text(f"command: {{path: {program}}}\n")
    runner = await runner_of(rig)
    task = rig.task(command="script")
    if runner.refuse(task.manifest):
        pytest.skip("the temporary folder is writable by others, so nothing in it may be started")
    assert await runner.start(task) is None
    end = await runner.wait(task, lambda news: None)
    assert end.failure.code is C.START
    assert "execvp" in end.failure.message


# --- daemons and keepers that die ---


async def test_the_next_daemon_waits_for_what_the_last_one_started(rig):
    first = await runner_of(rig)
    gate = rig.folder / "gate"
    task = rig.task(**sh(f"while ! test -e {gate}; do sleep 0.01; done; exit 4"))
    assert await first.start(task) is None
    rig.daemons[0].keeper.close()
    second = await runner_of(rig)
    assert await second.alive(task)
    waiting = asyncio.create_task(second.wait(task, lambda news: None))
    gate.touch()
    assert (await waiting).exit_code == 4


async def test_an_end_that_nobody_saw_is_known_to_the_next_daemon(rig):
    first = await runner_of(rig)
    task = rig.task(**sh("exit 5"))
    assert await first.start(task) is None
    rig.daemons[0].keeper.close()
    await until((Path(task.root) / "exit.json").exists, "the exit record")
    second = await runner_of(rig)
    assert await second.alive(task)
    assert (await second.wait(task, lambda news: None)).exit_code == 5


async def test_a_keeper_that_dies_takes_its_attempts_along_and_the_next_one_says_so(rig):
    runner = await runner_of(rig)
    task = rig.task(**sh("echo $$; exec sleep 600"))
    assert await runner.start(task) is None
    pid = int(await until(lambda: text(task), "its pid"))
    waiting = asyncio.create_task(runner.wait(task, lambda news: None))
    await asyncio.sleep(0)
    rig.kill_keeper()
    with pytest.raises(KeeperUnreachable):
        await waiting
    rig.socket.unlink(missing_ok=True)
    rig.start_keeper()
    assert not alive(pid)
    again = await runner_of(rig)
    assert await again.alive(task)
    end = await again.wait(task, lambda news: None)
    assert end.failure.code is C.LOST
    assert "keeper died" in end.failure.message


async def test_a_daemon_goes_on_with_the_next_keeper(rig):
    runner = await runner_of(rig)
    task = rig.task(**sh("exec sleep 600"))
    assert await runner.start(task) is None
    rig.kill_keeper()
    with pytest.raises(KeeperUnreachable):
        await runner.wait(task, lambda news: None)
    await rig.next_keeper(rig.daemons[0])
    assert await runner.alive(task)
    assert (await runner.wait(task, lambda news: None)).failure.code is C.LOST
    await runner.forget(task)
    _, end = await run(rig, runner, **sh("exit 6"))
    assert end.exit_code == 6


async def test_an_attempt_without_a_trace_is_lost(rig):
    runner = await runner_of(rig)
    task = rig.task(**sh("exit 0"))
    assert not await runner.alive(task)
    end = await runner.wait(task, lambda news: None)
    assert end.failure.code is C.LOST
    assert "neither the keeper nor its workspace" in end.failure.message


async def test_a_hundred_at_a_time(rig):
    runner = await runner_of(rig)
    ends = await asyncio.gather(*(run(rig, runner, **sh(f"exit {number % 7}")) for number in range(100)))
    assert [end.exit_code for _, end in ends] == [number % 7 for number in range(100)]


async def test_limits_are_the_least_of_all(make):
    rig = make(resources=ResourceLimits(mem_soft_mb=1000, processes=50, open_files=99, log_mb=8, grace_s=5))
    processes = await rig.processes()
    policy = Policy(memory_mb=2000, processes=10, open_files=500, log_mb=4, grace_s=60)
    limits = processes.limits(rig.task(command="true", policy=policy, requirements=Requirements(memory_mb=700)))
    assert (limits.memory_mb, limits.processes, limits.open_files, limits.log_mb, limits.grace_s) == (700, 10, 99, 4, 5)
    assert limits.wall_s == 30.0
