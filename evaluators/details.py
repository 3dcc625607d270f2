"""What a scorecard says beside means: the kind of task, labels by class, calls over several steps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from evaluators.replay import Example, Outcome
from evaluators.scoring import Kind, answer_kind
from evaluators.tool_calls import match_steps
from infra.prompting.values import calls_of, text_of

MAX_CLASSES = 30
OTHER, NONE = "(something else)", "(no answer)"
_WHY: dict[Kind, str] = {
    "tool_call": "offer tools, or the right answer calls one",
    "structured": "ask for JSON, or the right answer is a JSON object or array",
    "label": "are rightly answered by a short line",
    "text": "are rightly answered by free text",
}


def details_of(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Kind of task, and what its kind is judged by as a whole; JSON.

    Args:
        examples: what was asked.
        outcomes: the answers, found by the example's id; examples without one are left out.
    """
    said = {outcome.example_id: outcome for outcome in outcomes}
    pairs = [(example, said[example.call_id]) for example in examples if example.call_id in said]
    kinds = Counter(answer_kind(example.answer, example.request) for example, _ in pairs)
    if not kinds:
        return {}
    kind, count = max(kinds.items(), key=lambda item: (item[1], item[0]))
    found: dict[str, Any] = {"kind": kind, "why": f"{count} of {len(pairs)} rows {_WHY[kind]}"}
    labels = [
        (text_of(example.answer).casefold(), _label(outcome))
        for example, outcome in pairs
        if outcome.score.kind == "label"
    ]
    if labels:
        found["labels"] = by_class(labels)
    steps = _steps(pairs)
    if steps:
        found["steps"] = steps
    return found


def by_class(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Accuracy, macro F1 and confusion of (right label, given label).

    The classes are the right labels; whatever else was answered is counted as ``OTHER``, so that an
    adapter that writes prose makes no classes. Macro F1 is the plain mean of the classes' F1: a class
    that is never found counts as much as a common one.
    """
    classes = Counter(right for right, _ in pairs)
    seen = Counter(
        (right, given if given in classes or given == NONE else OTHER) for right, given in pairs
    )
    given = Counter[str]()
    for (_, answer), count in seen.items():
        given[answer] += count
    scores = {name: 2 * seen[name, name] / (count + given[name]) for name, count in classes.items()}
    shown = [name for name, _ in classes.most_common(MAX_CLASSES)]
    return {
        "rows": len(pairs),
        "classes": len(classes),
        "accuracy": sum(seen[name, name] for name in classes) / len(pairs),
        "macro_f1": sum(scores.values()) / len(scores),
        "f1": {name: scores[name] for name in shown},
        "confusion": {
            name: {
                answer: count
                for (right, answer), count in seen.most_common()
                if right == name and (answer in shown or answer in (OTHER, NONE))
            }
            for name in shown
        },
    }


def _label(outcome: Outcome) -> str:
    # An answer that serving would not show is none.
    if not outcome.showable or calls_of(outcome.message):
        return NONE
    return text_of(outcome.message).casefold()


def _steps(pairs: Sequence[tuple[Example, Outcome]]) -> dict[str, float]:
    """Sessions whose right answers call tools in several steps, each as one multiset of calls."""
    sessions: defaultdict[str, list[tuple[Example, Outcome]]] = defaultdict(list)
    for example, outcome in pairs:
        if calls_of(example.answer):
            sessions[example.session].append((example, outcome))
    several = [rows for rows in sessions.values() if len(rows) > 1]
    if not several:
        return {}
    found = [
        match_steps(
            [example.answer for example, _ in rows],
            [outcome.message if outcome.showable else None for _, outcome in rows],
            [example.request for example, _ in rows],
        )
        for rows in several
    ]
    means = {stage: sum(one[stage] for one in found) / len(found) for stage in found[0]}
    whole = sum(one["values"] == 1.0 for one in found) / len(found)
    return {"sessions": len(several), **means, "all_right": whole}
