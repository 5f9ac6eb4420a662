"""The coordinator as a whole: opens what it owns, serves until told to stop, and closes it in the reverse order."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, cast

from ostler.coordinator.api.app import build_app
from ostler.coordinator.api.auth import Doorkeeper
from ostler.coordinator.api.calls import Services
from ostler.coordinator.api.credentials import Credentials
from ostler.coordinator.api.feed import Feed
from ostler.coordinator.api.metrics import MeasuredStore, Metrics
from ostler.coordinator.api.pulls import PullLine
from ostler.coordinator.api.rates import Rates
from ostler.coordinator.api.server import Crowd, build_server
from ostler.coordinator.api.session_keys import SessionKeys
from ostler.coordinator.api.trail import Trail
from ostler.coordinator.artifacts.small import WithSmall
from ostler.coordinator.artifacts.store import DirectoryArtifacts, mark_of
from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.keys import open_keys
from ostler.coordinator.loops.audit_sealer import AuditSealer
from ostler.coordinator.loops.backup_taker import BackupTaker
from ostler.coordinator.loops.certificate_watcher import CertificateWatcher
from ostler.coordinator.loops.expirer import Expirer
from ostler.coordinator.loops.lease_rescuer import LeaseRescuer
from ostler.coordinator.loops.node_watcher import NodeWatcher
from ostler.coordinator.loops.on_duty import run_on_duty
from ostler.coordinator.loops.pruner import Pruner
from ostler.coordinator.loops.retry_promoter import RetryPromoter
from ostler.coordinator.loops.rollout_driver import RolloutDriver
from ostler.coordinator.loops.start_promoter import StartPromoter
from ostler.coordinator.loops.webhook_sender import WebhookSender
from ostler.coordinator.operations import contents, installation, nodes, quotas, tokens
from ostler.coordinator.operations.readers import Readers
from ostler.coordinator.operations.takers import takers_of
from ostler.coordinator.sealing import open_sealer
from ostler.coordinator.store.store import Store
from ostler.coordinator.tls import context
from ostler.coordinator.webhooks import Courier
from ostler.model.errors import Conflict, InvalidSpec, Unavailable
from ostler.model.quota import Price, parse_money
from ostler.protocol.ports import BundleReader
from ostler.protocol.routes import ROUTES
from ostler.runtime.clock import Clock, SystemClock
from ostler.runtime.loop import Loop

BACKLOG = 2048


async def run_coordinator(
    config: CoordinatorConfig,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    logger: logging.Logger,
    read_bundle: BundleReader,
    clock: Clock | None = None,
    admin_token: str | None = None,
    hangup: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set; `on_ready` gets the URL once calls are answered.

    `read_bundle` checks the bundles of releases. `hangup` makes it look at its certificate's files at once. `admin_token` is an API
    token that shall be good. Raises the error tree where it cannot start: InvalidSpec (an address that it must not listen on, a
    certificate that cannot be used, keys that others can read), Conflict (address in use, another coordinator on the data),
    UpgradeRequired (a newer schema).
    """
    clock = clock or SystemClock()
    tls = None if config.tls is None else await asyncio.to_thread(context.load, config.tls, clock.now())
    listener, url = await asyncio.to_thread(listen, config, tls)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        watcher = None
        if config.tls is not None and tls is not None:
            watcher = CertificateWatcher(config.tls, tls, clock=clock, logger=logger)
        services = await stack.enter_async_context(
            _services(config, clock, logger, read_bundle, [] if watcher is None else [watcher])
        )
        await services.store.write(quotas.set_prices, _prices(config))
        if admin_token is not None:
            await services.store.write(tokens.ensure_admin_token, admin_token)
        if services.store.shared:
            marks = await asyncio.to_thread(_marks, services)
            await services.store.write(installation.join_installation, marks)
        services.door.retire(*await services.store.read(nodes.retired_nodes))
        server = build_server(
            build_app(services),
            listener,
            context=None if tls is None else tls.context,
            crowd=Crowd(config.limits.connections, refused=services.metrics.refused),
            drain_s=config.drain.total_seconds(),
            logger=logger,
            on_start=lambda: _started(url, on_ready, logger),
            on_stop=services.store.wakeups.wake_all,
        )
        if watcher is not None:
            watcher.use = server.use
        if services.store.shared:
            services.store.join()
        await stack.enter_async_context(
            _running([*(_run(one, services.store) for one in services.loops), services.pulls.run(), _hear_of_nodes(services)])
        )
        stopper = asyncio.create_task(_stop_when(stop, server.stop))
        stack.callback(stopper.cancel)
        if watcher is not None and hangup is not None:
            stack.callback(asyncio.create_task(_whenever(hangup, watcher.wake)).cancel)
        await server.serve()
        logger.info("coordinator_stopped")


@contextlib.asynccontextmanager
async def _services(
    config: CoordinatorConfig, clock: Clock, logger: logging.Logger, read_bundle: BundleReader, more: Sequence[Loop]
) -> AsyncIterator[Services]:
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = await asyncio.to_thread(open_keys, config.data / "keys")
    sealer = await asyncio.to_thread(open_sealer, config.data / "keys", config.secrets.key_command)
    metrics = Metrics(ROUTES)
    # `open` answers the class that it is called on.
    opened = await asyncio.to_thread(lambda: MeasuredStore.open(config.database, logger=logger, clock=clock))
    store = cast(MeasuredStore, opened)
    store.observe = metrics.writes.observe
    artifacts = WithSmall(
        DirectoryArtifacts(config.artifacts_directory, shared=store.shared, logger=logger),
        lambda sha256: store.read(contents.find_one, sha256),
    )
    readers = Readers()
    pruner = Pruner(
        store, artifacts, readers, policy=config.retention, clock=clock, logger=logger, observe=metrics.pruned,
        sign=keys.signing.sign,
    )  # fmt: skip
    try:
        await artifacts.open()
        credentials = Credentials(keys, clock=clock, token_ttl=config.token_ttl)
        trail = Trail(store, clock=clock, logger=logger)
        audit_sealer = AuditSealer(store, keys.signing.sign, trail.tell_left_out, clock=clock, logger=logger)
        courier = Courier(allow_private=config.webhooks.allow_private)
        webhook_sender = WebhookSender(store, sealer, courier, clock=clock, logger=logger)
        yield Services(
            config=config,
            store=store,
            artifacts=artifacts,
            keys=keys,
            session_keys=SessionKeys(keys),
            sealer=sealer,
            credentials=credentials,
            door=Doorkeeper(
                credentials,
                lambda token: store.read(tokens.check_api_token, token),
                lambda node_id: store.read(nodes.newest_session, node_id),
                clock=clock,
                rates=Rates(config.limits, clock=clock, refused=metrics.refused),
                shared=store.shared,
            ),
            pulls=PullLine(store.wakeups, lambda some: store.read(takers_of, some, config.latency), logger=logger),
            feed=Feed(store),
            trail=trail,
            courier=courier,
            metrics=metrics,
            readers=readers,
            pruner=pruner,
            read_bundle=read_bundle,
            clock=clock,
            logger=logger,
            loops=(
                *_loops(config, store, clock, logger),
                *_backups(config, metrics, clock, logger),
                audit_sealer,
                webhook_sender,
                *more,
                pruner,
            ),
        )
    finally:
        await artifacts.close()
        await asyncio.to_thread(store.close)


def _marks(services: Services) -> dict[str, str]:
    """What all coordinators on the database must have alike, as marks that tell nothing of it."""
    return {
        installation.KEYS: services.keys.derive("the mark of an installation").hex(),
        installation.SECRETS: services.sealer.key_id.hex(),
        installation.ARTIFACTS: mark_of(services.config.artifacts_directory),
    }


async def _run(loop: Loop, store: Store) -> None:
    """Each coordinator looks after its own certificate, and tells of its own refusals; all else only one of them does."""
    if isinstance(loop, CertificateWatcher):
        await loop.run()
    elif isinstance(loop, AuditSealer):
        duty = store.seek(loop.name)
        if duty is not None:
            loop.on_duty = duty.held

            def changed() -> None:
                loop.on_duty = duty.held

            duty.changed = changed
        await loop.run()
    else:
        await run_on_duty(loop, store)


async def _hear_of_nodes(services: Services) -> None:
    """Nodes that were retired, or enrolled anew, by way of another coordinator."""
    async with services.store.wakeups.subscribe(nodes.RETIRED) as news:
        while not services.store.wakeups.closed:
            await news.wait()
            news.clear()
            with contextlib.suppress(Unavailable):
                services.door.know_retired(await services.store.read(nodes.retired_nodes))


def _prices(config: CoordinatorConfig) -> dict[str, Price]:
    return {
        pool: Price(cpu_hour=parse_money(one.cpu_hour), gpu_hour=parse_money(one.gpu_hour)) for pool, one in config.prices.items()
    }


def _loops(config: CoordinatorConfig, store: Store, clock: Clock, logger: logging.Logger) -> Sequence[Loop]:
    return (
        LeaseRescuer(store, lease=config.lease, margin=config.lease_margin, clock=clock, logger=logger),
        NodeWatcher(store, heartbeat=config.heartbeat, clock=clock, logger=logger),
        RetryPromoter(store, clock=clock, logger=logger),
        StartPromoter(store, clock=clock, logger=logger),
        Expirer(store, clock=clock, logger=logger),
        RolloutDriver(store, clock=clock, logger=logger),
    )


def _backups(config: CoordinatorConfig, metrics: Metrics, clock: Clock, logger: logging.Logger) -> Sequence[Loop]:
    if config.backup is None:
        return ()
    return (BackupTaker(config, config.backup, done=metrics.backed_up, failed=metrics.backup_failed, clock=clock, logger=logger),)


@contextlib.asynccontextmanager
async def _running(loops: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whenever(event: asyncio.Event, act: Callable[[], None]) -> None:
    while True:
        await event.wait()
        event.clear()
        act()


async def _stop_when(stop: asyncio.Event, act: Callable[[], None]) -> None:
    await stop.wait()
    act()


def _started(url: str, on_ready: Callable[[str], None], logger: logging.Logger) -> None:
    logger.info("coordinator_ready", extra={"attrs": {"url": url}})
    on_ready(url)


def listen(config: CoordinatorConfig, tls: context.ServerTls | None = None) -> tuple[socket.socket, str]:
    """A listening socket and its URL. Without TLS nothing but loopback, unless an explicit word says so."""
    host, port = config.listen_host, config.listen_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise InvalidSpec(f"{host!r} is not an address to listen on: {exc.strerror}") from exc
    family, _, _, _, address = found[0]
    where = str(address[0])
    local = ipaddress.ip_address(where.partition("%")[0]).is_loopback
    if tls is None and not local and not config.allow_insecure_listen:
        ca, file = config.data / "ca", config.data / "coordinator.yaml"
        raise InvalidSpec(
            f"the coordinator does not listen on {where} without TLS: whoever is on the way could read tokens and jobs off the wire",
            hint="make a certificate, with the name or address by which others reach this machine:\n"
            f"  ostler ca init --dir {ca}\n"
            f"  ostler ca issue coordinator --dir {ca} --san HOST --san 127.0.0.1\n"
            f"and write into {file}:\n"
            f"  tls: {{cert: {ca}/coordinator.pem, key: {ca}/coordinator.key}}\n"
            "Where a proxy on another machine terminates TLS, write `allow_insecure_listen: true` instead.",
        )
    try:
        listener = socket.create_server((where, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        hint = {
            errno.EADDRINUSE: "another program has the port; choose another",
            errno.EADDRNOTAVAIL: "no network interface of this machine has that address; see `ip address`",
            errno.EACCES: "ports below 1024 are root's; choose another",
        }.get(exc.errno or 0)
        raise Conflict(f"cannot listen on {where}:{port}: {exc.strerror}", hint=hint) from exc
    bound = listener.getsockname()[1]
    if tls is not None:
        return listener, f"https://{context.url_host(where, tls.facts.sans)}:{bound}"
    return listener, f"http://[{where}]:{bound}" if family == socket.AF_INET6 else f"http://{where}:{bound}"
