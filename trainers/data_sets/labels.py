"""Which answer, if any, a call teaches. Pure.

Labels come from the teacher or from people: the teacher's own answer, the teacher's audit of a small
model's answer, or a correction. A small model's answer is never a label, not even its successor's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from infra.calls.record import CallRecord, FeedbackRecord
from infra.calls.tool_results import TOOL_ERROR
from infra.prompting.answers import check_answer
from infra.prompting.template import render_answer, render_prompt
from infra.tasks.signature import items
from trainers.ingest.features import answer_of, tool_calls

Source = Literal["teacher", "audit", "correction"]
Word = Literal["correction", "score"]


@dataclass(frozen=True)
class Example:
    """One prompt and its right answer."""

    call_id: str
    session: str
    time: datetime
    request: dict[str, Any]
    """OpenAI request, anonymized."""
    answer: dict[str, Any]
    """OpenAI assistant message."""
    weight: float
    """1 / number of near copies in the data set."""
    source: Source
    signature: str


@dataclass(frozen=True)
class Label:
    answer: dict[str, Any]
    source: Source


def own(record: CallRecord, feedback: Iterable[FeedbackRecord]) -> list[FeedbackRecord]:
    """What its own tenant reported: whoever knows a call's id may report on it, but nobody else counts."""
    return [item for item in feedback if item.tenant == record.tenant]


def latest(feedback: Sequence[FeedbackRecord], word: Word) -> Any:
    """The newest correction or score of reports, oldest first; None: there is none."""
    said = (getattr(item, word) for item in reversed(feedback))
    return next((value for value in said if value not in (None, {})), None)


def label_of(record: CallRecord, feedback: Sequence[FeedbackRecord]) -> Label | str:
    """The label of a call, or in a word why it has none.

    Args:
        feedback: all that was reported for the call, oldest first; the newest of each sort counts.
    """
    correction = latest(feedback, "correction")
    if correction is not None:
        return _usable(correction, record, "correction")
    score = latest(feedback, "score")
    if record.answered_by.adapter is None:
        if any(item.label == TOOL_ERROR for item in feedback):
            return "tool-error"
        if score == 0:
            return "rejected"
        message = answer_of(record)
        if message is None:
            return "unanswered"
        if _cut_off(record):
            return "invalid"
        return _usable(message, record, "teacher")
    return "small-model" if record.audit is None else _usable(record.audit, record, "audit")


def agreement(examples: Iterable[Example]) -> dict[str, Any]:
    """How far the teacher agrees with itself: over prompts asked more than once, the mean share of
    its commonest answer, and the number of those prompts. ``value`` is None when there are none.
    """
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        if example.source != "correction":
            answers[prompt_key(example.request)][answer_key(example.answer)] += 1
    repeated = [counts for counts in answers.values() if counts.total() > 1]
    if not repeated:
        return {"value": None, "prompts": 0}
    shares = [max(counts.values()) / counts.total() for counts in repeated]
    return {"value": round(sum(shares) / len(shares), 6), "prompts": len(repeated)}


def prompt_key(request: Mapping[str, Any]) -> str:
    """sha256 of what was asked, without sampling options and metadata."""
    asked = {name: request.get(name) for name in ("messages", "tools", "response_format")}
    return _digest(asked)


def answer_key(message: Mapping[str, Any]) -> str:
    """sha256 of what was answered; tool calls by name and arguments, in order."""
    calls = [(name, _json_or_text(arguments)) for name, arguments in tool_calls(message)]
    return _digest(calls or _json_or_text(str(message.get("content") or "")))


def _usable(message: Mapping[str, Any], record: CallRecord, source: Source) -> Label | str:
    """The label, if it is an answer that serving itself would show: well-formed and checked."""
    clean = {"role": "assistant", "content": message.get("content")}
    calls = items(message.get("tool_calls"))
    if calls:
        if len(tool_calls(message)) != len(calls):
            return "invalid"
        clean["tool_calls"] = [dict(call) for call in calls]
    try:
        render_prompt(record.request)
        passed = check_answer(clean, record.request).passed and bool(render_answer(clean).strip())
    except (AttributeError, KeyError, TypeError, ValueError):
        # Odd shapes inside the request or the answer: nothing that could be trained on.
        return "invalid"
    return Label(clean, source) if passed else "invalid"


def _cut_off(record: CallRecord) -> bool:
    choices = items(record.response.get("choices"))
    return bool(choices) and choices[0].get("finish_reason") in ("length", "content_filter")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
