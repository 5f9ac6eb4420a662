"""BackupTaker: backs the coordinator up when the newest backup is old enough, and removes those that are too many."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime

from ostler.coordinator.config import BackupConfig, CoordinatorConfig
from ostler.coordinator.upkeep.child import Answer, Order
from ostler.coordinator.upkeep.repository import Repository
from ostler.model.errors import NotFound, Rejected
from ostler.protocol import codec
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

LOOK_S = 3600.0  # at least so often: the directory may be changed by others
_SAID = 500

Done = Callable[[datetime, float | None], None]
Failed = Callable[[datetime], None]


class BackupTaker(Loop):
    """The work is done by a process of its own with little priority: hashing all rows would hold up everybody's calls here."""

    name = "backup_taker"

    def __init__(
        self, config: CoordinatorConfig, wanted: BackupConfig, *, done: Done, failed: Failed, clock: Clock, logger: logging.Logger
    ) -> None:  # fmt: skip
        super().__init__(clock=clock, interval_s=min(LOOK_S, wanted.every.total_seconds()), logger=logger)
        self._config, self._wanted = config, wanted
        self._done, self._failed = done, failed

    async def turn(self) -> float | None:
        """Take one where it is time; the seconds until it is."""
        try:
            newest = await asyncio.to_thread(self._newest)
            if newest is None or self.clock.now() - newest >= self._wanted.every:
                began = time.monotonic()
                newest = await self._take()
                self._done(newest, time.monotonic() - began)
            else:
                self._done(newest, None)
        except Exception:
            self._failed(self.clock.now())
            raise
        due_s = (newest + self._wanted.every - self.clock.now()).total_seconds()
        return min(self.interval_s, max(0.0, due_s))

    def _newest(self) -> datetime | None:
        try:
            found, _ = Repository.open(self._wanted.to).listed()  # one that is damaged puts no other off
        except NotFound:
            return None
        # One of a clock that was ahead, and is set right, would put all others off until its time has come.
        return max((one.taken_at for one in found if one.taken_at <= self.clock.now()), default=None)

    async def _take(self) -> datetime:
        """One backup, by a child that is ended with this loop."""
        config, wanted = self._config, self._wanted
        order = Order(
            data=str(config.data), store=config.store, artifacts=str(config.artifacts_directory), to=str(wanted.to),
            keep=wanted.keep, with_keys=wanted.with_keys, now=self.clock.now(),
            passphrase_file=None if wanted.passphrase_file is None else str(wanted.passphrase_file),
        )  # fmt: skip
        # -P: whatever lies in the working directory must not stand in for a module.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "ostler.coordinator.upkeep.child",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await process.communicate(codec.encode(order))
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()  # its pipes are closed as well
        if not out:
            raise Rejected(f"the backup ended with {process.returncode}: {err.decode(errors='replace').strip()[-_SAID:]}")
        answer = codec.decode(out, Answer, what="answer of the backup")
        if answer.error is not None:
            raise Rejected(f"no backup could be taken: {answer.error}", hint=answer.hint)
        attrs = {"backup_id": answer.backup_id, "jobs": answer.jobs, "missing": answer.missing, "removed": answer.removed}
        self.logger.info("backed_up", extra={"attrs": attrs})
        return order.now
