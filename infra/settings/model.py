"""Every setting of the product: its default, its bounds and what it means.

Sources, strongest first: ``NIGHTSCHOOL_<SECTION>__<FIELD>`` in the environment, then the TOML file
(``nightschool.toml``, or the path in ``NIGHTSCHOOL_CONFIG``), then the defaults below. See
``sources.py`` for the loading and ``nightschool config`` for the effective values and their origin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Storage(Section):
    """Where logs, data sets and adapters live."""

    url: str = Field("var/objects", description="A directory, or s3://bucket/prefix")
    endpoint_url: str | None = Field(None, description="S3 endpoint other than AWS's")
    region: str | None = Field(None, description="S3 region")
    access_key_id: SecretStr | None = Field(None, description="Else boto3's own credential chain")
    secret_access_key: SecretStr | None = Field(None, description="Else boto3's own chain")
    server_side_encryption: str | None = Field(None, description="S3 SSE: AES256 or aws:kms")
    max_object_bytes: int = Field(256 << 20, ge=1 << 10, le=5 << 30)


class Database(Section):
    """Registry and bookkeeping."""

    url: SecretStr = Field(
        SecretStr("sqlite:///var/nightschool.db"),
        description="SQLAlchemy URL: sqlite:///path or postgresql+psycopg://user:password@host/db",
    )
    busy_timeout_seconds: Seconds = 15
    pool_size: int = Field(5, ge=1, le=100)


class Teacher(Section):
    """The large model: any OpenAI-compatible endpoint. Its answers are the labels."""

    url: str = Field("http://127.0.0.1:8301/v1", description="Base URL ending in /v1")
    model: str = Field("teacher", description="Name used when Night School itself asks")
    api_key: SecretStr | None = Field(None, description="Sent upstream; never logged")
    timeout_seconds: Seconds = 120
    max_concurrency: int = Field(64, ge=1, le=10_000)
    cost_per_million_tokens: float = Field(5.0, ge=0, description="For the savings estimate")


class Gateway(Section):
    """The OpenAI-compatible front door."""

    host: str = "127.0.0.1"
    port: Port = 8300
    require_key: bool = Field(False, description="Refuse calls without a known API key")
    max_body_bytes: int = Field(8 << 20, ge=1 << 10, le=256 << 20)
    max_in_flight: int = Field(512, ge=1, le=100_000, description="Beyond this: 429")
    small_model_queue: int = Field(
        32,
        ge=1,
        le=10_000,
        description="Waiting small-model calls; beyond this the teacher answers",
    )
    small_model_timeout_seconds: Seconds = 20
    refresh_seconds: Seconds = Field(0.5, description="How often routes are read again")
    spool: Path = Field(Path("var/spool"), description="Append-only log spool on local disk")
    ship_seconds: Seconds = Field(2.0, description="How often the spool goes to object storage")
    ship_bytes: int = Field(4 << 20, ge=1 << 10, le=256 << 20)
    snapshot: Path = Field(Path("var/routes.json"), description="Last good routes, for a restart")
    adapters: Path = Field(Path("var/adapters"), description="Local copies of served adapters")
    audit_rate: Share = Field(
        0.05, description="Share of small-model answers also asked of the teacher, off the path"
    )
    kill_error_burst: int = Field(
        5, ge=1, le=1000, description="Consecutive hard failures of a canary that stop it at once"
    )
    dead_man_seconds: Seconds = Field(
        900, description="A canary whose route nobody has tended for this long gets weight 0"
    )


class Engine(Section):
    """Who runs the small model."""

    kind: Literal["embedded", "vllm"] = "embedded"
    url: str = Field("http://127.0.0.1:8302", description="Engine address; keep it private")
    api_key: SecretStr | None = None
    base_model: str = Field(
        "smollm2-135m", description="smollm2-135m (packaged), a folder or hub id"
    )
    models: Path = Field(Path("var/models"), description="Converted base models")
    max_adapters: int = Field(8, ge=1, le=1000, description="Adapters loaded at once")
    max_rank: int = Field(32, ge=1, le=512)
    max_prompt_tokens: int = Field(2048, ge=16, le=1 << 20)
    max_answer_tokens: int = Field(160, ge=1, le=1 << 16)
    batch_size: int = Field(16, ge=1, le=512)
    batch_window_seconds: Seconds = Field(0.008, description="Embedded: time to gather a batch")
    threads: int = Field(1, ge=1, le=256)


class Anonymizer(Section):
    """What happens to personal data before anything is stored."""

    enabled: bool = True
    policy: Literal["replace", "hash", "drop"] = "replace"
    hash_key: SecretStr | None = Field(None, description="Key of the keyed hash (policy hash)")
    keep_kinds: tuple[str, ...] = Field((), description="Kinds left as they are")
    default_region: str = Field("US", description="For phone numbers without a country code")
    max_text_characters: int = Field(1_000_000, ge=1000, le=100_000_000)


class Ingest(Section):
    claim_seconds: Seconds = Field(600, description="A claimed object is free again after this")
    max_line_bytes: int = Field(16 << 20, ge=1 << 10, le=256 << 20)
    rows_per_file: int = Field(5000, ge=1, le=1_000_000)
    near_duplicate_similarity: float = Field(0.95, gt=0, le=1, description="MinHash Jaccard")


class Discovery(Section):
    min_calls: int = Field(40, ge=2, description="Calls before a cluster becomes a candidate")
    radius: float = Field(0.75, gt=0, le=2, description="Cosine distance that still belongs")
    max_calls: int = Field(50_000, ge=100, description="Newest calls looked at in one night")
    dimensions: int = Field(512, ge=32, le=8192)


class Training(Section):
    backend: Literal["auto", "peft", "unsloth"] = "auto"
    executor: Literal["ray", "local"] = "ray"
    ray_address: str | None = Field(None, description="None starts a local Ray")
    workers: int = Field(2, ge=1, le=1000, description="Runs at the same time")
    cpus_per_run: float = Field(1, gt=0, le=256)
    gpus_per_run: float = Field(0, ge=0, le=64)
    runs: Path = Field(Path("var/runs"), description="Scratch folders of training runs")
    rank: int = Field(16, ge=1, le=256)
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    batch_size: int = Field(16, ge=1, le=1024)
    max_steps: int = Field(400, ge=1, le=1_000_000)
    epochs: float = Field(3, gt=0, le=100)
    max_sequence_tokens: int = Field(512, ge=16, le=1 << 20)
    last_layers: int | None = Field(None, ge=1, description="Adapt only the last N layers")
    checkpoint_steps: int = Field(25, ge=1, le=100_000)
    max_examples: int = Field(5000, ge=1, le=10_000_000)
    min_examples: int = Field(60, ge=4, description="Fewer training examples: not trained")
    max_retries: int = Field(3, ge=0, le=20)
    seed: int = Field(7, ge=0)


class Night(Section):
    cron: str = Field("0 1 * * *", description="Schedule of the night flow")
    timezone: str = "UTC"
    start: str = Field("22:00", pattern=r"^\d\d:\d\d$", description="NIGHT_START, local time")
    end: str = Field("06:00", pattern=r"^\d\d:\d\d$", description="NIGHT_END, local time")
    max_tasks: int = Field(8, ge=1, le=1000, description="Adapters trained in one night at most")
    seconds_per_step: float = Field(2.0, gt=0, description="First estimate; then as measured")


class Gate(Section):
    """Non-inferiority of what the caller gets (adapter plus escalation)."""

    margin: float = Field(0.05, ge=0, le=0.5, description="Tolerated loss against the incumbent")
    level: float = Field(0.05, gt=0, lt=0.5, description="One-sided error rate")
    risk: float = Field(0.05, gt=0, lt=0.5, description="Tolerated error among shown answers")
    min_coverage: Share = Field(0.3, description="Below this the adapter is not worth it")
    min_rows: int = Field(30, ge=5, le=100_000)
    max_test_rows: int = Field(300, ge=5, le=100_000)
    max_base_rows: int = Field(32, ge=1, le=100_000, description="The base model is slow unpruned")


class Rollout(Section):
    shadow_sessions: int = Field(20, ge=0, description="Paired answers before anyone is exposed")
    steps: tuple[float, ...] = Field((0.1, 0.25, 0.5), description="Canary shares of sessions")
    step_sessions: int = Field(20, ge=1, description="Canary sessions before the next step")
    margin: float = Field(0.1, gt=0, le=0.5, description="Tolerated loss against the champion")
    alpha_bad: float = Field(0.05, gt=0, lt=0.5, description="False rollback rate")
    alpha_good: float = Field(0.05, gt=0, lt=0.5, description="False promotion rate")
    maturity_seconds: Seconds = Field(300, description="A label later than this counts as worst")
    shadow_deadline_seconds: Seconds = 3 * 86400
    canary_deadline_seconds: Seconds = 7 * 86400
    max_sessions: int = Field(2000, ge=10, description="Canary sessions, then inconclusive")
    tend_seconds: Seconds = Field(60, description="How often open rollouts are looked at")
    audit_rate: Share = Field(1.0, description="Canary answers also asked of the teacher")
    cooldown_seconds: float = Field(
        3600, ge=0, le=30 * 86400, description="Rest of a task after a rollback"
    )
    when_open: Literal["supersede", "queue"] = Field(
        "queue", description="A new adapter ends the open rollout of its task, or waits for it"
    )


class Watch(Section):
    max_rows: int = Field(2000, ge=50, le=100_000, description="Capped sample: effect, not n")
    drift_share: Share = Field(0.5, description="Share of drifted columns that asks for a night")


class Notify(Section):
    slack_webhook_url: SecretStr | None = Field(None, description="Slack incoming webhook")
    webhook_url: str | None = Field(None, description="Generic signed webhook")
    webhook_secret: SecretStr | None = Field(None, description="whsec_..., Standard Webhooks")
    max_attempts: int = Field(8, ge=1, le=100)
    timeout_seconds: Seconds = 10


class Hooks(Section):
    """Signed webhooks in."""

    host: str = "127.0.0.1"
    port: Port = 8303
    secrets: dict[str, SecretStr] = Field(
        default_factory=dict, description="Sender name to whsec_... secret"
    )
    max_body_bytes: int = Field(64 << 10, ge=256, le=1 << 20)


class PrefectServer(Section):
    host: str = "127.0.0.1"
    port: Port = 4200
    api_url: str | None = Field(None, description="An existing server; None: `up` starts one")
    home: Path = Field(Path("var/prefect"), description="Data of the server that `up` starts")


class Settings(Section):
    """The whole configuration. Frozen: a changed setting is a new object."""

    storage: Storage = Storage()
    database: Database = Database()
    teacher: Teacher = Teacher()
    gateway: Gateway = Gateway()
    engine: Engine = Engine()
    anonymizer: Anonymizer = Anonymizer()
    ingest: Ingest = Ingest()
    discovery: Discovery = Discovery()
    training: Training = Training()
    night: Night = Night()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()
    watch: Watch = Watch()
    notify: Notify = Notify()
    hooks: Hooks = Hooks()
    prefect: PrefectServer = PrefectServer()
