"""Tasks that lie at a warm worker behind another one: each keeps its own end, and what has not begun can be taken back."""

import asyncio
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from integration.runner_rig import TASKS, Rig, until
from ostler.model.failures import FailureCode
from ostler.model.manifest import Manifest, Runner
from ostler.node.config import PythonRunnerConfig
from ostler.node.runners import workers
from ostler.node.runners.python import PythonRunner
from ostler.protocol.ports import AttemptTask, Withdrawn


def has_folder(task):
    return Path(task.root).exists()


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """However slow this machine is, no task takes so long that it keeps its workspace."""
    monkeypatch.setattr(workers, "LASTING_S", 60.0)


@pytest.fixture
async def rig(tmp_path):
    one = Rig(tmp_path)
    one.runners = []
    yield one
    for runner in one.runners:
        await runner.close()
    await one.close()


async def runner_of(rig, **python):
    if python:
        rig.config = replace(rig.config, runners=replace(rig.config.runners, python=PythonRunnerConfig(enable=True, **python)))
    rig.runners.append(PythonRunner(await rig.processes()))
    return rig.runners[-1]


async def daemon_dies(rig):
    await rig.runners[-1].close()
    rig.daemons[-1].keeper.close()


def order(rig, do, *, room=1, first=False, timeout_s=60.0, **params):
    rig.count += 1
    name = f"job-{rig.count}"
    manifest = Manifest(runner=Runner.PYTHON, task="behave", params={"do": do, **params}, timeout_s=timeout_s)
    return AttemptTask(
        job_id=name, attempt=1, manifest=manifest, root=str(rig.config.workspace.root / name), sandbox=rig.config.sandbox.level,
        timeout_s=timeout_s, lent=True, room=room, first=first,
    )  # fmt: skip


def begin(runner, task):
    """The attempt as the executor lives it: its start, then its end."""

    async def live():
        failure = await runner.start(task)
        return failure or await runner.wait(task, lambda news: None)

    return asyncio.create_task(live())


async def over(*lives):
    return await asyncio.wait_for(asyncio.gather(*lives), 60)


def begun(rig, task):
    """Whether a worker has begun it."""
    return any(task.key in path.read_bytes().decode(errors="replace") for path in _files(rig, "status"))


def _files(rig, kind):
    return list((rig.config.state / "workers").glob(f"*.{kind}"))


def lies(rig, task):
    """Whether it was handed to a worker."""
    run = rig.runners[-1]._pool._runs.get(task.key)
    return run is not None and run.worker is not None


async def hanging(rig, runner, tmp_path, **more):
    """A task that runs until its gate is opened."""
    gate = tmp_path / f"gate-{rig.count}"
    task = order(rig, "wait_for", path=str(gate), **more)
    live = begin(runner, task)
    await until(lambda: begun(rig, task), "the task runs")
    return task, live, gate


async def test_many_lie_ahead_and_each_has_its_own_end(rig):
    runner = await runner_of(rig)
    tasks = [
        order(rig, "fail" if n % 7 == 3 else "nothing", room=2, **({"message": str(n)} if n % 7 == 3 else {})) for n in range(60)
    ]
    ends = await over(*(begin(runner, task) for task in tasks))
    for number, end in enumerate(ends):
        assert (end.failure.message if end.failure else None) == (f"ValueError: {number}" if number % 7 == 3 else None)
        assert number % 7 == 3 or end.bare
    assert len(_files(rig, "sock")) <= 2
    assert [task for task in tasks if has_folder(task)] == [task for n, task in enumerate(tasks) if n % 7 == 3]


async def test_what_lies_behind_a_task_that_hangs_is_run_by_another_worker(rig, tmp_path):
    runner = await runner_of(rig)
    _, hung, gate = await hanging(rig, runner, tmp_path, room=2)
    lives = [begin(runner, order(rig, "nothing", room=2)) for _ in range(20)]
    assert all(end.failure is None for end in await over(*lives))
    assert not hung.done()
    gate.touch()
    [end] = await over(hung)
    assert end.failure is None


async def test_an_end_is_told_while_the_next_task_hangs(rig, tmp_path):
    runner = await runner_of(rig)
    _, held, gate = await hanging(rig, runner, tmp_path)
    second = begin(runner, order(rig, "nothing"))
    other = tmp_path / "other"
    last = order(rig, "wait_for", path=str(other))
    third = begin(runner, last)
    gate.touch()
    assert [end.failure for end in await over(held, second)] == [None, None]
    await until(lambda: begun(rig, last), "the last one runs")
    other.touch()
    assert [end.failure for end in await over(third)] == [None]


async def test_a_crash_takes_nobody_along(rig, tmp_path):
    runner = await runner_of(rig)
    _, held, gate = await hanging(rig, runner, tmp_path)
    lives = [begin(runner, order(rig, do)) for do in ("nothing", "crash", "nothing", "nothing")]
    gate.touch()
    ends = await over(held, *lives)
    assert [end.failure and end.failure.code for end in ends] == [None, None, FailureCode.SIGNAL, None, None]


async def test_a_cancelled_task_does_not_take_those_behind_it_along(rig, tmp_path):
    runner = await runner_of(rig)
    task, hung, _ = await hanging(rig, runner, tmp_path)
    lives = [begin(runner, order(rig, "nothing")) for _ in range(3)]
    await asyncio.sleep(0)
    await runner.kill(task, reason="cancel", grace_s=0.5)
    [end, *others] = await over(hung, *lives)
    assert end.cancelled
    assert [one.failure for one in others] == [None, None, None]


async def test_what_waits_is_cancelled_without_having_begun(rig, tmp_path):
    runner = await runner_of(rig)
    _, hung, gate = await hanging(rig, runner, tmp_path)
    waiting, last = order(rig, "fill", path=str(tmp_path / "ran"), mb=0), order(rig, "nothing")
    lives = [begin(runner, waiting), begin(runner, last)]
    await until(lambda: runner._pool.has(waiting.key), "it waits")
    await runner.kill(waiting, reason="cancel", grace_s=0.5)
    with pytest.raises(Withdrawn):
        await lives[0]
    await runner.withdraw(last)
    with pytest.raises(Withdrawn):
        await lives[1]
    gate.touch()
    assert [one.failure for one in await over(hung)] == [None]
    assert not (tmp_path / "ran").exists()
    assert not runner._pool.has(waiting.key)
    assert (await over(begin(runner, last)))[0].failure is None  # and may be asked for anew


async def test_a_timeout_counts_from_the_tasks_own_beginning(rig, tmp_path):
    runner = await runner_of(rig)
    _, held, gate = await hanging(rig, runner, tmp_path)
    late = order(rig, "wait_for", path=str(tmp_path / "never"), timeout_s=0.3)
    lives = [begin(runner, late), begin(runner, order(rig, "nothing", timeout_s=0.3))]
    asyncio.get_running_loop().call_later(0.6, gate.touch)  # longer than both may take
    [end, *others] = await over(held, *lives)
    assert end.failure is None
    assert others[0].failure.code is FailureCode.TIMEOUT
    assert others[1].failure is None


async def test_one_of_a_latency_queue_goes_before_what_lies_there(rig, tmp_path):
    runner = await runner_of(rig)
    record = tmp_path / "turns"
    _, held, gate = await hanging(rig, runner, tmp_path)
    lives = [begin(runner, order(rig, "note", path=str(record), word=str(n))) for n in range(3)]
    await until(lambda: len(runner._pool._runs) == 4, "all are there")
    lives.append(begin(runner, order(rig, "note", path=str(record), word="first", first=True)))
    await until(lambda: len(runner._pool._runs) == 5, "that one, too")
    gate.touch()
    await over(held, *lives)
    assert record.read_text().split() == ["first", "0", "1", "2"]


async def test_the_next_daemon_finds_what_ran_and_nothing_that_had_not_begun(rig, tmp_path):
    first = await runner_of(rig)
    task, hung, gate = await hanging(rig, first, tmp_path)
    behind = [order(rig, "note", path=str(tmp_path / "ran"), word=str(n)) for n in range(3)]
    lives = [begin(first, one) for one in behind]
    await until(lambda: all(first._pool.has(one.key) for one in behind), "they are handed over")
    for live in (hung, *lives):
        live.cancel()
    await daemon_dies(rig)
    second = await runner_of(rig)
    assert await second.alive(task)
    assert not any([await second.alive(one) for one in behind])
    gate.touch()
    assert (await asyncio.wait_for(second.wait(task, lambda news: None), 60)).failure is None
    assert not (tmp_path / "ran").exists()
    ends = await over(*(begin(second, one) for one in behind))
    assert [end.failure for end in ends] == [None] * 3
    assert (tmp_path / "ran").read_text().split() == ["0", "1", "2"]


async def test_a_worker_that_loses_its_daemon_begins_nothing_more(rig, tmp_path):
    """Also where no next daemon comes that could take anything back."""
    first = await runner_of(rig)
    task, hung, gate = await hanging(rig, first, tmp_path)
    behind = [order(rig, "note", path=str(tmp_path / "ran"), word=str(n)) for n in range(3)]
    lives = [begin(first, one) for one in behind]
    await until(lambda: all(lies(rig, one) for one in behind), "they lie there")
    for live in (hung, *lives):
        live.cancel()
    await daemon_dies(rig)
    gate.touch()
    await until((Path(task.root) / "task.json").exists, "the first is over")
    await until(lambda: not begun(rig, task), "the worker waits for a daemon")
    assert not (tmp_path / "ran").exists()


async def test_the_worker_sees_that_a_task_was_taken_back_when_the_daemon_did_not(rig, tmp_path):
    """Between its two looks: the first finds nothing, then the number is written, the second finds it."""
    python, program = tmp_path / "python", tmp_path / "worker.py"
    program.write_text(
        "import sys\nfrom ostler.node.worker import serve\n"
        "looks, real = [], serve.Service._is_taken_back\n"
        "def look(self, order):\n"
        "    looks.append(order.at)\n"
        "    return len(looks) == 2 or real(self, order)\n"
        "serve.Service._is_taken_back = look\nserve.main(sys.argv[1])\n"
    )
    python.mkdir()
    (python / "bin").mkdir()
    shell = python / "bin" / "python"
    shell.write_text(f'#!/bin/sh\nexec {sys.executable} -I {program} "$3"\n')
    shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
    runner = await runner_of(rig, task_paths=(TASKS,), venv=python)
    tasks = [order(rig, "note", path=str(tmp_path / "ran"), word=str(n)) for n in range(3)]
    ends = await over(*(begin(runner, task) for task in tasks))
    assert [end.failure for end in ends] == [None] * 3
    assert sorted((tmp_path / "ran").read_text().split()) == ["0", "1", "2"]


async def test_a_worker_that_took_its_number_of_tasks_leaves_the_rest_to_the_next(rig):
    runner = await runner_of(rig, task_paths=(TASKS,), max_tasks_per_worker=3)
    ends = await over(*(begin(runner, order(rig, "nothing")) for _ in range(10)))
    assert [end.failure for end in ends] == [None] * 10
    assert len([json.loads(line) for path in _files(rig, "ledger") for line in path.read_bytes().splitlines()]) == 10


async def test_an_interpreter_that_does_not_start_fails_each_task(rig, tmp_path):
    runner = await runner_of(rig, task_paths=(TASKS,), venv=tmp_path)
    ends = await over(*(begin(runner, order(rig, "nothing")) for _ in range(3)))
    assert {end.code for end in ends} == {FailureCode.START}
    assert os.listdir(rig.config.workspace.root) == []
