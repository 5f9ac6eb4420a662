"""The service runner: commands to services of this host, each one call to the watcher. It has no process, no slot and no workspace."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.model.service import Command, Observation, command_of
from ostler.protocol import codec
from ostler.protocol.ports import AttemptTask, Ending, Progress


class Done(Protocol):
    """What became of a command."""

    @property
    def failure(self) -> Failure | None:
        """Why it was not carried out, if so."""
        ...

    @property
    def seen(self) -> Observation | None:
        """The service afterwards."""
        ...


class Services(Protocol):
    """Who carries commands out."""

    def declares(self, name: str) -> bool:
        """Whether there is such a service."""
        ...

    async def carry_out(self, command: Command) -> Done:
        """One command."""
        ...


class ServiceRunner:
    """A RunnerPort. A command that the daemon's end cut off is known to no later daemon, which carries it out anew or reports it lost."""

    runner = Runner.SERVICE

    def __init__(self, services: Services) -> None:
        self._services = services
        self._doing: dict[str, asyncio.Task[Ending]] = {}

    def waits(self, manifest: Manifest, *, lent: bool) -> int:
        """Commands begin at once."""
        return 0

    def refuse(self, manifest: Manifest) -> Failure | None:
        """Services that this node does not declare."""
        command = command_of(manifest)
        if command is None or not self._services.declares(command.service):
            name = manifest.command if command is None else command.service
            return Failure(FailureCode.DENY, f"this node declares no service {name}: `services` of its configuration names all")
        return None

    def lends(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        """It needs none."""
        return True

    async def start(self, task: AttemptTask) -> Failure | None:
        """Begin with it."""
        command = command_of(task.manifest)
        if command is None or (refused := self.refuse(task.manifest)) is not None:
            return refused if command is not None else Failure(FailureCode.SPEC, "is no command to a service")
        self._doing[task.key] = asyncio.get_running_loop().create_task(self._carry_out(task, command))
        return None

    async def wait(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        """Until it is done; what was seen of the service afterwards is its standard output, one line of JSON."""
        doing = self._doing.get(task.key)
        if doing is None:
            return Ending(failure=Failure(FailureCode.LOST, "the daemon that carried it out is gone"), bare=task.lent)
        await asyncio.wait({doing})
        return Ending(cancelled=True, bare=task.lent) if doing.cancelled() else doing.result()

    async def alive(self, task: AttemptTask) -> bool:
        """Whether this daemon is at it."""
        return task.key in self._doing

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        """Wait for it no longer; what systemd took it goes on with."""
        if (doing := self._doing.get(task.key)) is not None:
            doing.cancel()

    async def withdraw(self, task: AttemptTask) -> None:
        """It never waits."""

    async def forget(self, *tasks: AttemptTask) -> None:
        """Nothing of them is needed any more."""
        for task in tasks:
            self._doing.pop(task.key, None)

    async def close(self) -> None:
        """The daemon ends."""
        for doing in self._doing.values():
            doing.cancel()
        await asyncio.gather(*self._doing.values(), return_exceptions=True)

    async def _carry_out(self, task: AttemptTask, command: Command) -> Ending:
        try:
            async with asyncio.timeout(task.timeout_s):
                done = await self._services.carry_out(command)
        except TimeoutError:
            message = f"{command.service} did not {command.verb.value} within {task.timeout_s:g} s; systemd goes on with it"
            return Ending(failure=Failure(FailureCode.TIMEOUT, message), bare=task.lent)
        said = codec.encode(done.seen) + b"\n" if done.seen is not None else b""
        if not task.lent and said:
            await asyncio.to_thread(task.log("stdout").write_bytes, said)
        return Ending(failure=done.failure, bare=task.lent, said=said if task.lent else b"")
