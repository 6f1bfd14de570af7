"""Decisions, what each model did for them, the replicas' time, and what was lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("tenant", sa.String(256), nullable=False),
        sa.Column("key_id", sa.String(64)),
        sa.Column("key_name", sa.String(256)),
        sa.Column("endpoint", sa.String(32), nullable=False),
        sa.Column("asked_model", sa.String(256), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("role", sa.String(64)),
        sa.Column("rule", sa.String(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", sa.String(64)),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.String(64)),
        sa.Column("confidence", sa.Double),
        sa.Column("verified", sa.Boolean),
        sa.Column("precision_compute", sa.String(64)),
        sa.Column("precision_kv", sa.String(64)),
        sa.Column("sampling", sa.String(32)),
        sa.Column("ttft_s", sa.Double),
        sa.Column("total_s", sa.Double, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("engine_seconds", sa.Double, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("signals", sa.JSON, nullable=False),
        sa.Column("trail", sa.JSON, nullable=False),
    )
    op.create_index("decisions_by_time", "decisions", ["at"])
    op.create_index("decisions_by_request", "decisions", ["request_id"])
    op.create_index("decisions_by_trace", "decisions", ["trace_id"])
    op.create_table(
        "model_costs",
        sa.Column("decision_id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("engine_seconds", sa.Double, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
    )
    op.create_index("model_costs_by_time", "model_costs", ["at"])
    op.create_table(
        "replica_seconds",
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("ingress", sa.String(64), primary_key=True),
        sa.Column("busy_s", sa.Double, nullable=False),
        sa.Column("idle_s", sa.Double, nullable=False),
    )
    op.create_table(
        "losses",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("ingress", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("records", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Remove them, with all that they hold."""
    for table in ("losses", "replica_seconds", "model_costs", "decisions"):
        op.drop_table(table)
