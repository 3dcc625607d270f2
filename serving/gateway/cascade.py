"""The cascade's decision: may the small model's answer be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from infra.anonymize.restoring import placeholders
from infra.calls.record import Checks, Usage
from infra.prompting.answers import CUT_OFF
from serving.engines.protocol import (
    EngineAbsent,
    EngineError,
    EngineOverloaded,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
)
from serving.small_model import SmallAnswer

MAX_REASON_CHARACTERS = 120
ABSENT = "engine_absent"
"""No engine to be reached, or not with this adapter: whatever came of it is not the adapter's doing."""
NOT_THE_ADAPTERS = frozenset({"overloaded", "prompt_too_long", "token_limit", ABSENT})
"""Escalations that are nobody's failure and say nothing about the adapter."""
TOO_LONG = frozenset({400, 413})
"""HTTP statuses of an engine to a request of ours that it does not take: the prompt is too long."""
GONE = 404
"""Its status to an adapter that it does not hold any more: it was restarted."""


@dataclass(frozen=True)
class Small:
    """What came of asking the small model, whatever came of it."""

    adapter: str
    message: dict[str, Any] | None = None
    checks: Checks = field(default_factory=Checks)
    confidence: float | None = None
    accepted: bool = False
    escalation: str | None = None
    """None when accepted, else one of checks:<...>, confidence, engine_absent, engine_unavailable,
    engine_timeout, overloaded, prompt_too_long, token_limit."""
    hard_failure: bool = False
    """Whether it counts towards the kill switch: the adapter failed, not the road to it."""
    latency_seconds: float = 0.0
    usage: Usage = field(default_factory=Usage)
    unsafe: str | None = None
    """What it said that must never be said, in words that do not repeat it."""


def judged(
    adapter: str, answer: SmallAnswer, known_placeholders: Iterable[str], *, limited: bool = False
) -> Small:
    """Decide over a small model's answer.

    On top of its own checks: a placeholder that the prompt never had would reach the caller as it
    stands, so such an answer counts as failed checks.

    Args:
        limited: the caller's own token limit was below ours: an answer cut off by it is refused,
            and not held against the adapter.
    """
    checks = answer.checks
    accepted = answer.accepted
    if placeholders(answer.message) - set(known_placeholders):
        checks = Checks(parsed=False, reason="names a placeholder that the prompt does not have")
        accepted = False
    if accepted:
        escalation = None
    elif limited and checks.reason == CUT_OFF:
        escalation = "token_limit"
    elif not checks.passed:
        escalation = f"checks:{(checks.reason or 'failed')[:MAX_REASON_CHARACTERS]}"
    else:
        escalation = "confidence"
    return Small(
        adapter=adapter,
        message=answer.message,
        checks=checks,
        confidence=answer.confidence if math.isfinite(answer.confidence) else None,
        accepted=accepted,
        escalation=escalation,
        hard_failure=not checks.passed and not limited,
        latency_seconds=answer.latency_seconds,
        usage=Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
    )


def refused_as_unsafe(small: Small, found: str) -> Small:
    """An answer that must not be shown, however sure its adapter was of it."""
    reason = f"unsafe output: {found}"
    return replace(
        small,
        accepted=False,
        checks=Checks(parsed=False, reason=reason),
        escalation=f"checks:{reason}",
        hard_failure=True,
        unsafe=found,
    )


def failed(adapter: str, error: EngineError | TimeoutError, latency_seconds: float) -> Small:
    """What an error of the engine means for the caller and for the adapter.

    Only a timeout and a failure inside the engine count towards the kill switch. No engine at all, a
    full queue, and a refusal (prompt too long, adapter gone after a restart) do not.
    """
    if isinstance(error, (EngineTimeout, TimeoutError)):
        reason, hard = "engine_timeout", True
    elif isinstance(error, EngineOverloaded):
        reason, hard = "overloaded", False
    elif isinstance(error, EngineRefused) and error.status in TOO_LONG:
        reason, hard = "prompt_too_long", False
    elif isinstance(error, EngineAbsent) or (
        isinstance(error, EngineRefused) and error.status == GONE
    ):
        reason, hard = ABSENT, False
    else:
        inside = isinstance(error, EngineUnavailable) and error.status is not None
        reason, hard = "engine_unavailable", inside
    return Small(
        adapter=adapter, escalation=reason, hard_failure=hard, latency_seconds=latency_seconds
    )
