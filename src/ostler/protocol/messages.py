"""The messages between node, client and coordinator, as frozen dataclasses that are both value and wire.

Times on the wire are RFC 3339 with an offset, durations are seconds (`_s`), sizes are MB of 2**20 bytes (`_mb`) or bytes.
A lease is a duration, never a time of day. Fields that a reader does not know are ignored.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ostler.model.access import Role
from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Capabilities
from ostler.model.dependencies import Otherwise, Until
from ostler.model.failures import Failure
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.model.manifest import DEFAULT_POOL, InputFile, Runner
from ostler.model.node import NodeState
from ostler.protocol.dsse import Envelope

PROTOCOL = 1  # what this release speaks
PROTOCOL_MIN = 1  # the oldest that it still understands
LOG_STREAMS = ("stdout", "stderr")
INLINE_LOG_BYTES = 64 * 1024  # a shorter log tail travels inside the outcome


@dataclass(frozen=True, slots=True)
class Held:
    """One attempt that a node holds: the fencing pair."""

    job_id: str
    attempt: int


# --- node -> coordinator -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """A daemon's first call. With a join token it enrols `public_key` (raw Ed25519, base64); later it signs a challenge.

    `boot_epoch` is "<kernel boot id>:<daemon incarnation>". `held` lists the attempts that the node still has; what the
    coordinator believes it has besides is lost. `signature` is over `register_message(...)`.
    """

    node_id: str
    version: str
    protocol: int
    boot_epoch: str
    public_key: bytes
    capabilities: Capabilities
    cpu_slots: int
    gpu_slots: int
    held: tuple[Held, ...] = ()
    challenge: str | None = None
    signature: bytes | None = None


def register_message(challenge: str, node_id: str, boot_epoch: str) -> bytes:
    """What a node signs to prove that it has the private half of its key."""
    return f"ostler-register-v1\n{challenge}\n{node_id}\n{boot_epoch}".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterResponse:
    """What the node lives by from now on. `coordinator_key` is the raw Ed25519 key that signs assignments."""

    node_id: str
    node_token: str
    token_ttl_s: float
    heartbeat_s: float
    lease_s: float
    pull_wait_s: float
    coordinator_key: bytes
    version: str
    protocol: int
    protocol_min: int
    draining: bool = False
    forget: tuple[Held, ...] = ()


class DirectiveKind(StrEnum):
    """What a coordinator may tell a node."""

    CANCEL = "cancel"
    DRAIN = "drain"
    RESUME = "resume"
    RECONCILE = "reconcile"
    FORGET = "forget"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a kind of directive
    REGISTER = "register"
    DEBUG = "debug"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One wish of the coordinator.

    cancel: end this attempt and report it cancelled. reconcile: the coordinator believes that you hold this attempt; if not, report it
    failed with E_LOST. forget: this attempt is over for the coordinator; stop and discard it. refresh_token: use `token` from
    now on. register: your session is unknown, register anew. debug: pin this attempt's workspace and upload it.
    drain (with `timeout_s`: what then still runs is cancelled) and resume speak to the node as a whole.
    """

    kind: DirectiveKind
    job_id: str | None = None
    attempt: int | None = None
    reason: str | None = None
    token: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """Renews the lease of exactly the attempts in `held`. `held=None` (the source's form) renews all that the node has."""

    node_id: str
    load: float = 0.0
    free_mb: int = 0
    gpu_free: int = 0
    disk_free_mb: int | None = None
    held: tuple[Held, ...] | None = None
    version: str | None = None
    boot_epoch: str | None = None
    draining: bool = False
    quarantine: str | None = None  # why it takes no work, where it found something wrong with itself
    health: tuple[str, ...] = ()
    slots: int | None = None
    capabilities: Capabilities | None = None  # only when they changed


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResponse:
    """Directives, and how long the renewed leases now last."""

    ok: bool = True
    lease_s: float = 0.0
    directives: tuple[Directive, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """A long poll. `slots` and `gpu_slots` are credit: how many more jobs the node takes now; the newest pull of a node wins.

    `held` are all attempts that the node has or was offered: a lease offered earlier and missing here is taken back at once.
    Without `protocol` the caller speaks the source's section 8 and gets one plain manifest.
    """

    node_id: str
    filters: dict[str, Any] | None = None
    slots: int = 1
    gpu_slots: int = 0
    wait_s: float = 0.0
    held: tuple[Held, ...] = ()
    protocol: int | None = None
    boot_epoch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The signed payload: `spec` is the manifest, byte for byte as it was submitted; the rest is what the coordinator adds.

    One of a `latency` queue begins before all that was leased ahead.
    """

    job_id: str
    attempt: int
    node_id: str
    lease_s: float
    spec: str
    tries: int = 0
    inputs: tuple[InputFile, ...] = ()  # artifacts of other jobs that `spec` names as inputs, as they are
    latency: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResponse:
    """Leases as signed envelopes (payload: Assignment) and directives. `job` is only for callers of the source's section 8."""

    job: dict[str, Any] | None = None
    jobs: tuple[Envelope, ...] = ()
    directives: tuple[Directive, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AckItem:
    """Accepts a lease, or hands it back unbegun with a reason (`decline`), which costs no retry."""

    job_id: str
    attempt: int
    decline: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressItem:
    """Where a running attempt stands: its stage, and what the job says of itself (`pct` 0 to 100, `note` at most 500 characters)."""

    job_id: str
    attempt: int
    state: AttemptState | None = None
    pct: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """The end of one log stream: its whole `length` and `sha256` (hex); `tail` holds the bytes from `offset` that were not shipped yet."""

    stream: str
    length: int
    sha256: str
    offset: int = 0
    tail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactEntry:
    """One delivered output; `size` in bytes, `sha256` in hex."""

    path: str
    type: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: done (no failure, not cancelled), failed or cancelled. Idempotent by (job_id, attempt)."""

    job_id: str
    attempt: int
    failure: Failure | None = None
    cancelled: bool = False
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()  # noqa: RUF009 - a frozen value
    logs: tuple[LogEnd, ...] = ()
    artifacts: tuple[ArtifactEntry, ...] = ()
    sandbox: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AckBatch:
    """Body of `POST /jobs/ack`."""

    items: tuple[AckItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressBatch:
    """Body of `POST /jobs/progress`."""

    items: tuple[ProgressItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeBatch:
    """Body of `POST /jobs/result` and `POST /jobs/fail`."""

    items: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """The answer to one item: ok, or the code of the error tree, its message, and for logs the offset to rewind to."""

    job_id: str
    attempt: int
    ok: bool = True
    code: str | None = None
    message: str | None = None
    stream: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResponse:
    """One answer per item, in order."""

    items: tuple[ItemResult, ...]


# --- client -> coordinator ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """One accepted job; `group_id` names the array that it is one of."""

    job_id: str
    state: JobState = JobState.QUEUED
    group_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitResponse:
    """The accepted jobs, in the order of the manifests, those of an array by their number. All are accepted, or none.

    `warnings` tell of a quota that is nearly used up.
    """

    items: tuple[Submitted, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """One line of a job's timeline; `id` grows, `at` is the coordinator's clock."""

    id: int
    at: datetime
    kind: str
    job_id: str | None = None
    attempt: int | None = None
    node_id: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyView:
    """One job that another one waits for, or one that waits for it, and how."""

    job_id: str
    state: JobState
    until: Until
    otherwise: Otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of jobs, newest first; `next_cursor` is null on the last; `total` only with `?count=true`."""

    items: tuple[JobView, ...]
    next_cursor: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """One requirement and how many nodes fail it; `examples` names some nodes with the reason."""

    requirement: str
    nodes: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """One event of the fleet; `cursor` is where a reader goes on after it. Events of nodes alone have no job and no owner."""

    cursor: str
    at: datetime
    kind: str
    job_id: str | None = None
    group_id: str | None = None
    owner: str | None = None
    attempt: int | None = None
    node_id: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events, first to last; `next_cursor` is where to go on, also where nothing more is yet; `more` says whether something is."""

    items: tuple[FleetEvent, ...]
    next_cursor: str
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events: behind the cursor `after` (`latest`: from now on; absent: from the oldest that is kept), or of the last `since_s`
    seconds. `kind` may hold several, comma-separated; `group` is an array's id; `follow` streams on.
    """

    after: str | None = None
    since_s: float | None = None
    job: str | None = None
    node: str | None = None
    group: str | None = None
    kind: str | None = None
    limit: int = 100
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """Where to deliver events, and which: all that the caller may see where `kinds` is empty."""

    url: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookView:
    """One webhook. `secret` signs its deliveries and is shown once, when it is made. `owner`: of whose jobs it tells; null is all.

    `failures` counts deliveries that failed in a row, `error` says why the latest did. One that is disabled gets nothing any more.
    """

    webhook_id: str
    url: str
    kinds: tuple[str, ...]
    created_at: datetime
    owner: str | None = None
    failures: int = 0
    next_try_at: datetime | None = None
    error: str | None = None
    disabled_at: datetime | None = None
    secret: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPage:
    """Webhooks by id."""

    items: tuple[WebhookView, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """The body of a delivery: events, first to last. One that was sent before may come again; its `cursor` tells. Empty: a test."""

    webhook_id: str
    events: tuple[FleetEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookTest:
    """What came of a test delivery: the status of the answer, or why there was none that is good."""

    ok: bool
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditView:
    """One row of the audit log. `action` is a route's name, `target` what its path named, `peer` the address that called."""

    id: int
    at: datetime
    action: str
    status: int
    principal: str | None = None
    token_id: str | None = None
    role: str | None = None
    target: str | None = None
    peer: str | None = None
    request_id: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """One page of the audit log, newest first; it may be empty and not the last where the filters match little."""

    items: tuple[AuditView, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Filters of `GET /audit`: what is equal to these, of the last `since_s` seconds."""

    principal: str | None = None
    action: str | None = None
    target: str | None = None
    status: int | None = None
    since_s: float | None = None
    cursor: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One thing in the audit log that is not as it was sealed; `row` is its id where it is about one row."""

    message: str
    row: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """A piece of the audit log that was verified; ask on with `after=` its `next` until that is null.

    `head` is the digest of the last seal so far, `unsealed` how many rows are too young to have one, `key` the public key in base64,
    `head_found` whether a seal of this piece has the digest that was asked for.
    """

    rows: int
    seals: int
    findings: tuple[AuditFinding, ...]
    key: str
    head: str | None = None
    head_found: bool | None = None
    unsealed: int = 0
    next: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheckQuery:
    """Where to go on verifying: behind the seal that ends at row `after`. `head` is a digest that was noted earlier."""

    after: int = 0
    head: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitQuery:
    """How long a long poll may wait, in seconds (at most 60)."""

    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitRequest:
    """Which jobs somebody waits for, at most 10,000, and for how many seconds (at most 60) the answer may be held back.

    `contents` are paths of artifacts whose bytes are wanted with the answer where they are small.
    """

    job_ids: tuple[str, ...]
    wait_s: float = 0.0
    contents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job that is over, with its artifacts; `contents` are the bytes of those that were asked for and are at most 64 KiB."""

    job: JobView
    contents: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitResponse:
    """Those of the jobs that are over, or as many as one answer holds; `missing` are ids of no job that the caller may know of."""

    items: tuple[Ended, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which log: of the latest attempt unless `attempt` says otherwise; from `offset` bytes; `follow` streams until the job is over."""

    stream: str = "stdout"
    attempt: int | None = None
    offset: int = 0
    limit: int | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactQuery:
    """Which attempt's artifacts: of the latest finished one unless `attempt` says otherwise."""

    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPage:
    """All artifacts of one attempt."""

    items: tuple[ArtifactEntry, ...]
    next_cursor: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Why a job is cancelled; shown in its timeline."""

    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Uploaded bytes, named by their sha256 (hex); `size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node as clients see it; `attempts` are those that it holds.

    `cordoned`: a person wants no new work for it. `draining`: the node itself takes none, by its own word, with `quarantine` because
    of what it found wrong with itself.
    """

    node_id: str
    state: NodeState
    version: str
    protocol: int
    boot_epoch: str
    joined_at: datetime
    last_seen_at: datetime | None = None
    changed_at: datetime | None = None
    reason: str | None = None
    pool: str = DEFAULT_POOL
    cordoned: bool = False
    cordon_reason: str | None = None
    draining: bool = False
    quarantine: str | None = None
    cpu_slots: int = 0
    gpu_slots: int = 0
    load: float = 0.0
    free_mb: int = 0
    gpu_free: int = 0
    disk_free_mb: int | None = None
    health: tuple[str, ...] = ()
    attempts: tuple[Held, ...] = ()
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePage:
    """All nodes by id."""

    items: tuple[NodeView, ...]
    next_cursor: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """One node, without its attempts and capabilities, and how many jobs it holds; of the caller's own, where they see no others'."""

    node: NodeView
    jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """What a submitter has in a queue: jobs that nodes hold, and those that could be leased. `more`: there are more than were counted."""

    owner: str | None
    queue: str
    running: int = 0
    queued: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The fleet at one moment: nodes by id (at most 1000), what is queued and running, and the newest failures, last to first."""

    at: datetime
    nodes: tuple[NodeLoad, ...] = ()
    queues: tuple[QueueLoad, ...] = ()
    failures: tuple[JobView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Where to go on and how many."""

    cursor: str | None = None
    limit: int = 100
    count: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequest:
    """No new work for a node; what still runs after `timeout_s` is cancelled and retried elsewhere (absent: let it finish)."""

    reason: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRequest:
    """Why a node is cordoned or retired; shown with it."""

    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest:
    """The pool that a node is moved to."""

    pool: str


class TokenKind(StrEnum):
    """Which door a stored token opens."""

    JOIN = "join"
    API = "api"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """Asks for a join token that enrols `uses` nodes into `pool` within `expires_s` seconds, or for an API token.

    An API token has a `role`, and is one of `principal`: whoever shows it owns the jobs of that name. Without a name it is a
    principal of its own.
    """

    kind: TokenKind = TokenKind.JOIN
    role: Role | None = None
    principal: str | None = None
    pool: str | None = None
    uses: int = 1
    expires_s: float = 3600.0
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One stored token; `token` itself is shown once, when it is made."""

    token_id: str
    kind: TokenKind
    created_at: datetime
    role: Role | None = None
    principal: str | None = None
    pool: str | None = None
    expires_at: datetime | None = None
    uses_left: int | None = None
    revoked_at: datetime | None = None
    note: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage:
    """All tokens, newest first."""

    items: tuple[TokenView, ...]
    next_cursor: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionQuery:
    """With `dry_run` also what would go now: the first `limit` removals one by one."""

    dry_run: bool = False
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPass:
    """One pass: how many of each kind went, how many bytes that freed, and how many bytes of `logs`, `artifacts` and `blobs` are left.

    Artifacts are counted as often as they were delivered; blobs are files, which equal bytes share.
    """

    at: datetime
    took_s: float
    removed: dict[str, int]
    freed: dict[str, int]
    used: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRemoval:
    """One thing that would go: a `job` whole, its `logs` or its `artifacts`; `size` in bytes."""

    job_id: str
    part: str
    size: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What would go now, by kind in numbers and bytes, and the first of it one by one; `used` is what would be left."""

    counts: dict[str, int]
    sizes: dict[str, int]
    items: tuple[PlannedRemoval, ...]
    used: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionView:
    """The policy as configured, what the last pass did (null before the first), and the plan where one was asked for."""

    policy: dict[str, Any]
    last: RetentionPass | None = None
    plan: RetentionPlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretQuery:
    """Which secret a name means: one's own, or the one that is `shared`, whose jobs and places `roles` and `pools` bound (names with
    commas between them; absent: all)."""

    shared: bool = False
    roles: str | None = None
    pools: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretView:
    """What is told of a secret: never its value. `version` grows each time it is set; `roles` and `pools` are empty for all."""

    name: str
    shared: bool
    version: int
    created_at: datetime
    updated_at: datetime
    updated_by: str
    roles: tuple[Role, ...] = ()
    pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPage:
    """The caller's own secrets and the shared ones that the caller may name, by name."""

    items: tuple[SecretView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValue:
    """One value on its way to the node that runs an attempt (base64 on the wire)."""

    name: str
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValues:
    """The values of all secrets that an attempt's manifest names, one for each entry and in that order."""

    items: tuple[SecretValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """All limits of a principal; absent or null: none. `money` is a decimal as text, such as "12.50"."""

    queued: int | None = None
    running: int | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    money: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaUse:
    """What is taken: jobs `queued` and `running` now (null where nobody limits them), and the use of this month, UTC, with what runs."""

    queued: int | None
    running: int | None
    cpu_hours: float
    gpu_hours: float
    money: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaView:
    """How a principal stands; `limits` is null without a quota, `resets_at` when the month's use begins anew."""

    principal: str
    limits: QuotaRequest | None
    used: QuotaUse
    month: str
    resets_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaPage:
    """Principals by name."""

    items: tuple[QuotaView, ...]
    next_cursor: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaQuery:
    """Where to go on and how many; `mine`: the caller's alone."""

    cursor: str | None = None
    limit: int = 100
    mine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """What a coordinator is and speaks."""

    version: str
    protocol: int
    protocol_min: int
    schema: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """`/healthz` and `/readyz` of the coordinator; `checks` maps each check to "ok" or what is wrong."""

    status: str
    version: str
    checks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDetail:
    """One mistake in a request: the field's path and what to write instead."""

    path: str
    message: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemReport:
    """RFC 9457 problem details, with a stable `code`, a `hint` that says what to do, and every mistake at once."""

    title: str
    status: int
    code: str
    type: str = "about:blank"
    detail: str | None = None
    instance: str | None = None
    hint: str | None = None
    errors: tuple[ProblemDetail, ...] = ()
    challenge: str | None = None
    offset: int | None = None
