"""The workspace of an attempt on disk (source: section 3): `input/ work/ output/ logs/` and `state.json`.

It lies under `<root>/<job-id>/`. The first attempt of a job has that folder for itself; each later one, and one that finds the
folder taken by an earlier life of the node, lies in `<root>/<job-id>/attempt-<n>/` inside it.
"""

# These few calls stand on the path of every job, and building Path objects would cost as much as they do.
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH120, PTH123

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any

import msgspec

from ostler.model.attempt import SOURCE_WORDS
from ostler.model.errors import InvalidSpec
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import JobState
from ostler.model.manifest import JOB_ID
from ostler.node.trees import DiskUse, measure_tree, remove_tree

FOLDERS = ("input", "work", "output", "logs")
STATE = "state.json"
MAX_STATE_BYTES = 1 << 20
MAX_HISTORY = 64
SPARE = ".spare-"  # what begins so is a workspace that is nobody's yet
NODES_SPARE = f"{SPARE}node-"  # and one that `Spares` sees to, and nobody else
_BESIDE = ("exit.json", f"{STATE}.new")
ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})(?:\.[1-9][0-9]*)?")

# The product's states to the words of the source's section 11; a node also meets states of jobs that have no attempt.
WORDS: dict[str, str] = {
    **{state.value: word for state, word in SOURCE_WORDS.items()},
    JobState.QUEUED.value: "IDLE",
    JobState.RETRY_WAIT.value: "RETRY_WAIT",
    JobState.EXPIRED.value: "FAILED",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group that a job runs as, where that is not the node's own."""

    uid: int
    gid: int


@dataclass(slots=True, eq=False)
class Workspace:
    """One attempt's folder. Made by `create`, or by `resume` from what `scan` found; all methods block for a few system calls."""

    place: str  # its path
    job_id: str
    attempt: int
    owner: Owner | None = None
    _facts: dict[str, Any] = field(default_factory=dict, repr=False)
    _history: list[Any] = field(default_factory=list, repr=False)

    @classmethod
    def create(cls, root: Path, job_id: str, attempt: int, *, owner: Owner | None = None) -> "Workspace":
        """Make the folders, 0700. With an `owner`, `input/ work/ output/` are its, and the way to them is open to it.

        Raises InvalidSpec for a job id that is no file name, and OSError (see `disk_failure`); then nothing is left behind.
        """
        if not JOB_ID.fullmatch(job_id) or attempt < 1:
            raise InvalidSpec(f"{job_id!r} attempt {attempt} cannot have a workspace: not a job id and a number from 1 on")
        path = _make(root, job_id, attempt)
        made = cls(path, job_id, attempt, owner)
        try:
            for name in FOLDERS:
                os.mkdir(f"{path}/{name}", 0o700)
            if owner is not None:
                _hand_over(path, owner, shared_parent=path != f"{root}/{job_id}")
        except OSError:
            made.remove()
            raise
        return made

    @classmethod
    def lent(cls, root: Path, job_id: str, attempt: int) -> "Workspace | None":
        """One that somebody else will make, if anybody; None where something is in its place. Raises InvalidSpec."""
        if not JOB_ID.fullmatch(job_id):
            raise InvalidSpec(f"{job_id!r} cannot have a workspace: it is not a job id")
        path = f"{root}/{job_id}"
        return None if attempt != 1 or os.path.lexists(path) else cls(path, job_id, attempt)

    @classmethod
    def resume(cls, found: "Found") -> "Workspace":
        """The workspace that an earlier life of the node made. Raises OSError when it is damaged."""
        facts = {key: value for key, value in found.facts.items() if key not in _OWN_KEYS}
        history = found.facts.get("history")
        status = (found.path / "work").lstat()
        owner = Owner(status.st_uid, status.st_gid) if status.st_uid != os.geteuid() else None
        return cls(str(found.path), found.job_id, found.attempt, owner, facts, history if isinstance(history, list) else [])

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.place)

    @property
    def input(self) -> Path:
        """What the job was given."""
        return self.path / "input"

    @property
    def work(self) -> Path:
        """The job's working directory."""
        return self.path / "work"

    @property
    def output(self) -> Path:
        """What the job leaves, where it does not leave it in `work`."""
        return self.path / "output"

    @property
    def logs(self) -> Path:
        """Its output streams."""
        return self.path / "logs"

    def write_state(self, state: str, /, *, at: datetime, passed: Iterable[str] = (), **facts: Any) -> None:
        """Replace `state.json`: `state` is one of the product's words; `facts` (JSON) stay until they are given anew.

        `passed` are states gone through since the last write, which a short job does not spend a write of its own on.

        Atomic, but not flushed to the disk: durability is the journal's. Raises OSError; then the old file still stands.
        """
        self._facts.update(facts)
        word = WORDS[state]
        when = at.isoformat()
        steps = [[WORDS[one], when] for one in passed]
        self._history = [*self._history, *steps, [word, when]][-MAX_HISTORY:]
        record = {
            **self._facts,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "state": word,
            "node_state": str(state),
            "at": when,
            "history": self._history,
        }
        _replace(f"{self.place}/{STATE}", msgspec.json.encode(record))

    def remove(self) -> None:
        """Delete it, and the job's folder with the last of its attempts. Nothing there is no error; raises OSError."""
        path = self.path
        remove_tree(path, keep=_is_attempt)
        if path.name != self.job_id:
            with suppress(OSError):  # other attempts are there
                path.parent.rmdir()

    def measure(self) -> DiskUse:
        """What the job's own folders take on disk."""
        uses = [measure_tree(self.path / name) for name in FOLDERS]
        return DiskUse(sum(u.bytes for u in uses), sum(u.entries for u in uses), all(u.complete for u in uses))


_OWN_KEYS = frozenset({"job_id", "attempt", "state", "node_state", "at", "history"})


@dataclass(frozen=True, slots=True)
class Found:
    """A workspace that lies on disk. `state` is its section 11 word and `facts` all of `state.json`, as far as it could be read;
    `problem` says what is wrong with it, as a sentence about `path`. A `blank` one has no `state.json`."""

    path: Path
    job_id: str
    attempt: int
    state: str | None
    facts: Mapping[str, Any]
    problem: str | None = None
    blank: bool = False


def scan(root: Path) -> list[Found]:
    """All workspaces under `root`, by name. What is not one, or has a torn state, is reported and never raises."""
    found: list[Found] = []
    for name, is_folder in _entries(root):
        path = root / name
        if name.startswith(SPARE):
            continue
        if not is_folder or not JOB_ID.fullmatch(name):
            found.append(Found(path, name, 0, None, {}, "is not the folder of a job"))
            continue
        inside = _entries(path)
        attempts = [inner for inner, folder in inside if folder and ATTEMPT.fullmatch(inner)]
        if len(inside) > len(attempts) or not attempts:
            found.append(_look(path, name, 1))
        for inner in attempts:
            matched = ATTEMPT.fullmatch(inner)
            found.append(_look(path / inner, name, int(matched[1]) if matched else 0))
    return found


def made_by_node(folder: Path) -> bool:
    """Whether a folder without a `state.json` holds what a workspace has, and nothing else."""
    names = {name for name, _ in _entries(folder) if not _is_attempt(name)}
    return bool(names.intersection(FOLDERS)) and names <= {*FOLDERS, *_BESIDE}


NO_ROOM = frozenset({ENOSPC, EDQUOT, EROFS})  # a disk that is full, over quota, or takes nothing any more


def disk_failure(exc: OSError, doing: str) -> Failure:
    """E_DISK for a disk that is full, over quota or read-only; anything else the node cannot explain: E_INTERNAL."""
    reason = f"{doing}: {exc.strerror or exc}"
    if exc.errno in NO_ROOM:
        return Failure(FailureCode.DISK, f"{reason}; free space on the node")
    return Failure(FailureCode.INTERNAL, reason)


def _make(root: Path, job_id: str, attempt: int) -> str:
    job = f"{root}/{job_id}"
    while True:
        try:
            os.mkdir(job, 0o700)
        except FileExistsError:
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(job).st_mode):
                    raise
        else:
            if attempt == 1:
                return job
        with suppress(FileNotFoundError):  # the sweeper took the last of its attempts, and the folder with it
            return _make_inside(job, attempt)


def _make_inside(job: str, attempt: int) -> str:
    path = f"{job}/attempt-{attempt}"
    again = 1
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:  # the same attempt, begun by an earlier life of the node: its remains are not touched
            again += 1
            path = f"{job}/attempt-{attempt}.{again}"
        else:
            return path


def _hand_over(path: str, owner: Owner, *, shared_parent: bool) -> None:
    for name in ("input", "work", "output"):
        os.chown(f"{path}/{name}", owner.uid, owner.gid)
    for folder in (path, os.path.dirname(path)) if shared_parent else (path,):
        os.chmod(folder, 0o711)  # noqa: S103 - the job must get through; what lies beside is 0700


def _replace(path: str, content: bytes) -> None:
    fresh = f"{path}.new"
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)
        os.rename(fresh, path)
    except OSError:
        with suppress(OSError):
            os.unlink(fresh)
        raise


def _entries(folder: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []


def _look(path: Path, job_id: str, attempt: int) -> Found:
    try:
        handle = os.open(path / STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return Found(path, job_id, attempt, None, {}, f"its {STATE} is not a regular file")
            content = stream.read(MAX_STATE_BYTES + 1)
    except OSError as exc:
        blank = isinstance(exc, FileNotFoundError)
        return Found(path, job_id, attempt, None, {}, f"its {STATE} cannot be read: {exc.strerror}", blank)
    try:
        facts = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return Found(path, job_id, attempt, None, {}, f"its {STATE} is torn: {exc}")
    if facts.get("job_id") != job_id or facts.get("attempt") != attempt:
        said = f"{facts.get('job_id')!r} attempt {facts.get('attempt')!r}"
        return Found(path, job_id, attempt, None, {}, f"its {STATE} is about {said:.200}")
    state = facts.get("state")
    if state not in WORDS.values():
        return Found(
            path, job_id, attempt, None, facts, f"its {STATE} has the state {state!r:.80}, which this release does not know"
        )
    return Found(path, job_id, attempt, state, facts)


def _is_attempt(name: str) -> bool:
    return ATTEMPT.fullmatch(name) is not None
