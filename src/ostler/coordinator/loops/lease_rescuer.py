"""LeaseRescuer: takes jobs back from nodes that it has itself seen silent for a whole lease."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

from ostler.coordinator.loops.silence import Silence
from ostler.coordinator.operations import duties
from ostler.coordinator.operations.leases import expire_attempts
from ostler.coordinator.store.store import Store
from ostler.model.node import NodeState
from ostler.protocol.messages import Held
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

ABREAST = 64  # nodes in one transaction: where a whole site goes dark, each by itself would take minutes
_GONE = frozenset({NodeState.LOST, NodeState.DRAINED, NodeState.DRAINING})


class LeaseRescuer(Loop):
    """Judges by the renewal counter of each node, unchanged for a lease and a margin on this loop's own clock.

    An attempt that its node does not name any more is judged alike by the note about it (`sessions.seen`). The write repeats the
    counter that was judged, and waits in line behind heartbeats that came before it, so a renewal in the last moment wins.
    """

    name = "lease_rescuer"

    def __init__(
        self,
        store: Store,
        *,
        lease: timedelta,
        margin: timedelta,
        clock: Clock,
        logger: logging.Logger,
        interval_s: float | None = None,
    ) -> None:
        super().__init__(clock=clock, interval_s=interval_s or lease.total_seconds() / 15, logger=logger)
        self._store = store
        self._patience_s = (lease + margin).total_seconds()
        self._lease_s = lease.total_seconds()
        self.begin()

    def begin(self) -> None:
        """Nobody has been seen silent yet: another coordinator may have had this duty until now."""
        self._nodes: Silence[str] = Silence(max_step_s=2 * self.interval_s)
        self._attempts: Silence[tuple[str, Held]] = Silence(max_step_s=2 * self.interval_s)

    async def turn(self) -> float | None:
        """Watch once; act on who was silent too long."""
        renewals = await self._store.read(duties.renewals_of_nodes)
        missing = await self._store.read(duties.watch_missing)
        now, patience_s = self.clock.monotonic(), self._patience_s
        silent = self._nodes.observe(renewals, now, at_least=patience_s)
        watched = await self._store.read(duties.watch_nodes, silent) if silent else []
        lost = [
            replace(node, renewals=renewals[node.node_id]) for node in watched if node.busy or node.state not in _GONE
        ]  # fmt: skip
        for begin in range(0, len(lost), ABREAST):
            await asyncio.gather(*(self._lose(node, silent[node.node_id]) for node in lost[begin : begin + ABREAST]))
        absent = self._attempts.observe({(one.node_id, one.held): one.note for one in missing}, now, at_least=patience_s)
        for node_id, held in absent:
            reason = f"node {node_id} did not name it for a whole lease of {self._lease_s:g} s"
            await self._store.write(expire_attempts, node_id, only=[held], reason=reason)
            self.logger.warning(
                "attempt_missing", extra={"job_id": held.job_id, "attrs": {"node": node_id, "attempt": held.attempt}}
            )
        return None

    async def _lose(self, node: duties.Watched, silent_s: float) -> None:
        reason = f"node {node.node_id} was silent for its whole lease of {self._lease_s:g} s"
        ended = await self._store.write(duties.lose_node, node.node_id, node.renewals, reason)
        attrs = {"node": node.node_id, "silent_s": round(silent_s, 1), "ended": len(ended)}
        self.logger.warning("node_silent", extra={"attrs": attrs})
