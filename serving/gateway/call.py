"""One call on its way through the gateway, and the log record that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import Any

from infra.anonymize.anonymizer import Redacted
from infra.calls.record import SCHEMA_VERSION, Checks, OtherAnswer, new_id, utc_now
from infra.prompting.answers import check_answer
from serving.gateway.arms import TEACHER, Assignment
from serving.gateway.cascade import Small
from serving.gateway.intake import ChatRequest
from serving.gateway.routing import Routed, Router
from serving.gateway.structure import Structure
from serving.gateway.upstream import Reply

CALL_HEADER = "x-nightschool-call-id"
ANSWERED_HEADER = "x-nightschool-answered-by"
TASK_ANSWERED_HEADER = "x-nightschool-task"


@dataclass
class Call:
    """What is known of a call; grows while it is answered."""

    chat: ChatRequest
    tenant: str
    routed: Routed | None = None
    assignment: Assignment = TEACHER
    id: str = field(default_factory=new_id)
    time: datetime = field(default_factory=utc_now)
    started: float = field(default_factory=perf_counter)
    small: Small | None = None
    """What the model asked first said, shown or not."""
    undecided: tuple[Router, Structure] | None = None
    """Who is still to say the task, which does not matter to who answers."""
    redacted: Redacted | None = None
    """The request as the small model sees it and the log keeps it."""
    escalation: str | None = None
    hedged: Reply | None = None
    """The teacher's answer that overtook a slow small model."""
    response: dict[str, Any] = field(default_factory=dict)
    answer_bytes: int = 0
    """Of the teacher's answer as it came: what the waiting record holds in memory beside the request."""
    latency_seconds: float = 0.0
    others: list[OtherAnswer] = field(default_factory=list)

    @property
    def by_small_model(self) -> bool:
        return self.small is not None and self.small.accepted

    @property
    def task_id(self) -> str | None:
        return self.routed.task.id if self.routed is not None else None

    @property
    def answerer(self) -> str:
        """teacher, champion or canary: for the metrics."""
        if not self.by_small_model:
            return "teacher"
        if self.assignment.escalation is not None:
            return "champion"  # in a killed canary's place
        return self.assignment.arm or "champion"

    def headers(self) -> dict[str, str]:
        """What the caller learns about its call."""
        shown = self.small.adapter if self.by_small_model and self.small is not None else "teacher"
        return self.headers_of(shown)

    def headers_of(self, answered_by: str) -> dict[str, str]:
        """``headers``, while it is not settled yet that this one answers."""
        headers = {CALL_HEADER: self.id, ANSWERED_HEADER: answered_by}
        if self.task_id is not None:
            headers[TASK_ANSWERED_HEADER] = self.task_id
        return headers

    def answered(self, response: Mapping[str, Any]) -> None:
        self.response = dict(response)
        self.latency_seconds = perf_counter() - self.started

    def failed(self, status: int, code: str) -> None:
        """The caller got an error: there is no answer to learn from."""
        self.answered({"error": {"status": status, "code": code}})

    @property
    def message(self) -> dict[str, Any] | None:
        """The assistant message that the caller got."""
        choices = self.response.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
        return message if isinstance(message, dict) else None

    def fields(
        self, teacher_model: str, small_model: str, redacted: Redacted | None
    ) -> dict[str, Any]:
        """The log record in its stored form (``infra.calls``); not anonymized yet but for the request.

        Args:
            redacted: the call's, read once: it may come while a thread makes the record.
        """
        small = self.small
        shown = small if self.by_small_model else None
        others = list(self.others)
        if small is not None and shown is None:
            others.insert(0, unseen(small, small_model, "shadow"))
        message = self.message
        if shown is not None:
            model, checks, confidence = small_model, shown.checks, shown.confidence
        else:
            model = str(self.response.get("model") or teacher_model)
            checks = checked(message, self.chat.body) if message else Checks(parsed=False)
            confidence = None
        routed = self.routed
        return {
            "type": "call",
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "time": self.time,
            "tenant": self.tenant,
            "session": self.chat.session,
            "task_tag": self.chat.tag,
            "task": self.task_id,
            "request": self.chat.logged() if redacted is None else redacted.request,
            "response": self.response,
            "usage": usage_of(self.response),
            "latency_seconds": max(0.0, self.latency_seconds),
            "answered_by": {
                "model": model,
                "adapter": shown.adapter if shown is not None else None,
                "arm": self.assignment.arm,
                "rollout": self.assignment.rollout,
                "route_version": routed.task.version if routed is not None else None,
                "escalation": self.escalation,
            },
            "checks": {
                "parsed": checks.parsed,
                "schema_valid": checks.schema_valid,
                "tool_known": checks.tool_known,
                "reason": checks.reason,
            },
            "confidence": confidence,
            "other_answers": [other.model_dump(mode="json") for other in others[:8]],
            "anonymization": {"policy": "none", "counts": {}},
        }


def unseen(small: Small, model: str, purpose: Any) -> OtherAnswer:
    """A small model's answer that the caller did not see."""
    return OtherAnswer(
        model=model,
        adapter=small.adapter,
        purpose=purpose,
        message=small.message,
        checks=small.checks if small.message is not None else Checks(parsed=False),
        confidence=small.confidence,
        accepted=small.accepted,
        latency_seconds=small.latency_seconds,
        error=None if small.message is not None else small.escalation,
    )


def checked(message: Mapping[str, Any], request: Mapping[str, Any]) -> Checks:
    """``check_answer``, for a request whose schema may be anything at all."""
    try:
        return check_answer(message, request)
    except Exception as error:  # noqa: BLE001 - the caller's schema decides what is raised
        return Checks(reason=f"could not be checked: {type(error).__name__}")


def usage_of(response: Mapping[str, Any]) -> dict[str, int]:
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}

    def count(name: str) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) and value >= 0 else 0

    return {name: count(name) for name in ("prompt_tokens", "completion_tokens")}
