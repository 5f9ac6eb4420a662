"""Draining by a person: on this machine, or through the coordinator; with a deadline for what still runs, or without."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from ostler.model.errors import OstlerError
from ostler.node.attempts import AttemptTable
from ostler.node.executor import Executor
from ostler.node.readiness import Readiness, Reason
from ostler.node.session import Dialect, Session
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient


class Drains:
    """Holds and releases the node's readiness; a deadline that was set is only kept while its drain is still wanted."""

    def __init__(
        self,
        session: Session,
        *,
        client: AsyncClient,
        table: AttemptTable,
        executor: Executor,
        readiness: Readiness,
        logger: logging.Logger,
    ) -> None:
        self._session = session
        self._client = client
        self._table = table
        self._executor = executor
        self._readiness = readiness
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadlines: dict[Reason, asyncio.Task[None]] = {}

    def begin(self, reason: Reason, why: str, timeout_s: float | None) -> None:
        """No new work; what still runs after `timeout_s` is ended as E_LOST, which is tried elsewhere. The same wish may come again."""
        if not self._readiness.is_held(reason) and (old := self._deadlines.pop(reason, None)) is not None:
            old.cancel()  # of an earlier drain, which was taken back
        self._readiness.hold(reason, why)
        if timeout_s is not None and reason not in self._deadlines:
            self._deadlines[reason] = self._spawn(self._deadline(reason, timeout_s))

    def drain(self, timeout_s: float | None) -> None:
        """A person on this machine wants it."""
        self.begin(Reason.OPERATOR, "drained on the node by its operator", timeout_s)

    def resume(self) -> None:
        """Work again; a wish of the coordinator's operator to drain is taken back there, too."""
        self._readiness.release(Reason.OPERATOR)
        if self._readiness.is_held(Reason.COORDINATOR) and self._session.dialect is Dialect.OSTLER:
            self._spawn(self._resume_there())

    async def close(self) -> None:
        """The daemon ends; deadlines end with it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deadline(self, reason: Reason, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        if self._readiness.is_held(reason):
            for live in self._table.open():
                self._executor.lose(live, f"the node was drained and the attempt did not end within {timeout_s:g} s")

    async def _resume_there(self) -> None:
        node_id = self._session.identity.node_id
        try:
            await self._session.within(lambda token: self._client.call(routes.RESUME_NODE, token=token, node_id=node_id))
        except OstlerError as exc:
            self._logger.warning("resume_failed", extra={"attrs": {"error": str(exc)}})
            return
        self._readiness.release(Reason.COORDINATOR)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
