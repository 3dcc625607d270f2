"""Every table of the product, declared once. Alembic's migrations are checked against this file."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from infra.database.times import UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite autoincrements only INTEGER keys.
_serial = BigInteger().with_variant(Integer, "sqlite")
_time = UtcDateTime()

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("state", String(16), nullable=False),  # observed candidate specialized retired
    Column("policy", String(16), nullable=False),  # specialize shadow teacher
    Column("approval", String(16)),  # auto approve; null: as the settings say
    Column("tag", String(200)),  # an explicit tag always wins
    Column("signature", String(64), nullable=False, index=True),
    Column("centroid", JSON, nullable=False),  # unit vector, list of floats
    Column("radius", Float, nullable=False),  # cosine distance that still belongs
    Column("size", Integer, nullable=False),  # calls seen
    Column("details", JSON, nullable=False),  # kind of answer, score and its parts, medoid
    Column("version", Integer, nullable=False),
    Column("created", _time, nullable=False),
    Column("updated", _time, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False, index=True),
    Column("location", String(500), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("created", _time, nullable=False),
)

dataset_sources = Table(
    "dataset_sources",
    metadata,
    # Written in one transaction with the version: which log objects it learned from.
    Column("dataset_digest", String(64), ForeignKey("dataset_versions.digest"), primary_key=True),
    Column("object_key", String(1000), primary_key=True, index=True),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(200), primary_key=True),  # task@digest, never reused
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False, index=True),
    Column("digest", String(64), nullable=False),
    Column(
        "dataset_digest",
        String(64),
        ForeignKey("dataset_versions.digest"),
        nullable=False,
        index=True,
    ),
    Column("spec_digest", String(64), nullable=False, index=True),
    Column("location", String(500), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("threshold", Float),  # calibrated confidence; null: every answer that checks is shown
    Column("state", String(16), nullable=False),  # registered rejected retired
    Column("created", _time, nullable=False),
)

scorecards = Table(
    "scorecards",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("adapter", String(200), nullable=False, index=True),
    Column("dataset_digest", String(64), nullable=False),
    Column("body", JSON, nullable=False),  # scores of base, adapter, teacher, served
    Column("gate", JSON, nullable=False),  # verdict, reasons, policy
    Column("created", _time, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False, index=True),
    Column("adapter", String(200), ForeignKey("adapters.name"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("step", Integer, nullable=False),  # index into policy.steps while in canary
    Column("policy", JSON, nullable=False),  # frozen when the rollout opens
    Column("evidence", JSON, nullable=False),  # e-values, counts, digest of what was read
    Column("sessions", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created", _time, nullable=False),
    Column("entered", _time, nullable=False),  # when the present state was entered
    Column("deadline", _time, nullable=False),  # of the present state
)

routes = Table(
    "routes",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("champion", String(200), nullable=False),  # adapter name or "teacher"
    Column("candidate", String(200)),
    Column("rollout_id", String(64)),
    Column("stage", String(16), nullable=False),  # none shadow canary
    Column("weight", Float, nullable=False),  # share of sessions in the canary arm, 0 to 1
    Column("salt", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("updated", _time, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _serial, primary_key=True, autoincrement=True),
    Column("time", _time, nullable=False, index=True),
    Column("actor", String(100), nullable=False),  # who
    Column("what", String(100), nullable=False, index=True),  # e.g. route.changed
    Column("subject", String(200), nullable=False, index=True),  # task, adapter or rollout
    Column("why", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("previous", JSON),
    Column("current", JSON),
)

ingested_objects = Table(
    "ingested_objects",
    metadata,
    Column("key", String(500), primary_key=True),
    Column("etag", String(100), primary_key=True),
    Column("state", String(16), nullable=False),  # claimed done
    Column("holder", String(100), nullable=False),
    Column("claimed_until", _time, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("finished", _time),
)

garbage = Table(
    "garbage",
    metadata,
    Column("location", String(1000), primary_key=True),  # key prefix without a closing slash
    Column("kind", String(16), nullable=False),  # adapter dataset
    Column("subject", String(200), nullable=False),  # adapter name, digest; else the location
    Column("why", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),  # marked condemned removed
    Column("since", _time, nullable=False),  # of the state
)

mirrored = Table(
    "mirrored",
    metadata,
    Column("adapter", String(200), primary_key=True),
    Column("target", String(64), primary_key=True),  # digest of where it was mirrored to
    Column("digest", String(64), nullable=False),  # of what was mirrored there
    Column("time", _time, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("fence", BigInteger, nullable=False),  # rises by one with every new holder
    Column("expires", _time, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _serial, primary_key=True, autoincrement=True),
    Column("key", String(200), nullable=False),  # says a message once: same key, same message
    Column("channel", String(32), nullable=False),
    Column("topic", String(200), nullable=False),
    Column("body", JSON, nullable=False),
    Column("state", String(16), nullable=False),  # waiting delivered dead
    Column("attempts", Integer, nullable=False),
    Column("next_attempt", _time, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("created", _time, nullable=False),
    Column("delivered", _time),
    UniqueConstraint("key", "channel"),
    Index("ix_outbox_state_next", "state", "next_attempt"),
)

message_threads = Table(
    "message_threads",
    metadata,
    Column("channel", String(64), primary_key=True),  # the chat's id of the conversation
    Column("name", String(200), primary_key=True),
    Column("place", String(64), nullable=False),  # of its first message, as the chat names it
    Column("keys", JSON, nullable=False),  # of the messages that the first one has taken in
    Column("steps", JSON, nullable=False),  # their titles
    Column("updated", _time, nullable=False),
)

webhook_receipts = Table(
    "webhook_receipts",
    metadata,
    Column("sender", String(100), primary_key=True),
    Column("message_id", String(200), primary_key=True),
    Column("hook", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Column("state", String(16), nullable=False),  # kept started done ignored failed
    Column("flow_run_id", String(64)),
    Column("detail", Text, nullable=False),
    Column("received", _time, nullable=False),
    Column("digest", String(64)),  # of what was sent: the same id with other content is refused
    Column("batch", String(64), index=True),  # what is stored in one log object
    Index("ix_webhook_receipts_state_received", "state", "received"),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("sender", String(100), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),  # 0 or 1: two at most
    Column("id", String(16), nullable=False),
    Column("sealed", Text, nullable=False),  # encrypted under [hooks] keys
    Column("created", _time, nullable=False),
    Column("expires", _time),  # null: until it is rotated or revoked
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("hash", String(64), primary_key=True),  # sha256 of the key
    Column("tenant", String(100), nullable=False),
    Column("role", String(16), nullable=False),  # call operate admin
    Column("label", String(100), nullable=False),
    Column("created", _time, nullable=False),
    Column("revoked", _time),
    Column("requests_per_minute", Integer),  # null: as many as come
    Column("tokens_per_minute", Integer),
    Column("expires", _time),  # null: never
)
