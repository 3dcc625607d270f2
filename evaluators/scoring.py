"""Score one answer against the right one: 0 to 1, with the stages that say where it went wrong.

Four kinds of answer, chosen from the right answer and its request:

* ``tool_call``: the caller offered tools. Parallel calls are compared as a multiset.
* ``structured``: the caller asked for JSON, or the right answer is a JSON object or array.
* ``label``: a short line such as a category. Equal after trimming and case folding.
* ``text``: anything else. Token F1; where nobody waits, chrF and embedding similarity beside it.

``correct`` is 1.0 only on the full match; for free text, and for the words said instead of a tool
call, it is the token F1. Nothing here raises on an answer, however broken: a wrong answer is 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluators.texts import text_stages
from evaluators.tool_calls import match_calls
from infra.prompting.answers import check_answer
from infra.prompting.values import BROKEN, Message, calls_of, canonical, read_json, text_of

Kind = Literal["tool_call", "structured", "label", "text"]

MAX_LABEL_CHARACTERS = 64
MAX_LABEL_WORDS = 4
MAX_FIELDS = 20_000
# Scripts written without spaces count by character.
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@dataclass(frozen=True)
class CallScore:
    """How good one answer is."""

    kind: Kind
    correct: float
    """0 to 1; 1.0 is the full match."""
    stages: dict[str, float]
    """Each 0 to 1. Tool calls: called, parsed, name, keys, values, normalized (or called, words where
    none was right). Structured: parsed, schema_valid, fields, exact. Label: exact. Text: exact, f1, and
    thoroughly chrf, embedding. Further scorers add theirs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CallScore:
        return cls(value["kind"], float(value["correct"]), dict(value["stages"]))


def score_answer(
    expected: Message,
    got: Message | None,
    request: Mapping[str, Any],
    *,
    kind: Kind | None = None,
    thorough: bool = False,
) -> CallScore:
    """Score ``got`` against ``expected``, both OpenAI assistant messages.

    Args:
        expected: the right answer (the teacher's, or the caller's correction).
        got: the answer to judge; None when there was none, which is always wrong.
        request: the OpenAI request both answer.
        kind: overrules the kind that ``answer_kind`` reads from the answer and its request.
        thorough: also the stages of free text that take longer; ``correct`` is the same.
    """
    kind = kind or answer_kind(expected, request)
    if kind == "tool_call":
        return _score_calls(expected, got, request)
    if kind == "structured":
        return _score_structured(expected, got, request)
    right, said = text_of(expected), text_of(got)
    exact = float(got is not None and not calls_of(got) and right.casefold() == said.casefold())
    if kind == "label":
        return CallScore("label", exact, {"exact": exact})
    spoke = got is not None and not calls_of(got)
    f1 = token_f1(right, said) if spoke else 0.0
    stages = {"exact": exact, "f1": f1}
    if thorough:
        stages |= text_stages(right, said if spoke else "")
    return CallScore("text", f1, stages)


def answer_kind(expected: Message, request: Mapping[str, Any]) -> Kind:
    """What kind of answer is right for this request."""
    if calls_of(expected) or request.get("tools"):
        return "tool_call"
    form = request.get("response_format")
    if isinstance(form, Mapping) and form.get("type") in ("json_schema", "json_object"):
        return "structured"
    text = text_of(expected)
    if text[:1] in ("{", "[") and isinstance(read_json(text), dict | list):
        return "structured"
    short = len(text) <= MAX_LABEL_CHARACTERS and len(text.split()) <= MAX_LABEL_WORDS
    return "label" if short and "\n" not in text and text[-1:] not in (".", "!", "?") else "text"


def token_f1(expected: str, got: str) -> float:
    """Harmonic mean of token precision and recall over case-folded words, as a multiset.

    Source: the SQuAD evaluation (Rajpurkar et al. 2016), without dropping articles. Texts without
    any word (say, only punctuation) must be equal.
    """
    right, said = (Counter(_TOKEN.findall(text.casefold())) for text in (expected, got))
    if not right or not said:
        return float(expected.strip() == got.strip())
    return _f1(right, said)


def _score_calls(expected: Message, got: Message | None, request: Mapping[str, Any]) -> CallScore:
    right, made = calls_of(expected), calls_of(got)
    if not right:
        called = float(got is not None and not made)
        words = token_f1(text_of(expected), text_of(got)) if called else 0.0
        return CallScore("tool_call", words, {"called": called, "words": words})
    stages = match_calls(expected, got, request)
    return CallScore("tool_call", float(stages["values"] == 1.0), stages)


def _score_structured(
    expected: Message, got: Message | None, request: Mapping[str, Any]
) -> CallScore:
    # Anything under tool_calls, however odd its shape, is no answer in JSON.
    said_so = got is not None and not got.get("tool_calls")
    value = read_json(text_of(got)) if said_so else BROKEN
    if value is BROKEN:
        return CallScore("structured", 0.0, dict.fromkeys(_STRUCTURED_STAGES, 0.0))
    valid = float(check_answer(got or {}, request).passed)
    right = read_json(text_of(expected))
    exact = float(right is not BROKEN and canonical(value) == canonical(right))
    fields = exact or (0.0 if right is BROKEN else _f1(_fields(right), _fields(value)))
    stages = {"parsed": 1.0, "schema_valid": valid, "fields": fields, "exact": exact}
    return CallScore("structured", float(exact == 1.0 and valid == 1.0), stages)


_STRUCTURED_STAGES = ("parsed", "schema_valid", "fields", "exact")


def _f1(right: Counter[Any], said: Counter[Any]) -> float:
    if not right and not said:
        return 1.0
    return 2 * (right & said).total() / (right.total() + said.total())


def _fields(value: Any) -> Counter[tuple[str, str]]:
    """(path, value) of every leaf; list positions are left out, so order costs only ``exact``."""
    found: Counter[tuple[str, str]] = Counter()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting and len(found) < MAX_FIELDS:
        path, item = waiting.pop()
        if isinstance(item, dict) and item:
            waiting += [(f"{path}/{key}", child) for key, child in item.items()]
        elif isinstance(item, list) and item:
            waiting += [(f"{path}[]", child) for child in item]
        else:
            found[path, canonical(item)] += 1
    return found
