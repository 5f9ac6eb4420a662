"""Schema 4: small artifacts stand in the database; releases and whom to believe about them; services of nodes, and commands to them;
rollouts; keys that are to replace those of nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Real: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUEUED = "state = 'queued' AND held = 0 AND waits = 0 AND runner <> 'service'"
COMMANDS = "runner = 'service' AND state IN ('acked', 'leased', 'preparing', 'queued', 'retry_wait', 'running', 'uploading')"

PHASES = (
    "'confirming', 'current', 'excluded', 'failed', 'gating', 'going_back', 'held', 'locking', 'planned', 'switching', 'unhealthy', "
    "'unlocking', 'unreachable', 'updated', 'uploading'"
)
FLIGHT = "phase IN ('confirming', 'gating', 'going_back', 'locking', 'switching', 'unlocking', 'uploading')"


def upgrade() -> None:
    """New tables, and columns that no job of before has; what was delivered before stays in files."""
    op.create_table(
        "contents",
        sa.Column("sha256", Text, nullable=False),
        sa.Column("stored_at", Int, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_contents")),
        sqlite_strict=True,
    )
    op.create_table(
        "releases",
        sa.Column("release", Text, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.Column("size", Int, nullable=False),
        sa.Column("facts", Text, nullable=False),
        sa.Column("pushed_at", Int, nullable=False),
        sa.Column("pushed_by", Text, nullable=True),
        sa.PrimaryKeyConstraint("release", name=op.f("pk_releases")),
        sqlite_strict=True,
    )
    op.create_index("ix_releases_sha256", "releases", ["sha256"], unique=False)
    op.create_table(
        "release_keys",
        sa.Column("key_id", Text, nullable=False),
        sa.Column("public", sa.LargeBinary(), nullable=False),
        sa.Column("generation", Int, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_release_keys")),
        sqlite_strict=True,
    )
    op.create_table(
        "services",
        sa.Column("node_id", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("told_at", Int, nullable=True),
        sa.Column("body", Text, nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_services_node_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node_id", "name", name=op.f("pk_services")),
        sqlite_strict=True,
    )
    op.create_index("ix_services_name", "services", ["name", "node_id"])
    for name in ("service", "verb", "target"):
        op.add_column("jobs", sa.Column(name, Text, nullable=True))
    op.drop_index("ix_jobs_claim", "jobs")
    for name, columns, where in (
        ("ix_jobs_claim", ["shape_id", "rank", "seq"], QUEUED),
        ("ix_jobs_command", ["target", "service", "seq"], COMMANDS),
    ):
        op.create_index(name, "jobs", columns, unique=False, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.add_column("nodes", sa.Column("rollout_id", Text, nullable=True))
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("release", Text, nullable=False),
        sa.Column("plan", Text, nullable=False),
        sa.Column("revision", Int, nullable=False),
        sa.Column("reason", Text, nullable=True),
        sa.Column("created_at", Int, nullable=False),
        sa.Column("created_by", Text, nullable=True),
        sa.Column("started_at", Int, nullable=True),
        sa.Column("finished_at", Int, nullable=True),
        sa.CheckConstraint(
            "state IN ('aborted', 'done', 'failed', 'held', 'planned', 'running')", name=op.f("ck_rollouts_state")
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("pk_rollouts")),
        sqlite_strict=True,
    )
    op.create_index("ix_rollouts_created", "rollouts", ["created_at", "rollout_id"], unique=False)
    op.create_table(
        "rollout_hosts",
        sa.Column("rollout_id", Text, nullable=False),
        sa.Column("node_id", Text, nullable=False),
        sa.Column("place", Int, nullable=False),
        sa.Column("phase", Text, nullable=False),
        sa.Column("fate", Text, nullable=False),
        sa.Column("reason", Text, nullable=True),
        sa.Column("excluded", Text, nullable=True),
        sa.Column("window_s", Real, nullable=False),
        sa.Column("began_at", Int, nullable=True),
        sa.Column("since", Int, nullable=True),
        sa.Column("job_id", Text, nullable=True),
        sa.Column("report", Text, nullable=True),
        sa.CheckConstraint(f"phase IN ({PHASES})", name=op.f("ck_rollout_hosts_phase")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.rollout_id"], name=op.f("fk_rollout_hosts_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "node_id", name=op.f("pk_rollout_hosts")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_rollout_hosts_flight", "rollout_hosts", ["phase"], unique=False, sqlite_where=sa.text(FLIGHT),
        postgresql_where=sa.text(FLIGHT),
    )  # fmt: skip
    op.add_column("nodes", sa.Column("next_key", sa.LargeBinary(), nullable=True))
