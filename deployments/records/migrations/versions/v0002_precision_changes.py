"""Changes on the precision ladders of replicas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "precision_changes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("replica", sa.String(256), nullable=False),
        sa.Column("cause", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("level_before", sa.Integer, nullable=False),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("level_name", sa.String(64), nullable=False),
        sa.Column("kv_before", sa.String(64), nullable=False),
        sa.Column("kv_after", sa.String(64), nullable=False),
        sa.Column("pause_s", sa.Double, nullable=False),
        sa.Column("preempted", sa.Integer, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("blocks_before", sa.BigInteger, nullable=False),
        sa.Column("blocks_after", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_index("precision_changes_by_time", "precision_changes", ["at"])


def downgrade() -> None:
    """Remove it, with all that it holds."""
    op.drop_table("precision_changes")
