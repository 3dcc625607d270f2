"""The log records that the gateway writes and everything else reads.

These pydantic models are the single declaration; the Arrow schema and the stored JSON are
rendered from them (see ``arrow.py`` and ``codec.py``), and a test fails when they drift.
Unknown fields survive a round trip, so a newer gateway never loses data through an older reader.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from uuid_utils import uuid7

SCHEMA_VERSION = 1

Arm = Literal["champion", "canary"]


def new_id() -> str:
    """A time-ordered unique id (UUID version 7, 36 characters)."""
    return str(uuid7())


def utc_now() -> datetime:
    return datetime.now(UTC)


class Record(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Usage(Record):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class Checks(Record):
    """What could be verified of an answer without knowing the right one. None: does not apply."""

    parsed: bool = True
    schema_valid: bool | None = None
    tool_known: bool | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.parsed and self.schema_valid is not False and self.tool_known is not False


class AnsweredBy(Record):
    """Who answered, and on which side of a rollout the session stands.

    ``arm`` and ``rollout`` are the *assignment*; they stay what they were when the teacher answers
    in the small model's place (``escalation`` then says why), so that an arm is charged with its
    own failures (intention to treat).
    """

    model: str
    adapter: str | None = None
    arm: Arm | None = None
    rollout: str | None = None
    route_version: int | None = None
    escalation: str | None = None


class OtherAnswer(Record):
    """A second answer to the same prompt that the caller never saw (shadow or audit)."""

    model: str
    adapter: str | None = None
    purpose: Literal["shadow", "audit"]
    message: dict[str, Any] | None = None
    checks: Checks = Checks()
    confidence: float | None = None
    accepted: bool = True
    """Whether the cascade would have shown this answer (checks passed, confidence reached)."""
    latency_seconds: float = 0.0
    error: str | None = None


class Anonymization(Record):
    policy: str = "none"
    counts: dict[str, int] = Field(default_factory=dict)


class CallRecord(Record):
    """One request/response pair of an agent with a model, anonymized."""

    type: Literal["call"] = "call"
    schema_version: int = SCHEMA_VERSION
    id: str = Field(default_factory=new_id, min_length=1, max_length=128)
    time: AwareDatetime = Field(default_factory=utc_now)
    tenant: str = "default"
    session: str = Field(min_length=1, max_length=256)
    task_tag: str | None = None
    """The task the caller named, if it did."""
    task: str | None = None
    """The task id the router chose, if any."""
    request: dict[str, Any]
    """OpenAI chat-completion request: model, messages, tools, response_format, sampling options."""
    response: dict[str, Any]
    """OpenAI chat-completion response object (streamed answers are assembled first)."""
    usage: Usage = Usage()
    latency_seconds: float = Field(0.0, ge=0)
    answered_by: AnsweredBy
    checks: Checks = Checks()
    confidence: float | None = None
    other_answers: list[OtherAnswer] = Field(default_factory=list, max_length=8)
    anonymization: Anonymization = Anonymization()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.request.get("messages") or [])

    @property
    def answer(self) -> dict[str, Any] | None:
        """The assistant message that the caller got, or None for an error response."""
        choices = self.response.get("choices") or []
        return choices[0].get("message") if choices else None

    @property
    def audit(self) -> dict[str, Any] | None:
        """What the teacher said when it was asked the same, off the caller's path."""
        for other in self.other_answers:
            if other.purpose == "audit" and other.adapter is None and other.error is None:
                return other.message
        return None


class FeedbackRecord(Record):
    """What became of an answer, reported later by the caller for a call id."""

    type: Literal["feedback"] = "feedback"
    schema_version: int = SCHEMA_VERSION
    id: str = Field(default_factory=new_id)
    time: AwareDatetime = Field(default_factory=utc_now)
    tenant: str = "default"
    call_id: str = Field(min_length=1, max_length=128)
    score: float | None = Field(None, ge=0, le=1)
    label: str | None = Field(None, max_length=256)
    correction: dict[str, Any] | None = None
    """The assistant message that would have been right."""
    anonymization: Anonymization = Anonymization()


LogRecord = CallRecord | FeedbackRecord
