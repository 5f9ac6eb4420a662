"""The tables. Times are microseconds (`store.times`), sets of values JSON text; each state column is CHECKed to equal its enum.

`jobs.seq` grows with each submission and is what other tables refer to: integers keep the hot indexes half as large as job ids
would. Nothing is counted in a column that could be derived from rows: slots, queue lengths and group states leak otherwise.
"""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

from ostler.model.attempt import LIVE as LIVE_ATTEMPT
from ostler.model.attempt import AttemptState
from ostler.model.job import TERMINAL as TERMINAL_JOB
from ostler.model.job import JobState
from ostler.model.node import NodeState

SCHEMA = 2  # the newest that this release knows; each migration's revision is this number, four digits

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Int = BigInteger().with_variant(Integer(), "sqlite")  # a STRICT table of SQLite knows INTEGER alone, which is 64 bits there
Real: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


def listed(values: Iterable[StrEnum]) -> str:
    """Enum values as an SQL list, in the enum's spelling and a stable order."""
    return ", ".join(f"'{value.value}'" for value in sorted(values))


LIVE_SQL = listed(LIVE_ATTEMPT)  # for the partial index of live attempts: a query must repeat it word for word to use it
NOT_OVER_SQL = listed(frozenset(JobState) - TERMINAL_JOB)
PENDING_SQL = listed((JobState.QUEUED, JobState.RETRY_WAIT))


def _in(column: str, kind: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({listed(kind)})", name=column)


def _flag(column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN (0, 1)", name=column)


meta = Table(
    "meta",  # what made this database: `schema`, `protocol`, `release`, `created_at`
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_strict=True,
)

counters = Table(
    "counters",  # numbers handed out in blocks and never again, such as the next `jobs.seq`
    metadata,
    Column("name", Text, primary_key=True),
    Column("next", Int, nullable=False),
    sqlite_strict=True,
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),  # sha256 of the token's text, which is not stored
    Column("created_at", Int, nullable=False),
    Column("expires_at", Int),
    Column("uses_left", Int),  # null: not limited
    Column("revoked_at", Int),
    Column("note", Text),
    CheckConstraint("kind IN ('api', 'join')", name="kind"),
    CheckConstraint("uses_left >= 0", name="uses_left"),
    Index("ix_tokens_created", "created_at", "token_id"),
    sqlite_strict=True,
)

nodes = Table(
    "nodes",  # one row a heartbeat changes, so what is large stands in `capabilities`
    metadata,
    Column("node_id", Text, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("token_id", Text),  # the join token that enrolled it
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("changed_at", Int),
    Column("version", Text, nullable=False),
    Column("protocol", Int, nullable=False),
    Column("boot_epoch", Text, nullable=False),
    Column("joined_at", Int, nullable=False),
    Column("last_seen_at", Int),
    Column("renewals", Int, nullable=False),  # grows with each renewal; judged only by who watches it
    Column("offer", Int, nullable=False),  # grows when slots or capabilities change: the key of cached offers
    Column("cpu_slots", Int, nullable=False),
    Column("gpu_slots", Int, nullable=False),
    Column("load", Real, nullable=False),
    Column("free_mb", Int, nullable=False),
    Column("gpu_free", Int, nullable=False),
    Column("disk_free_mb", Int),
    Column("health", Text, nullable=False),
    Column("draining", Int, nullable=False),  # the node's own word, for as long as it says so
    Column("drain_s", Real),  # how long a drain lets attempts run on; null: to their end
    Column("resume", Int, nullable=False),  # a person's resume that the node has not confirmed yet
    _in("state", NodeState),
    _flag("draining"),
    _flag("resume"),
    sqlite_strict=True,
)

capabilities = Table(
    "capabilities",
    metadata,
    Column("node_id", Text, ForeignKey("nodes.node_id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
    sqlite_strict=True,
)

sessions = Table(
    "sessions",  # every boot epoch that a node registered: an older one never comes back
    metadata,
    Column("node_id", Text, ForeignKey("nodes.node_id", ondelete="CASCADE"), primary_key=True),
    Column("boot_epoch", Text, primary_key=True),
    Column("opened_at", Int, nullable=False),
    sqlite_strict=True,
)

shapes = Table(
    "shapes",  # what placement needs of a job, once for all jobs that need the same; the id is a hash of `body`
    metadata,
    Column("shape_id", Int, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    sqlite_strict=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Int, primary_key=True, autoincrement=False),
    Column("job_id", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("shape_id", Int, ForeignKey("shapes.shape_id"), nullable=False),
    Column("priority", Int, nullable=False),
    Column("queue", Text, nullable=False),
    Column("runner", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("retry", Text),  # the retry policy where the manifest sets one
    Column("retry_of", Text),
    Column("submitted_at", Int, nullable=False),
    Column("attempt", Int, nullable=False),
    Column("tries", Int, nullable=False),
    Column("node_id", Text),
    Column("held", Int, nullable=False),
    Column("due_at", Int),
    Column("expires_at", Int),
    Column("finished_at", Int),
    Column("failure_code", Text),
    Column("failure_message", Text),
    Column("cancel_at", Int),  # when a person asked for the end of what a node works on
    Column("cancel_reason", Text),
    Column(
        "group_id", Text
    ),  # the array that it is one of; no foreign key: a column that SQLite adds later cannot get one by name
    _in("state", JobState),
    _flag("held"),
    CheckConstraint("tries >= 0 AND attempt >= tries", name="attempt"),
    sqlite_strict=True,
)
# The claim: the heads of a shape's queue, whatever stands behind them or is over.
Index(
    "ix_jobs_claim", jobs.c.shape_id, jobs.c.priority.desc(), jobs.c.seq,
    sqlite_where=(jobs.c.state == "queued") & (jobs.c.held == 0),
    postgresql_where=(jobs.c.state == "queued") & (jobs.c.held == 0),
)  # fmt: skip
Index(
    "ix_jobs_due", jobs.c.due_at, jobs.c.seq,
    sqlite_where=jobs.c.state == "retry_wait", postgresql_where=jobs.c.state == "retry_wait",
)  # fmt: skip
Index(
    "ix_jobs_expires", jobs.c.expires_at, jobs.c.seq,
    sqlite_where=jobs.c.expires_at.is_not(None) & jobs.c.state.in_(["queued", "retry_wait"]),
    postgresql_where=jobs.c.expires_at.is_not(None) & jobs.c.state.in_(["queued", "retry_wait"]),
)  # fmt: skip
# Lists by state, by queue and by both: each change of state moves an entry, so one index serves all three (`reads.list_jobs`).
Index("ix_jobs_list", jobs.c.state, jobs.c.queue, jobs.c.seq)
Index(
    "ix_jobs_node", jobs.c.node_id, jobs.c.seq,
    sqlite_where=jobs.c.node_id.is_not(None), postgresql_where=jobs.c.node_id.is_not(None),
)  # fmt: skip

# The states of an array's jobs, and lists of them. Other jobs have no entry here.
Index(
    "ix_jobs_group", jobs.c.group_id, jobs.c.state, jobs.c.seq,
    sqlite_where=jobs.c.group_id.is_not(None), postgresql_where=jobs.c.group_id.is_not(None),
)  # fmt: skip

groups = Table(
    "groups",  # arrays; written once: how one stands is read from its jobs
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("count", Int, nullable=False),
    Column("submitted_at", Int, nullable=False),
    CheckConstraint("count > 0", name="count"),
    sqlite_strict=True,
)

specs = Table(
    "specs",  # the manifests as submitted, apart from `jobs`, whose rows change ten times in a job's life
    metadata,
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    sqlite_strict=True,
)

labels = Table(
    "labels",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_labels_job", "job_seq"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

inputs = Table(
    "inputs",  # uploaded blobs that jobs name: what a node that holds them may read
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_inputs_job", "job_seq"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("attempt", Int, primary_key=True, autoincrement=False),
    Column("node_id", Text, nullable=False),
    Column("boot_epoch", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("leased_at", Int, nullable=False),
    Column("acked_at", Int),
    Column("finished_at", Int),
    Column("failure_code", Text),
    Column("failure_message", Text),
    Column("exit_code", Int),
    Column("signal", Int),
    Column("usage", Text),
    Column("sandbox", Text),
    Column("pct", Real),
    Column("note", Text),
    Column("missing", Int),  # the node's renewal counter when its report first lacked this attempt; null while it has it
    Column("debug_at", Int),
    Column("workspace", Text),  # sha256 of the uploaded workspace
    _in("state", AttemptState),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
_live = attempts.c.state.in_(sorted(state.value for state in LIVE_ATTEMPT))
Index("ix_attempts_live", attempts.c.node_id, sqlite_where=_live, postgresql_where=_live)
_debug = attempts.c.debug_at.is_not(None) & attempts.c.workspace.is_(None)
Index("ix_attempts_debug", attempts.c.node_id, sqlite_where=_debug, postgresql_where=_debug)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_seq", Int, primary_key=True, autoincrement=False),
    Column("attempt", Int, primary_key=True, autoincrement=False),
    Column("path", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("size", Int, nullable=False),
    Column("sha256", Text, nullable=False),
    ForeignKeyConstraint(["job_seq", "attempt"], ["attempts.job_seq", "attempts.attempt"], ondelete="CASCADE"),
    CheckConstraint("size >= 0", name="size"),
    Index("ix_artifacts_sha256", "sha256"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

logs = Table(
    "logs",  # one stream of one attempt that came to its end whole
    metadata,
    Column("job_seq", Int, primary_key=True, autoincrement=False),
    Column("attempt", Int, primary_key=True, autoincrement=False),
    Column("stream", Text, primary_key=True),
    Column("length", Int, nullable=False),
    Column("sha256", Text, nullable=False),
    ForeignKeyConstraint(["job_seq", "attempt"], ["attempts.job_seq", "attempts.attempt"], ondelete="CASCADE"),
    CheckConstraint("stream IN ('stderr', 'stdout')", name="stream"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

log_chunks = Table(
    "log_chunks",  # the bytes; a table with rowids, because large blobs would swell the inner pages of one without
    metadata,
    Column("chunk_id", Int, primary_key=True),
    Column("job_seq", Int, nullable=False),
    Column("attempt", Int, nullable=False),
    Column("stream", Text, nullable=False),
    Column("start", Int, nullable=False),
    Column("size", Int, nullable=False),
    Column("data", LargeBinary, nullable=False),
    ForeignKeyConstraint(["job_seq", "attempt"], ["attempts.job_seq", "attempts.attempt"], ondelete="CASCADE"),
    CheckConstraint("stream IN ('stderr', 'stdout')", name="stream"),
    CheckConstraint("size = length(data) AND size > 0", name="size"),
    Index("ix_log_chunks_place", "job_seq", "attempt", "stream", "start", unique=True),
    sqlite_strict=True,
)

events = Table(
    "events",  # append-only: what happened to jobs and nodes, in the transaction that made it so
    metadata,
    Column("id", Int, primary_key=True),
    Column("at", Int, nullable=False),
    Column("kind", Text, nullable=False),
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE")),
    Column("attempt", Int),
    Column("node_id", Text),
    Column("message", Text),
    sqlite_strict=True,
    sqlite_autoincrement=True,  # ids are cursors of readers: never used twice, even after old events were deleted
)
Index(
    "ix_events_job", events.c.job_seq, sqlite_where=events.c.job_seq.is_not(None), postgresql_where=events.c.job_seq.is_not(None)
)
