"""Whatever an adapter, its engine or its test is like: what is bad passes no gate, and is told why."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from evaluators.calibration import calibrate_outcomes
from evaluators.further import MetricEvidence, MetricRow, MetricTerms, judge_metrics
from evaluators.gate import GateEvidence, GatePolicy, GateResult, decide
from evaluators.intervals import difference_bounds
from evaluators.replay import Outcome, replay
from evaluators.scorecard import make_scorecard
from evaluators.served import gate_rows
from infra.prompting.answers import parse_answer
from tests.evaluators.making import Example, says

ROWS = 120
TOOL = {
    "type": "function",
    "function": {
        "name": "turn_on",
        "parameters": {
            "type": "object",
            "properties": {"area": {"type": "string"}},
            "required": ["area"],
        },
    },
}
AREAS = ("hall", "kitchen", "attic", "cellar", "garage")


def call_of(area: str) -> str:
    return f'{{"name":"turn_on","arguments":{{"area":"{area}"}}}}'


def examples(kind: str = "tool") -> list[Example]:
    found = []
    for n in range(ROWS):
        area = AREAS[n % len(AREAS)]
        request: dict[str, Any] = {"messages": [{"role": "user", "content": f"{n}: light, {area}"}]}
        if kind == "tool":
            request["tools"] = [TOOL]
            answer = parse_answer(call_of(area), request).message
        else:
            answer = says(area)
        found.append(Example(request, answer, f"s{n}", f"c{n}"))
    return found


def answering(
    text: Callable[[str], str], *, confidence: float = -0.01, seconds: float = 0.0
) -> Any:
    """As the small model answers: its text parsed and checked as serving does."""

    async def ask(request: Mapping[str, Any]) -> Any:
        await asyncio.sleep(seconds)
        said = text(request["messages"][-1]["content"])
        parsed = parse_answer(said, request, complete=len(said) < 1000)
        return type(
            "Answer",
            (),
            {
                "message": parsed.message,
                "checks": parsed.checks,
                "confidence": confidence,
            },
        )()

    return ask


def right(prompt: str) -> str:
    return call_of(prompt.rpartition(" ")[2])


def crashing(prompt: str) -> str:
    raise ConnectionError("the engine is gone")


def policy(**more: Any) -> GatePolicy:
    return GatePolicy(min_rows=30, **more)


async def judged(
    answerer: Any,
    kind: str = "tool",
    *,
    terms: GatePolicy | None = None,
    metrics: Mapping[str, MetricEvidence] | None = None,
    slices: Callable[[int], dict[str, str]] = lambda n: {"tool": "turn_on"},
    timeout_seconds: float = 30,
) -> tuple[GateResult, list[Outcome]]:
    """The way from replayed answers to the decision, with a base model that knows nothing."""
    asked = examples(kind)
    outcomes = await replay(answerer, asked, timeout_seconds=timeout_seconds, give_up_after=5)
    threshold = calibrate_outcomes(outcomes, 0.05, 0.05)
    base = [replace(row, score=replace(row.score, correct=0.0), error=None) for row in outcomes]
    rows = gate_rows(
        [row.by(threshold.score) for row in outcomes],
        math.inf if threshold.value is None else threshold.value,
        base=base,
        slices={f"c{n}": slices(n) for n in range(ROWS)},
    )
    evidence = GateEvidence(
        "lights@0123456789abcdef",
        "teacher",
        rows,
        calibration=threshold.to_dict(),
        metrics=metrics or {},
    )
    result = decide(terms or policy(), evidence)
    assert decide(terms or policy(), GateEvidence.from_dict(evidence.to_dict())) == result
    return result, outcomes


async def test_a_right_one_passes():
    result, outcomes = await judged(answering(right), terms=policy(slices=("tool",)))
    assert result.verdict == "pass", result.reasons
    assert make_scorecard("a", "d" * 64, outcomes).mean == 1.0


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        (lambda _: "", "tool", "no confidence threshold is certified: 0 of 120"),
        (lambda _: "  \n", "label", "no confidence threshold is certified: 0 of 120"),
        (lambda _: call_of("hall"), "tool", "too many errors among"),
        (lambda _: "hall", "label", "too many errors among"),
        (lambda _: "light " * 50_000, "tool", "no confidence threshold is certified: 0 of 120"),
        (lambda _: b"\xff\xfe hall \x80".decode("utf-8", "replace"), "label", "too many errors"),
        (lambda _: "\ud800\udfff", "label", "too many errors"),
        (lambda _: call_of("\ud800"), "tool", "too many errors among"),
        (lambda _: call_of("hall") + " and more", "tool", "no confidence threshold is certified"),
        (crashing, "tool", "the engine failed on 120 of 120 rows"),
    ],
    ids=[
        "nothing", "blanks", "always the same call", "always the same label", "endless text",
        "invalid UTF-8", "lone surrogates", "surrogates in a call", "prose after a call",
        "crashing engine",
    ],
)  # fmt: skip
async def test_a_bad_adapter_passes_no_gate(text: Callable[[str], str], kind: str, why: str):
    result, outcomes = await judged(answering(text), kind)
    assert result.verdict in ("fail", "inconclusive")
    assert any(why in reason for reason in result.reasons), result.reasons
    card = make_scorecard("a", "d" * 64, outcomes)
    assert card.mean < 0.5 and card.to_dict()


async def test_a_slow_engine_passes_no_gate():
    result, _ = await judged(answering(right, seconds=60), timeout_seconds=0.01)
    assert result.verdict == "inconclusive"
    assert "the engine failed on 120 of 120 rows" in result.reasons[0]


async def test_a_confidence_that_is_no_number_shows_nothing():
    for confidence in (math.nan, math.inf, -math.inf):
        result, _ = await judged(answering(right, confidence=confidence))
        assert result.verdict != "pass" and "no confidence threshold" in result.reasons[0]


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({}, "the metric judge is missing"),
        ({"judge": MetricEvidence(())}, "the metric judge is missing"),
        (
            {"judge": MetricEvidence((), "the judge is away")},
            "judge cannot be relied on: the judge is away",
        ),
        (
            {
                "judge": MetricEvidence(
                    tuple(MetricRow(f"c{n}", f"s{n}", -1.0, "prose") for n in range(ROWS))
                )
            },
            "judge gave too few scores: no score on 120 of 120 rows: 120 × prose",
        ),
        (
            {"judge": MetricEvidence(tuple(MetricRow(f"c{n}", f"s{n}", 0.0) for n in range(10)))},
            "judge has 10 scored rows, fewer than the 30",
        ),
        (
            {
                "judge": MetricEvidence(
                    tuple(MetricRow(f"c{n}", "s0", -(n % 2)) for n in range(ROWS))
                )
            },
            "a further metric got worse",
        ),
        (
            {
                "judge": MetricEvidence(
                    tuple(MetricRow(f"c{n}", "s", -(n < 9)) for n in range(ROWS))
                )
            },
            "a further metric is not shown to be as good",
        ),
    ],
    ids=["missing", "empty", "away", "prose", "too few", "worse", "may be worse"],
)
async def test_a_metric_that_shows_nothing_passes_nobody(
    metrics: Mapping[str, MetricEvidence], why: str
):
    terms = policy(metrics=(MetricTerms("judge", 0.05),))
    result, _ = await judged(answering(right), terms=terms, metrics=metrics)
    assert result.verdict in ("fail", "inconclusive") and why in result.reasons[0]


def test_answers_without_a_score_prove_no_regression():
    rows = [
        MetricRow(f"c{n}", f"s{n}", -1.0 if n < 27 else 0.0, "prose" if n < 27 else None)
        for n in range(300)
    ]
    numbers: dict[str, Any] = {}
    (found,) = judge_metrics(
        [MetricTerms("judge", 0.05)],
        {"judge": MetricEvidence(tuple(rows))},
        level=0.05,
        fail_level=0.05,
        least_rows=30,
        lower_bound=lambda differences, level, _: difference_bounds(differences, level)[0],
        numbers=numbers,
    )
    assert found.state == "open" and "no score on 27 of 300 rows" in found.said
    assert numbers["metrics"]["judge"]["upper_bound"] > 0


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        (("tool=send",), "the slice tool=send is empty"),
        (("tenant",), "no test row tells its tenant"),
        (("tool=rare",), "the slice tool=rare has 3 rows of 20 at least"),
    ],
)
async def test_an_empty_slice_passes_nobody(slices: tuple[str, ...], why: str):
    result, _ = await judged(
        answering(right),
        terms=policy(slices=slices),
        slices=lambda n: {"tool": "rare" if n < 3 else "turn_on"},
    )
    assert result.verdict == "inconclusive" and why in result.reasons[0]


def test_no_rows_are_no_evidence():
    result = decide(policy(), GateEvidence("a@0", "teacher", ()))
    assert result.verdict == "inconclusive" and "0 test rows are fewer" in result.reasons[0]
