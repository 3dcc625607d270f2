"""What discovery needs of a call, computed once at ingest and kept as columns beside the record.

So that a night's discovery over tens of thousands of calls reads a few short columns instead of
every request again. Nothing here holds a value of the caller's: prompts are masked words, answers
are digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from infra.calls.record import CallRecord
from infra.tasks.embedding import MAX_PROMPT_WORDS, prompt_text
from infra.tasks.masking import mask
from infra.tasks.signature import Signature, items, message_text, signature

SYSTEM_WORDS = 12


@dataclass(frozen=True)
class Features:
    signature: str
    tools: str
    """JSON list of the names of the tools offered."""
    response_kind: str
    response_name: str
    system_words: str
    """First words of the masked system prompt."""
    prompt: str
    """Masked words of the text the call is assigned by."""
    action: str
    """``call <names>`` for tool calls, ``text``, or ``none`` when there is no answer."""
    answer_digest: str
    answer_words: int
    tokens: int
    by_teacher: bool


def features(record: CallRecord, found: Signature | None = None) -> Features:
    found = found or signature(record.request)
    message = answer_of(record)
    text = message_text(message)
    names = sorted({name for name, _ in tool_calls(message)})
    said = text if not names else json.dumps(tool_calls(message), sort_keys=True)
    return Features(
        signature=found.digest,
        tools=json.dumps(found.tools),
        response_kind=found.response_kind,
        response_name=found.response_name,
        system_words=" ".join(found.system_template.split()[:SYSTEM_WORDS]),
        prompt=mask(prompt_text(record.request), MAX_PROMPT_WORDS),
        action="call " + " ".join(names) if names else "text" if text else "none",
        answer_digest=hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        answer_words=len(text.split()),
        tokens=record.usage.prompt_tokens + record.usage.completion_tokens,
        by_teacher=record.answered_by.adapter is None,
    )


def answer_of(record: CallRecord) -> Mapping[str, Any] | None:
    """The assistant message, or None for an error or a response of another shape."""
    choices = items(record.response.get("choices"))
    message = choices[0].get("message") if choices and isinstance(choices[0], Mapping) else None
    return message if isinstance(message, Mapping) else None


def tool_calls(message: Any) -> list[tuple[str, str]]:
    """(name, arguments as text) of each well-formed tool call of a message."""
    if not isinstance(message, Mapping):
        return []
    functions = (
        call.get("function")
        for call in items(message.get("tool_calls"))
        if isinstance(call, Mapping)
    )
    return [
        (function["name"], str(function.get("arguments") or ""))
        for function in functions
        if isinstance(function, Mapping) and isinstance(function.get("name"), str)
    ]


def columns(rows: Sequence[Features]) -> dict[str, list[Any]]:
    """Column name (``f_`` before the field's name) to its values."""
    return {
        f"f_{field.name}": [getattr(row, field.name) for row in rows] for field in fields(Features)
    }


FEATURE_COLUMNS = tuple(f"f_{field.name}" for field in fields(Features))


def from_row(row: Mapping[str, Any]) -> Features:
    return Features(**{name[2:]: row[name] for name in FEATURE_COLUMNS})
