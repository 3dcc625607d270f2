"""Which log objects a data set learned from, what may be thrown away, what was mirrored.

The sources of the data sets that are there already come from their manifests.

Revision ID: 0003
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_time = sa.DateTime(timezone=True)
PAGE = 5000


def upgrade() -> None:
    sources = op.create_table(
        "dataset_sources",
        sa.Column("dataset_digest", sa.String(length=64), nullable=False),
        sa.Column("object_key", sa.String(length=1000), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_digest"],
            ["dataset_versions.digest"],
            name="fk_dataset_sources_dataset_digest_dataset_versions",
        ),
        sa.PrimaryKeyConstraint("dataset_digest", "object_key", name="pk_dataset_sources"),
    )
    op.create_index(
        "ix_dataset_sources_object_key", "dataset_sources", ["object_key"], unique=False
    )
    op.create_index("ix_adapters_dataset_digest", "adapters", ["dataset_digest"], unique=False)
    op.create_table(
        "garbage",
        sa.Column("location", sa.String(length=1000), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("since", _time, nullable=False),
        sa.PrimaryKeyConstraint("location", name="pk_garbage"),
    )
    op.create_index("ix_garbage_state", "garbage", ["state"], unique=False)
    op.create_table(
        "mirrored",
        sa.Column("adapter", sa.String(length=200), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("time", _time, nullable=False),
        sa.PrimaryKeyConstraint("adapter", "target", name="pk_mirrored"),
    )
    _fill(sources)


def _fill(sources: sa.Table) -> None:
    connection = op.get_bind()
    # As text: whatever wrote it, one manifest that is no JSON must not stop the upgrade.
    rows = connection.execute(
        sa.text("SELECT digest, CAST(manifest AS TEXT) AS manifest FROM dataset_versions")
    ).all()
    for digest, manifest in rows:
        keys = _log_objects(manifest)
        for start in range(0, len(keys), PAGE):
            page = keys[start : start + PAGE]
            connection.execute(
                sources.insert(), [{"dataset_digest": digest, "object_key": key} for key in page]
            )


def _log_objects(manifest: str | None) -> list[str]:
    try:
        listed = json.loads(manifest or "{}")["parents"]["log_objects"]
    except (ValueError, KeyError, TypeError):
        return []
    if not isinstance(listed, list):
        return []
    return sorted({key for key in listed if isinstance(key, str) and 0 < len(key) <= 1000})
