"""How far the teacher answers like prompts in like ways. Pure.

Prompts are alike when they have the same words in the same order, apart from case, punctuation and what
changes from call to call (numbers, addresses, placeholders). Their answers need not be equal: the values
in them change with the prompt. What has to be the same is the tools that are called, the fields of a JSON
object, or that it is text; a short label, which a number may decide, is compared only where the
numbers are the same too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from infra.prompting.template import content_text
from infra.tasks.masking import stable_words
from infra.tasks.signature import items, role_of
from trainers.data_sets.labels import Example, agreement
from trainers.discover.scoring import LABEL_WORDS
from trainers.ingest.features import tool_calls

_EDGE = ".,;:!?\"'`()[]{}"


def consistency(examples: Iterable[Example]) -> dict[str, Any]:
    """``{"value", "prompts", "like": {"value", "prompts"}}``: on identical prompts, and on like ones.

    Each is the mean share of the commonest answer over prompts asked more than once; ``value`` is None
    when there are none. Corrections by people do not count.
    """
    found = list(examples)
    forms: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for example in found:
        if example.source != "correction":
            form = _form(example.answer)
            forms[_asked(example.request, exactly=form[0] == "label")][form] += 1
    repeated = [counts for counts in forms.values() if counts.total() > 1]
    shares = [max(counts.values()) / counts.total() for counts in repeated]
    value = round(sum(shares) / len(shares), 6) if shares else None
    return {**agreement(found), "like": {"value": value, "prompts": len(shares)}}


def _asked(request: Mapping[str, Any], *, exactly: bool) -> Hashable:
    """What is the same in like prompts; ``exactly``: with their numbers and placeholders."""
    return tuple(
        (
            role_of(message),
            tuple(_words(content_text(message.get("content")), exactly=exactly)),
            tuple(name for name, _ in tool_calls(message)),
        )
        for message in items(request.get("messages"))
    )


def _words(text: str, *, exactly: bool) -> Iterator[str]:
    """Lower-case words without punctuation at their edges."""
    if not exactly:
        return stable_words(text)
    return (word for piece in text.lower().split() if (word := piece.strip(_EDGE)))


def _form(answer: Mapping[str, Any]) -> tuple[str, Hashable]:
    calls = tool_calls(answer)
    if calls:
        return "calls", tuple(sorted(name for name, _ in calls))
    text = content_text(answer.get("content"))
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return "object", tuple(sorted(value))
    found = tuple(_words(text, exactly=True))
    return ("label", found) if len(found) <= LABEL_WORDS else ("text", None)
