"""Delivered attempts are forgotten by their runners, and so by the keeper: in the background, many at once."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from ostler.model.errors import OstlerError, Unavailable
from ostler.model.manifest import Runner
from ostler.node.attempts import Live
from ostler.protocol.ports import AttemptTask, RunnerPort

AGAIN_S = 5.0
GATHER_S = 0.05
BATCH = 64


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
            await asyncio.sleep(
                GATHER_S
            )  # short jobs come by the hundred, and one call to the keeper each would cost as much again
            batch = [self._due.popleft() for _ in range(min(len(self._due), BATCH))]
            answers = await asyncio.gather(*(runner.forget(task) for runner, task in batch), return_exceptions=True)
            later = [one for one, answer in zip(batch, answers, strict=True) if not self._settled(one[1], answer)]
            if later:
                self._due.extendleft(reversed(later))
                await asyncio.sleep(AGAIN_S)

    def _settled(self, task: AttemptTask, answer: BaseException | None) -> bool:
        attrs = {"attempt": task.attempt, "error": str(answer)}
        if isinstance(answer, Unavailable):  # the keeper is being replaced; the next one has the records of the last
            return False
        if isinstance(answer, OstlerError):
            self._logger.debug("nothing_to_forget", extra={"job_id": task.job_id, "attrs": attrs})
        elif answer is not None:
            self._logger.error("forget_failed", extra={"job_id": task.job_id, "attrs": attrs}, exc_info=answer)
        return True
