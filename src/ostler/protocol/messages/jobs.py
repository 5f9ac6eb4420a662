"""Between people and coordinator: jobs, groups, logs and artifacts."""

from datetime import datetime
from typing import Any

from msgspec import Struct, field

from ostler.model.attempt import AttemptState, Usage
from ostler.model.dependencies import Otherwise, Until
from ostler.model.failures import Failure
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.model.manifest import Runner
from ostler.protocol.messages.leases import ArtifactEntry


class Submitted(Struct, frozen=True, kw_only=True):
    """One accepted job; `group_id` names the array that it is one of."""

    job_id: str
    state: JobState = JobState.QUEUED
    group_id: str | None = None


class SubmitResponse(Struct, frozen=True, kw_only=True):
    """The accepted jobs, in the order of the manifests, those of an array by their number. All are accepted, or none.

    `warnings` tell of a quota that is nearly used up.
    """

    items: tuple[Submitted, ...]
    warnings: tuple[str, ...] = ()


class AttemptView(Struct, frozen=True, kw_only=True):
    """One attempt as clients see it."""

    attempt: int
    node_id: str
    state: AttemptState
    leased_at: datetime
    acked_at: datetime | None = None
    finished_at: datetime | None = None
    failure: Failure | None = None
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage | None = None
    sandbox: str | None = None
    workspace_sha256: str | None = None


class EventView(Struct, frozen=True, kw_only=True):
    """One line of a job's timeline; `id` grows, `at` is the coordinator's clock."""

    id: int
    at: datetime
    kind: str
    job_id: str | None = None
    attempt: int | None = None
    node_id: str | None = None
    message: str | None = None


class DependencyView(Struct, frozen=True, kw_only=True):
    """One job that another one waits for, or one that waits for it, and how."""

    job_id: str
    state: JobState
    until: Until
    otherwise: Otherwise


class JobView(Struct, frozen=True, kw_only=True):
    """One job as clients see it. What stands from `attempts` on is filled when a single job is asked for.

    `depends_on` and `dependents` are at most a hundred, those first that are not over.
    """

    job_id: str
    state: JobState
    runner: Runner
    title: str
    queue: str
    priority: int
    labels: dict[str, str]
    submitted_at: datetime
    owner: str | None = None
    attempt: int = 0
    tries: int = 0
    node_id: str | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    failure: Failure | None = None
    exit_code: int | None = None
    signal: int | None = None
    pct: float | None = None
    note: str | None = None
    held: bool = False
    waiting: bool = False  # queued, and not to be leased yet: for other jobs, or until `not_before`
    not_before: datetime | None = None
    cancel_requested: bool = False
    retry_of: str | None = None
    group_id: str | None = None
    attempts: tuple[AttemptView, ...] = ()
    timeline: tuple[EventView, ...] = ()
    artifacts: tuple[ArtifactEntry, ...] = ()
    depends_on: tuple[DependencyView, ...] = ()
    dependents: tuple[DependencyView, ...] = ()
    manifest: dict[str, Any] | None = None


class JobPage(Struct, frozen=True, kw_only=True):
    """One page of jobs, newest first; `next_cursor` is null on the last; `total` only with `?count=true`.

    A page may hold fewer than `limit`, even none, before the last: where jobs with a label, or of a node, are asked for by what only a
    few of them have, each page looks at some thousands.
    """

    items: tuple[JobView, ...]
    next_cursor: str | None = None
    total: int | None = None


class JobQuery(Struct, frozen=True, kw_only=True):
    """Filters of `GET /jobs`. `state` may hold several, comma-separated; `label` is `key=value`; `group` is an array's id; `owner` is
    whose they are.
    """

    state: str | None = None
    label: str | None = None
    queue: str | None = None
    node: str | None = None
    group: str | None = None
    owner: str | None = None
    cursor: str | None = None
    limit: int = 50
    count: bool = False


class GroupView(Struct, frozen=True, kw_only=True):
    """One array, or a group of other jobs: how many of its jobs are in which state, and the first few that failed or expired.

    `finished_at` is the time of the last job's end, null while one is not over.
    """

    group_id: str
    state: GroupState
    count: int
    counts: dict[JobState, int]
    submitted_at: datetime
    array: bool = True
    finished_at: datetime | None = None
    failures: tuple[JobView, ...] = ()


class Blocker(Struct, frozen=True, kw_only=True):
    """One requirement and how many nodes fail it; `examples` names some nodes with the reason."""

    requirement: str
    nodes: int
    examples: tuple[str, ...] = ()


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a job is where it is: one sentence, and per requirement how many nodes fail it, or who is ahead.

    `ahead` counts jobs of the same submitter that go first, `others` the submitters who wait for the same nodes and whose turns
    alternate with theirs.
    """

    job_id: str
    state: JobState
    summary: str
    nodes_total: int = 0
    nodes_fitting: int = 0
    nodes_free: int = 0
    ahead: int = 0
    others: int = 0
    blockers: tuple[Blocker, ...] = ()


class WaitQuery(Struct, frozen=True, kw_only=True):
    """How long a long poll may wait, in seconds (at most 60)."""

    wait_s: float = 0.0


class AwaitRequest(Struct, frozen=True, kw_only=True):
    """Which jobs somebody waits for, at most 10,000, and for how many seconds (at most 60) the answer may be held back.

    `contents` are paths of artifacts whose bytes are wanted with the answer where they are small.
    """

    job_ids: tuple[str, ...]
    wait_s: float = 0.0
    contents: tuple[str, ...] = ()


class Ended(Struct, frozen=True, kw_only=True):
    """A job that is over, with its artifacts; `contents` are the bytes of those that were asked for and are at most 64 KiB."""

    job: JobView
    contents: dict[str, bytes] = field(default_factory=dict)


class AwaitResponse(Struct, frozen=True, kw_only=True):
    """Those of the jobs that are over, or as many as one answer holds; `missing` are ids of no job that the caller may know of."""

    items: tuple[Ended, ...] = ()
    missing: tuple[str, ...] = ()


class LogQuery(Struct, frozen=True, kw_only=True):
    """Which log: of the latest attempt unless `attempt` says otherwise; from `offset` bytes; `follow` streams until the job is over."""

    stream: str = "stdout"
    attempt: int | None = None
    offset: int = 0
    limit: int | None = None
    follow: bool = False


class ArtifactQuery(Struct, frozen=True, kw_only=True):
    """Which attempt's artifacts: of the latest finished one unless `attempt` says otherwise."""

    attempt: int | None = None


class ArtifactPage(Struct, frozen=True, kw_only=True):
    """All artifacts of one attempt."""

    items: tuple[ArtifactEntry, ...]
    next_cursor: str | None = None
    total: int | None = None


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Why a job is cancelled; shown in its timeline."""

    reason: str | None = None


class Blob(Struct, frozen=True, kw_only=True):
    """Uploaded bytes, named by their sha256 (hex); `size` in bytes."""

    sha256: str
    size: int
