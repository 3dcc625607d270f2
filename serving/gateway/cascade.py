"""The cascade's decisions: may the small model be asked at all, and may its answer be shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.calls.record import Checks, Usage

MAX_REASON_CHARACTERS = 120
# What an anonymizer leaves behind, e.g. <EMAIL_1>.
PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*_\d+>")
# Options that change what an answer is, and that the small model does not know.
_UNKNOWN_OPTIONS = (
    "logit_bias",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "functions",
    "function_call",
)
# Refused by the checks or by the engine: the adapter's own fault.
HARD = ("checks", "engine_error", "engine_timeout")


@dataclass(frozen=True)
class Small:
    """What came of asking the small model, whatever came of it."""

    adapter: str
    message: dict[str, Any] | None = None
    checks: Checks = Checks()
    confidence: float | None = None
    accepted: bool = False
    escalation: str | None = None
    """None when accepted, else one of checks:<...>, confidence, engine_unavailable, engine_timeout,
    overloaded."""
    hard_failure: bool = False
    """Whether it counts towards the kill switch: the adapter failed, not the road to it."""
    latency_seconds: float = 0.0
    usage: Usage = Usage()


def beyond_small_model(request: Mapping[str, Any]) -> str | None:
    """Why the small model cannot serve this request, or None. Depends on the request alone."""
    if request.get("n") not in (None, 1):
        return "n"
    if request.get("logprobs") or request.get("top_logprobs"):
        return "logprobs"
    for name in _UNKNOWN_OPTIONS:
        if request.get(name):
            return name
    if request.get("stop"):
        return "stop"
    if isinstance(request.get("tool_choice"), dict):
        return "tool_choice"
    if request.get("tool_choice") == "none" and request.get("tools"):
        return "tool_choice"
    for tool in request.get("tools") or []:
        if tool.get("type", "function") != "function":
            return "tools"
    for message in request["messages"]:
        if message.get("audio") or message.get("role") == "function":
            return "messages"
        for call in message.get("tool_calls") or []:
            if call.get("type", "function") != "function":
                return "messages"
        content = message.get("content")
        if isinstance(content, list) and any(
            part.get("type") not in ("text", "refusal") for part in content
        ):
            return "content"
    return None


def answer_limit(request: Mapping[str, Any], most_tokens: int) -> int:
    """Tokens that the small model may generate: the caller's limit within the engine's."""
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return min(asked, most_tokens)
    return most_tokens


def judged(adapter: str, answer: Any, known_placeholders: Iterable[str]) -> Small:
    """Decide over a small model's answer (a ``serving.small_model.SmallAnswer``).

    On top of its own checks: a placeholder that the prompt never had would reach the caller as it
    stands, so such an answer counts as failed checks.
    """
    checks: Checks = answer.checks
    accepted = bool(answer.accepted)
    strange = placeholders(answer.message) - set(known_placeholders)
    if strange:
        checks = Checks(parsed=False, reason="names a placeholder that the prompt does not have")
        accepted = False
    if accepted:
        escalation = None
    elif not checks.passed:
        escalation = f"checks:{(checks.reason or 'failed')[:MAX_REASON_CHARACTERS]}"
    else:
        escalation = "confidence"
    return Small(
        adapter=adapter,
        message=answer.message,
        checks=checks,
        confidence=answer.confidence,
        accepted=accepted,
        escalation=escalation,
        hard_failure=not checks.passed,
        latency_seconds=answer.latency_seconds,
        usage=answer.usage,
    )


def failed(adapter: str, error: BaseException, latency_seconds: float) -> Small:
    """What an error of the engine means: names are the engine protocol's error classes."""
    name = type(error).__name__
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) or name == "EngineTimeout":
        reason, hard = "engine_timeout", True
    elif name == "EngineOverloaded":
        reason, hard = "overloaded", False
    elif name == "EngineUnavailable":
        # The engine is gone for every adapter: no evidence against this one.
        reason, hard = "engine_unavailable", False
    else:
        reason, hard = "engine_unavailable", True
    return Small(
        adapter=adapter, escalation=reason, hard_failure=hard, latency_seconds=latency_seconds
    )


def placeholders(value: Any) -> set[str]:
    """Every placeholder in the strings of a JSON value."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            if "<" in node:
                found.update(PLACEHOLDER.findall(node))
        elif isinstance(node, Mapping):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found
