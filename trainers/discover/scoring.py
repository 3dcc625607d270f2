"""What kind of answer a task asks for, and how worthwhile a small model for it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trainers.ingest.features import Features
from trainers.readers.making import is_dated

LABEL_WORDS = 5
LABEL_VALUES = 25
_VOLUME_SATURATES = 1000
_BOUND = {"tool_call": 1.0, "structured": 1.0, "label": 1.0, "text": 0.2}


def kind_of_answer(members: Sequence[Features]) -> str:
    """``tool_call``, ``structured``, ``label`` (few short distinct answers) or ``text``."""
    answered = [member for member in members if member.action != "none"]
    if sum(member.action.startswith("call ") for member in answered) * 2 > len(answered):
        return "tool_call"
    if any(member.response_kind.startswith("json") for member in answered):
        return "structured"
    texts = [member for member in answered if member.action == "text"]
    distinct = {member.answer_digest for member in texts}
    short = sum(member.answer_words <= LABEL_WORDS for member in texts) >= 0.95 * len(texts)
    repeats = len(distinct) <= min(LABEL_VALUES, max(1, len(texts) // 2))
    return "label" if texts and short and repeats else "text"


def volume(times: Sequence[datetime], members: Sequence[Features]) -> dict[str, Any]:
    """Calls and tokens per day, over the span the calls cover (at least one day).

    Calls of imported examples without a time are no traffic, and count only where there is nothing else.
    """
    pairs = list(zip(times, members, strict=True))
    pairs = [pair for pair in pairs if is_dated(pair[0])] or pairs
    seen = [time for time, _ in pairs]
    span = (max(seen) - min(seen)).total_seconds() / 86400 if seen else 0.0
    days = max(1.0, span)
    return {
        "calls_per_day": round(len(pairs) / days, 3),
        "tokens_per_day": round(sum(member.tokens for _, member in pairs) / days, 3),
        "by_teacher": sum(member.by_teacher for member in members),
    }


def score(members: Sequence[Features], kind: str, sessions: int) -> dict[str, float]:
    """How good a candidate the task is, 0 to 1, and the parts that make it up (each 0 to 1).

    volume: calls, saturating logarithmically at 1000. repetition: how often an answer recurs.
    format: how bound the answer is to a form that can be checked. The value is their geometric
    mean, so that one hopeless part is not outweighed by the others.
    """
    if not members:
        return {"value": 0.0, "volume": 0.0, "repetition": 0.0, "format": 0.0, "sessions": 0.0}
    answers = Counter(member.answer_digest for member in members)
    repetition = 1 - (len(answers) - 1) / max(1, len(members) - 1)
    parts = {
        "volume": min(1.0, math.log1p(len(members)) / math.log1p(_VOLUME_SATURATES)),
        "repetition": max(0.05, repetition),
        "format": _BOUND[kind],
    }
    value = math.prod(parts.values()) ** (1 / len(parts))
    return {
        "value": round(value, 4),
        **{name: round(part, 4) for name, part in parts.items()},
        "sessions": float(sessions),
    }
