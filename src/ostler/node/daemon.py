"""The node daemon: its loops, and what happens between them. It may be killed or replaced at any time; attempts go on under the
keeper."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ostler.model.capabilities import Capabilities, Gpu, Load
from ostler.model.errors import OstlerError
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Runner
from ostler.model.rollout.report import Report
from ostler.model.service import Observation
from ostler.node.attempts import AttemptTable, Live, Slots
from ostler.node.confidences import Confidences
from ostler.node.config import NodeConfig
from ostler.node.counts import Counts
from ostler.node.credit import Pace, apart, credit
from ostler.node.debug_upload import DebugUploads
from ostler.node.directives import Directives
from ostler.node.disk_lane import DiskLane
from ostler.node.drains import Drains
from ostler.node.executor import Executor, Watchers
from ostler.node.forgetting import Forgetting
from ostler.node.health import Health, Watch
from ostler.node.http_door import HttpDoor
from ostler.node.identity import Identity
from ostler.node.journal import Journal
from ostler.node.leases import Lease, worth_renewing
from ostler.node.links.link import Pulled
from ostler.node.links.ostler import OstlerLink
from ostler.node.links.source import SourceLink
from ostler.node.loops.acker import Acker
from ostler.node.loops.heart import Heart, Vitals
from ostler.node.loops.log_shipper import LogShipper
from ostler.node.loops.outbox import Outbox
from ostler.node.loops.prober import Prober
from ostler.node.loops.puller import Puller
from ostler.node.loops.registrar import Registrar
from ostler.node.loops.reporter import Reporter
from ostler.node.loops.sweeper import Sweeper
from ostler.node.loops.warden import Warden
from ostler.node.offers import Offers
from ostler.node.readiness import Readiness, Reason
from ostler.node.recovery import Recovery
from ostler.node.self_check import NoOp, SelfCheck
from ostler.node.session import Dialect, SelfDescription, Session
from ostler.node.updates import UpdatePlaces, Updates
from ostler.node.vault import Vault
from ostler.node.workspace import Workspace
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.ports import Progress, RunnerPort
from ostler.protocol.session_key import SessionKey
from ostler.runtime.clock import Clock
from ostler.runtime.loop import Loop
from ostler.runtime.service_manager import ServiceManager

POLL_SILENCE_S = 120.0


class Services(Protocol):
    """Watches the services of this host. `tell` is given what was seen, and whether that cannot wait for the next heartbeat."""

    tell: Callable[[tuple[Observation, ...], bool], None]

    @property
    def observations(self) -> tuple[Observation, ...]:
        """All that was seen last."""
        ...

    @property
    def loop(self) -> Loop:
        """The loop that does it."""
        ...

    async def close(self) -> None:
        """The daemon ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the daemon is made of; wired together in `assembly`. `prepare` brings an attempt's inputs, `keeper` returns when a
    keeper answers again, `tidy` ends what the keeper has beside these keys, `look` probes the machine, `gpus` its GPUs alone and
    `sample` its load (all three block), `no_op` runs an attempt that does nothing, `manager` started this daemon, `release` is the
    one it was installed in, `services` watches those of this host where the configuration declares any, `updates` is where releases are
    asked for on a host that takes them from the coordinator."""

    config: NodeConfig
    journal: Journal
    identity: Identity
    client: AsyncClient
    heart: AsyncClient
    runners: Mapping[Runner, RunnerPort]
    keeper: Callable[[], Awaitable[None]]
    tidy: Callable[[Collection[str]], Awaitable[None]]
    prepare: Callable[[Live, Workspace], Awaitable[Failure | None]]
    vault: Vault
    look: Callable[[], Capabilities]
    gpus: Callable[[], Iterable[Gpu]]
    sample: Callable[[], Load]
    first_look: Capabilities
    no_op: NoOp
    manager: ServiceManager
    release: str | None
    services: Services | None = None
    updates: UpdatePlaces | None = None
    clock: Clock
    logger: logging.Logger


class NodeDaemon:
    """`run` returns when `stop` was called; attempts that live are left to the keeper."""

    def __init__(self, parts: Parts) -> None:
        """Called in the event loop."""
        config, clock, logger = parts.config, parts.clock, parts.logger
        self.parts = parts
        self.config = config
        self.table = AttemptTable()
        self._refilling = self._fewer = False  # whether a look at what may begin is due, and one at what else may be taken
        self.readiness = Readiness(logger=logger)
        self.vitals = Vitals()
        self.counts = Counts()
        self.pace = Pace()
        self._logger = logger
        self._clock = clock
        self._journal = parts.journal
        self._stopped = asyncio.Event()
        self._disk = DiskLane()
        self.session = Session(
            parts.client,
            identity=parts.identity,
            address=config.coordinator,
            heartbeat_s=config.heartbeat.interval_s,
            describe=self._describe,
            on_open=self._on_session,
            on_return=self._on_return,
            on_renewal=self._on_renewal,
            on_retired=self._on_retired,
            clock=clock,
            logger=logger,
        )
        self.session.links = {
            Dialect.OSTLER: OstlerLink(self.session, client=parts.client, heart=parts.heart),
            Dialect.SOURCE: SourceLink(self.session, client=parts.client, number=parts.journal.next_number, logger=logger),
        }
        self.prober = Prober(
            look=parts.look,
            gpus=parts.gpus,
            first=parts.first_look,
            vitals=self.vitals,
            readiness=self.readiness,
            journal=parts.journal,
            clock=clock,
            logger=logger,
        )
        self.executor = Executor(
            root=config.workspace.root,
            level=config.sandbox.level,
            grace_s=config.resources.grace_s,
            runners=parts.runners,
            cards=self.prober.look_at_cards,
            prepare=parts.prepare,
            keeper=parts.keeper,
            table=self.table,
            journal=parts.journal,
            disk=self._disk,
            confidences=Confidences(parts.vault, ask=self._secrets, logger=logger),
            watchers=Watchers(
                stage=self._on_stage,
                progress=self._on_progress,
                freed=self._slot_is_free,
                over=self._on_over,
                forgotten=self._on_forgotten,
            ),
            clock=clock,
            logger=logger,
        )
        self.forgetting = Forgetting(parts.runners, logger=logger)
        self.offers = Offers(identity=parts.identity, table=self.table, discard=self._discard, clock=clock, logger=logger)
        self.reporter = Reporter(self.session, table=self.table, discard=self._discard, clock=clock, logger=logger)
        self.shipper = LogShipper(
            self.session, table=self.table, disk=self._disk, discard=self._discard, clock=clock, logger=logger
        )
        self.outbox = Outbox(
            self.session,
            apart_s=self._apart_s,
            journal=parts.journal,
            shipper=self.shipper,
            delivered=self._on_delivered,
            discard=self._discard,
            clock=clock,
            logger=logger,
        )
        self.warden = Warden(
            self.session,
            table=self.table,
            executor=self.executor,
            note=parts.journal.note_renewal,
            clock=clock,
            logger=logger,
        )
        self.acker = Acker(
            self.session,
            table=self.table,
            journal=parts.journal,
            executor=self.executor,
            limits=self._limits,
            prefetch=self._prefetch,
            pace=self.pace,
            readiness=self.readiness,
            discard=self._discard,
            clock=clock,
            logger=logger,
        )
        self.puller = Puller(
            self.session,
            table=self.table,
            limits=self._limits,
            prefetch=self._prefetch,
            pace=self.pace,
            readiness=self.readiness,
            take=self._take,
            renew=self.warden.renew,
            clock=clock,
            logger=logger,
        )
        self.debug = DebugUploads(self.session, root=config.workspace.root, spool=config.state / "spool", logger=logger)
        self.drains = Drains(
            self.session,
            client=parts.client,
            table=self.table,
            executor=self.executor,
            readiness=self.readiness,
            logger=logger,
        )
        self.updates: Updates | None = None
        if parts.updates is not None:
            self.updates = Updates(self.session, client=parts.client, places=parts.updates, told=self._on_update, logger=logger)
        self.directives = Directives(
            self.session,
            table=self.table,
            executor=self.executor,
            readiness=self.readiness,
            drain=self.drains.begin,
            debug=self.debug.request,
            update=self._want,
            clock=clock,
            logger=logger,
        )
        self.heart = Heart(
            self.session,
            config=config.heartbeat,
            table=self.table,
            readiness=self.readiness,
            vitals=self.vitals,
            sample=parts.sample,
            credit=lambda: self._credit().cpu,
            apply=self._on_beat,
            renew=self.warden.renew,
            clock=clock,
            logger=logger,
        )
        self.registrar = Registrar(self.session, backoff=config.heartbeat.backoff, clock=clock, logger=logger)
        self.sweeper = Sweeper(
            config=lambda: self.config.workspace,
            table=self.table,
            short=self.prober.disk_short,
            clock=clock,
            logger=logger,
        )
        self.self_check = SelfCheck(parts.no_op, readiness=self.readiness, logger=logger)
        self.health = Health(
            self.session,
            identity=parts.identity,
            table=self.table,
            readiness=self.readiness,
            vitals=self.vitals,
            counts=self.counts,
            machine_id=lambda: self.prober.capabilities.machine_id,
            drain=self.drains.drain,
            resume=self.drains.resume,
            self_check=lambda: self.self_check.word,
            release=parts.release,
            clock=clock,
        )
        self.door = HttpDoor(logger=logger)
        if parts.services is not None:
            parts.services.tell = self._on_services
        self.readiness.changed = self._on_readiness

    # --- its life ---

    async def run(self) -> None:
        """Recover, open the doors, turn all loops until `stop`."""
        config = self.config
        self._journal.start()
        await self.door.listen(config.health.listen, self.health.serve)
        await self.door.listen_locally(config.state / "daemon.sock", self.health.serve_owner)
        renewal = self._journal.last_renewal()
        recovery = Recovery(
            root=config.workspace.root,
            level=config.sandbox.level,
            journal=self._journal,
            table=self.table,
            executor=self.executor,
            runners=self.parts.runners,
            lease=renewal or Lease(self._clock.monotonic(), self.session.terms.lease_s),
            same_boot=renewal is not None,
            clock=self._clock,
            logger=self._logger,
        )
        for live in await recovery.run():
            self.outbox.add(live)
        await asyncio.to_thread(self._sweep_vault)
        await self.parts.tidy({f"{one.job_id}/{one.attempt}" for one in self.table.held()})
        self.counts.adopted = len(self.table.working())
        loops: list[Loop] = [
            self.registrar, self.puller, self.acker, self.heart, self.warden, self.reporter,
            self.shipper, self.outbox, self.prober, self.sweeper,
        ]  # fmt: skip
        if self.parts.services is not None:
            loops.append(self.parts.services.loop)
        self.health.watches = [
            Watch(loop, least_s={self.heart: 30.0, self.puller: POLL_SILENCE_S}.get(loop, 60.0)) for loop in loops
        ]
        running = [asyncio.get_running_loop().create_task(loop.run(), name=loop.name) for loop in loops]
        self._logger.info("daemon_started", extra={"attrs": {"held": len(self.table)}})
        self.parts.manager.tell("READY=1")
        stopped = asyncio.ensure_future(self._stopped.wait())
        beside = [asyncio.ensure_future(self.self_check.run()), asyncio.ensure_future(self._reassure())]
        try:
            done, _ = await asyncio.wait([stopped, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # a loop never ends by itself: this raises what ended it
        finally:
            self.parts.manager.tell("STOPPING=1")
            for one in (stopped, *beside):
                one.cancel()
            await self._close(running)

    async def _reassure(self) -> None:
        """Tell the service manager's watchdog that all loops turn. A coordinator that is gone is no reason to be restarted."""
        watchdog_s = self.parts.manager.watchdog_s
        while watchdog_s is not None:
            if not self.health.stalled():
                self.parts.manager.tell("WATCHDOG=1")
            await asyncio.sleep(watchdog_s / 3)

    def stop(self) -> None:
        """End soon; what runs goes on under the keeper, and the next daemon adopts it."""
        self._stopped.set()

    async def _close(self, running: Sequence[asyncio.Task[None]]) -> None:
        self.readiness.hold(Reason.STOPPING, "the daemon is stopping")
        with contextlib.suppress(OstlerError, TimeoutError):
            await self.heart.farewell()
        for task in running:
            task.cancel()
        await self.puller.close()
        await self.outbox.close()
        await self.debug.close()
        if self.updates is not None:
            await self.updates.close()
        await self.drains.close()
        await asyncio.gather(*running, return_exceptions=True)
        works = [live.work for live in self.table if live.work is not None and not live.work.done()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await self.forgetting.close()
        for runner in self.parts.runners.values():
            await runner.close()
        if self.parts.services is not None:
            await self.parts.services.close()
        await self.door.close()
        await self._journal.close()
        await self._disk.close()
        self._logger.info("daemon_stopped", extra={"attrs": {"left_running": len(self.table.working())}})

    def reload(self, config: NodeConfig) -> None:
        """Take what may change while attempts run: slots, prefetch, retention, grace."""
        self.config = replace(
            self.config, resources=config.resources, workspace=replace(config.workspace, root=self.config.workspace.root)
        )
        self._logger.info("config_reloaded", extra={"attrs": {"cpu": self._limits().cpu, "gpu": self._limits().gpu}})
        self.acker.wake()
        self.puller.reconsider()

    def _sweep_vault(self) -> None:
        """What was told to attempts that are over or gone is wiped now, if nobody was there to do it at their end."""
        left: list[str] = []
        with contextlib.suppress(OSError):
            left = self.parts.vault.sweep({f"{one.job_id}/{one.attempt}" for one in self.table.open()})
        if left:
            self._logger.info("secrets_wiped", extra={"attrs": {"count": len(left)}})

    # --- what the loops ask ---

    async def _secrets(self, held: m.Held) -> Sequence[m.SecretValue]:
        return await self.session.link.secrets(held)

    def _limits(self) -> Slots:
        resources = self.config.resources
        return Slots(resources.max_concurrent_cpu, min(resources.max_concurrent_gpu, len(self.prober.cards)))

    def _prefetch(self) -> int:
        return self.config.resources.prefetch

    def _credit(self) -> Slots:
        if self.readiness.draining:
            return Slots(0, 0)
        return credit(self._limits(), self.table.open(), self.pace.median_s, self._prefetch())

    def _apart_s(self) -> float:
        return apart(self._limits(), self.table.queued(), len(self.table.working()), self.pace.median_s)

    def _describe(self) -> SelfDescription:
        limits = self._limits()
        return SelfDescription(
            capabilities=self.prober.capabilities, cpu_slots=limits.cpu, gpu_slots=limits.gpu, held=self.table.held()
        )

    # --- what the loops tell ---

    def _on_session(self, answer: m.RegisterResponse) -> None:
        """Before anything is run again the coordinator said what of it is over; registering renewed the rest."""
        for one in answer.forget:
            live = self.table.get(one.job_id, one.attempt)
            if live is not None:
                self._discard(live, "over for the coordinator")
        self.warden.renew(self.table.held(), self._clock.monotonic(), answer.lease_s)
        if answer.draining:
            self.readiness.hold(Reason.COORDINATOR, "drained by the coordinator")
        else:
            self.readiness.release(Reason.COORDINATOR)
        if self.parts.services is not None:
            self.vitals.services = self.parts.services.observations or None
        self._on_return()

    def _on_renewal(self, held: tuple[m.Held, ...], sent_at: float, lease_s: float) -> None:
        """Without a session."""
        self.warden.renew(held, sent_at, lease_s)

    def _on_return(self) -> None:
        """The coordinator answers again: what waits for it need not wait for the end of its backoff."""
        self.outbox.retry_now()
        for loop in (self.acker, self.heart, self.reporter, self.shipper):
            loop.wake()

    def _on_retired(self, why: str) -> None:
        """What it had is lost for the coordinator and tried elsewhere: nobody wants it, nor its outcomes, any more."""
        for live in self.table:
            self._discard(live, why)

    def _on_readiness(self) -> None:
        self.puller.reconsider()
        self.acker.wake()
        self.heart.wake()

    def _take(self, pulled: Pulled, sent_at: float, newest: str | None, session: SessionKey | None) -> None:
        if self.offers.take(pulled, sent_at, newest=newest, session=session):
            self.acker.begin_ordered()
            self.acker.wake_for_offers()
            if worth_renewing(sent_at, self._clock.monotonic(), self.session.terms.lease_s):
                self.heart.wake()
        if pulled.directives:
            self.directives.apply(pulled.directives)

    def _on_beat(self, directives: Sequence[m.Directive]) -> None:
        """A heartbeat's answer is all that is wanted now: an update that it does not name is wanted no longer."""
        if not any(one.kind is m.DirectiveKind.UPDATE for one in directives):
            self._want(None)
        self.directives.apply(directives)

    def _want(self, update: m.WantedUpdate | None) -> None:
        if self.updates is not None:
            self.updates.want(update)

    def _on_update(self, report: Report | None) -> None:
        self.vitals.update = report
        if report is not None:
            self.heart.wake()

    def _on_services(self, seen: tuple[Observation, ...], soon: bool) -> None:
        self.vitals.services = seen
        if soon:
            self.heart.wake()

    def _on_stage(self, live: Live) -> None:
        self.reporter.stage(live)
        self.shipper.notice()

    def _on_progress(self, live: Live, news: Progress) -> None:
        self.reporter.progress(live, news)

    def _on_over(self, live: Live) -> None:
        """A slot is free and an outcome waits."""
        self.reporter.drop(live)
        outcome = live.outcome
        if live.started_at is not None and outcome is not None:
            seconds = self._clock.monotonic() - live.started_at
            if not live.slotless:
                self.pace.add(_in_its_slot_s(outcome) or seconds)
            verdict = "cancelled" if outcome.cancelled else outcome.failure.code.value if outcome.failure else "done"
            self.counts.end(verdict, seconds)
        if _failed_for_the_disk(live):
            self.prober.doubt()
        self.outbox.add(live)
        self._free()

    def _on_delivered(self, live: Live) -> None:
        self.counts.delivered += 1
        self.table.remove(live)
        self._journal.remove([live.held])
        self.forgetting.add(live)
        if _failed_for_the_disk(live):
            self.sweeper.over(live.job_id, live.attempt)

    def _on_forgotten(self, live: Live) -> None:
        """Its processes are gone (or never were), and nobody wants its outcome."""
        self.counts.discarded += 1
        self.reporter.drop(live)
        self.outbox.drop(live)
        self.table.remove(live)
        self._journal.remove([live.held])
        self.forgetting.add(live)
        self._free()

    def _discard(self, live: Live, why: str) -> None:
        self._logger.info("discarded", extra={"job_id": live.job_id, "attrs": {"attempt": live.attempt, "why": why}})
        self.executor.forget(live)

    def _slot_is_free(self) -> None:
        """Others shall have it, and what else becomes free in this turn of the event loop: ends come in swarms."""
        if not self._refilling:
            self._refilling = True
            asyncio.get_running_loop().call_soon(self._refill)

    def _free(self) -> None:
        """So is a place among those that this node takes."""
        self._fewer = True
        self._slot_is_free()

    def _refill(self) -> None:
        fewer, self._refilling, self._fewer = self._fewer, False, False
        if not fewer:
            self.acker.start_waiting()
            return
        self.acker.freed()
        self.puller.reconsider()


def _in_its_slot_s(outcome: m.Outcome) -> float:
    """What it had its slot for, without what it waited for at its runner or for the journal; 0 where nobody measured it."""
    usage = outcome.usage
    return usage.prepare_s + usage.wall_s + usage.upload_s


def _failed_for_the_disk(live: Live) -> bool:
    outcome = live.outcome
    return outcome is not None and outcome.failure is not None and outcome.failure.code is FailureCode.DISK
