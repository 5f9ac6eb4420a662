"""The python runner over a real keeper: warm workers, processes of their own, and what outlives daemons."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from integration.runner_rig import TASKS, Rig, alive, text, until
from ostler.model.errors import KeeperUnreachable
from ostler.model.failures import FailureCode
from ostler.model.manifest import Artifact, InputFile, Inputs, Manifest, Policy, Requirements, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import PythonRunnerConfig, ResourceLimits
from ostler.node.runners import workers
from ostler.node.runners.python import PythonRunner
from ostler.node.workspace import scan
from ostler.protocol.ports import AttemptTask

C = FailureCode
BWRAP, PROCESS, NONE = SandboxLevel.BWRAP, SandboxLevel.PROCESS, SandboxLevel.NONE


def has_folder(task):
    return Path(task.root).exists()


@pytest.fixture
async def make(tmp_path):
    rigs = []

    def make(**settings):
        folder = tmp_path / f"rig-{len(rigs)}"
        folder.mkdir()
        rig = Rig(folder, **settings)
        rig.runners = []
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        for runner in rig.runners:
            await runner.close()
        await rig.close()


@pytest.fixture
def rig(make):
    return make()


@pytest.fixture(params=["warm", "cold"])
def either(make, request):
    """A node with warm workers, and one that starts a process for each task."""
    return make(python=PythonRunnerConfig(enable=True, task_paths=(TASKS,), warm_workers=request.param == "warm"))


@pytest.fixture(params=["warm", "bwrap"])
def boxed(make, request):
    """The same tasks must end the same way in a warm worker and in a sandbox."""
    rig = make(level=BWRAP if request.param == "bwrap" else PROCESS)
    if rig.config.sandbox.level.value not in rig.abilities.levels:
        pytest.skip("no bwrap on this machine (apt-get install bubblewrap)")
    return rig


async def runner_of(rig):
    runner = PythonRunner(await rig.processes())
    rig.runners.append(runner)
    return runner


async def daemon_dies(rig):
    """The daemon's sockets are closed by the kernel; nobody says goodbye."""
    await rig.runners[-1].close()
    rig.daemons[-1].keeper.close()


def task_of(rig, do, *, by=None, **more):
    manifest = more.pop("manifest", {})
    return rig.task(by=by, **{"runner": Runner.PYTHON, "task": "behave", "params": {"do": do, **more}, **manifest})


async def run(runner, task, progress=lambda news: None):
    failure = await runner.start(task)
    assert failure is None, failure
    return await asyncio.wait_for(runner.wait(task, progress), 30)


def result(task):
    return json.loads((Path(task.root) / "output/result.json").read_text())


async def test_a_task_from_start_to_end(boxed):
    runner = await runner_of(boxed)
    task = boxed.task(by=runner, **{"runner": Runner.PYTHON, "task": "example"})
    (Path(task.root) / "input/text").write_text("b a b")
    said = []
    end = await run(runner, task, said.append)
    assert end.failure is None, (end, text(task, "stderr"))
    assert end.exit_code == 0
    assert result(task) == {"b": 2, "a": 1}
    assert text(task) == "3 words\n"
    assert end.usage.wall_s > 0
    assert await runner.alive(task)
    await runner.forget(task)


async def test_progress_is_heard(boxed):
    runner = await runner_of(boxed)
    said = []
    end = await run(runner, task_of(boxed, "tell", count=15, pause=0.15), said.append)
    assert end.failure is None
    assert said
    assert said[0].note.startswith("step ")
    assert all(0 <= news.pct <= 100 for news in said)


async def test_workers_are_warm(rig):
    runner = await runner_of(rig)
    pids = set()
    for _ in range(5):
        task = task_of(rig, "surroundings")
        assert (await run(runner, task)).failure is None
        pids.add(result(task)["pid"])
        await runner.forget(task)
    assert len(pids) == 1


async def test_at_most_as_many_workers_rest_as_there_are_slots(make):
    rig = make(resources=ResourceLimits(max_concurrent_cpu=1, cpu_nice=0))
    runner = await runner_of(rig)
    gate = rig.folder / "gate"
    tasks = [task_of(rig, "wait_for", path=str(gate)) for _ in range(3)]
    for task in tasks:
        assert await runner.start(task) is None
    gate.touch()
    ends = await asyncio.gather(*(runner.wait(task, lambda news: None) for task in tasks))
    assert [end.failure for end in ends] == [None] * 3
    sockets = rig.config.state / "workers"
    await until(lambda: len(list(sockets.glob("*.sock"))) == 1, "two of three workers leave")


@pytest.mark.parametrize(
    ("do", "code", "said", "exit_code", "number"),
    [
        ({"do": "fail", "message": "no such colour"}, C.TASK, "ValueError: no such colour", 1, None),
        ({"do": "leave", "code": 7}, C.EXIT, "exit code 7", 7, None),
        ({"do": "exit_hard", "code": 3}, C.EXIT, "exit code 3", 3, None),
        ({"do": "exit_hard", "code": 0}, C.TASK, "before run() returned", 0, None),
        ({"do": "crash"}, C.SIGNAL, "SIGSEGV", None, signal.SIGSEGV),
        ({"do": "signal", "number": 9}, C.SIGNAL, "SIGKILL from outside", None, 9),
        ({"do": "what"}, C.TASK, "KeyError", 1, None),
        ({"wrong": 1}, C.SPEC, "do not fit", None, None),
    ],
)
async def test_the_cause_of_death(boxed, do, code, said, exit_code, number):
    runner = await runner_of(boxed)
    task = boxed.task(by=runner, **{"runner": Runner.PYTHON, "task": "behave", "params": {"do": "nothing", **do}})
    if "wrong" in do:
        task = boxed.task(by=runner, **{"runner": Runner.PYTHON, "task": "example", "params": do})
    end = await run(runner, task)
    assert end.failure is not None
    assert (end.failure.code, end.exit_code, end.signal) == (code, exit_code, number)
    assert said in end.failure.message
    if code is C.TASK and "before" not in said:
        assert "Traceback" in text(task, "stderr")
    assert (await run(runner, task_of(boxed, "nothing", by=runner))).failure is None


async def test_a_crash_harms_nobody_else(rig):
    runner = await runner_of(rig)
    gate = rig.folder / "gate"
    others = [task_of(rig, "wait_for", path=str(gate)) for _ in range(2)]
    for task in others:
        assert await runner.start(task) is None
    assert (await run(runner, task_of(rig, "crash"))).signal == signal.SIGSEGV
    gate.touch()
    ends = await asyncio.gather(*(runner.wait(task, lambda news: None) for task in others))
    assert [end.failure for end in ends] == [None, None]


async def test_a_worker_that_is_killed_while_it_rests_costs_no_task(rig):
    runner = await runner_of(rig)
    for _ in range(5):
        task = task_of(rig, "surroundings")
        assert (await run(runner, task)).failure is None
        os.kill(result(task)["pid"], signal.SIGKILL)  # the next task may be sent before anybody noticed


async def test_a_timeout(either):
    runner = await runner_of(either)
    path = either.folder / "ready"
    task = task_of(either, "ignore_term", path=str(path), manifest={"timeout_s": 0.5, "policy": Policy(grace_s=0.3)})
    end = await run(runner, task)
    assert end.failure.code is C.TIMEOUT
    assert "limit of 0.5 s" in end.failure.message
    assert 0.4 < end.usage.wall_s < 10


async def test_a_timeout_in_c_code_that_holds_everything(boxed):
    runner = await runner_of(boxed)
    task = task_of(boxed, "hang_in_c", seconds=600, by=runner, manifest={"timeout_s": 0.5, "policy": Policy(grace_s=0.3)})
    assert (await run(runner, task)).failure.code is C.TIMEOUT


async def test_a_timeout_without_a_daemon(rig, monkeypatch):
    monkeypatch.setattr("ostler.node.runners.python.BACKSTOP_S", 0.2)
    runner = await runner_of(rig)
    assert (await run(runner, task_of(rig, "nothing"))).failure is None
    task = task_of(rig, "hang_in_c", seconds=600, manifest={"timeout_s": 0.5, "policy": Policy(grace_s=0.3)})
    assert await runner.start(task) is None
    pid = next(iter(await runner._processes.keeper.list())).pid
    await daemon_dies(rig)
    await until(lambda: not alive(pid), "the worker's own timer")
    second = await runner_of(rig)
    assert await second.alive(task)
    end = await second.wait(task, lambda news: None)
    assert end.failure.code is C.TIMEOUT
    assert 0.5 < end.usage.wall_s < 10
    await second.forget(task)
    assert not await second.alive(task)


async def test_cancel(boxed):
    runner = await runner_of(boxed)
    task = task_of(boxed, "tell", count=10000, pause=0.01, by=runner)
    assert await runner.start(task) is None
    waiting = asyncio.create_task(runner.wait(task, lambda news: None))
    await asyncio.sleep(0)
    await runner.kill(task, reason="cancel", grace_s=5)
    end = await waiting
    assert (end.cancelled, end.failure) == (True, None)
    assert (await run(runner, task_of(boxed, "nothing", by=runner))).failure is None


async def test_what_a_task_leaves_behind_is_ended(boxed):
    runner = await runner_of(boxed)
    task = task_of(boxed, "children", path="pid", detach=True, by=runner)
    assert (await run(runner, task)).failure is None
    assert (Path(task.root) / "work/pid").exists()
    mark = f"OSTLER_INPUT_DIR={task.root}/input"
    assert not [process.pid for process in psutil.process_iter() if alive(process.pid) and mark in _environment(process.pid)]


def _environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


async def test_limits_of_its_own_get_a_process_of_its_own(rig):
    runner = await runner_of(rig)
    task = task_of(rig, "use_memory", mb=400, manifest={"policy": Policy(memory_mb=100)})
    end = await run(runner, task)
    assert end.failure.code is C.OOM, text(task, "stderr")
    task = task_of(rig, "use_memory", mb=400, manifest={"requirements": Requirements(memory_mb=100)})
    assert (await run(runner, task)).failure.code is C.OOM
    task = task_of(rig, "use_memory", mb=10, manifest={"policy": Policy(memory_mb=300)})
    assert (await run(runner, task)).failure is None
    assert not list((rig.config.state / "workers").glob("*.sock"))


async def test_a_warm_worker_has_the_nodes_memory_limit(make):
    rig = make(resources=ResourceLimits(mem_soft_mb=150, cpu_nice=0))
    runner = await runner_of(rig)
    assert (await run(runner, task_of(rig, "use_memory", mb=600))).failure.code is C.OOM
    assert (await run(runner, task_of(rig, "nothing"))).failure is None


async def test_output_streams_have_a_cap(either):
    runner = await runner_of(either)
    task = task_of(either, "shout", mb=3000, manifest={"policy": Policy(log_mb=3)})
    end = await run(runner, task)
    assert end.failure.code is C.OUTPUT
    assert "grew over 3 MB" in end.failure.message


async def test_a_quota_of_the_workspace(either):
    runner = await runner_of(either)
    end = await run(runner, task_of(either, "fill", path="big", mb=20, manifest={"policy": Policy(disk_mb=5)}))
    assert end.failure.code is C.DISK
    assert "quota 5" in end.failure.message


@pytest.mark.parametrize(
    ("manifest", "code", "said"),
    [
        ({"task": "missing"}, C.DENY, "it has behave, example"),
        ({"task": "example", "env": {"LD_PRELOAD": "x.so", "COLOUR": "blue"}}, C.DENY, "LD_PRELOAD"),
        ({"task": "example", "env": {"PYTHONPATH": "."}}, C.DENY, "PYTHONPATH"),
        ({"task": "example", "policy": Policy(sandbox=SandboxLevel.CONTAINER)}, C.SANDBOX, "container"),
    ],
)
async def test_what_is_refused(rig, manifest, code, said):
    runner = await runner_of(rig)
    task = rig.task(**{"runner": Runner.PYTHON, **manifest})
    for failure in (runner.refuse(task.manifest), await runner.start(task)):
        assert failure is not None
        assert failure.code is code
        assert said in failure.message


async def test_a_runner_that_is_switched_off(make):
    rig = make(python=PythonRunnerConfig(enable=False))
    runner = await runner_of(rig)
    assert "switched off" in runner.refuse(task_of(rig, "nothing").manifest).message


async def test_an_interpreter_that_does_not_start(make):
    rig = make(python=PythonRunnerConfig(enable=True, task_paths=(TASKS,), venv=Path("/nonexistent")))
    runner = await runner_of(rig)
    failure = await runner.start(task_of(rig, "nothing"))
    assert failure.code is C.START
    assert "No such file" in failure.message


async def test_code_that_changed_is_run_as_it_is_now(make, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "question.py").write_text("def run():\n    return 1\n")
    rig = make(python=PythonRunnerConfig(enable=True, task_paths=(folder,)))
    runner = await runner_of(rig)
    for source, answer in (("return 1", 1), ("return 12", 12)):
        (folder / "question.py").write_text(f"def run():\n    {source}\n")
        task = rig.task(**{"runner": Runner.PYTHON, "task": "question"})
        assert (await run(runner, task)).failure is None
        assert result(task) == answer


# --- daemons and keepers that die ---


async def test_the_next_daemon_waits_for_what_the_last_one_started(boxed):
    first = await runner_of(boxed)
    task = task_of(boxed, "wait_for", path="gate", by=first)
    assert await first.start(task) is None
    await until(lambda: _begun(boxed, task), "the task has begun")
    await daemon_dies(boxed)
    second = await runner_of(boxed)
    assert await second.alive(task)
    waiting = asyncio.create_task(second.wait(task, lambda news: None))
    (Path(task.root) / "work/gate").touch()
    end = await waiting
    assert end.failure is None
    assert result(task) == "seen"
    await second.forget(task)
    assert (await run(second, task_of(boxed, "nothing", by=second))).failure is None


async def test_an_end_that_nobody_saw_is_known_to_the_next_daemon(boxed):
    first = await runner_of(boxed)
    task = task_of(boxed, "fail", message="unseen", by=first)
    assert await first.start(task) is None
    await daemon_dies(boxed)
    await until(lambda: (Path(task.root) / "task.json").exists() or (Path(task.root) / "exit.json").exists(), "its record")
    second = await runner_of(boxed)
    assert await second.alive(task)
    end = await second.wait(task, lambda news: None)
    assert end.failure.code is C.TASK
    assert "unseen" in end.failure.message


async def test_a_crash_that_nobody_saw_is_known_to_the_next_daemon(boxed):
    first = await runner_of(boxed)
    task = task_of(boxed, "exit_hard", code=9, by=first)
    assert await first.start(task) is None
    await daemon_dies(boxed)
    second = await runner_of(boxed)
    assert await second.alive(task)
    end = await second.wait(task, lambda news: None)
    assert (end.failure.code, end.exit_code) == (C.EXIT, 9)


async def test_the_next_daemon_takes_over_the_workers(rig):
    first = await runner_of(rig)
    task = task_of(rig, "surroundings")
    await run(first, task)
    await first.forget(task)
    await daemon_dies(rig)
    second = await runner_of(rig)
    again = task_of(rig, "surroundings")
    await run(second, again)
    assert result(again)["pid"] == result(task)["pid"]


async def test_progress_is_heard_by_the_next_daemon(rig):
    first = await runner_of(rig)
    task = task_of(rig, "tell", count=100, pause=0.05)
    assert await first.start(task) is None
    await until(lambda: _begun(rig, task), "the task has begun")
    await daemon_dies(rig)
    second = await runner_of(rig)
    said = []
    assert (await second.wait(task, said.append)).failure is None
    assert said


async def test_a_keeper_that_dies_takes_its_workers_along_and_the_next_one_says_so(rig):
    runner = await runner_of(rig)
    task = task_of(rig, "wait_for", path="gate")
    assert await runner.start(task) is None
    await until(lambda: _begun(rig, task), "the task has begun")
    waiting = asyncio.create_task(runner.wait(task, lambda news: None))
    await asyncio.sleep(0.01)
    rig.kill_keeper()
    with pytest.raises(KeeperUnreachable):
        await waiting
    rig.socket.unlink(missing_ok=True)
    rig.start_keeper()
    again = await runner_of(rig)
    assert await again.alive(task)
    end = await again.wait(task, lambda news: None)
    assert end.failure.code is C.LOST
    assert "keeper died" in end.failure.message


async def test_a_daemon_goes_on_with_the_next_keeper(rig):
    runner = await runner_of(rig)
    resting, task = task_of(rig, "nothing"), task_of(rig, "wait_for", path="gate")
    assert (await run(runner, resting)).failure is None
    assert await runner.start(task) is None
    await until(lambda: _begun(rig, task), "the task has begun")
    rig.kill_keeper()
    with pytest.raises(KeeperUnreachable):
        await runner.wait(task, lambda news: None)
    await rig.next_keeper(rig.daemons[0])
    assert await runner.alive(task)
    end = await asyncio.wait_for(runner.wait(task, lambda news: None), 20)
    assert end.failure.code is C.LOST
    await runner.forget(task)
    assert (await run(runner, task_of(rig, "nothing"))).failure is None


async def test_a_worker_that_falls_with_its_keeper_before_it_listens_costs_no_task(make, tmp_path):
    """The first interpreter never gets to its program; the task has not begun, so another worker takes it."""
    python, first = tmp_path / "venv" / "bin" / "python", tmp_path / "first"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nif mkdir {first} 2> /dev/null; then exec sleep 600; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    rig = make(python=PythonRunnerConfig(enable=True, task_paths=(TASKS,), venv=tmp_path / "venv"))
    runner = await runner_of(rig)
    task = task_of(rig, "nothing")
    starting = asyncio.create_task(runner.start(task))
    await until(first.exists, "a worker that does not listen")
    await rig.daemons[0].keeper.list()  # it has told of that worker by now, or would be asked about it
    rig.kill_keeper()
    await rig.next_keeper(rig.daemons[0])
    assert await starting is None
    assert (await runner.wait(task, lambda news: None)).failure is None


@pytest.mark.parametrize(
    ("word", "code"),
    [("", C.LOST), ("echo bind: No space left on device >&2;", C.DISK), ("echo no module named x >&2;", C.START)],
)
async def test_why_a_worker_does_not_start_decides_whether_another_attempt_may(make, tmp_path, word, code):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{word} exit 1\n")
    python.chmod(0o755)
    rig = make(python=PythonRunnerConfig(enable=True, task_paths=(TASKS,), venv=tmp_path / "venv"))
    failure = await (await runner_of(rig)).start(task_of(rig, "nothing"))
    assert failure.code is code


async def test_an_attempt_without_a_trace_is_lost(rig):
    runner = await runner_of(rig)
    task = task_of(rig, "nothing")
    assert not await runner.alive(task)
    assert (await runner.wait(task, lambda news: None)).failure.code is C.LOST


async def test_files_of_workers_that_are_gone_are_swept(rig):
    runner = await runner_of(rig)
    await run(runner, task_of(rig, "nothing"))
    await daemon_dies(rig)
    folder = rig.config.state / "workers"
    (folder / "old.status").write_text("{}")
    second = await runner_of(rig)
    await run(second, task_of(rig, "nothing"))
    assert not (folder / "old.status").exists()
    assert {path.suffix for path in folder.iterdir()} == {".sock", ".status", ".log", ".ledger"}


# --- lent workspaces ---


@pytest.fixture
def unhurried(monkeypatch):
    """However slow this machine is, no task takes so long that it keeps its workspace."""
    monkeypatch.setattr(workers, "LASTING_S", 60.0)


def lent(rig, task, **params):
    """An attempt whose workspace is its worker's business, and that wants its result."""
    rig.count += 1
    manifest = Manifest(
        runner=Runner.PYTHON, task=task, params=params, timeout_s=30.0, artifacts=(Artifact(path="result.json", optional=True),)
    )
    return AttemptTask(
        job_id=f"job-{rig.count}", attempt=1, manifest=manifest, root=f"{rig.config.workspace.root}/job-{rig.count}",
        sandbox=rig.config.sandbox.level, timeout_s=30.0, lent=True,
    )  # fmt: skip


@pytest.mark.usefixtures("unhurried")
async def test_a_task_that_leaves_nothing_leaves_no_workspace(rig):
    runner = await runner_of(rig)
    for number in range(3):
        task = lent(rig, "lent:echo", args=[str(number)])
        assert runner.lends(task.manifest, task.sandbox)
        end = await run(runner, task)
        assert (end.failure, end.bare, end.contents) == (None, True, {"result.json": f'"{number}"'.encode()})
        assert not has_folder(task)
        await runner.forget(task)
    loud = lent(rig, "lent:leave", args=["print"])
    end = await run(runner, loud)
    assert (end.failure, end.bare, end.contents) == (None, False, {})
    assert loud.log("stdout").read_text() == "left\n"


@pytest.mark.parametrize(
    "manifest",
    [
        {"artifacts": (Artifact(path="film.mp4", optional=True),)},
        {"artifacts": (Artifact(path="result.json"),)},
        {"input": Inputs(files=(InputFile(name="a", sha256="0" * 64, size=1),))},
        {"policy": Policy(cpu_pct=10)},
        {"policy": Policy(sandbox=BWRAP)},
        {"requirements": Requirements(memory_mb=10)},
    ],
)
async def test_what_needs_a_workspace_is_lent_none(rig, manifest):
    runner = await runner_of(rig)
    asked = Manifest(runner=Runner.PYTHON, task="nothing", **manifest)
    assert not runner.lends(asked, runner.level(asked))


@pytest.mark.usefixtures("unhurried")
async def test_an_end_that_left_nothing_is_known_to_the_next_daemon(rig):
    first = await runner_of(rig)
    task = lent(rig, "lent:echo", args=["unseen"])
    assert await first.start(task) is None
    await daemon_dies(rig)
    folder = rig.config.state / "workers"
    await until(lambda: any(task.key in path.read_text() for path in folder.glob("*.ledger")), "its record")
    assert not has_folder(task)
    second = await runner_of(rig)
    assert await second.alive(task)
    end = await second.wait(task, lambda news: None)
    assert (end.failure, end.bare, end.contents) == (None, True, {"result.json": b'"unseen"'})
    await second.forget(task)
    assert not await second.alive(task)


async def test_a_spare_workspace_goes_with_its_worker(rig):
    """One that died had no time to remove it: the next daemon does."""
    runner = await runner_of(rig)
    await run(runner, lent(rig, "lent:echo", args=["x"]))
    root = rig.config.workspace.root
    await daemon_dies(rig)
    rig.kill_keeper()
    (root / ".spare-gone/work").mkdir(parents=True)
    assert scan(root) == []
    rig.socket.unlink(missing_ok=True)
    rig.start_keeper()
    second = await runner_of(rig)
    await run(second, lent(rig, "lent:echo", args=["x"]))
    assert not (root / ".spare-gone").exists()


async def test_a_task_that_took_a_while_keeps_its_workspace(rig, monkeypatch):
    monkeypatch.setattr(workers, "LASTING_S", 0.0)
    runner = await runner_of(rig)
    task = lent(rig, "lent:echo", args=["x"])
    end = await run(runner, task)
    assert (end.failure, end.bare) == (None, False)
    assert (Path(task.root) / "output/result.json").read_text() == '"x"'


async def test_many_tasks_many_at_a_time(rig):
    runner = await runner_of(rig)

    async def lane(number):
        for turn in range(25):
            task = task_of(rig, "give", value=[number, turn])
            assert (await run(runner, task)).failure is None
            assert result(task) == [number, turn]
            await runner.forget(task)

    await asyncio.gather(*(lane(number) for number in range(4)))


def _begun(rig, task):
    if rig.config.sandbox.level is BWRAP:
        return True
    return any(task.key in path.read_text() for path in (rig.config.state / "workers").glob("*.status"))


def test_the_worker_is_found_where_it_is_installed():
    assert (workers.PROGRAM / "__main__.py").is_file()
    assert os.access(workers.PROGRAM / "__main__.py", os.R_OK)
