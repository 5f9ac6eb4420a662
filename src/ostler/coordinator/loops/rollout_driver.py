"""RolloutDriver: carries rollouts on by what their nodes report."""

import asyncio
import logging
from datetime import timedelta

from ostler.coordinator.operations import rollout_turns as ops
from ostler.coordinator.operations.rollouts import TOPIC
from ostler.coordinator.store.store import Store
from ostler.model.rollout.progress import Phase
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

BUSY_S = 1.0  # while a rollout is under way: canary jobs end without a word


class RolloutDriver(Loop):
    """Patience is counted on this process's own clock from when it saw a node in its phase: one that was just started blames nobody."""

    name = "rollout_driver"

    def __init__(self, store: Store, *, clock: Clock, logger: logging.Logger, interval_s: float = 30.0) -> None:
        super().__init__(clock=clock, interval_s=interval_s, logger=logger)
        self._store = store
        self.begin()

    def begin(self) -> None:
        """Nobody has been seen waiting yet."""
        self._since: dict[tuple[str, str, Phase], float] = {}

    async def run(self) -> None:
        """Turn also when people or nodes changed something."""
        async with self._store.wakeups.subscribe(TOPIC) as event:
            waking = asyncio.create_task(self._wake_on(event))
            try:
                await super().run()
            finally:
                waking.cancel()

    async def _wake_on(self, event: asyncio.Event) -> None:
        while not self._store.wakeups.closed:
            await event.wait()
            event.clear()
            self.wake()

    async def turn(self) -> float | None:
        """One look at each that is not over."""
        found, now = await self._store.read(ops.open_rollouts), self.clock.monotonic()
        seen = {(rollout_id, *host) for rollout_id, hosts in found.items() for host in hosts}
        self._since = {key: self._since.get(key, now) for key in seen}
        for rollout_id, hosts in found.items():
            waited = {host: timedelta(seconds=now - self._since[rollout_id, *host]) for host in hosts}
            if await self._store.read(ops.is_due, rollout_id, waited):
                moves = await self._store.write(ops.drive, rollout_id, waited)
                for one in moves.happened:
                    attrs = {"rollout": rollout_id, "node": one.host, "phase": one.phase.value, "reason": one.reason}
                    self.logger.info("rollout_came_further", extra={"attrs": attrs})
        return BUSY_S if found else None
