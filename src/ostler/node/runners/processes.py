"""An attempt's own processes under the keeper: started inside its sandbox, waited for, ended. What all runners have in common."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from ostler.model.errors import InvalidSpec, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest
from ostler.model.sandbox import SandboxAbilities, SandboxLevel, strongest
from ostler.node.config import NodeConfig
from ostler.node.gpus import device_nodes
from ostler.node.keeper_client import ExitRecord, KeeperClient, KeeperRefused, Limits, StartSpec, read_record
from ostler.node.runners import limits
from ostler.node.runners.ending import Circumstances
from ostler.node.runners.gate import REFUSALS, Refusal, gate_for, refusals, refuse_hosts, told
from ostler.node.runners.watch import DiskWatch, Watched, free_mb, over_quota
from ostler.node.sandbox import Host, plan
from ostler.node.vault import Vault
from ostler.node.workspace import NO_ROOM
from ostler.protocol.ports import AttemptTask, Withdrawn

RECORD = "exit.json"
MASK_EVERY_S = 0.1
MASK_AGAIN_S = 1.0
_SAID_BYTES = 400
TMP_MB = 1024  # of the sandbox's /tmp and /dev/shm, which are memory; no more than the job may use of that


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to be executed. Paths are absolute; `read_only_paths` are what it needs to see besides the system's directories,
    `open_fds` files that it finds open under a number, `file_mb` how large a single file may become."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    stdin: str | None = None
    read_only_paths: tuple[str, ...] = ()
    open_fds: Mapping[str, str] = field(default_factory=dict)
    file_mb: float | None = None


class Processes:
    """The door to the keeper for the runners of one node. `keeper` is replaced when another keeper answers (see `use`)."""

    def __init__(
        self,
        *,
        keeper: KeeperClient,
        config: NodeConfig,
        host: Host,
        abilities: SandboxAbilities,
        vault: Vault,
        logger: logging.Logger,
    ) -> None:
        self.keeper = keeper
        self._vault = vault
        self.config = config
        self.host = host
        self.logger = logger
        self._levels = frozenset(abilities.known_levels())
        self._missing = {one.level: one for one in abilities.missing}
        self._userns = abilities.bwrap_userns
        self.watch = DiskWatch(min_free_mb=config.workspace.min_free_mb, keeper=lambda: self.keeper.hello.pid, logger=logger)

    def use(self, keeper: KeeperClient) -> None:
        """Speak to this keeper from now on. What waits at the last one raises KeeperUnreachable and is waited for anew."""
        self.keeper = keeper

    def reload(self, config: NodeConfig) -> None:
        """Start what comes from now on with the limits and the network of this configuration."""
        self.config = replace(self.config, resources=config.resources, network=config.network)

    def level(self, manifest: Manifest, *others: SandboxLevel | None) -> SandboxLevel:
        """The level that an attempt runs at: the strongest of the node's, the manifest's, and further wishes."""
        return strongest(self.config.sandbox.level, manifest.least_sandbox, *others)

    def refuse(self, manifest: Manifest, level: SandboxLevel) -> Failure | None:
        """E_SANDBOX where this host does not have that level, E_DENY where this node does not grant the hosts asked for."""
        if level in self._levels:
            return refuse_hosts(manifest, self.config.network.allow)
        missing = self._missing.get(level.value)
        why = f"{missing.reason}; mend it with: {missing.mend}" if missing else "this release does not know how to set it up"
        return Failure(FailureCode.SANDBOX, f"the sandbox level {level.value} is not to be had on this node: {why}")

    async def start(self, task: AttemptTask, command: Command) -> Failure | None:
        """Execute the command as the attempt `task`; None once it executes. Raises Withdrawn."""
        try:
            spec = self._spec(task, command)
        except InvalidSpec as exc:
            return Failure(FailureCode.SANDBOX, exc.message)
        try:
            started = await self.keeper.start(spec)
        except KeeperRefused as exc:
            if exc.code == "withdrawn":
                raise Withdrawn(exc.message) from None
            return _refusal(exc)
        if started.unenforced:
            attrs = {"attempt": task.attempt, "limits": list(started.unenforced)}
            self.logger.warning("limits_unenforced", extra={"job_id": task.job_id, "attrs": attrs})
        return None

    async def wait(self, task: AttemptTask) -> ExitRecord | None:
        """Until they are gone, also for what an earlier daemon started; None where nobody knows of them.

        Raises KeeperUnreachable; then ask again when a keeper answers.
        """
        quota_mb = limits.disk_mb(task.manifest, self.config.resources)

        async def end(reason: str) -> None:
            await self.kill(task, reason=reason, grace_s=0.0)

        self.watch.add(Watched(key=task.key, root=task.root, quota_mb=quota_mb, kill=end))
        masking = asyncio.create_task(self._mask(task)) if task.manifest.secrets else None
        try:
            record = await self.keeper.wait(task.key, record=Path(f"{task.root}/{RECORD}"))
        except NotFound:
            return None
        finally:
            self.watch.remove(task.key)
            if masking is not None:
                masking.cancel()
                await asyncio.gather(masking, return_exceptions=True)
        if task.manifest.secrets:  # before anybody looks into its output
            await asyncio.to_thread(self._vault.copy, task.key, Path(f"{task.root}/logs"), whole=True)
        if task.manifest.policy.network:
            for refusal, count in self._refusals(task).items():
                host = (self._vault.text(task.key, refusal.host) if task.manifest.secrets else None) or refusal.host
                attrs = {"attempt": task.attempt, "host": host, "port": refusal.port, "count": count}
                self.logger.warning("network_refused", extra={"job_id": task.job_id, "attrs": attrs})
        if quota_mb is not None and record.exit_code == 0 and record.killed is None:
            # It may have been over before anybody looked.
            return structs.replace(record, killed=await asyncio.to_thread(over_quota, task.root, quota_mb))
        return record

    async def _mask(self, task: AttemptTask) -> None:
        """Keep the masked copy of its output close behind."""
        while True:
            await asyncio.sleep(MASK_EVERY_S)
            try:
                await asyncio.to_thread(self._vault.copy, task.key, Path(f"{task.root}/logs"), whole=False)
            except OSError as exc:
                attrs = {"attempt": task.attempt, "error": str(exc)}
                self.logger.warning("log_not_masked", extra={"job_id": task.job_id, "attrs": attrs})
                await asyncio.sleep(MASK_AGAIN_S)

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        """End them; nothing to end is no error."""
        await self.keeper.kill(task.key, reason=reason, grace_s=grace_s)

    async def withdraw(self, task: AttemptTask) -> None:
        """Take back a start that waits for room."""
        await self.keeper.withdraw(task.key)

    async def knows(self, task: AttemptTask) -> bool:
        """Whether they live, or their exit record is to be had. Raises KeeperUnreachable."""
        if read_record(Path(f"{task.root}/{RECORD}"), task.key) is not None:
            return True
        return any(child.key == task.key for child in await self.keeper.list())

    async def forget(self, *tasks: AttemptTask) -> None:
        """The keeper may drop their records."""
        await self.keeper.forget(*(task.key for task in tasks))

    async def close(self) -> None:
        """The daemon ends; the processes go on. Each runner that shares this may say so."""
        await self.watch.close()

    def circumstances(self, task: AttemptTask, record: ExitRecord, *, file_mb: float | None = None) -> Circumstances:
        """What the attempt was allowed, and, after a failure, what can be seen of its reason."""
        failed = record.exit_code != 0
        if not failed and record.killed is None:
            return Circumstances(timeout_s=task.timeout_s)  # nothing to explain
        wrapped = task.sandbox is SandboxLevel.BWRAP
        return Circumstances(
            timeout_s=task.timeout_s,
            memory_mb=limits.memory_mb(task.manifest, self.config.resources),
            log_mb=limits.log_mb(task.manifest, self.config.resources),
            file_mb=file_mb,
            wrapped=wrapped,
            said=_first_words(task) if failed and wrapped else "",
            free_mb=free_mb(task.root) if failed else None,
            refused=told(self._refusals(task)) if task.manifest.policy.network else "",
        )

    def limits(self, task: AttemptTask, *, file_mb: float | None = None, wall_s: float | None = None) -> Limits:
        """All limits of an attempt as the keeper takes them."""
        manifest, node = task.manifest, self.config.resources
        policy = manifest.policy
        return Limits(
            nice=node.cpu_nice,
            io_class=node.io_class,
            io_level=node.io_level,
            memory_mb=limits.memory_mb(manifest, node),
            address_space_mb=policy.address_space_mb,
            cpu_pct=policy.cpu_pct,
            processes=limits.least((policy.processes, node.processes)),
            open_files=limits.least((policy.open_files, node.open_files)),
            file_mb=file_mb,
            log_mb=limits.log_mb(manifest, node),
            wall_s=task.timeout_s if wall_s is None else wall_s,
            grace_s=limits.grace_s(manifest, node),
        )

    def _spec(self, task: AttemptTask, command: Command) -> StartSpec:
        root = task.root
        gate = gate_for(task.manifest, log=self._gate_log(task), allow=self.config.network.allow, seccomp=self.host.seccomp)
        sandbox = plan(
            task.sandbox,
            host=self.host,
            workspace=root,
            argv=command.argv,
            env=command.env,
            read_only_paths=(*command.read_only_paths, *self._shown(task)),
            devices=device_nodes(task.gpus),
            gate=gate,
            hostname=task.job_id,
            tmp_mb=min(TMP_MB, limits.memory_mb(task.manifest, self.config.resources) or TMP_MB),
            userns=self._userns,
        )
        return StartSpec(
            key=task.key,
            argv=sandbox.argv,
            env=dict(sandbox.env),
            cwd=sandbox.cwd,
            stdin=command.stdin,
            stdout=self._stream(task, "stdout"),
            stderr=self._stream(task, "stderr"),
            open={**sandbox.open_fds, **command.open_fds},
            no_new_privs=sandbox.no_new_privs,
            seccomp=sandbox.seccomp,
            uid=sandbox.uid,
            gid=sandbox.gid,
            record=f"{root}/{RECORD}",
            wipe=task.confidence.files if task.confidence is not None else None,
            wrapper=True if task.sandbox is SandboxLevel.BWRAP else None,
            room=task.room,
            first=task.first,
            limits=self.limits(task, file_mb=command.file_mb),
        )

    def _stream(self, task: AttemptTask, name: str) -> str:
        """Where a stream is written: into memory first where secrets may be in it."""
        return self._vault.raw(task.key, name) if task.manifest.secrets else f"{task.root}/logs/{name}.log"

    def _gate_log(self, task: AttemptTask) -> str:
        """Where its gate writes what it refused: names that a job asks for may hold its secrets as well as its output may."""
        return self._vault.raw(task.key, "network") if task.manifest.secrets else f"{task.root}/{REFUSALS}"

    def _refusals(self, task: AttemptTask) -> Counter[Refusal]:
        """What its gate refused, masked."""

        def masked(host: str) -> str:
            text = self._vault.text(task.key, host)
            return "a host that is withheld" if text is None else text

        return refusals(Path(self._gate_log(task)), masked if task.manifest.secrets else str)

    @staticmethod
    def _shown(task: AttemptTask) -> tuple[str, ...]:
        told = task.confidence
        return (told.files,) if told is not None and told.files is not None else ()


def tmp_folder(task: AttemptTask) -> str:
    """The attempt's folder for temporary files: /tmp is its own in bwrap; elsewhere its working directory, which is removed."""
    return "/tmp" if task.sandbox is SandboxLevel.BWRAP else f"{task.root}/work"  # noqa: S108 - a tmpfs that only it sees


def _refusal(exc: KeeperRefused) -> Failure:
    """What the keeper could not do, as a failure of the attempt."""
    if exc.code == "open" and exc.errno in NO_ROOM:  # the machine's trouble and not the job's: it is tried again
        return Failure(FailureCode.DISK, f"{exc.message}; free space on the node")
    code = {
        "setup": FailureCode.SANDBOX,
        "cgroup": FailureCode.SANDBOX,
        "state": FailureCode.DISK,
        "stopping": FailureCode.LOST,
        "fork": FailureCode.LOST,
    }.get(exc.code, FailureCode.START)
    return Failure(code, exc.message)


def _first_words(task: AttemptTask) -> str:
    with contextlib.suppress(OSError), task.log("stderr").open("rb") as file:
        return file.read(_SAID_BYTES).decode(errors="replace")
    return ""
