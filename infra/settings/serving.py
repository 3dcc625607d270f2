"""Sections of the data plane: store, database, teacher, gateway, engine, anonymizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from infra.anonymize.kinds import EVERY_KIND, NAME_KINDS
from infra.settings.bounds import Host, HttpUrl, OpenPath, Port, Seconds, Section, Share, Text


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
    open_paths: tuple[OpenPath, ...] = Field(
        (
            "POST /audio/*",
            "POST /completions",
            "POST /embeddings",
            "POST /images/*",
            "GET /models/*",
            "POST /moderations",
            "POST /rerank",
            "POST /responses",
        ),
        max_length=200,
        description="Paths of the teacher, without /v1, for keys with the role call; `/*` takes all "
        "beneath. Others need the role operate",
    )
    guard_metrics: bool = Field(
        False, description="/metrics and the details of /readyz need a key with the role operate"
    )
    gateways: int = Field(
        1,
        ge=1,
        le=1000,
        description="How many gateways share the limits of a key; each allows its part of them",
    )
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
    drain_notice_seconds: float = Field(
        0,
        ge=0,
        le=600,
        description="At the end, how long new calls are still answered while /readyz says 503: "
        "what the balancer needs to notice",
    )
    drain_seconds: Seconds = Field(
        20, description="At the end, how long the calls under way may take"
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
    adapters_max_bytes: int = Field(
        16 << 30,
        ge=1 << 20,
        le=1 << 44,
        description="Beyond this, copies that no engine lists are deleted, oldest use first",
    )
    audit_rate: Share = Field(
        0.05, description="Share of small-model answers also asked of the teacher, off the path"
    )
    kill_error_burst: int = Field(
        5, ge=1, le=1000, description="Consecutive hard failures of a canary that stop it at once"
    )
    kill_slow_burst: int = Field(
        10, ge=1, le=1000, description="Consecutive slow answers of a canary that stop it at once"
    )
    kill_champion_burst: int = Field(
        20,
        ge=1,
        le=10_000,
        description="Consecutive answers of a champion that fail their checks: the teacher answers",
    )
    deny_patterns: tuple[Text, ...] = Field(
        (),
        max_length=1000,
        description="Regular expressions that no small model's answer may match; one match of a "
        "canary stops it",
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
    replicas: tuple[HttpUrl, ...] = Field(
        (),
        max_length=64,
        description="Addresses of further engines like the one at `url`: calls go to the least busy",
    )
    api_key: SecretStr | None = Field(None, description="Sent to the engine; never logged")
    cost_per_million_tokens: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Of the small model, in the teacher's currency; for the scorecard",
    )
    base_model: Text = Field(
        "smollm2-135m",
        description="smollm2-135m (packaged), a folder or hub id; with vllm, gateways need its "
        "files too",
    )
    models: Path = Field(Path("var/models"), description="Converted base models")
    max_adapters: int = Field(
        8, ge=1, le=1000, description="Adapters loaded at once; with more, those called last stay"
    )
    residence_seconds: Seconds = Field(
        60, description="How long an adapter stays loaded before another may take its place"
    )
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

    @property
    def urls(self) -> tuple[str, ...]:
        """Of every replica, each once."""
        return tuple(dict.fromkeys((self.url, *self.replicas)))

    @property
    def slots(self) -> int:
        """Adapters that the engine itself must be able to hold.

        Beyond what the routes may fill: a place for the judge's candidate, and one for an adapter that
        comes in while the one whose place it takes finishes its calls.
        """
        return self.max_adapters + 2


class Telemetry(Section):
    """OpenTelemetry traces of the gateway's calls. Names and numbers only, never what was said."""

    endpoint: HttpUrl | None = Field(
        None, description="OTLP over HTTP, such as http://collector:4318/v1/traces; none: off"
    )
    service_name: Text = Field("nightschool-gateway", description="As which the spans appear")
    sample_share: Share = Field(
        1.0, description="Share of the calls whose callers do not trace that are traced"
    )
    queue: int = Field(
        2048, ge=1, le=1_000_000, description="Spans that may wait; older ones are dropped beyond"
    )
    timeout_seconds: Seconds = Field(5, description="For one delivery, and for the last at the end")


KindPolicy = Literal["replace", "hash", "drop", "drop_record", "keep"]


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
    kinds: dict[str, KindPolicy] = Field(
        default_factory=dict,
        max_length=100,
        description="Kind to its own policy: replace, hash, drop, keep, or drop_record: a call or report "
        "that holds it is answered and not stored, which is counted",
    )
    names: Literal["off", "ingest", "everywhere"] = Field(
        "off",
        description="Names of people, places and organisations too (extra `names`; some milliseconds "
        "a text): ingest: in logs alone, so that adapters learn placeholders that calls do not have",
    )
    default_region: str = Field(
        "US",
        pattern=r"^[A-Z]{2}$",
        description="Country (two capitals) of phone numbers without a country code",
    )
    max_text_characters: int = Field(
        1_000_000, ge=1000, le=100_000_000, description="A longer text is cut before it is stored"
    )

    @field_validator("kinds", mode="before")
    @classmethod
    def _known_kinds(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        # The environment's names come in small letters.
        kinds = {str(kind).upper(): policy for kind, policy in value.items()}
        unknown = sorted(kinds.keys() - EVERY_KIND)
        if unknown:
            known = ", ".join(sorted(EVERY_KIND))
            raise ValueError(f"{', '.join(unknown)} is no kind: there are {known}")
        return kinds

    @model_validator(mode="after")
    def _one_policy_each(self) -> Anonymizer:
        both = sorted(kind for kind in self.keep_kinds if self.kinds.get(kind, "keep") != "keep")
        if both:
            raise ValueError(f"{', '.join(both)} is in keep_kinds and has another policy in kinds")
        return self

    @model_validator(mode="after")
    def _names_are_looked_for(self) -> Anonymizer:
        asked = {k: p for k, p in self.kinds.items() if k in NAME_KINDS and p != "keep"}
        if not asked or not self.enabled or self.names == "everywhere":
            return self
        if self.names == "off":
            raise ValueError(
                f"kinds has {', '.join(sorted(asked))}, and names is off, so that none is looked for: "
                "set names to ingest or everywhere"
            )
        unseen = sorted(kind for kind, policy in asked.items() if policy == "drop_record")
        if unseen:
            raise ValueError(
                f"kinds has drop_record for {', '.join(unseen)}, and names is ingest, by which the gateway "
                "stores a call before any name is looked for: set names to everywhere"
            )
        return self

    def policy_of(self, kind: str) -> KindPolicy:
        """What happens to values of a kind."""
        if kind in self.keep_kinds:
            return "keep"
        return self.kinds.get(kind, self.policy)
