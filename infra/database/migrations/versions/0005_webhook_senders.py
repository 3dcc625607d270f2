"""Webhooks: sealed secrets of senders, and receipts that tell a repeat from another message.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("sender", sa.String(100), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("sender", "slot", name="pk_webhook_secrets"),
    )
    op.add_column("webhook_receipts", sa.Column("digest", sa.String(64)))
    op.add_column("webhook_receipts", sa.Column("batch", sa.String(64)))
    op.create_index("ix_webhook_receipts_state_received", "webhook_receipts", ["state", "received"])
    op.create_index("ix_webhook_receipts_batch", "webhook_receipts", ["batch"])
