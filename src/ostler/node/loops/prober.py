"""Prober: what this machine can do and how it fares, looked at anew each minute; a failed disk or GPU drains the node."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from ostler.model.capabilities import Capabilities, Gpu, quarantined
from ostler.node.gpus import Card, cards_of
from ostler.node.journal import Journal
from ostler.node.loops.heart import Vitals
from ostler.node.readiness import Readiness, Reason
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop

EVERY_S = 60.0
SICK_S = 10.0  # looks sooner for the moment at which it is mended
DOUBT_S = 1.0  # between looks because of jobs that failed
PATIENCE_S = 30.0


class Prober(Loop):
    """`capabilities` and `cards` are the latest; they are what registration, slots and heartbeats use."""

    name = "prober"

    def __init__(
        self,
        *,
        look: Callable[[], Capabilities],
        gpus: Callable[[], Iterable[Gpu]],
        first: Capabilities,
        vitals: Vitals,
        readiness: Readiness,
        journal: Journal,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`look` and `gpus`, which reads the GPUs alone, block and are called in threads."""
        super().__init__(clock=clock, interval_s=EVERY_S, logger=logger)
        self._look = look
        self._gpus = gpus
        self._vitals = vitals
        self._readiness = readiness
        self._journal = journal
        self._looking: asyncio.Future[Capabilities] | None = None
        self._short = False
        self._looked_at = float("-inf")
        self._doubt: asyncio.TimerHandle | None = None
        self.capabilities = first
        self.cards: tuple[Card, ...] = ()
        self._see(first)

    async def turn(self) -> float | None:
        """Look; a look that hangs is not repeated beside itself."""
        self._looked_at, doubt, self._doubt = self.clock.monotonic(), self._doubt, None
        if doubt is not None:
            doubt.cancel()
        if self._journal.failure is not None:
            await asyncio.wait({self._journal.check()})
        if self._looking is None:
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._look)
        done, _ = await asyncio.wait({self._looking}, timeout=PATIENCE_S)
        if done:
            looking, self._looking = self._looking, None
            found = looking.result()
            if _essence(found) != _essence(self.capabilities):
                self._vitals.news = found
            self._see(found)
        else:
            self.logger.warning("probe_hangs", extra={"attrs": {"seconds": PATIENCE_S}})
        return SICK_S if self._readiness.is_held(Reason.HEALTH) else None

    async def look_at_cards(self) -> tuple[Card, ...]:
        """The cards as they are now: the memory that a program took or gave back a second ago is no minute's matter."""
        self.cards = cards_of(await asyncio.to_thread(self._gpus))
        return self.cards

    def doubt(self) -> None:
        """A job failed for the machine's sake: look now, and not in a minute, in which all that waits could fail here one after another."""
        if self._doubt is None:
            wait_s = max(0.0, self._looked_at + DOUBT_S - self.clock.monotonic())
            self._doubt = asyncio.get_running_loop().call_later(wait_s, self.wake)

    def disk_short(self, short: bool) -> None:
        """The sweeper found the workspaces' disk too full to start anything, or not any more."""
        if short != self._short:
            self._short = short
            self._judge()

    def _see(self, found: Capabilities) -> None:
        self.capabilities = found
        self.cards = cards_of(found.gpu)
        self._judge()

    def _judge(self) -> None:
        """Quarantine: the node drains itself while something is wrong that would fail its jobs, and says what."""
        found = self.capabilities.health
        self._vitals.health = tuple(f"{one.code} {one.subject}: {one.message}" for one in found)
        whys = [f"{one.subject}: {one.message}" for one in quarantined(found)]
        if self._short:
            whys.append("the workspaces' disk has less than workspace.min_free_mb free")
        if self._journal.failure is not None:
            whys.append(self._journal.failure)
        if whys:
            self._readiness.hold(Reason.HEALTH, "; ".join(whys))
        else:
            self._readiness.release(Reason.HEALTH)


def _essence(found: Capabilities) -> tuple[object, ...]:
    """What placement goes by. Free memory and disk change at every look and travel as load."""
    gpus = tuple((gpu.uuid, gpu.name, gpu.vram_mb, gpu.fault, gpu.driver, gpu.mig) for gpu in found.gpu)
    return gpus, found.runners, found.tags, found.sandbox, found.memory_mb, found.cpu, found.engines, found.health
