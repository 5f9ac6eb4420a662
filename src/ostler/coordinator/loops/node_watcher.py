"""NodeWatcher: tells early that a node is silent, and that a draining one is empty."""

import asyncio
import logging
from datetime import timedelta
from functools import partial

from ostler.coordinator.loops.silence import Silence
from ostler.coordinator.operations import duties
from ostler.coordinator.store.store import Store
from ostler.model.node import TRANSITIONS, NodeEvent
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

ABREAST = 64  # nodes in one transaction


class NodeWatcher(Loop):
    """Unknown is not lost: after two heartbeats that did not come a node gets no new work, and keeps what it has."""

    name = "node_watcher"

    def __init__(
        self, store: Store, *, heartbeat: timedelta, clock: Clock, logger: logging.Logger, interval_s: float | None = None
    ) -> None:
        super().__init__(clock=clock, interval_s=interval_s or heartbeat.total_seconds() / 5, logger=logger)
        self._store = store
        self._patience_s = 2 * heartbeat.total_seconds()
        self.begin()

    def begin(self) -> None:
        """Nobody has been seen silent yet."""
        self._nodes: Silence[str] = Silence(max_step_s=2 * self.interval_s)

    async def turn(self) -> float | None:
        """Watch once; mark who is silent, and who is empty."""
        renewals = await self._store.read(duties.renewals_of_nodes)
        silent = self._nodes.observe(renewals, self.clock.monotonic(), at_least=self._patience_s)
        watched = await self._store.read(duties.watch_nodes, silent) if silent else []
        missed = [
            partial(self._miss, node.node_id, renewals[node.node_id]) for node in watched if (node.state, NodeEvent.MISS) in TRANSITIONS
        ]  # fmt: skip
        emptied = [partial(self._end_drain, node_id) for node_id in await self._store.read(duties.emptied_nodes)]
        for acts in (missed, emptied):
            for begin in range(0, len(acts), ABREAST):
                await asyncio.gather(*(act() for act in acts[begin : begin + ABREAST]))
        return None

    async def _miss(self, node_id: str, renewals: int) -> None:
        reason = f"no sign of life for {self._patience_s:g} s"
        if await self._store.write(duties.miss_node, node_id, renewals, reason):
            self.logger.warning("node_unknown", extra={"attrs": {"node": node_id}})

    async def _end_drain(self, node_id: str) -> None:
        if await self._store.write(duties.drain_ended, node_id):
            self.logger.info("node_drained", extra={"attrs": {"node": node_id}})
