"""Rendering, reading and accepting, with an engine that says what the test wants it to say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.calls.record import Checks
from infra.prompting.template import FULL, PRUNED, render_prompt
from serving.engines.protocol import (
    Completion,
    CompletionChunk,
    Engine,
    EngineOverloaded,
    FinishReason,
)
from serving.small_model import BELOW_THRESHOLD, SmallModel, answer_limit, refusal
from tests.tiny_model import tool_examples

REQUEST: dict[str, Any] = tool_examples(1)[0]["request"]  # type: ignore[assignment]
GOOD = '{"name":"turn_on","arguments":{"area":"kitchen"}}'


class Scripted:
    """An engine with one answer; keeps what it was asked."""

    def __init__(
        self,
        text: str,
        logprobs: Sequence[float] = (-0.1, -0.3),
        finish_reason: FinishReason = "stop",
        error: Exception | None = None,
        tokens: Sequence[str] = (),
        drawn: Sequence[str] = (),
    ) -> None:
        self.answer = Completion(
            text, tuple(logprobs), finish_reason, 11, len(logprobs), tuple(tokens)
        )
        self.error = error
        self.drawn = drawn
        self.asked: list[dict[str, Any]] = []

    async def complete(self, model: str | None, prompt: str, **options: Any) -> Completion:
        self.asked.append({"model": model, "prompt": prompt, **options})
        if self.error:
            raise self.error
        return self.answer

    async def draw(
        self, model: str | None, prompt: str, *, count: int, **options: Any
    ) -> tuple[Completion, ...]:
        self.asked.append({"model": model, "prompt": prompt, "count": count, **options})
        return tuple(Completion(text, (), "stop", 11, 3) for text in self.drawn[:count])

    async def loaded(self) -> dict[str, str]:
        return {}

    async def ensure_loaded(self, name: str, folder: Path) -> bool:
        return False

    async def ensure_unloaded(self, name: str) -> bool:
        return False

    async def probe(self, name: str | None) -> float:
        return 0.0

    async def stream(
        self, model: str | None, prompt: str, **options: Any
    ) -> AsyncIterator[CompletionChunk]:
        yield CompletionChunk(
            self.answer.text, self.answer.token_logprobs, "stop", self.answer.tokens
        )


async def test_a_good_answer_is_accepted_with_its_confidence() -> None:
    engine: Engine = Scripted(GOOD)
    answer = await SmallModel(engine).answer(REQUEST, adapter="a@1", threshold=-0.25, max_tokens=40)
    assert answer.accepted
    assert answer.reason == ""
    assert answer.confidence == pytest.approx(-0.2)
    call = answer.message["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"]) == ("turn_on", '{"area": "kitchen"}')
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == (GOOD, 11, 2)
    assert answer.latency_seconds >= 0


@pytest.mark.parametrize("form", [FULL, PRUNED])
async def test_the_engine_gets_the_rendered_prompt(form: Any) -> None:
    engine = Scripted(GOOD)
    model = SmallModel(engine, timeout_seconds=3)
    await model.answer(REQUEST, adapter=None, form=form, max_tokens=40)
    (asked,) = engine.asked
    assert asked["model"] is None
    assert asked["prompt"] == render_prompt(REQUEST, form)
    assert (asked["max_tokens"], asked["timeout_seconds"]) == (40, 3)


@pytest.mark.parametrize(
    ("engine", "threshold", "reason"),
    [
        (Scripted(GOOD, (-0.5,)), -0.4, BELOW_THRESHOLD),
        (Scripted(GOOD, ()), -5.0, BELOW_THRESHOLD),
        (Scripted(GOOD, (math.nan,)), -5.0, BELOW_THRESHOLD),
        (Scripted(GOOD, finish_reason="length"), None, "cut off at the token limit"),
        (Scripted(""), None, "no text"),
        (Scripted('{"name":"turn_on","arguments":{}}'), None, "turn_on: breaks required at top"),
        (Scripted('{"name":"open","arguments":{}}'), None, "no tool named 'open' was offered"),
        (
            Scripted('{"name":"turn_on","arg'),
            None,
            "looks like a tool call but does not parse as one",
        ),
    ],
)
async def test_what_must_not_be_shown_is_refused_with_the_reason(
    engine: Scripted, threshold: float | None, reason: str
) -> None:
    answer = await SmallModel(engine).answer(REQUEST, adapter="a@1", threshold=threshold)
    assert not answer.accepted
    assert answer.reason == reason


async def test_engine_errors_are_the_callers_business() -> None:
    with pytest.raises(EngineOverloaded):
        await SmallModel(Scripted("", error=EngineOverloaded("full"))).answer(REQUEST, adapter=None)


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_the_threshold_alone_decides_between_sound_answers(
    confidence: float, threshold: float
) -> None:
    assert (refusal(Checks(), confidence, threshold) == "") == (confidence >= threshold)
    assert refusal(Checks(), confidence, None) == ""
    assert refusal(Checks(parsed=False, reason="r"), confidence, threshold) == "r"


@pytest.mark.parametrize(
    ("request_limits", "limit"),
    [
        ({}, 160),
        ({"max_tokens": 20}, 20),
        ({"max_completion_tokens": 9, "max_tokens": 20}, 9),
        ({"max_tokens": 9999}, 160),
        ({"max_tokens": "many"}, 160),
        ({"max_tokens": True}, 160),
        ({"max_tokens": -3}, 160),
    ],
)
def test_the_smaller_limit_holds(request_limits: dict[str, Any], limit: int) -> None:
    assert answer_limit(request_limits, 160) == limit


@pytest.mark.parametrize(
    ("score", "threshold", "accepted"),
    [
        ("mean", -0.25, True),
        ("sequence", -0.25, False),
        ("least_value", -0.25, True),
        ("least_token", -0.25, False),
        ("of-a-later-release", -1e9, False),
    ],
)
async def test_the_threshold_is_for_the_adapters_own_score(
    score: str, threshold: float, accepted: bool
) -> None:
    tokens = (GOOD[:8], GOOD[8:17], GOOD[17:])
    model = SmallModel(Scripted(GOOD, (-0.3, -0.1, -0.2), tokens=tokens))

    async def growing(text: str, count: int, confidence: float) -> None: ...

    for hears in (None, growing):
        answer = await model.answer(
            REQUEST, adapter="a@1", threshold=threshold, score=score, growing=hears
        )
        assert answer.accepted == accepted, (score, answer.confidence)


@pytest.mark.parametrize(("threshold", "accepted"), [(0.75, True), (0.76, False)])
async def test_an_adapter_judged_by_agreement_is_asked_again_and_shown_where_it_agrees(
    threshold: float, accepted: bool
) -> None:
    other = GOOD.replace("kitchen", "hall")
    for streamed in (False, True):
        engine = Scripted(GOOD, drawn=(GOOD, other, GOOD.replace(":", ": "), GOOD))

        async def growing(text: str, count: int, confidence: float) -> None: ...

        answer = await SmallModel(engine).answer(
            REQUEST,
            adapter="a@1",
            threshold=threshold,
            score="agreement_4",
            growing=growing if streamed else None,
        )
        assert (answer.accepted, answer.confidence) == (accepted, 0.75)
        assert answer.text == GOOD and answer.drawn_tokens == 12
        drawn = engine.asked[-1]
        assert drawn["count"] == 4 and drawn["prompt"] == render_prompt(REQUEST, FULL)


async def test_drawn_beside_the_other_scores_they_are_one_more_and_always_the_same_ones() -> None:
    engine = Scripted(GOOD, drawn=(GOOD, "no"))
    for _ in range(2):
        answer = await SmallModel(engine).answer(REQUEST, adapter="a@1", every_score=True, drawn=2)
        assert answer.confidences["agreement_2"] == 0.5
        assert answer.confidence == answer.confidences["mean"] == pytest.approx(-0.2)
    seeds = [asked["seed"] for asked in engine.asked if "seed" in asked]
    assert len(seeds) == 2 and len(set(seeds)) == 1
    await SmallModel(engine).answer(REQUEST, adapter="a@1")
    assert len([asked for asked in engine.asked if "seed" in asked]) == 2, "nobody asked for more"


async def test_where_no_answer_is_to_be_had_the_drawn_ones_are_not_waited_for() -> None:
    class Hanging(Scripted):
        async def draw(self, *args: Any, **options: Any) -> tuple[Completion, ...]:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(EngineOverloaded):
        await SmallModel(Hanging("", error=EngineOverloaded("full"))).answer(
            REQUEST, adapter="a@1", score="agreement_2"
        )
