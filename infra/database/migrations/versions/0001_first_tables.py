"""The first form of the tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=100), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.Column("revoked", _time, nullable=True),
        sa.PrimaryKeyConstraint("hash", name="pk_api_keys"),
    )
    op.create_table(
        "events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("time", _time, nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("what", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("previous", sa.JSON(), nullable=True),
        sa.Column("current", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_subject", "events", ["subject"], unique=False)
    op.create_index("ix_events_time", "events", ["time"], unique=False)
    op.create_index("ix_events_what", "events", ["what"], unique=False)
    op.create_table(
        "ingested_objects",
        sa.Column("key", sa.String(length=500), nullable=False),
        sa.Column("etag", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("holder", sa.String(length=100), nullable=False),
        sa.Column("claimed_until", _time, nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("finished", _time, nullable=True),
        sa.PrimaryKeyConstraint("key", "etag", name="pk_ingested_objects"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("holder", sa.String(length=100), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires", _time, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("channel", sa.String(length=32), nullable=False),
        sa.Column("topic", sa.String(length=200), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt", _time, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.Column("delivered", _time, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.UniqueConstraint("key", "channel", name="uq_outbox_key"),
    )
    op.create_index("ix_outbox_state_next", "outbox", ["state", "next_attempt"], unique=False)
    op.create_table(
        "scorecards",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=200), nullable=False),
        sa.Column("dataset_digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_scorecards"),
    )
    op.create_index("ix_scorecards_adapter", "scorecards", ["adapter"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=False),
        sa.Column("tag", sa.String(length=200), nullable=True),
        sa.Column("signature", sa.String(length=64), nullable=False),
        sa.Column("centroid", sa.JSON(), nullable=False),
        sa.Column("radius", sa.Float(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.Column("updated", _time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
    )
    op.create_index("ix_tasks_signature", "tasks", ["signature"], unique=False)
    op.create_table(
        "webhook_receipts",
        sa.Column("sender", sa.String(length=100), nullable=False),
        sa.Column("message_id", sa.String(length=200), nullable=False),
        sa.Column("hook", sa.String(length=64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("flow_run_id", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("received", _time, nullable=False),
        sa.PrimaryKeyConstraint("sender", "message_id", name="pk_webhook_receipts"),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("location", sa.String(length=500), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name="fk_dataset_versions_task_id_tasks"
        ),
        sa.PrimaryKeyConstraint("digest", name="pk_dataset_versions"),
    )
    op.create_index("ix_dataset_versions_task_id", "dataset_versions", ["task_id"], unique=False)
    op.create_table(
        "routes",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("champion", sa.String(length=200), nullable=False),
        sa.Column("candidate", sa.String(length=200), nullable=True),
        sa.Column("rollout_id", sa.String(length=64), nullable=True),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("salt", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("updated", _time, nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_routes_task_id_tasks"),
        sa.PrimaryKeyConstraint("task_id", name="pk_routes"),
    )
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("dataset_digest", sa.String(length=64), nullable=False),
        sa.Column("spec_digest", sa.String(length=64), nullable=False),
        sa.Column("location", sa.String(length=500), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_digest"],
            ["dataset_versions.digest"],
            name="fk_adapters_dataset_digest_dataset_versions",
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_adapters_task_id_tasks"),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
    )
    op.create_index("ix_adapters_spec_digest", "adapters", ["spec_digest"], unique=False)
    op.create_index("ix_adapters_task_id", "adapters", ["task_id"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("sessions", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created", _time, nullable=False),
        sa.Column("entered", _time, nullable=False),
        sa.Column("deadline", _time, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter"], ["adapters.name"], name="fk_rollouts_adapter_adapters"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_rollouts_task_id_tasks"),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
    )
    op.create_index("ix_rollouts_task_id", "rollouts", ["task_id"], unique=False)
    _make_append_only("events")


def _make_append_only(table: str) -> None:
    """The database itself refuses to change or remove a row, whoever asks."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
