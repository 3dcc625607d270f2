"""Score one answer against the right one: 0 to 1, with the stages that say where it went wrong.

Four kinds of answer, chosen from the right answer and its request:

* ``tool_call``: the caller offered tools. Parallel calls are compared as a multiset.
* ``structured``: the caller asked for JSON, or the right answer is a JSON object or array.
* ``label``: a short line such as a category. Equal after trimming and case folding.
* ``text``: anything else. Token F1.

``correct`` is 1.0 only on the full match; for free text, and for the words said instead of a tool
call, it is the token F1. Nothing here raises on an answer, however broken: a wrong answer is 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from infra.prompting.answers import check_answer
from infra.prompting.template import content_text

Kind = Literal["tool_call", "structured", "label", "text"]

MAX_LABEL_CHARACTERS = 64
MAX_LABEL_WORDS = 4
MAX_FIELDS = 20_000
# Scripts written without spaces count by character.
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)

Message = Mapping[str, Any]


@dataclass(frozen=True)
class CallScore:
    """How good one answer is."""

    kind: Kind
    correct: float
    """0 to 1; 1.0 is the full match."""
    stages: dict[str, float]
    """Each 0 to 1. Tool calls: called, parsed, name, keys, values (or called, words where none was
    right). Structured: parsed, schema_valid, fields, exact. Label: exact. Text: exact, f1."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CallScore:
        return cls(value["kind"], float(value["correct"]), dict(value["stages"]))


def score_answer(
    expected: Message, got: Message | None, request: Mapping[str, Any], *, kind: Kind | None = None
) -> CallScore:
    """Score ``got`` against ``expected``, both OpenAI assistant messages.

    Args:
        expected: the right answer (the teacher's, or the caller's correction).
        got: the answer to judge; None when there was none, which is always wrong.
        request: the OpenAI request both answer.
        kind: overrules the kind that ``answer_kind`` reads from the answer and its request.
    """
    kind = kind or answer_kind(expected, request)
    if kind == "tool_call":
        return _score_calls(expected, got, request)
    if kind == "structured":
        return _score_structured(expected, got, request)
    right, said = _text(expected), _text(got)
    exact = float(got is not None and not _calls(got) and right.casefold() == said.casefold())
    if kind == "label":
        return CallScore("label", exact, {"exact": exact})
    f1 = 0.0 if got is None or _calls(got) else token_f1(right, said)
    return CallScore("text", f1, {"exact": exact, "f1": f1})


def answer_kind(expected: Message, request: Mapping[str, Any]) -> Kind:
    """What kind of answer is right for this request."""
    if _calls(expected) or request.get("tools"):
        return "tool_call"
    form = request.get("response_format")
    if isinstance(form, Mapping) and form.get("type") in ("json_schema", "json_object"):
        return "structured"
    text = _text(expected)
    if text[:1] in ("{", "[") and isinstance(_json(text), dict | list):
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
    right, made = _calls(expected), _calls(got)
    called = float(got is not None and bool(right) == bool(made))
    if not right:
        words = token_f1(_text(expected), _text(got)) if called else 0.0
        return CallScore("tool_call", words, {"called": called, "words": words})
    wanted, given = ([_read_call(call) for call in calls] for calls in (right, made))
    parsed = sum(arguments is not None for _, arguments in given) / len(given) if given else 0.0
    stages = {
        "called": called,
        "parsed": parsed,
        "name": _overlap([name for name, _ in wanted], [name for name, _ in given]),
        "keys": _overlap(map(_keys, wanted), map(_keys, given)),
        "values": _overlap(map(_values, wanted), map(_values, given)),
    }
    return CallScore("tool_call", float(stages["values"] == 1.0), stages)


def _score_structured(
    expected: Message, got: Message | None, request: Mapping[str, Any]
) -> CallScore:
    value = _json(_text(got)) if got is not None and not _calls(got) else _BROKEN
    if value is _BROKEN:
        return CallScore("structured", 0.0, dict.fromkeys(_STRUCTURED_STAGES, 0.0))
    valid = float(check_answer(got or {}, request).passed)
    right = _json(_text(expected))
    exact = float(right is not _BROKEN and canonical(value) == canonical(right))
    fields = exact or (0.0 if right is _BROKEN else _f1(_fields(right), _fields(value)))
    stages = {"parsed": 1.0, "schema_valid": valid, "fields": fields, "exact": exact}
    return CallScore("structured", float(exact == 1.0 and valid == 1.0), stages)


_STRUCTURED_STAGES = ("parsed", "schema_valid", "fields", "exact")
_BROKEN = object()


def canonical(value: Any) -> str:
    """A JSON value as text that is equal exactly when the values are: 1 equals 1.0, not true."""
    return json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _calls(message: Message | None) -> list[Any]:
    calls = (message or {}).get("tool_calls")
    return calls if isinstance(calls, list) else []


def _read_call(call: Any) -> tuple[str, dict[str, Any] | None]:
    """A call's name and arguments; None where they are not a JSON object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return "", None
    arguments = function.get("arguments")
    if not isinstance(arguments, dict):
        arguments = _json(str(arguments or "{}"))
    return str(function.get("name", "")), arguments if isinstance(arguments, dict) else None


def _keys(call: tuple[str, dict[str, Any] | None]) -> Hashable:
    name, arguments = call
    return object() if arguments is None else (name, frozenset(arguments))


def _values(call: tuple[str, dict[str, Any] | None]) -> Hashable:
    name, arguments = call
    return object() if arguments is None else (name, canonical(arguments))


def _overlap(wanted: Iterable[Hashable], given: Iterable[Hashable]) -> float:
    """Share of calls that match as a multiset; a call too many costs as much as one too few."""
    right, said = Counter(wanted), Counter(given)
    return (right & said).total() / max(right.total(), said.total(), 1)


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


def _text(message: Message | None) -> str:
    return content_text((message or {}).get("content")).strip()


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
        canonical(value)
    except (ValueError, RecursionError):
        return _BROKEN
    return value
