"""Schema 4: small artifacts stand in the database, since they come inside an outcome; releases and whom to believe about them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """New tables; what was delivered before stays in files."""
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
