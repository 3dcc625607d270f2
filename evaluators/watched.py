"""What is watched of a call: a row of texts, categories and numbers, the same for every source of calls.

A column that a source cannot know (a data set's example has no escalation) is None there, and is not
compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.languages import language_of
from infra.calls.record import CallRecord, FeedbackRecord
from infra.prompting.template import content_text
from infra.tasks.embedding import prompt_text
from infra.tasks.signature import signature

Row = Mapping[str, Any]

TEXTS = ("prompt", "answer")
NUMBERS = ("feedback",)
CATEGORIES = (
    "prompt_language",
    "template",
    "tools",
    "action",
    "label",
    "refused",
    "valid",
    "escalated",
)
CALLERS_WORDS = frozenset({"label"})
"""Categories whose values are what somebody wrote: only codes stand for them in what is kept or told."""
LABEL_CHARACTERS = 48
"""A longer answer is no label."""
_REFUSAL = re.compile(
    r"\s*(?:i(?:'|’)?m (?:very |really |so )?sorry|sorry,? |i (?:can(?:no|')?t|can’t|am unable|am not able|"
    r"won(?:'|’)t) |unfortunately,? i (?:can|am)|i(?:'|’)m (?:unable|not able) |as an ai\b|i must decline)",
    re.IGNORECASE,
)


def row_of_call(call: CallRecord, feedback: Sequence[FeedbackRecord] = ()) -> dict[str, Any]:
    """What is watched of a logged call.

    Latency and confidence are left out: they change with who answers, which is no drift of traffic.

    Args:
        feedback: what was reported for it, in order of time.
    """
    checks = call.checks
    choices = call.response.get("choices") or []
    ended = choices[0].get("finish_reason") if choices else None
    scores = [one.score for one in feedback if one.score is not None]
    if not scores and any(one.correction is not None for one in feedback):
        scores = [0.0]
    row = row_of_exchange(call.request, call.answer or {}, call.id, call.session)
    if ended == "content_filter":
        row["refused"] = "yes"
    return row | {
        "valid": "yes" if checks.passed else "no",
        "escalated": (call.answered_by.escalation or "no").split(":")[0],
        "feedback": scores[-1] if scores else None,
    }


def row_of_exchange(
    request: Mapping[str, Any], answer: Mapping[str, Any], call_id: str, session: str
) -> dict[str, Any]:
    """What is watched of a request and an answer alone."""
    tools = [
        item["function"]
        for item in answer.get("tool_calls") or []
        if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping)
    ]
    text = content_text(answer.get("content"))
    said = " ".join(str(tool.get("arguments") or "") for tool in tools) if tools else text
    prompt = prompt_text(request)
    form = signature(request)
    names = sorted(str(tool.get("name")) for tool in tools)
    return {
        "call_id": call_id,
        "session": session,
        "prompt": prompt,
        "answer": said,
        "prompt_language": language_of(prompt),
        "template": form.digest[:12],
        "tools": "+".join(form.tools) or "none",
        "action": "+".join(names) or ("words" if text else "nothing"),
        "label": text if text and not tools and len(text) <= LABEL_CHARACTERS else None,
        "refused": "yes" if answer.get("refusal") or (not tools and _refuses(text)) else "no",
    }


def _refuses(text: str) -> bool:
    return _REFUSAL.match(text) is not None
