"""API keys have limits: calls and tokens in a minute, and a time at which they end.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer()))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.Integer()))
    op.add_column("api_keys", sa.Column("expires", sa.DateTime(timezone=True)))
