"""Every setting of the product: its default, its bounds and what it means.

Sources, strongest first: ``NIGHTSCHOOL_<SECTION>__<FIELD>`` in the environment, then the TOML file
(``nightschool.toml``, or the path in ``NIGHTSCHOOL_CONFIG``), then the defaults below. See
``sources.py`` for the loading and ``nightschool config`` for the effective values and their origin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator

from infra.settings.bounds import Clock, Host, HttpUrl, Port, Seconds, Section, Share, Text


class Storage(Section):
    """Where logs, data sets and adapters live."""

    url: Text = Field("var/objects", description="A directory, or s3://bucket/prefix")
    endpoint_url: HttpUrl | None = Field(None, description="S3 endpoint other than AWS's")
    region: Text | None = Field(None, description="S3 region")
    access_key_id: SecretStr | None = Field(None, description="Else boto3's own credential chain")
    secret_access_key: SecretStr | None = Field(None, description="Else boto3's own chain")
    server_side_encryption: Text | None = Field(None, description="S3 SSE: AES256 or aws:kms")
    max_object_bytes: int = Field(
        256 << 20, ge=1 << 10, le=5 << 30, description="A log object larger than this is not read"
    )


class Database(Section):
    """Registry and bookkeeping."""

    url: SecretStr = Field(
        SecretStr("sqlite:///var/nightschool.db"),
        description="SQLAlchemy URL: sqlite:///path or postgresql+psycopg://user:password@host/db",
    )
    busy_timeout_seconds: Seconds = Field(
        15, description="How long a write waits for another one's lock"
    )
    pool_size: int = Field(5, ge=1, le=100, description="Connections that a process keeps open")


class Teacher(Section):
    """The large model: any OpenAI-compatible endpoint. Its answers are the labels."""

    url: HttpUrl = Field("http://127.0.0.1:8301/v1", description="Base URL ending in /v1")
    model: Text = Field("teacher", description="Name used when Night School itself asks")
    api_key: SecretStr | None = Field(None, description="Sent upstream; never logged")
    timeout_seconds: Seconds = Field(120, description="Longest wait for an answer")
    max_concurrency: int = Field(64, ge=1, le=10_000, description="Calls to it at the same time")
    retries: int = Field(
        2, ge=0, le=10, description="Where it did not work on the call (no connection, 502 to 504)"
    )
    retry_share: Share = Field(
        0.1, description="Retries per call in the long run, over all calls: the retry budget"
    )
    cost_per_million_tokens: float = Field(
        5.0, ge=0, le=1e6, description="In any currency; for the savings estimate"
    )


class Gateway(Section):
    """The OpenAI-compatible front door."""

    host: Host = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8300, description="Port to listen on")
    require_key: bool = Field(False, description="Refuse calls without a known API key")
    max_body_bytes: int = Field(
        8 << 20, ge=1 << 10, le=256 << 20, description="A larger request is refused: 413"
    )
    max_in_flight: int = Field(512, ge=1, le=100_000, description="Calls at once; beyond this: 429")
    read_timeout_seconds: Seconds = Field(
        30, description="Longest wait for the rest of a request; then 408"
    )
    keepalive_timeout_seconds: Seconds = Field(
        75, description="A connection without a whole request for this long is closed"
    )
    small_model_queue: int = Field(
        32,
        ge=1,
        le=10_000,
        description="Waiting small-model calls; beyond this the teacher answers",
    )
    small_model_timeout_seconds: Seconds = Field(
        20, description="Longest wait for the small model; then the teacher answers"
    )
    hedge_after_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description="A small model that takes longer is raced by the teacher; 0: never",
    )
    stream_hold_tokens: int = Field(
        64,
        ge=0,
        le=65536,
        description="A streamed text of the small model is held back until so many tokens are "
        "confident; shorter ones, tool calls and JSON are checked whole. 0: all are",
    )
    refresh_seconds: Seconds = Field(0.5, description="How often routes are read again")
    spool: Path = Field(Path("var/spool"), description="Append-only log spool on local disk")
    spool_max_bytes: int = Field(
        4 << 30, ge=1 << 20, le=1 << 44, description="What may wait there while the store is away"
    )
    fsync_seconds: Seconds = Field(
        0.2, description="How much of the log a power cut may take; a crash takes none"
    )
    unlogged: Literal["hold", "refuse"] = Field(
        "hold",
        description="When the spool takes no record. hold: answer, keep the record in memory, try "
        "again; refuse: 503",
    )
    log_wait_seconds: Seconds = Field(
        1.0, description="How long an answer waits for its record to be in the spool"
    )
    ship_seconds: Seconds = Field(2.0, description="How often the spool goes to object storage")
    ship_bytes: int = Field(
        4 << 20,
        ge=1 << 10,
        le=256 << 20,
        description="This much in the spool is shipped without waiting",
    )
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

    kind: Literal["embedded", "vllm"] = Field(
        "embedded", description="embedded: a CPU engine that comes along; vllm: a vLLM server"
    )
    url: HttpUrl = Field("http://127.0.0.1:8302", description="Engine address; keep it private")
    api_key: SecretStr | None = Field(None, description="Sent to the engine; never logged")
    base_model: Text = Field(
        "smollm2-135m", description="smollm2-135m (packaged), a folder or hub id"
    )
    models: Path = Field(Path("var/models"), description="Converted base models")
    max_adapters: int = Field(8, ge=1, le=1000, description="Adapters loaded at once")
    max_rank: int = Field(32, ge=1, le=512, description="Adapters of a higher rank are refused")
    max_prompt_tokens: int = Field(
        2048, ge=16, le=1 << 20, description="A longer prompt is the teacher's"
    )
    max_answer_tokens: int = Field(
        160, ge=1, le=1 << 16, description="A longer answer is cut off, so the teacher's"
    )
    batch_size: int = Field(16, ge=1, le=512, description="Answers made at the same time")
    batch_window_seconds: Seconds = Field(0.008, description="Embedded: time to gather a batch")
    threads: int = Field(1, ge=1, le=256, description="Embedded: CPU threads")


class Anonymizer(Section):
    """What happens to personal data before anything is stored."""

    enabled: bool = Field(True, description="False stores what was said as it was said")
    policy: Literal["replace", "hash", "drop"] = Field(
        "replace",
        description="replace: `<EMAIL_1>`, the same within a session; hash: keyed hash, the same "
        "everywhere; drop: the kind only",
    )
    hash_key: SecretStr | None = Field(None, description="Key of the keyed hash (policy hash)")
    keep_kinds: tuple[Text, ...] = Field(
        (), max_length=100, description="Kinds left as they are, e.g. EMAIL"
    )
    default_region: str = Field(
        "US",
        pattern=r"^[A-Z]{2}$",
        description="Country (two capitals) of phone numbers without a country code",
    )
    max_text_characters: int = Field(
        1_000_000, ge=1000, le=100_000_000, description="A longer text is cut before it is stored"
    )


class Ingest(Section):
    """Taking logs in."""

    claim_seconds: Seconds = Field(600, description="A claimed object is free again after this")
    max_line_bytes: int = Field(
        16 << 20, ge=1 << 10, le=256 << 20, description="A longer line goes to quarantine"
    )
    rows_per_file: int = Field(5000, ge=1, le=1_000_000, description="Calls per Parquet file")
    near_duplicate_similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="MinHash Jaccard similarity from which two calls count as copies",
    )


class Discovery(Section):
    """Finding the tasks in the logs."""

    min_calls: int = Field(
        40, ge=2, le=1_000_000, description="Calls before a cluster becomes a candidate"
    )
    radius: float = Field(0.75, gt=0, le=2, description="Cosine distance that still belongs")
    max_calls: int = Field(
        50_000, ge=100, le=10_000_000, description="Newest calls looked at in one night"
    )
    dimensions: int = Field(512, ge=32, le=8192, description="Length of a prompt's embedding")


class Training(Section):
    """Training adapters."""

    backend: Literal["auto", "peft", "unsloth"] = Field(
        "auto", description="auto: unsloth where there is a GPU, peft elsewhere"
    )
    executor: Literal["ray", "local"] = Field(
        "ray", description="ray: tasks on a Ray cluster; local: processes of this machine"
    )
    ray_address: Text | None = Field(None, description="None starts a local Ray")
    workers: int = Field(2, ge=1, le=1000, description="Runs at the same time")
    cpus_per_run: float = Field(1, gt=0, le=256, description="CPU cores reserved for a run")
    gpus_per_run: float = Field(
        0, ge=0, le=64, description="GPUs reserved for a run; above 0 it never falls back to CPU"
    )
    runs: Path = Field(Path("var/runs"), description="Scratch folders of training runs")
    rank: int = Field(16, ge=1, le=256, description="LoRA rank; alpha is twice that")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak of the cosine schedule")
    batch_size: int = Field(16, ge=1, le=1024, description="Examples per optimizer step")
    max_steps: int = Field(400, ge=1, le=1_000_000, description="Optimizer steps of a run at most")
    epochs: float = Field(3, gt=0, le=100, description="Times that a run sees each example")
    max_sequence_tokens: int = Field(
        512, ge=16, le=1 << 20, description="A longer example is left out, never cut"
    )
    last_layers: int | None = Field(
        None, ge=1, le=1000, description="Adapt only the last N layers; None: all"
    )
    checkpoint_steps: int = Field(
        25, ge=1, le=100_000, description="Steps between checkpoints, each with a validation loss"
    )
    max_examples: int = Field(
        5000, ge=1, le=10_000_000, description="Newest examples kept in a data set"
    )
    min_examples: int = Field(
        60, ge=4, le=10_000_000, description="Fewer training examples: not trained"
    )
    max_retries: int = Field(
        3, ge=0, le=20, description="Further processes for a run that was killed or got stuck"
    )
    seed: int = Field(7, ge=0, le=2**32 - 1, description="Decides order and initial weights")


class Night(Section):
    """When to learn, and how much."""

    cron: str = Field(
        "0 1 * * *",
        pattern=r"^\S+( \S+){4}$",
        max_length=100,
        description="Schedule of the night flow: minute, hour, day, month, weekday",
    )
    timezone: Text = Field("UTC", description="Time zone of schedule and window, e.g. Europe/Paris")
    start: Clock = Field("22:00", description="NIGHT_START, HH:MM in the time zone")
    end: Clock = Field("06:00", description="NIGHT_END, HH:MM; before the start: the next day")
    max_tasks: int = Field(8, ge=1, le=1000, description="Adapters trained in one night at most")
    seconds_per_step: float = Field(
        2.0, gt=0, le=86400, description="First estimate of a training step; then as measured"
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, OSError, ValueError):
            raise ValueError("no time zone of that name: write one like Europe/Paris") from None
        return value


class Gate(Section):
    """Non-inferiority of what the caller gets (adapter plus escalation)."""

    margin: float = Field(0.05, ge=0, le=0.5, description="Tolerated loss against the incumbent")
    level: float = Field(0.05, gt=0, lt=0.5, description="One-sided error rate")
    risk: float = Field(0.05, gt=0, lt=0.5, description="Tolerated error among shown answers")
    min_coverage: Share = Field(0.3, description="Below this the adapter is not worth it")
    min_rows: int = Field(
        30, ge=5, le=100_000, description="Test examples below which the verdict is inconclusive"
    )
    max_test_rows: int = Field(
        300, ge=5, le=100_000, description="Test and validation examples asked at most, each"
    )
    max_base_rows: int = Field(
        32,
        ge=1,
        le=100_000,
        description="Test examples also asked of the base model, which is slow",
    )


class Rollout(Section):
    """Bringing an adapter in, step by step."""

    shadow_sessions: int = Field(
        20, ge=0, le=1_000_000, description="Paired answers before anyone is exposed"
    )
    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.25, 0.5),
        min_length=1,
        max_length=20,
        description="Canary shares of sessions, rising; 1 to 20 of them",
    )
    step_sessions: int = Field(
        20, ge=1, le=1_000_000, description="Canary sessions before the next step"
    )
    margin: float = Field(0.1, gt=0, le=0.5, description="Tolerated loss against the champion")
    alpha_bad: float = Field(0.05, gt=0, lt=0.5, description="False rollback rate")
    alpha_good: float = Field(0.05, gt=0, lt=0.5, description="False promotion rate")
    maturity_seconds: Seconds = Field(300, description="A label later than this counts as worst")
    shadow_deadline_seconds: Seconds = Field(
        3 * 86400, description="A shadow without a verdict by then is inconclusive"
    )
    canary_deadline_seconds: Seconds = Field(
        7 * 86400, description="A canary without a verdict by then is inconclusive"
    )
    max_sessions: int = Field(
        2000, ge=10, le=10_000_000, description="Canary sessions, then inconclusive"
    )
    tend_seconds: Seconds = Field(60, description="How often open rollouts are looked at")
    audit_rate: Share = Field(1.0, description="Canary answers also asked of the teacher")
    cooldown_seconds: float = Field(
        3600, ge=0, le=30 * 86400, description="Rest of a task after a rollback"
    )
    when_open: Literal["supersede", "queue"] = Field(
        "queue", description="A new adapter ends the open rollout of its task, or waits for it"
    )

    @field_validator("steps")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("canary shares must rise strictly, as in [0.1, 0.25, 0.5]")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.max_sessions < self.step_sessions:
            raise ValueError("max_sessions is below step_sessions: no rollout could ever end well")
        return self


class Watch(Section):
    """Looking for drift between nights."""

    max_rows: int = Field(
        2000, ge=50, le=100_000, description="Calls compared from each side, drawn at random"
    )
    drift_share: Share = Field(0.5, description="Share of drifted columns that asks for a night")


class Notify(Section):
    """Messages to people."""

    slack_webhook_url: SecretStr | None = Field(None, description="Slack incoming webhook")
    webhook_url: Text | None = Field(None, description="Generic signed webhook")
    webhook_secret: SecretStr | None = Field(None, description="whsec_..., Standard Webhooks")
    max_attempts: int = Field(
        8, ge=1, le=100, description="Tries, ever further apart, before a message is given up"
    )
    timeout_seconds: Seconds = Field(10, description="Longest wait for a channel's answer")


class Hooks(Section):
    """Signed webhooks in."""

    host: Host = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8303, description="Port to listen on")
    secrets: dict[str, SecretStr] = Field(
        default_factory=dict, max_length=1000, description="Sender name to whsec_... secret"
    )
    max_body_bytes: int = Field(
        64 << 10, ge=256, le=1 << 20, description="A larger request is refused: 413"
    )


class PrefectServer(Section):
    """The orchestrator."""

    host: Host = Field("127.0.0.1", description="Address that `up` lets the server listen on")
    port: Port = Field(4200, description="Its port")
    api_url: HttpUrl | None = Field(None, description="An existing server; None: `up` starts one")
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

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        """What one section promises another must be able to keep."""
        if self.training.rank > self.engine.max_rank:
            raise ValueError(
                f"training.rank ({self.training.rank}) is above engine.max_rank "
                f"({self.engine.max_rank}): what is trained could never be served"
            )
        if self.rollout.tend_seconds >= self.gateway.dead_man_seconds:
            raise ValueError(
                f"rollout.tend_seconds ({self.rollout.tend_seconds:g}) is not below "
                f"gateway.dead_man_seconds ({self.gateway.dead_man_seconds:g}): every canary would "
                "be suspended between two looks"
            )
        return self
