"""What an earlier life of the daemon left: journal, workspaces and keeper looked through, each attempt's fate decided.

Living attempts are adopted, ended ones delivered from their exit records, dead ones reported E_LOST. An attempt that was
accepted and never begun is offered to the coordinator again by a new ack: only its answer makes it run.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ostler.model.attempt import AttemptState
from ostler.model.errors import InvalidSpec
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, Runner, with_inputs
from ostler.model.sandbox import SandboxLevel, strongest
from ostler.node.attempts import AttemptTable, Live
from ostler.node.executor import Executor
from ostler.node.journal import Entry, Journal
from ostler.node.leases import Lease
from ostler.node.workspace import Found, Workspace, scan
from ostler.protocol import codec
from ostler.protocol.ports import AttemptTask, RunnerPort
from ostler.runtime.clock import Clock


class Recovery:
    """Used once, before the session is opened: so registration names exactly what is still here."""

    def __init__(
        self,
        *,
        root: Path,
        level: SandboxLevel,
        journal: Journal,
        table: AttemptTable,
        executor: Executor,
        runners: Mapping[Runner, RunnerPort],
        lease: Lease,
        same_boot: bool,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`lease` is what the attempts stand on; `same_boot` whether the machine has not started anew since."""
        self._root = root
        self._level = level
        self._journal = journal
        self._table = table
        self._executor = executor
        self._runners = runners
        self._lease = lease
        self._same_boot = same_boot
        self._clock = clock
        self._logger = logger

    async def run(self) -> list[Live]:
        """Take in what the journal holds; answers those whose outcome waits for delivery."""
        entries = self._journal.load()
        if not entries:
            return []
        places = _newest(await asyncio.to_thread(scan, self._root))
        waiting: list[Live] = []
        for entry in entries:
            live = self._live(entry)
            found = places.get((entry.job_id, entry.attempt))
            if found is not None and await self._unused(live, found):
                found = None
            if found is not None:
                await self._resume(live, found)
            elif await self._was_lent(live):
                self._logger.info("ended_unseen", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt}})
            self._table.add(live)
            if live.outcome is not None:
                waiting.append(live)
            else:
                # A machine that lost its power may have forgotten the workspace of what it had begun.
                await self._decide(live, begun=found is not None or self._journal.rebooted)
        return waiting

    def _live(self, entry: Entry) -> Live:
        now = self._clock.monotonic()
        refusal = None
        try:
            manifest = codec.decode(entry.spec, Manifest, what="manifest") if entry.spec else Manifest(job_id=entry.job_id)
            manifest, _ = with_inputs(manifest, entry.inputs)
        except InvalidSpec as exc:  # accepted by a later release of this node
            manifest = Manifest(job_id=entry.job_id)
            refusal = Failure(FailureCode.SPEC, str(exc))
        return Live(
            job_id=entry.job_id,
            attempt=entry.attempt,
            manifest=manifest,
            lease=self._lease,
            offered_at=now,
            spec=entry.spec,
            inputs=entry.inputs,
            tries=entry.tries,
            outcome=entry.outcome,
            refusal=refusal,
            accepted=True,
        )

    async def _unused(self, live: Live, found: Found) -> bool:
        """Take away a workspace that was made ahead: it has no `state.json`, and the keeper knows nothing of the attempt.

        That can be trusted until the machine starts anew, which may forget what was not flushed to the disk.
        """
        runner = self._runners.get(live.manifest.runner)
        if live.outcome is not None or not found.blank or not self._same_boot or runner is None:
            return False
        if await runner.alive(self._task(live, found)):
            return False
        try:
            await asyncio.to_thread(Workspace(str(found.path), found.job_id, found.attempt).remove)
        except OSError as exc:
            attrs = {"attempt": live.attempt, "path": str(found.path), "error": str(exc)}
            self._logger.warning("workspace_not_removed", extra={"job_id": live.job_id, "attrs": attrs})
            return False
        return True

    async def _was_lent(self, live: Live) -> bool:
        """Whether it has no workspace because it needed one no more: its runner knows how it ended."""
        runner = self._runners.get(live.manifest.runner)
        root = self._root / live.job_id
        level = strongest(self._level, live.manifest.least_sandbox)
        if live.outcome is not None or runner is None or not runner.lends(live.manifest, level):
            return False
        task = replace(self._task(live, Found(root, live.job_id, live.attempt, None, {})), lent=True)
        if not await runner.alive(task):
            return False
        live.task, live.lent = task, True
        return True

    async def _resume(self, live: Live, found: Found) -> None:
        try:
            live.workspace = await asyncio.to_thread(Workspace.resume, found)
        except OSError as exc:
            attrs = {"attempt": live.attempt, "path": str(found.path), "error": str(exc)}
            self._logger.warning("workspace_damaged", extra={"job_id": live.job_id, "attrs": attrs})
            return
        gpus = found.facts.get("gpus")
        live.gpus = tuple(str(one) for one in gpus) if isinstance(gpus, list) else ()
        live.task = self._task(live, found)

    def _task(self, live: Live, found: Found) -> AttemptTask:
        return AttemptTask(
            job_id=live.job_id,
            attempt=live.attempt,
            manifest=live.manifest,
            root=str(found.path),
            sandbox=self._level_of(live, found),
            timeout_s=live.manifest.timeout_s,
            gpus=live.gpus,
        )

    def _level_of(self, live: Live, found: Found) -> SandboxLevel:
        """The level that it was started at: the node's configuration may have changed since."""
        try:
            return SandboxLevel(str(found.facts.get("sandbox")))
        except ValueError:
            return strongest(self._level, live.manifest.policy.sandbox)

    async def _decide(self, live: Live, *, begun: bool) -> None:
        runner = self._runners.get(live.manifest.runner)
        attrs = {"attempt": live.attempt}
        if live.task is not None and runner is not None and await runner.alive(live.task):
            self._logger.info("adopted", extra={"job_id": live.job_id, "attrs": attrs})
            self._executor.adopt(live)
        elif begun or live.refusal is not None:
            self._logger.warning("lost", extra={"job_id": live.job_id, "attrs": attrs})
            live.state = AttemptState.ACKED
            self._executor.report_lost(
                live, "the daemon ended while the attempt was prepared, or its processes are gone without a trace"
            )
        else:
            self._logger.info("offered_again", extra={"job_id": live.job_id, "attrs": attrs})


def _newest(found: Sequence[Found]) -> dict[tuple[str, int], Found]:
    """Per attempt the workspace made last: the earlier ones are remains of other lives."""
    places: dict[tuple[str, int], Found] = {}
    for one in found:
        if one.attempt < 1:
            continue
        key = (one.job_id, one.attempt)
        before = places.get(key)
        if before is None or _at(one) >= _at(before):
            places[key] = one
    return places


def _at(found: Found) -> str:
    return str(found.facts.get("at") or "")
