"""Delivered attempts are forgotten by their runners, and so by the keeper: in the background, many at once."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence

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
            later = False
            for runner in dict.fromkeys(runner for runner, _ in batch):
                tasks = [task for one, task in batch if one is runner]
                if not await self._forgotten(runner, tasks):
                    self._due.extendleft((runner, task) for task in reversed(tasks))
                    later = True
            if later:
                await asyncio.sleep(AGAIN_S)

    async def _forgotten(self, runner: RunnerPort, tasks: Sequence[AttemptTask]) -> bool:
        attrs: dict[str, object] = {"attempts": [task.key for task in tasks]}
        try:
            await runner.forget(*tasks)
        except Unavailable:  # the keeper is being replaced; the next one has the records of the last
            return False
        except OstlerError as exc:
            self._logger.debug("nothing_to_forget", extra={"attrs": attrs | {"error": str(exc)}})
        except Exception as exc:
            self._logger.exception("forget_failed", extra={"attrs": attrs | {"error": str(exc)}})
        return True
