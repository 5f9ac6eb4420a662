"""Schema 3: many people. Jobs have owners, ranks and jobs that they wait for; secrets, webhooks, audit, quotas and pools come in."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Real: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

AGEING_US = 60_000_000  # as `placement.rank` had it when this schema was new


def upgrade() -> None:
    """New columns first, what follows from them, then the new tables."""
    _tokens_and_nodes()
    _jobs()
    _dependencies()
    _people()
    _records()
    _retention()


def _tokens_and_nodes() -> None:
    op.execute(
        "ALTER TABLE tokens ADD COLUMN role TEXT CONSTRAINT ck_tokens_role "
        "CHECK (role IN ('admin', 'operator', 'submitter', 'viewer'))"
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("tokens", "role", type_=Text)
    op.add_column("tokens", sa.Column("principal", Text, nullable=True))
    op.add_column("tokens", sa.Column("pool", Text, nullable=True))
    op.execute("UPDATE tokens SET role = 'admin', principal = 'admin' WHERE kind = 'api'")
    op.add_column("nodes", sa.Column("pool", Text, server_default="default", nullable=False))
    op.add_column("nodes", sa.Column("cordoned", Text, nullable=True))
    op.add_column("nodes", sa.Column("quarantine", Text, nullable=True))


def _jobs() -> None:
    op.drop_index("ix_jobs_claim", "jobs")
    op.add_column("jobs", sa.Column("owner", Text, nullable=True))
    op.add_column("jobs", sa.Column("rank", Int, server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("not_before", Int, nullable=True))
    op.add_column("jobs", sa.Column("waits", Int, server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("metered", Int, server_default="0", nullable=False))
    op.execute(f"UPDATE jobs SET owner = 'admin', rank = submitted_at - priority * {AGEING_US}")  # noqa: S608 - a number of ours
    for name, columns, where in (
        ("ix_jobs_claim", ["shape_id", "rank", "seq"], "state = 'queued' AND held = 0 AND waits = 0"),
        ("ix_jobs_not_before", ["not_before", "seq"], "waits >= 2"),
        ("ix_jobs_waiting", ["seq"], "waits > 0"),
        ("ix_jobs_metered", ["owner", "state", "metered"], "metered = 1"),
    ):
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.drop_index("ix_jobs_list", "jobs")
    op.create_index("ix_jobs_list", "jobs", ["state", "owner", "queue", "seq"])


def _dependencies() -> None:
    op.create_table(
        "dependencies",
        sa.Column("on_seq", Int, autoincrement=False, nullable=False),
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("until", Text, nullable=False),
        sa.Column("otherwise", Text, nullable=False),
        sa.CheckConstraint("until IN ('done', 'success')", name=op.f("ck_dependencies_until")),
        sa.CheckConstraint("otherwise IN ('cancel', 'hold')", name=op.f("ck_dependencies_otherwise")),
        sa.ForeignKeyConstraint(["on_seq"], ["jobs.seq"], name=op.f("fk_dependencies_on_seq"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_dependencies_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("on_seq", "job_seq", name=op.f("pk_dependencies")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_dependencies_job", "dependencies", ["job_seq"])
    op.create_table(
        "handed",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("on_seq", Int, nullable=False),
        sa.Column("path", Text, nullable=False),
        sa.Column("sha256", Text, nullable=True),
        sa.Column("size", Int, nullable=True),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_handed_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_seq", "name", name=op.f("pk_handed")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_handed_sha256", "handed", ["sha256"])


def _people() -> None:
    op.create_table(
        "uploads",
        sa.Column("sha256", Text, nullable=False),
        sa.Column("owner", Text, nullable=False),
        sa.Column("uploaded_at", Int, nullable=False),
        sa.PrimaryKeyConstraint("sha256", "owner", name=op.f("pk_uploads")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("principal", Text, nullable=False),
        sa.Column("key", Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Int, nullable=False),
        sa.Column("answer", Text, nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency")),
        sqlite_strict=True,
    )
    op.create_index("ix_idempotency_created", "idempotency", ["created_at"])
    op.create_table(
        "secrets",
        sa.Column("owner", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("roles", Text, nullable=False),
        sa.Column("pools", Text, nullable=False),
        sa.Column("version", Int, nullable=False),
        sa.Column("created_at", Int, nullable=False),
        sa.Column("updated_at", Int, nullable=False),
        sa.Column("updated_by", Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "name", name=op.f("pk_secrets")),
        sqlite_strict=True,
    )
    op.create_table(
        "quotas",
        sa.Column("principal", Text, nullable=False),
        sa.Column("queued", Int, nullable=True),
        sa.Column("running", Int, nullable=True),
        sa.Column("cpu_us", Int, nullable=True),
        sa.Column("gpu_us", Int, nullable=True),
        sa.Column("money", Int, nullable=True),
        sa.PrimaryKeyConstraint("principal", name=op.f("pk_quotas")),
        sqlite_strict=True,
    )
    op.create_table(
        "prices",
        sa.Column("pool", Text, nullable=False),
        sa.Column("cpu_hour", Int, nullable=False),
        sa.Column("gpu_hour", Int, nullable=False),
        sa.PrimaryKeyConstraint("pool", name=op.f("pk_prices")),
        sqlite_strict=True,
    )
    op.create_table(
        "usage",
        sa.Column("principal", Text, nullable=False),
        sa.Column("day", Int, autoincrement=False, nullable=False),
        sa.Column("cpu_us", Int, nullable=False),
        sa.Column("gpu_us", Int, nullable=False),
        sa.Column("money", Int, nullable=False),
        sa.PrimaryKeyConstraint("principal", "day", name=op.f("pk_usage")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _retention() -> None:
    where = sa.text("workspace IS NOT NULL")
    op.create_index("ix_attempts_workspace", "attempts", ["workspace"], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "removed",
        sa.Column("job_seq", Int, autoincrement=False, nullable=False),
        sa.Column("part", Text, nullable=False),
        sa.Column("at", Int, nullable=False),
        sa.Column("why", Text, nullable=False),
        sa.CheckConstraint("part IN ('artifacts', 'logs')", name=op.f("ck_removed_part")),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_removed_job_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_seq", "part", name=op.f("pk_removed")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _records() -> None:
    op.create_table(
        "webhooks",
        sa.Column("webhook_id", Text, nullable=False),
        sa.Column("owner", Text, nullable=True),
        sa.Column("url", Text, nullable=False),
        sa.Column("kinds", Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("cursor", Int, nullable=False),
        sa.Column("created_at", Int, nullable=False),
        sa.Column("failures", Int, nullable=False),
        sa.Column("failing_since", Int, nullable=True),
        sa.Column("due_at", Int, nullable=True),
        sa.Column("error", Text, nullable=True),
        sa.Column("disabled_at", Int, nullable=True),
        sa.PrimaryKeyConstraint("webhook_id", name=op.f("pk_webhooks")),
        sqlite_strict=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", Int, nullable=False),
        sa.Column("at", Int, nullable=False),
        sa.Column("principal", Text, nullable=True),
        sa.Column("token_id", Text, nullable=True),
        sa.Column("role", Text, nullable=True),
        sa.Column("action", Text, nullable=False),
        sa.Column("target", Text, nullable=True),
        sa.Column("status", Int, nullable=False),
        sa.Column("peer", Text, nullable=True),
        sa.Column("request_id", Text, nullable=True),
        sa.Column("detail", Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )
    op.create_table(
        "seals",
        sa.Column("last_id", Int, autoincrement=False, nullable=False),
        sa.Column("first_id", Int, nullable=False),
        sa.Column("at", Int, nullable=False),
        sa.Column("leaves", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("last_id", name=op.f("pk_seals")),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_cuts",
        sa.Column("last_id", Int, autoincrement=False, nullable=False),
        sa.Column("at", Int, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("last_id", name=op.f("pk_audit_cuts")),
        sqlite_strict=True,
    )
