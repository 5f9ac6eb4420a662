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
    text,
)
from sqlalchemy import Text as AnyText
from sqlalchemy.types import TypeEngine

from ostler.model.access import Role
from ostler.model.attempt import LIVE as LIVE_ATTEMPT
from ostler.model.attempt import AttemptState
from ostler.model.job import TERMINAL as TERMINAL_JOB
from ostler.model.job import JobState
from ostler.model.manifest import DEFAULT_POOL
from ostler.model.node import NodeState
from ostler.model.rollout.progress import IN_FLIGHT, Phase
from ostler.model.rollout.state import RolloutState

# The bits of `jobs.waits`: a job is leased only once none is set.
FOR_JOBS, UNTIL_TIME = 1, 2
SCHEMA = 4  # the newest that this release knows; each migration's revision is this number, four digits

JOB_NUMBERS = "ostler_job_numbers"  # the sequence of `jobs.seq`, where several coordinators share a database

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
# Bytes decide the order, as in SQLite: pages of names must not depend on the language of a server.
Text = AnyText().with_variant(AnyText(collation="C"), "postgresql")
Real: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


def listed(values: Iterable[StrEnum]) -> str:
    """Enum values as an SQL list, in the enum's spelling and a stable order."""
    return ", ".join(f"'{value.value}'" for value in sorted(values))


LIVE_SQL = listed(LIVE_ATTEMPT)  # for the partial index of live attempts: a query must repeat it word for word to use it
NOT_OVER_SQL = listed(frozenset(JobState) - TERMINAL_JOB)
IN_FLIGHT_SQL = listed(IN_FLIGHT)
LIVE_JOB_SQL = listed(frozenset(JobState) - TERMINAL_JOB - {JobState.QUEUED, JobState.RETRY_WAIT})  # a node has them
PENDING_SQL = listed((JobState.QUEUED, JobState.RETRY_WAIT))
# Word for word the conditions of two indexes over `jobs`. The runner stands in front in a row: each change of each job looks at it.
QUEUED_SQL = "state = 'queued' AND held = 0 AND waits = 0 AND runner <> 'service'"
COMMANDS_SQL = f"runner = 'service' AND state IN ({NOT_OVER_SQL})"


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
    Column("role", Text),  # of an API token
    Column("principal", Text),  # whose API token it is: jobs belong to a principal, so that tokens can be changed
    Column("pool", Text),  # of a join token: where its nodes belong
    CheckConstraint(f"role IN ({listed(Role)})", name="role"),
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
    Column("pool", Text, nullable=False, server_default=DEFAULT_POOL),
    Column("cordoned", Text),  # why a person wants no new work for it, empty where they did not say; null: nobody does
    Column("quarantine", Text),  # why the node trusts itself with no work, for as long as it says so
    Column("rollout_id", Text),  # the one rollout that may ask it for a release now
    Column("next_key", LargeBinary),  # takes the place of `public_key` with the first session that it opens
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

services = Table(
    "services",  # what each node declares, and how it found that when it last had news; null: it has not told yet
    metadata,
    Column("node_id", Text, ForeignKey("nodes.node_id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("told_at", Int),
    Column("body", Text),
    Index("ix_services_name", "name", "node_id"),
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
    Column("owner", Text),  # the principal that submitted it; null: before there were any
    Column("rank", Int, nullable=False, server_default="0"),  # the place in its queue: `placement.rank`
    Column("not_before", Int),
    Column("waits", Int, nullable=False, server_default="0"),  # FOR_JOBS, UNTIL_TIME
    Column("metered", Int, nullable=False, server_default="0"),  # its owner had a quota while it was not over
    # Of a command to a service alone: what it asks of which one, and the node that it is for; empty: whichever takes it.
    Column("service", Text),
    Column("verb", Text),
    Column("target", Text),
    _in("state", JobState),
    _flag("held"),
    CheckConstraint("tries >= 0 AND attempt >= tries", name="attempt"),
    sqlite_strict=True,
)
# The claim: the heads of a shape's queue, whatever stands behind them or is over. Commands are claimed apart from all others.
Index("ix_jobs_claim", jobs.c.shape_id, jobs.c.rank, jobs.c.seq, sqlite_where=text(QUEUED_SQL), postgresql_where=text(QUEUED_SQL))
# Commands that are not over: what waits for a node, and what a newer one to the same service takes the place of. Other jobs have no
# entry here.
Index(
    "ix_jobs_command", jobs.c.target, jobs.c.service, jobs.c.seq,
    sqlite_where=text(COMMANDS_SQL), postgresql_where=text(COMMANDS_SQL),
)  # fmt: skip
Index(
    "ix_jobs_not_before", jobs.c.not_before, jobs.c.seq,
    sqlite_where=jobs.c.waits >= 2, postgresql_where=jobs.c.waits >= 2,
)  # fmt: skip
Index("ix_jobs_waiting", jobs.c.seq, sqlite_where=jobs.c.waits > 0, postgresql_where=jobs.c.waits > 0)
# What waits and runs of those who have a quota. Other jobs have no entry here.
Index(
    "ix_jobs_metered", jobs.c.owner, jobs.c.state, jobs.c.metered,  # counted in the index alone
    sqlite_where=jobs.c.metered == 1, postgresql_where=jobs.c.metered == 1,
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
# Lists by state, owner and queue in any combination: each change of state moves an entry, so one index serves all (`listing`).
Index("ix_jobs_list", jobs.c.state, jobs.c.owner, jobs.c.queue, jobs.c.seq)
Index(
    "ix_jobs_node", jobs.c.node_id, jobs.c.seq,
    sqlite_where=jobs.c.node_id.is_not(None), postgresql_where=jobs.c.node_id.is_not(None),
)  # fmt: skip

# The states of an array's jobs, and lists of them. Other jobs have no entry here.
Index(
    "ix_jobs_group", jobs.c.group_id, jobs.c.state, jobs.c.seq,
    sqlite_where=jobs.c.group_id.is_not(None), postgresql_where=jobs.c.group_id.is_not(None),
)  # fmt: skip

dependencies = Table(
    "dependencies",  # which job waits for which; whether it still does is read from the state of the one waited for
    metadata,
    Column("on_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("until", Text, nullable=False),  # `success`, or `done` for any end
    Column("otherwise", Text, nullable=False),  # what becomes of the job where success cannot come any more
    CheckConstraint("until IN ('done', 'success')", name="until"),
    CheckConstraint("otherwise IN ('cancel', 'hold')", name="otherwise"),
    Index("ix_dependencies_job", "job_seq"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

handed = Table(
    "handed",  # artifacts of other jobs that are inputs; what they are is known once the wait is over
    metadata,
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("on_seq", Int, nullable=False),  # no foreign key: that the other job was deleted must not be overlooked
    Column("path", Text, nullable=False),
    Column("sha256", Text),
    Column("size", Int),
    Index("ix_handed_sha256", "sha256"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

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

uploads = Table(
    "uploads",  # who uploaded which blob: what a submitter may name as an input, and how old unused bytes are
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("uploaded_at", Int, nullable=False),
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
    # The node's renewal counter when its report first lacked this attempt; less than nothing: the number of the pull that acknowledged it
    # and was to bring it, until the node names it; null while it has it.
    Column("missing", Int),
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
_workspace = attempts.c.workspace.is_not(None)
Index("ix_attempts_workspace", attempts.c.workspace, sqlite_where=_workspace, postgresql_where=_workspace)

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

contents = Table(
    "contents",  # small artifacts, which came inside an outcome; with rowids for the same reason as log_chunks
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("stored_at", Int, nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_strict=True,
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

removed = Table(
    "removed",  # what retention took of a job that is still on record, so that whoever asks for it is told
    metadata,
    Column("job_seq", Int, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("part", Text, primary_key=True),
    Column("at", Int, nullable=False),
    Column("why", Text, nullable=False),
    CheckConstraint("part IN ('artifacts', 'logs')", name="part"),
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

idempotency = Table(
    "idempotency",  # submissions that bore a key, so that the same call again gets the same answer
    metadata,
    Column("principal", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),  # sha256 of the body
    Column("created_at", Int, nullable=False),
    Column("answer", Text, nullable=False),
    Index("ix_idempotency_created", "created_at"),
    sqlite_strict=True,
)

secrets = Table(
    "secrets",
    metadata,
    Column("owner", Text, primary_key=True),  # a principal, or empty for what roles and pools share
    Column("name", Text, primary_key=True),
    Column("roles", Text, nullable=False),  # of a shared one: whose jobs may name it
    Column("pools", Text, nullable=False),  # where such jobs may run; an empty list is everywhere
    Column("version", Int, nullable=False),
    Column("created_at", Int, nullable=False),
    Column("updated_at", Int, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # AES-256-GCM under the coordinator's key for secrets
    sqlite_strict=True,
)

webhooks = Table(
    "webhooks",  # who is told of events; `cursor` is the outbox: what stands behind it is still to be delivered
    metadata,
    Column("webhook_id", Text, primary_key=True),
    Column("owner", Text),  # whose jobs' events; null: all events
    Column("url", Text, nullable=False),
    Column("kinds", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # the secret that signs deliveries, as in `secrets`
    Column("cursor", Int, nullable=False),
    Column("created_at", Int, nullable=False),
    Column("failures", Int, nullable=False),  # in a row
    Column("failing_since", Int),
    Column("due_at", Int),  # of the next try
    Column("error", Text),  # of the latest one
    Column("disabled_at", Int),
    sqlite_strict=True,
)

audit = Table(
    "audit",  # append-only: what principals did to what, from where
    metadata,
    Column("id", Int, primary_key=True),
    Column("at", Int, nullable=False),
    Column("principal", Text),
    Column("token_id", Text),
    Column("role", Text),
    Column("action", Text, nullable=False),
    Column("target", Text),
    Column("status", Int, nullable=False),
    Column("peer", Text),
    Column("request_id", Text),
    Column("detail", Text),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

seals = Table(
    "seals",  # of batches of the audit log: each digest is over the batch and the digest before it
    metadata,
    Column("last_id", Int, primary_key=True, autoincrement=False),
    Column("first_id", Int, nullable=False),
    Column("at", Int, nullable=False),
    Column("leaves", LargeBinary, nullable=False),  # the id and the hash of each row, so that one that was changed can be named
    Column("digest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_strict=True,
)

audit_cuts = Table(
    "audit_cuts",  # the one row says up to where rows were removed for their age, signed; their seals stay
    metadata,
    Column("last_id", Int, primary_key=True, autoincrement=False),
    Column("at", Int, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_strict=True,
)

quotas = Table(
    "quotas",  # limits of principals; null: none. Use counts by calendar month, UTC
    metadata,
    Column("principal", Text, primary_key=True),
    Column("queued", Int),
    Column("running", Int),
    Column("cpu_us", Int),  # microseconds of a processor thread
    Column("gpu_us", Int),
    Column("money", Int),  # in billionths of the currency
    sqlite_strict=True,
)

prices = Table(
    "prices",  # of an hour, by pool, as the configuration has them
    metadata,
    Column("pool", Text, primary_key=True),
    Column("cpu_hour", Int, nullable=False),
    Column("gpu_hour", Int, nullable=False),
    sqlite_strict=True,
)

usage = Table(
    "usage",  # a ledger: what attempts that are over used, by principal and day; it outlives the jobs themselves
    metadata,
    Column("principal", Text, primary_key=True),
    Column("day", Int, primary_key=True, autoincrement=False),  # days since 1970, UTC
    Column("cpu_us", Int, nullable=False),
    Column("gpu_us", Int, nullable=False),
    Column("money", Int, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

releases = Table(
    "releases",  # what hosts can be asked to run; the bundle stands in the artifact store under `sha256`
    metadata,
    Column("release", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("size", Int, nullable=False),
    Column("facts", Text, nullable=False),  # what its manifest says
    Column("pushed_at", Int, nullable=False),
    Column("pushed_by", Text),
    Index("ix_releases_sha256", "sha256"),
    sqlite_strict=True,
)

release_keys = Table(
    "release_keys",  # whose signatures are believed: one set, of the newest generation
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("public", LargeBinary, nullable=False),
    Column("generation", Int, nullable=False),
    sqlite_strict=True,
)

rollouts = Table(
    "rollouts",  # releases onto nodes that call in
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("release", Text, nullable=False),
    Column("plan", Text, nullable=False),  # what was asked for
    Column("revision", Int, nullable=False),  # grows with each decision about it
    Column("reason", Text),
    Column("created_at", Int, nullable=False),
    Column("created_by", Text),
    Column("started_at", Int),
    Column("finished_at", Int),
    _in("state", RolloutState),
    Index("ix_rollouts_created", "created_at", "rollout_id"),
    sqlite_strict=True,
)

rollout_hosts = Table(
    "rollout_hosts",
    metadata,
    Column("rollout_id", Text, ForeignKey("rollouts.rollout_id", ondelete="CASCADE"), primary_key=True),
    Column("node_id", Text, primary_key=True),
    Column("place", Int, nullable=False),  # in the plan's order
    Column("phase", Text, nullable=False),
    Column("fate", Text, nullable=False),  # where it ends once it has nothing more to do
    Column("reason", Text),
    Column("excluded", Text),  # why the plan leaves it alone
    Column("window_s", Real, nullable=False),  # for how long the release must be good there
    Column("began_at", Int),
    Column("since", Int),
    Column("job_id", Text),  # its canary job
    Column("report", Text),  # what the node said last
    _in("phase", Phase),
    sqlite_strict=True,
)
Index(
    "ix_rollout_hosts_flight",
    rollout_hosts.c.phase,
    sqlite_where=text(f"phase IN ({IN_FLIGHT_SQL})"),
    postgresql_where=text(f"phase IN ({IN_FLIGHT_SQL})"),
)
