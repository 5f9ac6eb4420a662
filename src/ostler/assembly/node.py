"""The node daemon's process: `python -m ostler.assembly.node --config-fd N [--checked-by PID] [--config-file FILE] [--await-keeper]`.

The configuration arrives checked over an inherited descriptor. SIGTERM and SIGINT end the daemon and leave attempts to the
keeper, SIGHUP reads FILE anew. Exit codes: 0 stopped, 2 wrong usage, 3 cannot start as configured.
"""

# ruff: noqa: E402 - what the first statement keeps out must be kept out before anything imports httpx
import sys

# httpx's own command line would bring 5.6 MB of rich and click; sniffio is looked for on the disk at each call, and never there.
sys.modules.update(dict.fromkeys(("httpx._main", "sniffio")))  # type: ignore[arg-type]

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from ostler import __version__
from ostler.assembly import handover
from ostler.assembly.endings import REJECTED, guard_daemon
from ostler.assembly.keeper_stop import is_attempt
from ostler.assembly.release import own_platform, own_release, update_places
from ostler.model.calls import BY_VALUE_TAG
from ostler.model.capabilities import Capabilities
from ostler.model.errors import (
    Conflict,
    CoordinatorUnreachable,
    InvalidSpec,
    KeeperUnreachable,
    OstlerError,
    Problem,
    Unauthenticated,
    Unavailable,
)
from ostler.model.failures import Failure
from ostler.model.manifest import Runner
from ostler.model.sandbox import SandboxAbilities
from ostler.node.attempts import Live
from ostler.node.config import NodeConfig
from ostler.node.daemon import NodeDaemon, Parts, Services
from ostler.node.identity import Identity
from ostler.node.input_cache import InputCache
from ostler.node.inputs import InputLimits, materialise
from ostler.node.journal import Journal
from ostler.node.keeper_client import KeeperClient, ensure_keeper
from ostler.node.probe import GpuReader, KernelLog, LoadGauge, probe
from ostler.node.readiness import Readiness, Reason
from ostler.node.runners.cli import CliRunner
from ostler.node.runners.processes import Processes
from ostler.node.runners.python import PythonRunner
from ostler.node.sandbox import Host, abilities, observe
from ostler.node.sandbox.elsewhere import look_through
from ostler.node.self_check import no_op
from ostler.node.vault import Vault
from ostler.node.workspace import Workspace
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient
from ostler.protocol.ports import RunnerPort
from ostler.runtime.backoff import Backoff
from ostler.runtime.clock import Clock, SystemClock
from ostler.runtime.cores import forbid_core_dumps
from ostler.runtime.later import later
from ostler.runtime.logs import open_log
from ostler.runtime.service_manager import ServiceManager

if TYPE_CHECKING:
    import httpx
else:
    httpx = later("httpx")

RELOAD_S = 30.0
# Besides what the daemon itself takes: what a reload puts in force, and what `ostler up` gives a daemon beside its file.
_NOT_WAITING = ("network.", "logging.", "runners.cli.allowlist_", "coordinator.", "node_id", "state_dir")
SESSION_S = 30.0
PULSE_S = 5.0
MOST_NICE = 10  # of the daemon itself, whatever its jobs have
YOUNG = 10_000  # objects between two collections: next to none of a job's are in a cycle, and 700 are a few jobs'


@dataclass(frozen=True, slots=True)
class Eyes:
    """What looks at the machine again and again."""

    gpus: GpuReader
    gauge: LoadGauge
    kernel: KernelLog
    abilities: SandboxAbilities
    config: NodeConfig
    node_id: str

    def look(self) -> Capabilities:
        """The capabilities now. Blocks."""
        runners, services = self.config.runners, self.config.services
        offered = (
            (Runner.CLI, runners.cli.enable), (Runner.PYTHON, runners.python.enable), (Runner.SERVICE, bool(services))
        )  # fmt: skip
        return probe(
            node_id=self.node_id,
            version=__version__,
            runners=[kind.value for kind, on in offered if on],
            tags=_tags(self.config),
            paths=(str(self.config.workspace.root),),
            sandbox=self.abilities,
            gpus=self.gpus.read(),
            xids=self.kernel.xids(),
            release=own_release(),
            services=services,
            updates=None if update_places() is None else own_platform(),
        )


def _tags(config: NodeConfig) -> tuple[str, ...]:
    python = config.runners.python
    return (*config.tags, BY_VALUE_TAG) if python.enable and python.by_value else config.tags


class Keepers:
    """The way to the keeper: connects, starts one where none answers, and lets the runners know of the new one."""

    def __init__(self, state: Path, processes: Processes, logger: logging.Logger, *, start: bool) -> None:
        """`start`: one is started where none answers; else somebody else does that."""
        self._state = state
        self._start = start
        self._processes = processes
        self._logger = logger
        self._lock = asyncio.Lock()

    async def again(self) -> None:
        """Returns when a keeper answers."""
        async with self._lock:
            if not self._processes.keeper.closed:
                return
            backoff = Backoff(min_s=0.1, max_s=10.0)
            while True:
                try:
                    client = await ensure_keeper(self._state, start=self._start)
                except KeeperUnreachable as exc:
                    self._logger.error("keeper_unreachable", extra={"attrs": {"error": str(exc)}})  # noqa: TRY400
                    await asyncio.sleep(backoff.next_s())
                    continue
                self._logger.warning("keeper_replaced")
                self._processes.use(client)
                return

    async def watch(self, readiness: Readiness) -> None:
        """Rouses a keeper that does not answer: while one is stopped, nothing that it enforces holds. While there is none, the node takes
        no work."""
        while True:
            await asyncio.sleep(PULSE_S)
            keeper = self._processes.keeper
            try:
                async with asyncio.timeout(PULSE_S):
                    await keeper.ping()
            except KeeperUnreachable:
                await self._back(readiness)
            except TimeoutError:
                self._logger.error("keeper_silent", extra={"attrs": {"pid": keeper.hello.pid}})  # noqa: TRY400
                keeper.rouse()

    async def _back(self, readiness: Readiness) -> None:
        try:
            async with asyncio.timeout(PULSE_S):  # one that is started here is there by then
                await self.again()
        except TimeoutError:
            readiness.hold(
                Reason.KEEPER, "no keeper answers: `systemctl start ostler-keeper.service` where it is a unit of its own"
            )
            await self.again()
        readiness.release(Reason.KEEPER)

    async def tidy(self, held: Collection[str]) -> None:
        """End and forget what the keeper has and the journal does not: delivered just before a crash, or of another life."""
        with contextlib.suppress(KeeperUnreachable):
            keeper = self._processes.keeper
            for child in await keeper.list():
                if child.key in held or not is_attempt(child.key):
                    continue
                if child.running:
                    self._logger.warning("stray_attempt_killed", extra={"attrs": {"key": child.key, "pid": child.pid}})
                    await keeper.kill(child.key, reason="stray", grace_s=0.0)
                    await keeper.wait(child.key)
                await keeper.forget(child.key)


def client_for(config: NodeConfig) -> AsyncClient:
    """A client of the coordinator with connections of its own."""
    address = config.coordinator
    trust = address.trust
    if address.base_url.startswith("https:"):
        _ = trust.context  # a file that cannot be used is told before anything starts
    return AsyncClient(address.base_url, trust=trust, timeout_s=address.timeout_s)


def fetcher(client: AsyncClient, daemon: Callable[[], NodeDaemon]) -> Callable[[str], AsyncGenerator[bytes, None]]:
    """How uploaded inputs come: from the coordinator, in the node's session."""

    async def fetch(sha256: str) -> AsyncGenerator[bytes, None]:
        session = daemon().session
        if not await session.opened(SESSION_S):
            raise CoordinatorUnreachable("there is no session with the coordinator to fetch an input in")
        token = session.token
        try:
            async with client.download(routes.GET_BLOB, token=token, sha256=sha256) as answer:
                async for block in answer.blocks():
                    yield block
        except Unauthenticated as exc:
            if token == session.token:
                session.close()
            raise Unavailable(f"the session ended while an input was fetched: {exc}") from exc

    return fetch


def reload(
    daemon: NodeDaemon, processes: Processes, cli: CliRunner | None, file: Path | None, logger: logging.Logger
) -> Callable[[], Awaitable[None]]:
    """What SIGHUP does: FILE is checked by a process of its own, so that the validator never stays in this one's memory."""

    async def again() -> None:
        if file is None:
            logger.warning("reload_impossible", extra={"attrs": {"reason": "the daemon was started without --config-file"}})
            return
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "ostler.assembly.resolve", "node", str(file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(RELOAD_S):
                content, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.communicate()
            logger.error("reload_refused", extra={"attrs": {"file": str(file), "error": f"no answer in {RELOAD_S:g} s"}})  # noqa: TRY400
            return
        if process.returncode:
            logger.error("reload_refused", extra={"attrs": {"file": str(file), "error": errors.decode(errors="replace").strip()}})
            return
        fresh = handover.decode(content, NodeConfig)
        try:
            if cli is not None:
                await asyncio.to_thread(cli.load, fresh.runners.cli)
        except OstlerError as exc:
            logger.error("reload_refused", extra={"attrs": {"error": str(exc)}})  # noqa: TRY400
            return
        logger.setLevel(fresh.logging.level.upper())
        processes.reload(fresh)
        daemon.reload(fresh)
        if waiting := [one for one in _apart(daemon.config, fresh) if not one.startswith(_NOT_WAITING)]:
            logger.warning("config_waits_for_a_restart", extra={"attrs": {"settings": waiting}})

    return again


def _apart(old: Any, new: Any, place: str = "") -> list[str]:
    """The names of the settings that differ."""
    if is_dataclass(old) and type(old) is type(new):
        names = [one.name for one in fields(old)]
        return [
            found for name in names for found in _apart(getattr(old, name), getattr(new, name), f"{place}.{name}".lstrip("."))
        ]
    return [] if old == new else [place]


async def run(config: NodeConfig, file: Path | None, manager: ServiceManager, *, start_keeper: bool = True) -> None:
    """Wire the daemon together and run it until it is told to stop."""
    state, clock = config.state, SystemClock()
    await asyncio.to_thread(_make_folders, config)
    _hold(state)
    starting = open_log(level=config.logging.level, as_json=config.logging.json, path=config.logging.path)
    journal = Journal(state / "journal.db", logger=starting)
    identity = Identity.open(state, journal, configured=config.node_id)
    logger = open_log(level=config.logging.level, as_json=config.logging.json, path=config.logging.path, node_id=identity.node_id)
    keeper = None if start_keeper else await ensure_keeper(state, start=False)
    host, able = await _sandboxes(state, keeper)
    _check_sandbox(config, able, logger)
    _check_tls(config, logger)
    keeping = asyncio.create_task(_kept(keeper, state))  # it starts while this process looks around
    eyes = await asyncio.to_thread(_open_eyes, config, able, identity.node_id)
    first_look = await asyncio.to_thread(eyes.look)
    vault = Vault(state)
    processes = Processes(
        keeper=await keeping,
        config=config,
        host=host,
        abilities=able,
        vault=vault,
        logger=logger,
    )
    keepers = Keepers(state, processes, logger, start=start_keeper)
    runners, cli, services = await _runners(config, processes, clock, logger)
    client, heart = client_for(config), client_for(config)
    limits = InputLimits(max_mb=config.workspace.max_input_mb, keep_free_mb=config.workspace.min_free_mb)
    cache = InputCache(state / "cache", max_bytes=config.workspace.cache_mb * 2**20)
    outside: list[httpx.AsyncClient] = []

    async def prepare(live: Live, workspace: Workspace) -> Failure | None:
        if not outside:  # most nodes never fetch from elsewhere, and this client carries no credentials of ours
            outside.append(httpx.AsyncClient(trust_env=False))
        answer = await materialise(live.manifest.input, workspace, fetch=fetch, client=outside[0], limits=limits, cache=cache)
        return answer if isinstance(answer, Failure) else None

    daemon = NodeDaemon(
        Parts(
            config=config, journal=journal, identity=identity, client=client, heart=heart, runners=runners,
            keeper=keepers.again, tidy=keepers.tidy, prepare=prepare, vault=vault, look=eyes.look,
            gpus=lambda: eyes.gpus.read().gpus, sample=eyes.gauge.load, first_look=first_look,
            manager=manager, release=own_release(), services=services, updates=update_places(), clock=clock, logger=logger,
            no_op=no_op(processes, folder=state / "self-check", level=config.sandbox.level),
        )
    )  # fmt: skip
    fetch = fetcher(client, lambda: daemon)
    _attend_signals(daemon, reload(daemon, processes, cli, file, logger))
    _give_way(config.resources.cpu_nice)
    gc.collect()
    gc.freeze()  # what start-up made stays for good: no later collection needs to look at it again
    gc.set_threshold(YOUNG)
    gc.enable()  # a unit starts without
    watch = asyncio.create_task(keepers.watch(daemon.readiness))
    try:
        await daemon.run()
    finally:
        watch.cancel()
        for web in outside:
            await web.aclose()
        await client.close()
        await heart.close()
        processes.keeper.close()
        eyes.kernel.close()


async def _runners(
    config: NodeConfig, processes: Processes, clock: Clock, logger: logging.Logger
) -> tuple[dict[Runner, RunnerPort], CliRunner | None, Services | None]:
    """What this node runs, and what else of it must be known."""
    runners: dict[Runner, RunnerPort] = {}
    cli = CliRunner(processes) if config.runners.cli.enable else None
    if cli is not None:
        await asyncio.to_thread(cli.load)
        runners[Runner.CLI] = cli
    if config.runners.python.enable:
        runners[Runner.PYTHON] = PythonRunner(processes)
    if not config.services:
        return runners, cli, None
    # most nodes declare none, and have nothing of it in memory
    from ostler.assembly.node_services import runner_of, watcher_of

    watcher = await asyncio.to_thread(watcher_of, config, clock, logger)
    runners[Runner.SERVICE] = runner_of(watcher)
    return runners, cli, watcher


async def _sandboxes(state: Path, keeper: KeeperClient | None) -> tuple[Host, SandboxAbilities]:
    """What attempts can be put into: tried here, or below the keeper, whose unit is as open as that needs where this daemon's is not."""
    if keeper is not None:
        found = await look_through(keeper, state)
        return found.host, found.abilities
    host = await asyncio.to_thread(observe, state / "sandbox")
    return host, await asyncio.to_thread(abilities, host)


async def _kept(keeper: KeeperClient | None, state: Path) -> KeeperClient:
    return keeper or await ensure_keeper(state)


def _attend_signals(daemon: NodeDaemon, again: Callable[[], Awaitable[None]]) -> None:
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Future[None]]()

    def on_hangup() -> None:
        task = asyncio.ensure_future(again())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)


def _give_way(cpu_nice: int) -> None:
    """The daemon gives way to what else runs on the machine, as its jobs do (in its unit it may not say so, and the unit does). Submissions
    to a coordinator on the same machine then do not wait for the node, which so takes more of them at once.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), min(cpu_nice, MOST_NICE)))


def _hold(state: Path) -> None:
    """The state's lock, for as long as this process lives: of two daemons each would take the other one's session. Raises Conflict."""
    try:
        lock = os.open(state / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise Conflict(
            f"another node daemon (pid {pid or 'unknown'}) has the state in {state}",
            hint=f"stop it first ({f'kill {pid}' if pid else 'ostler up, or its unit'}), or give this one a state_dir and a workspace.root "
            "of its own",
        ) from exc
    except OSError:  # a file system without locks, or without a file more: no reason not to run
        return
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def _check_sandbox(config: NodeConfig, able: SandboxAbilities, logger: logging.Logger) -> None:
    """A host without the configured level does not start; a weak level starts, and says so loudly."""
    level = config.sandbox.level.value
    if level not in able.levels:
        missing = {one.level: one for one in able.missing}.get(level)
        raise InvalidSpec(
            f"this host has no sandbox of level {level}: {missing.reason if missing else 'unknown level'}",
            hint=f"{missing.mend}; or opt in to a weaker one with sandbox.level: process" if missing else None,
        )
    if level in {"none", "process"}:
        logger.warning("weak_sandbox", extra={"attrs": {"level": level}})


def _check_tls(config: NodeConfig, logger: logging.Logger) -> None:
    """A node that believes anybody starts, and says so loudly."""
    address = config.coordinator
    if not address.tls_verify and address.base_url.startswith("https:"):
        risk = "whoever is on the way to the coordinator can read this node's token and act as the coordinator; pin its CA by ca_file"
        logger.warning("tls_not_verified", extra={"attrs": {"coordinator": address.base_url, "risk": risk}})


def _make_folders(config: NodeConfig) -> None:
    for name, place, mode in (("state_dir", config.state, 0o700), ("workspace.root", config.workspace.root, 0o711)):
        try:
            place.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidSpec("the node cannot start here", [Problem(name, f"{place} cannot be made: {exc.strerror}")]) from exc


def _open_eyes(config: NodeConfig, able: SandboxAbilities, node_id: str) -> Eyes:
    gpus = GpuReader()
    gauge = LoadGauge(gpus, path=str(config.workspace.root), first=gpus.read())
    return Eyes(gpus, gauge, KernelLog(), able, config, node_id)


def main(arguments: Sequence[str]) -> int:
    """Runs until stopped."""
    forbid_core_dumps()
    parser = argparse.ArgumentParser(prog="python -m ostler.assembly.node", description=__doc__)
    parser.add_argument("--config-fd", type=int, required=True, metavar="N", help="read the checked configuration from it")
    parser.add_argument(
        "--checked-by", type=int, metavar="PID", help="the child that writes it; with nothing, where it is no good"
    )
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="what SIGHUP reads anew")
    parser.add_argument("--await-keeper", action="store_true", help="a unit of its own starts the keeper")
    given = parser.parse_args(arguments)
    content = handover.read(given.config_fd)
    if given.checked_by is not None:
        _, status = os.waitpid(given.checked_by, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                sys.stderr.write(f"error: what checked the configuration was killed by {signal.Signals(-code).name}\n")
            return code if code > 0 else REJECTED
    config = handover.decode(content, NodeConfig)
    manager = ServiceManager.of(os.environ, pid=os.getpid())

    def work() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config, given.config_file, manager, start_keeper=not given.await_keeper))

    return guard_daemon(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
