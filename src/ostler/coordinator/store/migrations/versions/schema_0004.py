"""Schema 4: small artifacts stand in the database, since they come inside an outcome."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """One new table; what was delivered before stays in files."""
    op.create_table(
        "contents",
        sa.Column("sha256", Text, nullable=False),
        sa.Column("stored_at", Int, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_contents")),
        sqlite_strict=True,
    )
