"""A real keeper and what runners need beside it, for tests."""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ostler.model.manifest import Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import (
    CliRunnerConfig,
    CoordinatorAddress,
    NetworkConfig,
    NodeConfig,
    PythonRunnerConfig,
    ResourceLimits,
    Runners,
    SandboxConfig,
    WorkspaceConfig,
)
from ostler.node.keeper_client import KeeperClient
from ostler.node.runners.processes import Processes
from ostler.node.sandbox import abilities, observe
from ostler.node.vault import Vault
from ostler.node.workspace import Workspace
from ostler.protocol.ports import AttemptTask, RunnerPort

TASKS = Path(__file__).parents[1] / "tasks"
PATIENCE_S = 20


class Rig:
    """One node's state: a keeper that lives on, and daemons (clients and runners) that come and go."""

    def __init__(
        self,
        folder: Path,
        *,
        level=SandboxLevel.PROCESS,
        cli=None,
        python=None,
        resources=None,
        network=None,
        min_free_mb=0,
        cgroup="auto",
    ) -> None:
        self.folder = folder
        self.config = NodeConfig(
            coordinator=CoordinatorAddress(base_url="http://127.0.0.1:1"),
            runners=Runners(cli=cli or CliRunnerConfig(), python=python or PythonRunnerConfig(enable=True, task_paths=(TASKS,))),
            resources=resources or ResourceLimits(cpu_nice=0, grace_s=2.0),
            workspace=WorkspaceConfig(root=folder / "jobs", min_free_mb=min_free_mb),
            sandbox=SandboxConfig(level=level),
            network=network or NetworkConfig(),
            state_dir=folder / "node",
        )
        self.config.workspace.root.mkdir()
        self.config.state.mkdir(mode=0o700)
        self.socket = self.config.state / "keeper.sock"
        self.vault = Vault(self.config.state)
        self.host = observe(self.config.state / "sandbox")
        self.abilities = abilities(self.host)
        self.logger = logging.getLogger("ostler.test")
        self.daemons: list[Processes] = []
        self.count = 0
        self.cgroup = cgroup
        self.start_keeper()

    def start_keeper(self) -> None:
        """Start one and wait until it listens."""
        command = [sys.executable, "-m", "ostler.node.keeper", "--cgroup", self.cgroup, "--socket", str(self.socket), "--state"]
        with (self.folder / "keeper.log").open("ab") as log:
            self.keeper = subprocess.Popen([*command, str(self.config.state / "keeper")], stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while not _listens(self.socket):
            assert self.keeper.poll() is None, (self.folder / "keeper.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    async def processes(self) -> Processes:
        """A daemon's door to the keeper."""
        client = await KeeperClient.connect(self.socket)
        processes = Processes(
            keeper=client, config=self.config, host=self.host, abilities=self.abilities, vault=self.vault, logger=self.logger
        )
        self.daemons.append(processes)
        return processes

    def task(self, *, by: RunnerPort | None = None, sandbox=None, **manifest) -> AttemptTask:
        """An attempt with its workspace made; the level is the one that `by`, a runner, says."""
        self.count += 1
        asked = Manifest(**{"runner": Runner.CLI, "timeout_s": 30.0, **manifest})
        level = sandbox or (by.level(asked) if by else self.config.sandbox.level)
        made = Workspace.create(self.config.workspace.root, f"job-{self.count}", 1)
        return AttemptTask(
            job_id=made.job_id, attempt=1, manifest=asked, root=made.place, sandbox=level, timeout_s=asked.timeout_s
        )

    def kill_keeper(self) -> None:
        """As the machine would: without a word."""
        self.keeper.send_signal(signal.SIGKILL)
        self.keeper.wait()

    async def next_keeper(self, processes: Processes) -> None:
        """What the daemon does when its keeper is gone: have another one, and go on with it."""
        self.socket.unlink(missing_ok=True)
        self.start_keeper()
        processes.keeper.close()
        processes.use(await KeeperClient.connect(self.socket))

    async def close(self) -> None:
        """End everything."""
        for processes in self.daemons:
            await processes.close()
            processes.keeper.close()
        await asyncio.sleep(0)
        self.keeper.terminate()
        try:
            self.keeper.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill_keeper()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


async def until(condition, what: str):
    """Wait until something outside of this process is so; the truth that it gave."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.005)
    return found


def alive(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def text(task: AttemptTask, stream: str = "stdout") -> str:
    """What was written to a stream."""
    return task.log(stream).read_text()
