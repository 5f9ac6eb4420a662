"""Schema 4: small artifacts stand in the database; releases and whom to believe about them; services of nodes, and commands to them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUEUED = "state = 'queued' AND held = 0 AND waits = 0 AND service IS NULL"
COMMANDS = "service IS NOT NULL AND state IN ('acked', 'leased', 'preparing', 'queued', 'retry_wait', 'running', 'uploading')"


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
