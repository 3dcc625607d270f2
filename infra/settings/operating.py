"""Sections of what goes on by day: rollouts, drift, messages, webhooks, the orchestrator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from infra.settings.bounds import (
    Host,
    HttpUrl,
    LongSeconds,
    Port,
    Seconds,
    Section,
    Share,
    Text,
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
    margin: float = Field(
        0.05, gt=0, le=0.5, description="Worse than the champion by this is not promoted"
    )
    rollback_margin: float | None = Field(
        0.01,
        ge=0,
        le=0.5,
        description="Worse than an adapter as champion by more is rolled back; None: margin",
    )
    teacher_rollback_margin: float | None = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Likewise beside the teacher; what gate.margin lets through; None: margin",
    )
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
    approval: bool = Field(
        False, description="A person must agree (`nightschool rollouts approve`) to a promotion"
    )
    approval_seconds: Seconds = Field(
        86400, description="Longest wait for that person; then the champion stays"
    )
    pause_seconds: Seconds = Field(
        86400, description="Longest pause; a rollout not resumed by then is inconclusive"
    )
    slow_seconds: Seconds = Field(
        10, description="A canary's answer that takes longer is slow; a run of them stops it"
    )
    latency_objective_seconds: Seconds | None = Field(
        None,
        description="Answers above it count against either arm; None: measured of the champion in "
        "the shadow, and frozen",
    )
    latency_floor_seconds: Seconds = Field(
        5, description="A measured latency objective is never below this"
    )
    escalation_allowance: Share | None = Field(
        None, description="Share of calls that may escalate beside the teacher; None: not judged"
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


class Retention(Section):
    """How long what was stored is kept. What a route or an open rollout names is always kept."""

    log_seconds: LongSeconds = Field(
        0, description="Log objects, by the day they lie in, once taken in; 0: for good"
    )
    adapter_seconds: LongSeconds = Field(
        30 * 86400, description="Files of an adapter since anything last happened to it"
    )
    adapters_per_task: int = Field(
        5, ge=1, le=1000, description="Newest adapters of a task that stay, however old"
    )
    past_champions: int = Field(
        3, ge=1, le=100, description="Earlier champions of a task that a rollback may go back to"
    )
    dataset_seconds: LongSeconds = Field(
        30 * 86400, description="Files of a data set that no kept adapter learned from"
    )
    datasets_per_task: int = Field(
        3, ge=1, le=1000, description="Newest data sets of a task that stay, however old"
    )
    evidence_seconds: LongSeconds = Field(
        0, description="Kept evidence of a rollout since it ended; 0: for good"
    )
    run_seconds: LongSeconds = Field(
        7 * 86400, description="Scratch folders and checkpoints of training runs, untouched"
    )
    grace_seconds: LongSeconds = Field(
        86400,
        description="Between the mark that something may go and its removal; longer than a night",
    )


class RegistryApi(Section):
    """The HTTP read API of the registry, and the mirror of its lineage."""

    host: Host = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8306, description="Port to listen on")
    require_key: bool = Field(
        True, description="Readers need an API key of the role operate or admin"
    )
    database_seconds: float = Field(
        5, gt=0, le=60, description="Longest wait for the database; then 503"
    )
    max_in_flight: int = Field(32, ge=1, le=1000, description="Requests at once; beyond this: 503")
    mlflow_uri: HttpUrl | None = Field(
        None, description="MLflow tracking server that lineage is mirrored to; never read from"
    )
    mlflow_token: SecretStr | None = Field(None, description="Sent to MLflow as a bearer token")
    mirror_seconds: Seconds = Field(60, description="How often the mirror is brought up to date")


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
