"""The small ports through which runners plug into a node, and what reads releases into a coordinator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ostler.model.attempt import Usage
from ostler.model.failures import Failure
from ostler.model.manifest import Manifest, Runner
from ostler.model.release import Release
from ostler.model.sandbox import SandboxLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """What an attempt is told in confidence, at its start alone: variables, the folder where its secret `files` lie (None: it has
    none), all `values`, and `folder`, a place in memory for what else must not come to a disk."""

    env: Mapping[str, str] = field(repr=False)
    values: tuple[bytes, ...] = field(repr=False)
    folder: str
    files: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTask:
    """One attempt as a runner sees it: `root` is its workspace (input/ work/ output/ logs/ below it), made and filled already, or where it
    is to be if the runner lends it one (`lent`).

    `sandbox` is the level in force, `gpus` the uuids that it may use, `timeout_s` its wall-clock limit. With `room` it begins once
    fewer than so many run that have one, `first` of those that wait for that; only for runners that can `waits`.
    """

    job_id: str
    attempt: int
    manifest: Manifest
    root: str
    sandbox: SandboxLevel
    timeout_s: float
    gpus: tuple[str, ...] = ()
    lent: bool = False
    room: int | None = None
    first: bool = False
    confidence: Confidence | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """The name under which the keeper knows its processes."""
        return f"{self.job_id}/{self.attempt}"

    def log(self, stream: str) -> Path:
        """Where this stream's bytes are written."""
        return Path(f"{self.root}/logs/{stream}.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt's processes ended: no failure means success so far (artifacts are looked at afterwards).

    `bare`: the workspace that it was lent is gone, since nothing was left in it; `contents` are its artifacts then, by path,
    and `said` its standard output.
    """

    failure: Failure | None = None
    cancelled: bool = False
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()  # noqa: RUF009 - a frozen value
    bare: bool = False
    contents: Mapping[str, bytes] = field(default_factory=dict)
    said: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a job says of itself: percent (0 to 100) and a note."""

    pct: float | None = None
    note: str | None = None


class Withdrawn(Exception):
    """A start that waited for room was taken back: nothing was begun."""


class RunnerPort(Protocol):
    """One kind of runner. All processes live under the keeper, so each method may be called by a daemon that was not there before."""

    runner: Runner

    def waits(self, manifest: Manifest, *, lent: bool) -> int:
        """How many such jobs for each slot `start` may be asked to have wait for room (0: none). Until then `kill` and `withdraw` take
        them back. `lent`: its workspace would be."""
        ...

    def refuse(self, manifest: Manifest) -> Failure | None:
        """Why this manifest will not be run here (E_DENY, E_SPEC), before anything is prepared; None when it may. `start` asks the
        same once more."""
        ...

    def lends(self, manifest: Manifest, sandbox: SandboxLevel) -> bool:
        """Whether an attempt of this, without a GPU, needs no workspace of its own: the runner's lasts only if something is left in it."""
        ...

    async def start(self, task: AttemptTask) -> Failure | None:
        """Start the attempt's processes; returns as soon as they live, or with the failure to start them. Raises Withdrawn."""
        ...

    async def wait(self, task: AttemptTask, progress: Callable[[Progress], None]) -> Ending:
        """Until the attempt's processes are gone. Also for an attempt that an earlier daemon started."""
        ...

    async def alive(self, task: AttemptTask) -> bool:
        """Whether there is something to wait for: living processes, or an exit record."""
        ...

    async def kill(self, task: AttemptTask, *, reason: str, grace_s: float) -> None:
        """End the whole tree: SIGTERM, the grace, SIGKILL. `wait` then returns; reason "cancel" makes it cancelled."""
        ...

    async def withdraw(self, task: AttemptTask) -> None:
        """Take back a start that waits for room, which is then told as Withdrawn; what has begun goes on."""
        ...

    async def forget(self, *tasks: AttemptTask) -> None:
        """The attempts are delivered; nothing of them is needed any more."""
        ...

    async def close(self) -> None:
        """The daemon ends; attempts go on."""
        ...


class BundleReader(Protocol):
    """Reads a release's bundle to its end and checks all of it. Blocks."""

    def __call__(self, bundle: IO[bytes], trusted: Mapping[str, bytes] | None, /) -> Release:
        """What it is, by the word of one of the `trusted` keys (None: of one that it brings). Raises InvalidSpec."""
        ...
