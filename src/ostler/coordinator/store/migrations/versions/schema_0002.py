"""Schema 2: arrays. A group is one row; its jobs name it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The table of groups, and the column and index by which jobs belong to one."""
    op.create_table(
        "groups",
        sa.Column("group_id", Text, nullable=False),
        sa.Column("count", Int, nullable=False),
        sa.Column("submitted_at", Int, nullable=False),
        sa.CheckConstraint("count > 0", name=op.f("ck_groups_count")),
        sa.PrimaryKeyConstraint("group_id", name=op.f("pk_groups")),
        sqlite_strict=True,
    )
    op.add_column("jobs", sa.Column("group_id", Text, nullable=True))
    op.create_index(
        "ix_jobs_group",
        "jobs",
        ["group_id", "state", "seq"],
        unique=False,
        sqlite_where=sa.text("group_id IS NOT NULL"),
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )
