"""The daemon's proof that it can run a job: one no-op attempt through keeper and sandbox, at each start and again while it fails."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from ostler.model.errors import OstlerError
from ostler.model.failures import Failure
from ostler.model.manifest import Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.readiness import Readiness, Reason
from ostler.node.runners.ending import ending, lost
from ostler.node.runners.processes import Command, Processes
from ostler.node.workspace import FOLDERS
from ostler.protocol.ports import AttemptTask

PROGRAM = "/usr/bin/true"
JOB = "ostler-self-check"
TIMEOUT_S = 20.0
AGAIN_S = 60.0
AFTER_S = 0.5  # work that waits for this daemon comes first


NoOp = Callable[[], Awaitable[str | None]]


class SelfCheck:
    """`word` is what `/healthz` says: `running`, `ok`, or `failed: …`. While it fails, the node takes no work."""

    def __init__(
        self, no_op: NoOp, *, readiness: Readiness, logger: logging.Logger, after_s: float = AFTER_S, again_s: float = AGAIN_S
    ) -> None:
        """`no_op` runs one attempt that does nothing, and answers why it failed."""
        self._after_s, self._again_s = after_s, again_s
        self._no_op = no_op
        self._readiness = readiness
        self._logger = logger
        self.word = "running"

    async def run(self) -> None:
        """Until it succeeded once."""
        await asyncio.sleep(self._after_s)
        while (why := await self._no_op()) is not None:
            self.word = f"failed: {why}"
            self._readiness.hold(Reason.SELF_CHECK, f"its self-check failed: {why}")
            self._logger.error("self_check_failed", extra={"attrs": {"why": why}})
            await asyncio.sleep(self._again_s)
        self.word = "ok"
        self._readiness.release(Reason.SELF_CHECK)


def no_op(processes: Processes, *, folder: Path, level: SandboxLevel) -> NoOp:
    """An attempt of `/usr/bin/true` in the node's sandbox, with a workspace at `folder` for as long as it lives."""
    task = AttemptTask(
        job_id=JOB,
        attempt=1,
        manifest=Manifest(runner=Runner.CLI, job_id=JOB, command=PROGRAM, timeout_s=TIMEOUT_S),
        root=str(folder),
        sandbox=level,
        timeout_s=TIMEOUT_S,
    )

    async def attempt() -> str | None:
        try:
            await asyncio.to_thread(_make_folders, folder)
            failure = await _carry_out(processes, task)
        except TimeoutError:
            return f"no end in {2 * TIMEOUT_S:g} s"
        except (OstlerError, OSError) as exc:
            return str(exc)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return None if failure is None else f"{failure.code.value}: {failure.message}"

    return attempt


async def _carry_out(processes: Processes, task: AttemptTask) -> Failure | None:
    with contextlib.suppress(OstlerError):
        await processes.forget(task)  # one that an earlier daemon left
    if (failure := await processes.start(task, Command(argv=(PROGRAM,), env={"PATH": "/usr/bin:/bin"}))) is not None:
        return failure
    try:
        async with asyncio.timeout(2 * TIMEOUT_S):  # the keeper ends it in half of that
            record = await processes.wait(task)
    finally:
        with contextlib.suppress(OstlerError):
            await processes.forget(task)
    return (
        lost("the keeper knows nothing of it") if record is None else ending(record, processes.circumstances(task, record))
    ).failure


def _make_folders(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in FOLDERS:
        (folder / name).mkdir(mode=0o700, parents=True)
