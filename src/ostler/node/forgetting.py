"""Delivered attempts are forgotten by their runners, and so by the keeper: in the background, one after the other."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from ostler.model.errors import OstlerError, Unavailable
from ostler.model.manifest import Runner
from ostler.node.attempts import Live
from ostler.protocol.ports import AttemptTask, RunnerPort

AGAIN_S = 5.0


class Forgetting:
    """What a crash loses of this is forgotten when the next daemon tidies up."""

    def __init__(self, runners: Mapping[Runner, RunnerPort], *, logger: logging.Logger) -> None:
        self._runners = runners
        self._logger = logger
        self._due: deque[tuple[RunnerPort, AttemptTask]] = deque()
        self._work: asyncio.Task[None] | None = None

    def add(self, live: Live) -> None:
        """Nothing of it is needed any more."""
        runner = self._runners.get(live.manifest.runner)
        if runner is None or live.task is None:
            return
        self._due.append((runner, live.task))
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._run(), name="forget")

    async def close(self) -> None:
        """Stop; the rest is for the next daemon."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _run(self) -> None:
        while self._due:
            runner, task = self._due[0]
            try:
                await runner.forget(task)
            except Unavailable:  # the keeper is being replaced; the next one has the records of the last
                await asyncio.sleep(AGAIN_S)
                continue
            except OstlerError as exc:
                attrs = {"attempt": task.attempt, "error": str(exc)}
                self._logger.debug("nothing_to_forget", extra={"job_id": task.job_id, "attrs": attrs})
            except Exception:
                self._logger.exception("forget_failed", extra={"job_id": task.job_id, "attrs": {"attempt": task.attempt}})
            self._due.popleft()
