"""Dependencies as they are submitted: names become jobs, in the call or before it; what would wait for ever is refused."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ostler.coordinator.store.tx import Tx
from ostler.model.dependencies import Dependency, Until, find_cycle
from ostler.model.errors import InvalidSpec, Problem, TooLarge
from ostler.model.job import TERMINAL, JobState
from ostler.model.manifest import Manifest, artifact_name

MAX_EDGES = 100_000  # of one call; an array that waits for an array has one from each job to each
MAX_PROBLEMS = 100
_MAX_NAMED = 10

Accepted = Sequence[tuple[Manifest, str]]  # each a validated manifest and its text as it was sent
Name = tuple[str, str | None]  # of a job, and of its group


@dataclass(slots=True)
class _Written:
    """One manifest as it was written, and the jobs that it became: one, or those of an array."""

    name: str
    jobs: range  # their numbers
    manifests: list[Manifest]
    on: dict[int, Dependency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _There:
    """A job that was there before the call."""

    seq: int
    state: JobState
    attempt: int


@dataclass(frozen=True, slots=True)
class Linked:
    """What is left to settle: jobs that others now wait for and that are over, and jobs that wait for none but get artifacts."""

    ended: dict[int, JobState]
    free: list[int]


def waits(manifest: Manifest) -> bool:
    """Whether it has to do with other jobs. It waits for them until it is settled that it need not."""
    return bool(manifest.depends_on or manifest.input.artifacts)


def link(tx: Tx, accepted: Accepted, names: Sequence[Name], first: int, reach: str | None) -> Linked:
    """Write down who waits for whom among jobs that were just inserted from number `first` on, and what they get from others.

    `reach` is the principal whose jobs the caller may name; None: anybody's. Raises InvalidSpec (names that are not there, cycles,
    artifacts that cannot come) and TooLarge.
    """
    return _Linking(tx, accepted, names, first, reach).run()


class _Linking:
    def __init__(self, tx: Tx, accepted: Accepted, names: Sequence[Name], first: int, reach: str | None) -> None:
        self._tx, self._reach = tx, reach
        self._written: list[_Written] = []
        self._mine: dict[str, range] = {}  # by the name of a job or group
        self._whose: dict[int, int] = {}  # the number of what was written, by the job's
        self._problems: list[Problem] = []
        for seq, ((manifest, _), (job_id, group_id)) in enumerate(zip(accepted, names, strict=True), first):
            self._add(seq, manifest, job_id, group_id)
        self._check_room(sum(len(one.manifests[0].depends_on) * len(one.jobs) for one in self._written))
        self._there = self._look_up(self._named() - self._mine.keys())
        self._states = {one.seq: one for some in self._there.values() for one in some}

    def _add(self, seq: int, manifest: Manifest, job_id: str, group_id: str | None) -> None:
        if manifest.array_index:  # not the first of an array
            one = self._written[-1]
            one.jobs = range(one.jobs.start, seq + 1)
            one.manifests.append(manifest)
        else:
            name = job_id if manifest.array_index is None else group_id or job_id
            self._written.append(_Written(name, range(seq, seq + 1), [manifest]))
        self._whose[seq] = len(self._written) - 1
        self._mine[job_id] = range(seq, seq + 1)
        if group_id is not None:
            before = self._mine.get(group_id, range(seq, seq))
            self._mine[group_id] = range(before.start, seq + 1)

    def _named(self) -> set[str]:
        found: set[str] = set()
        for one in self._written:
            found.update(dependency.job for dependency in one.manifests[0].dependencies)
            found.update(artifact.job for manifest in one.manifests for artifact in manifest.input.artifacts)
        return found

    def _look_up(self, names: Collection[str]) -> dict[str, list[_There]]:
        tx, found = self._tx, dict[str, list[_There]]()
        if names:
            whose, more = ("", ()) if self._reach is None else (" AND owner = ?", (self._reach,))
            for column in ("job_id", "group_id"):
                rows = tx.rows(
                    f"SELECT {column}, seq, state, attempt FROM jobs WHERE {tx.any_of(column)}{whose} LIMIT ?",  # noqa: S608
                    (tx.array(names), *more, MAX_EDGES + 1),
                )
                self._check_room(len(rows))
                for name, seq, state, attempt in rows:
                    found.setdefault(name, []).append(_There(seq, JobState(state), attempt))
        return found

    def run(self) -> Linked:
        """Resolve, check, write."""
        edges = 0
        for number, one in enumerate(self._written):
            self._resolve(number, one)
            edges += len(one.on) * len(one.jobs)
            self._check_room(edges)
        self._refuse()
        self._check_cycles()
        handed = [row for number, one in enumerate(self._written) for row in self._handed(number, one)]
        self._check_delivered(handed)
        self._refuse()
        return self._write(handed)

    @staticmethod
    def _check_room(edges: int) -> None:
        if edges > MAX_EDGES:
            raise TooLarge(
                f"{edges} pairs of a job and one that it depends on are more than the {MAX_EDGES} that one call takes",
                hint="let one job that depends on all of a stage stand between two large stages",
            )

    def _refuse(self) -> None:
        if self._problems:
            raise InvalidSpec("the dependencies are not valid; nothing was submitted", self._problems[:MAX_PROBLEMS])

    def _bad(self, number: int, path: str, message: str) -> None:
        prefix = f"[{number}]." if len(self._written) > 1 else ""
        self._problems.append(Problem(prefix + path, message))

    def _resolve(self, number: int, one: _Written) -> None:
        for place, dependency in enumerate(one.manifests[0].dependencies):
            seqs = self._seqs(dependency.job)
            if not seqs:
                self._bad(number, f"depends_on[{place}]", f"there is no job, array or group {dependency.job}")
            self._check_room(len(one.on) + len(seqs))
            for seq in seqs:
                before = one.on.setdefault(seq, dependency)
                if (before.until, before.otherwise) != (dependency.until, dependency.otherwise):
                    message = f"{dependency.job} is depended on through {before.job} already, and otherwise than here"
                    self._bad(number, f"depends_on[{place}]", message)
                    break

    def _seqs(self, name: str) -> Sequence[int]:
        return self._mine.get(name) or [one.seq for one in self._there.get(name, ())]

    def _check_cycles(self) -> None:
        """Only among what is submitted together: what was there before waits for none of these."""
        graph = {
            number: list(dict.fromkeys(self._whose[seq] for seq in one.on if seq in self._whose))
            for number, one in enumerate(self._written)
        }
        cycle = find_cycle(graph)
        if cycle is None:
            return
        names = [self._written[number].name for number in cycle]
        more = len(names) - _MAX_NAMED
        shown = [*names[: _MAX_NAMED // 2], f"({more} more)", *names[-_MAX_NAMED // 2 :]] if more > 0 else names
        message = f"{' → '.join([*shown, names[0]])}: they depend on each other in a circle, and none could ever begin"
        self._bad(cycle[0], "depends_on", message if len(names) > 1 else f"{names[0]} depends on itself")
        self._refuse()

    def _handed(self, number: int, one: _Written) -> Iterator[tuple[int, str, int, str, tuple[int, int]]]:
        """(job, name, other job, path, where it stands) for each artifact that is an input."""
        for seq, manifest in zip(one.jobs, one.manifests, strict=True):
            for place, artifact in enumerate(manifest.input.artifacts):
                found = self._seqs(artifact.job)
                if len(found) != 1:
                    what = "is an array or group; name one of its jobs" if found else "is no job that is there"
                    self._bad(number, f"input.artifacts[{place}].job", f"{artifact.job} {what}")
                    continue
                on = found[0]
                there = self._states.get(on)
                dependency = one.on.get(on)
                if (dependency is None and (there is None or there.state is not JobState.DONE)) or (
                    dependency is not None and dependency.until is Until.DONE
                ):
                    message = f"the success of {artifact.job} is not waited for; name it in `depends_on`"
                    self._bad(number, f"input.artifacts[{place}].job", message)
                    continue
                yield seq, artifact_name(artifact), on, artifact.path, (number, place)

    def _check_delivered(self, handed: Sequence[tuple[int, str, int, str, tuple[int, int]]]) -> None:
        """What is known already not to come: of jobs that are done, and of manifests of this call that declare no such artifact."""
        done = {seq: one for seq, one in self._states.items() if one.state is JobState.DONE}
        on = {row[2] for row in handed if row[2] in done}
        delivered: set[tuple[int, str]] = set()
        if on:
            rows = self._tx.rows(
                f"SELECT job_seq, attempt, path FROM artifacts WHERE {self._tx.any_of('job_seq')}",  # noqa: S608 - a fragment of ours
                (self._tx.array(on),),
            )
            delivered = {(seq, path) for seq, attempt, path in rows if done[seq].attempt == attempt}
        for _, _, seq, path, (number, place) in handed:
            if seq in done:
                missing = (seq, path) not in delivered
            elif seq in self._whose:
                other = self._written[self._whose[seq]]
                missing = path not in {one.path for one in other.manifests[seq - other.jobs.start].artifacts}
            else:
                missing = False
            if missing:
                verb = "delivered" if seq in done else "declares"
                self._bad(number, f"input.artifacts[{place}].path", f"that job {verb} no artifact {path!r}")

    def _write(self, handed: Sequence[tuple[int, str, int, str, tuple[int, int]]]) -> Linked:
        self._tx.many(
            "INSERT INTO dependencies (on_seq, job_seq, until, otherwise) VALUES (?, ?, ?, ?)",
            [
                (on, seq, dependency.until.value, dependency.otherwise.value)
                for one in self._written
                for on, dependency in one.on.items()
                for seq in one.jobs
            ],
        )
        self._tx.many("INSERT INTO handed (job_seq, name, on_seq, path) VALUES (?, ?, ?, ?)", [row[:4] for row in handed])
        used = {on for one in self._written for on in one.on}
        ended = {seq: one.state for seq, one in self._states.items() if seq in used and one.state in TERMINAL}
        waiting: Mapping[int, bool] = {seq: bool(one.on) for one in self._written for seq in one.jobs}
        return Linked(ended, sorted({row[0] for row in handed if not waiting[row[0]]}))


def link_anew(tx: Tx, old: int, new: int) -> None:
    """A job that is submitted anew waits for what the old one did and what is not over, and gets the same artifacts.

    Whatever else the old one waited for is over; that it is tried again all the same is a person's wish.
    """
    tx.run(
        "INSERT INTO dependencies (on_seq, job_seq, until, otherwise) "
        "SELECT d.on_seq, ?, d.until, d.otherwise FROM dependencies d JOIN jobs o ON o.seq = d.on_seq "
        "WHERE d.job_seq = ? AND o.finished_at IS NULL",
        (new, old),
    )
    tx.run(
        "INSERT INTO handed (job_seq, name, on_seq, path) SELECT ?, name, on_seq, path FROM handed WHERE job_seq = ?", (new, old)
    )
