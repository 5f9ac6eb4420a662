"""Schema 1, the first that was released. A migration never changes: it does not follow `store.schema`, a later one does."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Real: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    """All tables."""
    op.create_table(
        "counters",
        sa.Column("name", Text, nullable=False),
        sa.Column("next", Int, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
        sqlite_strict=True,
    )
    op.create_table(
        "meta",
        sa.Column("key", Text, nullable=False),
        sa.Column("value", Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
        sqlite_strict=True,
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", Text, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("token_id", Text, nullable=True),
        sa.Column("state", Text, nullable=False),
        sa.Column("reason", Text, nullable=True),
        sa.Column("changed_at", Int, nullable=True),
        sa.Column("version", Text, nullable=False),
        sa.Column("protocol", Int, nullable=False),
        sa.Column("boot_epoch", Text, nullable=False),
        sa.Column("joined_at", Int, nullable=False),
        sa.Column("last_seen_at", Int, nullable=True),
        sa.Column("renewals", Int, nullable=False),
        sa.Column("offer", Int, nullable=False),
        sa.Column("cpu_slots", Int, nullable=False),
        sa.Column("gpu_slots", Int, nullable=False),
        sa.Column("load", Real, nullable=False),
        sa.Column("free_mb", Int, nullable=False),
        sa.Column("gpu_free", Int, nullable=False),
        sa.Column("disk_free_mb", Int, nullable=True),
        sa.Column("health", Text, nullable=False),
        sa.Column("draining", Int, nullable=False),
        sa.Column("drain_s", Real, nullable=True),
        sa.Column("resume", Int, nullable=False),
        sa.CheckConstraint(
            "state IN ('drained', 'draining', 'joining', 'lost', 'ready', 'retired', 'unknown')", name=op.f("ck_nodes_state")
        ),
        sa.CheckConstraint("draining IN (0, 1)", name=op.f("ck_nodes_draining")),
        sa.CheckConstraint("resume IN (0, 1)", name=op.f("ck_nodes_resume")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
        sqlite_strict=True,
    )
    op.create_table(
        "shapes",
        sa.Column("shape_id", Int, autoincrement=False, nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.PrimaryKeyConstraint("shape_id", name=op.f("pk_shapes")),
        sqlite_strict=True,
    )
    op.create_table(
        "tokens",
        sa.Column("token_id", Text, nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Int, nullable=False),
        sa.Column("expires_at", Int, nullable=True),
        sa.Column("uses_left", Int, nullable=True),
        sa.Column("revoked_at", Int, nullable=True),
        sa.Column("note", Text, nullable=True),
        sa.CheckConstraint("kind IN ('api', 'join')", name=op.f("ck_tokens_kind")),
        sa.CheckConstraint("uses_left >= 0", name=op.f("ck_tokens_uses_left")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_tokens_digest")),
        sqlite_strict=True,
    )
    op.create_index("ix_tokens_created", "tokens", ["created_at", "token_id"], unique=False)
    op.create_table(
        "capabilities",
        sa.Column("node_id", Text, nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_capabilities_node_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_capabilities")),
        sqlite_strict=True,
    )
    op.create_table(
        "jobs",
        sa.Column("seq", Int, autoincrement=False, nullable=False),
        sa.Column("job_id", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("shape_id", Int, nullable=False),
        sa.Column("priority", Int, nullable=False),
        sa.Column("queue", Text, nullable=False),
        sa.Column("runner", Text, nullable=False),
        sa.Column("title", Text, nullable=False),
        sa.Column("labels", Text, nullable=False),
        sa.Column("retry", Text, nullable=True),
        sa.Column("retry_of", Text, nullable=True),
        sa.Column("submitted_at", Int, nullable=False),
        sa.Column("attempt", Int, nullable=False),
        sa.Column("tries", Int, nullable=False),
        sa.Column("node_id", Text, nullable=True),
        sa.Column("held", Int, nullable=False),
        sa.Column("due_at", Int, nullable=True),
        sa.Column("expires_at", Int, nullable=True),
        sa.Column("finished_at", Int, nullable=True),
        sa.Column("failure_code", Text, nullable=True),
        sa.Column("failure_message", Text, nullable=True),
        sa.Column("cancel_at", Int, nullable=True),
        sa.Column("cancel_reason", Text, nullable=True),
        sa.CheckConstraint(
            "state IN ('acked', 'cancelled', 'done', 'expired', 'failed', 'leased', 'preparing', 'queued', 'retry_wait', "
            "'running', 'uploading')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("held IN (0, 1)", name=op.f("ck_jobs_held")),
        sa.CheckConstraint("tries >= 0 AND attempt >= tries", name=op.f("ck_jobs_attempt")),
        sa.ForeignKeyConstraint(["shape_id"], ["shapes.shape_id"], name=op.f("fk_jobs_shape_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_jobs_job_id")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["shape_id", sa.literal_column("priority DESC"), "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'queued' AND held = 0"),
        postgresql_where=sa.text("state = 'queued' AND held = 0"),
    )
    op.create_index(
        "ix_jobs_due",
        "jobs",
        ["due_at", "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'retry_wait'"),
        postgresql_where=sa.text("state = 'retry_wait'"),
    )
    op.create_index(
        "ix_jobs_expires",
        "jobs",
        ["expires_at", "seq"],
        unique=False,
        sqlite_where=sa.text("expires_at IS NOT NULL AND state IN ('queued', 'retry_wait')"),
        postgresql_where=sa.text("expires_at IS NOT NULL AND state IN ('queued', 'retry_wait')"),
    )
    op.create_index("ix_jobs_list", "jobs", ["state", "queue", "seq"], unique=False)
    op.create_index(
        "ix_jobs_node",
        "jobs",
        ["node_id", "seq"],
        unique=False,
        sqlite_where=sa.text("node_id IS NOT NULL"),
        postgresql_where=sa.text("node_id IS NOT NULL"),
    )
    op.create_table(
        "sessions",
        sa.Column("node_id", Text, nullable=False),
        sa.Column("boot_epoch", Text, nullable=False),
        sa.Column("opened_at", Int, nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_sessions_node_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node_id", "boot_epoch", name=op.f("pk_sessions")),
        sqlite_strict=True,
    )
    op.create_table(
        "attempts",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("attempt", Int, autoincrement=False, nullable=False),
        sa.Column("node_id", Text, nullable=False),
        sa.Column("boot_epoch", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("leased_at", Int, nullable=False),
        sa.Column("acked_at", Int, nullable=True),
        sa.Column("finished_at", Int, nullable=True),
        sa.Column("failure_code", Text, nullable=True),
        sa.Column("failure_message", Text, nullable=True),
        sa.Column("exit_code", Int, nullable=True),
        sa.Column("signal", Int, nullable=True),
        sa.Column("usage", Text, nullable=True),
        sa.Column("sandbox", Text, nullable=True),
        sa.Column("pct", Real, nullable=True),
        sa.Column("note", Text, nullable=True),
        sa.Column("missing", Int, nullable=True),
        sa.Column("debug_at", Int, nullable=True),
        sa.Column("workspace", Text, nullable=True),
        sa.CheckConstraint(
            "state IN ('acked', 'cancelled', 'done', 'failed', 'leased', 'preparing', 'returned', 'running', 'uploading')",
            name=op.f("ck_attempts_state"),
        ),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_attempts_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_seq", "attempt", name=op.f("pk_attempts")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_attempts_debug",
        "attempts",
        ["node_id"],
        unique=False,
        sqlite_where=sa.text("debug_at IS NOT NULL AND workspace IS NULL"),
        postgresql_where=sa.text("debug_at IS NOT NULL AND workspace IS NULL"),
    )
    op.create_index(
        "ix_attempts_live",
        "attempts",
        ["node_id"],
        unique=False,
        sqlite_where=sa.text("state IN ('acked', 'leased', 'preparing', 'running', 'uploading')"),
        postgresql_where=sa.text("state IN ('acked', 'leased', 'preparing', 'running', 'uploading')"),
    )
    op.create_table(
        "events",
        sa.Column("id", Int, nullable=False),
        sa.Column("at", Int, nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("job_seq", Int, nullable=True),
        sa.Column("attempt", Int, nullable=True),
        sa.Column("node_id", Text, nullable=True),
        sa.Column("message", Text, nullable=True),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_events_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_index(
        "ix_events_job",
        "events",
        ["job_seq"],
        unique=False,
        sqlite_where=sa.text("job_seq IS NOT NULL"),
        postgresql_where=sa.text("job_seq IS NOT NULL"),
    )
    op.create_table(
        "inputs",
        sa.Column("sha256", Text, nullable=False),
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_inputs_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", "job_seq", name=op.f("pk_inputs")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_inputs_job", "inputs", ["job_seq"], unique=False)
    op.create_table(
        "labels",
        sa.Column("key", Text, nullable=False),
        sa.Column("value", Text, nullable=False),
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_labels_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "value", "job_seq", name=op.f("pk_labels")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_labels_job", "labels", ["job_seq"], unique=False)
    op.create_table(
        "specs",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_specs_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_seq", name=op.f("pk_specs")),
        sqlite_strict=True,
    )
    op.create_table(
        "artifacts",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("attempt", Int, autoincrement=False, nullable=False),
        sa.Column("path", Text, nullable=False),
        sa.Column("type", Text, nullable=False),
        sa.Column("size", Int, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_artifacts_size")),
        sa.ForeignKeyConstraint(
            ["job_seq", "attempt"],
            ["attempts.job_seq", "attempts.attempt"],
            name=op.f("fk_artifacts_job_seq_attempt"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_seq", "attempt", "path", name=op.f("pk_artifacts")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"], unique=False)
    op.create_table(
        "log_chunks",
        sa.Column("chunk_id", Int, nullable=False),
        sa.Column("job_seq", Int, nullable=False),
        sa.Column("attempt", Int, nullable=False),
        sa.Column("stream", Text, nullable=False),
        sa.Column("start", Int, nullable=False),
        sa.Column("size", Int, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("stream IN ('stderr', 'stdout')", name=op.f("ck_log_chunks_stream")),
        sa.CheckConstraint("size = length(data) AND size > 0", name=op.f("ck_log_chunks_size")),
        sa.ForeignKeyConstraint(
            ["job_seq", "attempt"],
            ["attempts.job_seq", "attempts.attempt"],
            name=op.f("fk_log_chunks_job_seq_attempt"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("chunk_id", name=op.f("pk_log_chunks")),
        sqlite_strict=True,
    )
    op.create_index("ix_log_chunks_place", "log_chunks", ["job_seq", "attempt", "stream", "start"], unique=True)
    op.create_table(
        "logs",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("attempt", Int, autoincrement=False, nullable=False),
        sa.Column("stream", Text, nullable=False),
        sa.Column("length", Int, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.CheckConstraint("stream IN ('stderr', 'stdout')", name=op.f("ck_logs_stream")),
        sa.ForeignKeyConstraint(
            ["job_seq", "attempt"],
            ["attempts.job_seq", "attempts.attempt"],
            name=op.f("fk_logs_job_seq_attempt"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_seq", "attempt", "stream", name=op.f("pk_logs")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
