"""Sections of what goes on by day: rollouts, drift, messages, webhooks, the orchestrator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

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

MIN_KEY_CHARACTERS = 32


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
    every_seconds: Seconds = Field(86400, description="How often a task is looked at")
    window_seconds: Seconds = Field(86400, description="The newest calls, which are looked at")
    before_seconds: Seconds = Field(
        7 * 86400,
        description="The champion's calls before them, which they are compared with as well as with "
        "what it learned from",
    )
    false_alarm_share: float = Field(
        0.01,
        ge=0.001,
        le=0.5,
        description="Share of looks that may call traffic drift which is the same as before, at most",
    )
    least_shift: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Numbers that moved less are no drift, however sure: standard deviations",
    )
    least_mix: float = Field(
        0.1, ge=0, le=0.83, description="The same of categories: Jensen-Shannon distance"
    )
    retrain: bool = Field(
        True, description="Drift asks for a retraining (`nightschool tasks drift` for one task)"
    )
    cooldown_seconds: LongSeconds = Field(
        3 * 86400, description="After drift was told of a task, nothing more is for so long"
    )


class Notify(Section):
    """Messages to people."""

    slack_webhook_url: SecretStr | None = Field(
        None, description="Slack incoming webhook: messages are added, and never edited"
    )
    slack_token: SecretStr | None = Field(
        None, description="Slack bot token, xoxb-..., instead: threads, and edits"
    )
    slack_channel: str | None = Field(
        None,
        pattern=r"^[CGD][A-Z0-9]{2,30}$",
        description="Id of the bot's channel, C..., as its details in Slack show it",
    )
    slack_api_url: HttpUrl = Field("https://slack.com/api/", description="Slack's Web API")
    apprise: tuple[SecretStr, ...] = Field(
        (), max_length=50, description="Addresses of other channels, as Apprise writes them"
    )
    webhook_url: Text | None = Field(None, description="Generic signed webhook")
    webhook_secret: SecretStr | None = Field(None, description="whsec_..., Standard Webhooks")
    max_attempts: int = Field(
        8, ge=1, le=100, description="Tries, ever further apart, before a message is given up"
    )
    timeout_seconds: Seconds = Field(10, description="Longest wait for a channel's answer")


HookName = Literal["retrain", "rollback", "feedback", "objects"]
SENDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
SenderName = Annotated[str, Field(pattern=SENDER_NAME)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]


class HookSender(Section):
    """Who sends webhooks, how they are signed, and what they may ask for."""

    scheme: Literal["standard", "github", "hmac"] = Field(
        "standard",
        description="standard: Standard Webhooks; github: X-Hub-Signature-256; hmac: as told below",
    )
    hooks: tuple[HookName, ...] = Field(
        get_args(HookName),
        min_length=1,
        max_length=4,
        description="What it may ask for",
    )
    tenant: Text = Field("default", description="Whose calls its feedback is about")
    task: Text | None = Field(
        None, description="github: the task that its events retrain; None: all tasks"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="None: that of all senders"
    )
    signature_header: HeaderName = Field("x-signature", description="hmac: where the signature is")
    timestamp_header: HeaderName | None = Field(
        None,
        description="hmac: where seconds since 1970 are; then `<seconds>.<body>` is signed, else "
        "the body alone",
    )
    algorithm: Literal["sha256", "sha512"] = Field("sha256", description="hmac: the hash")
    encoding: Literal["hex", "base64"] = Field("hex", description="hmac: of the signature")
    prefix: str = Field(
        "", max_length=20, description="hmac: what stands before it, such as sha256="
    )


class Hooks(Section):
    """Signed webhooks in, reports out."""

    host: Host = Field("127.0.0.1", description="Address to listen on")
    port: Port = Field(8303, description="Port to listen on")
    public_url: HttpUrl | None = Field(
        None, description="Address of this service in links for people; None: http, host and port"
    )
    senders: dict[SenderName, HookSender] = Field(
        default_factory=dict,
        max_length=1000,
        description="Sender name to `{scheme, hooks, tenant, task, requests_per_minute}`, and for "
        "the scheme hmac `{signature_header, timestamp_header, algorithm, encoding, prefix}`; one "
        "that is not named signs by Standard Webhooks and may ask for all",
    )
    secrets: dict[
        SenderName, Annotated[tuple[SecretStr, ...], Field(min_length=1, max_length=2)]
    ] = Field(
        default_factory=dict,
        max_length=1000,
        description="Sender name to its secret, or to two while one takes over; `nightschool hooks "
        "secrets` keeps them in the database instead",
    )
    requests_per_minute: int = Field(
        600, ge=1, le=1_000_000, description="Of one sender, at each receiver; beyond this: 429"
    )
    max_body_bytes: int = Field(
        64 << 10, ge=256, le=1 << 20, description="A larger request is refused: 413"
    )
    max_kept: int = Field(
        50_000, ge=1, le=1_000_000, description="Messages that may wait for Prefect; then 503"
    )
    keep_seconds: Seconds = Field(
        86400, description="What could not be started by then is given up: it asks for long ago"
    )
    objects_seconds: float = Field(
        60, ge=0, le=86400, description="New log objects are gathered so long for one ingest"
    )
    link_seconds: Seconds = Field(7 * 86400, description="How long a link to a report opens it")
    action_link_seconds: Seconds = Field(
        3 * 86400, description="How long a link to approve, pause or roll back may do so"
    )
    keys: tuple[Annotated[SecretStr, Field(min_length=MIN_KEY_CHARACTERS)], ...] = Field(
        (), max_length=5, description="Sign links and seal senders' secrets; the first signs"
    )
    key_file: Path = Field(
        Path("var/hooks.key"), description="Where a key is kept if `keys` has none; made if need be"
    )

    @property
    def address(self) -> str:
        """Where people reach this service, without a closing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    def sender(self, name: str) -> HookSender:
        """How it signs and what it may ask for; one that is not named: the defaults."""
        return self.senders.get(name, HookSender())

    @field_validator("secrets", mode="before")
    @classmethod
    def _one_secret_is_enough(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: (one,) if isinstance(one, str | SecretStr) else one for name, one in value.items()
        }


class PrefectServer(Section):
    """The orchestrator."""

    host: Host = Field("127.0.0.1", description="Address that `up` lets the server listen on")
    port: Port = Field(4200, description="Its port")
    api_url: HttpUrl | None = Field(None, description="An existing server; None: `up` starts one")
    public_url: HttpUrl | None = Field(
        None, description="Address of its pages in links for people; None: that of the server"
    )
    home: Path = Field(Path("var/prefect"), description="Data of the server that `up` starts")
