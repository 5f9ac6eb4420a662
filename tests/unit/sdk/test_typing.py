"""What a type checker sees of the package: a program is checked strictly, and its mistakes are found."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio
from concurrent.futures import Future, as_completed
from typing import Any, assert_type

import ostler


def square(number: int) -> int:
    return number * number


def main() -> None:
    with ostler.Client() as client:
        job = client.submit(["true"], inputs={"x": b""}, artifacts=["y"], labels={"a": "b"}, timeout_s=5)
        assert_type(job, ostler.JobFuture)
        assert_type(job.result(timeout=1), ostler.JobView)
        as_future: Future[ostler.JobView] = job
        for one in as_completed([as_future]):
            print(one.result().state)
        with ostler.Executor(client, results="pickle", requirements={"gpus": 1}) as ex:
            assert_type(ex.submit(square, 2), ostler.CallFuture[int])
            assert_type(ex.submit("maths:square", 2).result(), Any)
            assert_type(list(ex.map(square, [1, 2], chunksize=2)), list[int])
            ex.submit(square, 2).add_done_callback(lambda done: print(done.result() + 1))
    try:
        ostler.Executor().submit(square, 2).result()
    except ostler.JobFailed as exc:
        print(exc.code, exc.job_id, exc.job.node_id)
    except ostler.OstlerError as exc:
        print(exc.hint)


async def alone() -> None:
    async with ostler.AsyncClient(url="http://127.0.0.1:7070", token="x") as client:
        job = await client.submit(task="resize", params={"width": 3})
        assert_type(await job, ostler.JobView)
        assert_type(await job.exception(), BaseException | None)


asyncio.run(alone())
"""
MISTAKES = """
import ostler


def square(number: int) -> int:
    return number * number


ex = ostler.Executor()
ex.submit(square, "two")
ex.submit(square)
ostler.Executor(results="yaml")
ostler.Client().submit("echo hi", inputs=3)
ostler.nothing
"""


def check(folder, text):
    file = folder / "program.py"
    file.write_text(text)
    cache = Path(__file__).parents[3] / ".mypy_cache"
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file=", f"--cache-dir={cache}", file],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_program_is_checked_strictly(tmp_path):
    done = check(tmp_path, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "")


def test_mistakes_are_found(tmp_path):
    found = check(tmp_path, MISTAKES).stdout
    lines = {int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line}
    assert lines == {10, 11, 12, 13, 14}, found
