"""The cli runner: an allowlisted program with arguments that the allowlist grants, executed as it is, without a shell (N6)."""

# ruff: noqa: PTH113, PTH116 - its path is every job's; pathlib would double what a start costs here
import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EINVAL, ENOSYS, EOPNOTSUPP, EXDEV
from pathlib import Path

from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.allowlist import Allowlist, Entry, load_allowlist
from ostler.node.allowlist_binary import BinaryCheck
from ostler.node.allowlist_match import check
from ostler.node.config import CliRunnerConfig, NodeConfig
from ostler.node.runners import limits
from ostler.node.runners.ending import NO_TRACE, ending, lost
from ostler.node.runners.environment import environment, secret_variables
from ostler.node.runners.processes import Command, Processes, tmp_folder
from ostler.node.sandbox import needed
from ostler.protocol.ports import AttemptTask, Ending, Progress

MAX_GRANTS = 4096
WAITING = 2  # starts for each slot that may wait at the keeper
MAX_KNOWN = 256
_INLINE_COPY_BYTES = 1 << 20

_Call = tuple[str, tuple[str, ...], tuple[str, ...]]


def allowlist_places(config: CliRunnerConfig) -> tuple[Path, ...]:
    """The files and folders that make up the node's allowlist."""
    return (*config.allowlist_files, *((config.allowlist_dir,) if config.allowlist_dir else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """On what terms a manifest is run, and from what that was worked out."""

    manifest: Manifest
    config: NodeConfig
    allowlist: Allowlist
    entry: Entry
    level: SandboxLevel
    timeout_s: float


class CliRunner:
    """A RunnerPort. Allowlist and programs are looked at anew on `reload`; a program's owner and modes before every start."""

    runner = Runner.CLI

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._config = processes.config.runners.cli
        # Replaced as one: `load` runs in a thread, and a grant of the old list must not be remembered for the new one.
        self._granted: tuple[Allowlist, dict[_Call, Entry]] = (Allowlist(), {})
        self._check = BinaryCheck(allow_own_binaries=self._config.allow_own_binaries)
        self._needed: dict[str, tuple[str, ...]] = {}
        self._known: dict[int, _Terms] = {}

    def load(self, config: CliRunnerConfig | None = None) -> None:
        """Read the configured allowlist (of `config`, where the configuration was read anew), and hash programs whose entry
        names a sum. Blocks; may be called in a thread.

        Raises InvalidSpec, and then the old one still holds. A program that is amiss is no mistake of the list: jobs that
        want it are refused and told why.
        """
        self.reload(load_allowlist(allowlist_places(config or self._config)))

    def reload(self, allowlist: Allowlist) -> None:
        """Use this allowlist from now on; attempts that live go on."""
        for entries in allowlist.entries.values():
            for entry in entries:
                if entry.sha256 is not None:
                    self._check.verify(entry)
        self._needed, self._known = {}, {}
        self._granted = (allowlist, {})

    def waits(self, manifest: Manifest, *, lent: bool) -> int:
        """The keeper lets starts wait, where it is of this release; but not those of programs that must be what they were."""
        terms = self._terms(manifest)
        may = self._processes.keeper.hello.waits and not isinstance(terms, Failure) and terms.entry.sha256 is None
        return WAITING if may else 0

    def commands(self) -> tuple[str, ...]:
        """What this node runs, by name."""
        return tuple(sorted(self._granted[0].entries))

    def refuse(self, manifest: Manifest) -> Failure | None:
        """Why this manifest will not be run here, or None."""
        terms = self._terms(manifest)
        if isinstance(terms, Failure):
            return terms
        if amiss := self._check.verify(terms.entry):
            return Failure(FailureCode.DENY, f"{amiss.path}: {amiss.message}")
        return self._processes.refuse(manifest, terms.level)

    def timeout_s(self, manifest: Manifest) -> float:
        """The wall-clock limit of one attempt: the manifest's, at most the entry's `max_runtime_s`."""
        terms = self._terms(manifest)
        return manifest.timeout_s if isinstance(terms, Failure) else terms.timeout_s

    def level(self, manifest: Manifest) -> SandboxLevel:
        """The sandbox level of one attempt: the strongest that node, manifest or entry demand."""
        terms = self._terms(manifest)
        return self._processes.level(manifest) if isinstance(terms, Failure) else terms.level

    def lends(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        """A program gets a workspace of its own."""
        return False

    async def start(self, task: AttemptTask) -> Failure | None:
        """Start the program; it is verified, whether or not `refuse` was asked before."""
        if refused := self.refuse(task.manifest):
            return refused
        terms = self._terms(task.manifest)
        if isinstance(terms, Failure):
            return terms
        entry = terms.entry
        stdin = None
        if entry.stdin is not None:
            stdin = f"{task.root}/work/{entry.stdin}"
            if not os.path.isfile(stdin):  # noqa: ASYNC240 - one system call
                message = f"{entry.name} reads its standard input from {entry.stdin}, which is not among the inputs"
                return Failure(FailureCode.INPUT, message)
        task = _in_force(task, terms)
        return await self._processes.start(
            task,
            Command(
                argv=(entry.path, *task.manifest.args),
                env=environment(task, tmp=tmp_folder(task)),
                stdin=stdin,
                read_only_paths=self._paths(entry) if task.sandbox is SandboxLevel.BWRAP else (),
                # one file may be as large as the entry allows all output to be; artifacts' own caps are judged when they are collected
                file_mb=entry.max_output_mb,
            ),
        )

    async def wait(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        """Until the program and all that it started are gone."""
        record = await self._processes.wait(task)
        if record is None:
            return lost(NO_TRACE)
        terms = self._terms(task.manifest)
        entry = None
        if not isinstance(terms, Failure):
            entry, task = terms.entry, _in_force(task, terms)
        end = ending(record, self._processes.circumstances(task, record, file_mb=entry.max_output_mb if entry else None))
        name = task.manifest.stdout or (entry.stdout if entry else None)
        if end.failure is None and not end.cancelled and name:
            failure = await _keep_stdout(task, name)
            return replace(end, failure=failure)
        return end

    async def alive(self, task: AttemptTask) -> bool:
        """Whether the keeper knows the attempt, or its exit record is there."""
        return await self._processes.knows(task)

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        """End the program and all that it started."""
        await self._processes.kill(task, reason=reason, grace_s=grace_s)

    async def withdraw(self, task: AttemptTask) -> None:
        """It need not begin yet."""
        await self._processes.withdraw(task)

    async def forget(self, *tasks: AttemptTask) -> None:
        """Their outcomes are delivered."""
        await self._processes.forget(*tasks)

    async def close(self) -> None:
        """The daemon ends; programs go on."""
        await self._processes.close()

    def _grant(self, manifest: Manifest) -> Entry | Failure:
        """The entry that grants the call. Remembered: jobs come in thousands alike, and a search costs more than all the rest."""
        # A secret's variable is as much the manifest's doing as any other.
        call = (manifest.command or "", manifest.args, (*manifest.env, *secret_variables(manifest)))
        allowlist, grants = self._granted
        entry = grants.get(call)
        if entry is not None:
            return entry
        if not self._config.enable:
            return Failure(FailureCode.DENY, "the cli runner is switched off on this node (runners.cli.enable)")
        verdict = check(allowlist, call[0], manifest.args, env=call[2])
        if verdict.failure is not None:
            return verdict.failure
        if verdict.entry is None:
            return Failure(FailureCode.DENY, f"no allowlist entry grants {call[0]}")
        if len(grants) >= MAX_GRANTS:
            grants.clear()
        grants[call] = verdict.entry
        return verdict.entry

    def _terms(self, manifest: Manifest) -> "_Terms | Failure":
        """What the node grants to a manifest; worked out once for all jobs that share it."""
        config, known = self._processes.config, self._known.get(id(manifest))
        if known is not None and known.manifest is manifest and known.config is config and known.allowlist is self._granted[0]:
            return known
        entry = self._grant(manifest)
        if isinstance(entry, Failure):
            return entry
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        terms = self._known[id(manifest)] = _Terms(
            manifest=manifest,
            config=config,
            allowlist=self._granted[0],
            entry=entry,
            level=self._processes.level(manifest, entry.sandbox),
            timeout_s=limits.least((manifest.timeout_s, entry.max_runtime_s)) or manifest.timeout_s,
        )
        return terms

    def _paths(self, entry: Entry) -> tuple[str, ...]:
        paths = self._needed.get(entry.path)
        if paths is None:
            paths = self._needed[entry.path] = needed(entry.path)
        return paths


def _in_force(task: AttemptTask, terms: _Terms) -> AttemptTask:
    """Never weaker than the entry demands and never longer than it allows, whatever the caller chose."""
    level, timeout_s = terms.level, min(task.timeout_s, terms.timeout_s)
    if task.sandbox.at_least(level) and timeout_s == task.timeout_s:
        return task
    return replace(task, sandbox=level if not task.sandbox.at_least(level) else task.sandbox, timeout_s=timeout_s)


async def _keep_stdout(task: AttemptTask, name: str) -> Failure | None:
    """Standard output as the file `output/NAME` too."""
    log = f"{task.root}/logs/stdout.log"
    try:
        if os.stat(log).st_size <= _INLINE_COPY_BYTES:
            copy_stdout(task.root, log, name)
        else:
            await asyncio.to_thread(copy_stdout, task.root, log, name)
    except OSError as exc:
        return Failure(FailureCode.OUTPUT, f"standard output could not be kept as {name!r}: {exc.strerror}")
    return None


def copy_stdout(root: str, log: str, name: str) -> None:
    """Copy a log to `output/NAME`, whole or not at all, unless the job itself made a file of that name. Raises OSError.

    All processes are gone by now; what they left may still be a link to anywhere, so none is followed.
    """
    made_by_job = os.path.lexists(f"{root}/work/{name}") and not os.path.lexists(f"{root}/input/{name}")
    folder = os.open(f"{root}/output", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fresh = ".stdout.new"
    try:
        if made_by_job or _exists(folder, name):
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=folder)
        target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
        try:
            source = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _copy(source, target)
            finally:
                os.close(source)
        finally:
            os.close(target)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _copy(source: int, target: int) -> None:
    """In the kernel; as a reference to the same blocks where the file system can."""
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
    except OSError as exc:
        if exc.errno not in {EXDEV, EINVAL, ENOSYS, EOPNOTSUPP}:
            raise
        while os.sendfile(target, source, None, 1 << 30):  # from where the offsets stand
            pass


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
