"""Ask an answerer every held-out question again and score what it says.

The answerer is whatever the caller would get: the small model behind its engine, the base model, or
the teacher. It comes in as a callable, so this room knows no engine.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from evaluators.scoring import CallScore, answer_kind, score_answer
from infra.calls.record import Checks
from infra.prompting.confidence import answers_drawn

MAX_ERROR_CHARACTERS = 200
NOT_ASKED = "not asked"
"""Begins the error of an example that was left out because those before it failed."""


class Answer(Protocol):
    """What an answerer gives back; the small model's answer fits as it is."""

    @property
    def message(self) -> dict[str, Any] | None: ...
    @property
    def checks(self) -> Checks: ...
    @property
    def confidence(self) -> float | None: ...


class Answerer(Protocol):
    """Answers one OpenAI chat-completion request, or raises: an error counts as a wrong answer."""

    async def __call__(self, request: Mapping[str, Any], /) -> Answer: ...


class Example(Protocol):
    """One held-out question with its right answer."""

    @property
    def request(self) -> Mapping[str, Any]: ...
    @property
    def answer(self) -> Mapping[str, Any]: ...
    @property
    def session(self) -> str: ...
    @property
    def call_id(self) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one example."""

    example_id: str
    session: str
    message: dict[str, Any] | None
    checks: Checks
    confidence: float | None
    score: CallScore
    latency_seconds: float
    error: str | None = None
    confidences: Mapping[str, float] = field(default_factory=dict)
    """By score, where the answerer tells several; see ``prompting.confidence``."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    drawn_tokens: int = 0
    """Of the answers that were drawn beside it."""

    @property
    def correct(self) -> float:
        return self.score.correct

    @property
    def showable(self) -> bool:
        """Whether the caller might see this answer, if it is confident enough."""
        return self.error is None and self.message is not None and self.checks.passed

    def to_dict(self) -> dict[str, Any]:
        return {
            "example_id": self.example_id,
            "session": self.session,
            "message": self.message,
            "checks": self.checks.model_dump(mode="json"),
            "confidence": self.confidence,
            "score": self.score.to_dict(),
            "latency_seconds": self.latency_seconds,
            "error": self.error,
            "confidences": dict(self.confidences),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "drawn_tokens": self.drawn_tokens,
        }

    def by(self, score: str) -> Outcome:
        """The same with the confidence of that score, where it is known, and the tokens that it takes."""
        drawn = self.drawn_tokens if answers_drawn(score) else 0
        return replace(
            self,
            confidence=self.confidences.get(score, self.confidence),
            completion_tokens=self.completion_tokens + drawn,
            drawn_tokens=self.drawn_tokens - drawn,
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Outcome:
        return cls(
            **{
                **value,
                "checks": Checks.model_validate(value["checks"]),
                "score": CallScore.from_dict(value["score"]),
            }
        )


async def replay(
    answerer: Answerer,
    examples: Iterable[Example],
    *,
    concurrency: int = 8,
    timeout_seconds: float = 120,
    give_up_after: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Ask every example once; the outcomes are in the order of the examples.

    Args:
        answerer: who is asked.
        examples: what is asked; all of them are held in memory.
        concurrency: questions in flight at once.
        timeout_seconds: for one answer; a later one counts as an error.
        give_up_after: errors in a row after which the rest is not asked but counted as errors, so
            that a dead engine costs seconds and not hours.
        progress: called with (done, total) after each answer.
    """
    if concurrency < 1 or give_up_after < 1 or timeout_seconds <= 0:
        raise ValueError("concurrency, give_up_after and timeout_seconds are above zero")
    asked = list(examples)
    outcomes: list[Outcome | None] = [None] * len(asked)
    waiting = iter(range(len(asked)))
    errors_in_a_row = done = 0

    async def work() -> None:
        nonlocal errors_in_a_row, done
        for place in waiting:
            if errors_in_a_row >= give_up_after:
                outcome = _failed(asked[place], 0.0, f"{NOT_ASKED} after {give_up_after} errors")
            else:
                outcome = await _ask(answerer, asked[place], timeout_seconds)
                errors_in_a_row = errors_in_a_row + 1 if outcome.error else 0
            outcomes[place] = outcome
            done += 1
            if progress is not None:
                progress(done, len(asked))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(asked))):
            group.create_task(work())
    return [outcome for outcome in outcomes if outcome is not None]


async def _ask(answerer: Answerer, example: Example, timeout_seconds: float) -> Outcome:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_seconds):
            answer = await answerer(example.request)
    except TimeoutError:
        waited = time.perf_counter() - started
        return _failed(example, waited, f"no answer within {timeout_seconds:g} seconds")
    except Exception as error:  # noqa: BLE001 - whatever the answerer raises is a wrong answer
        said = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
        return _failed(example, time.perf_counter() - started, said)
    waited = time.perf_counter() - started
    confidence = answer.confidence
    if confidence is not None and not math.isfinite(confidence):
        confidence = None  # never reaches a threshold, and JSON has no infinity
    score = score_answer(example.answer, answer.message, example.request, thorough=True)
    if not answer.checks.passed:
        # Serving would not show it, so a lucky match behind a failed check is not a right answer.
        score = CallScore(score.kind, 0.0, score.stages)
    return Outcome(
        example.call_id,
        example.session,
        answer.message,
        answer.checks,
        confidence,
        score,
        waited,
        confidences={
            name: value
            for name, value in getattr(answer, "confidences", {}).items()
            if math.isfinite(value)
        },
        prompt_tokens=getattr(answer, "prompt_tokens", 0),
        completion_tokens=getattr(answer, "completion_tokens", 0),
        drawn_tokens=getattr(answer, "drawn_tokens", 0),
    )


def _failed(example: Example, waited: float, error: str) -> Outcome:
    kind = answer_kind(example.answer, example.request)
    stages = score_answer(example.answer, None, example.request, thorough=True).stages
    score = CallScore(kind, 0.0, stages)
    checks = Checks(parsed=False, reason="no answer")
    return Outcome(example.call_id, example.session, None, checks, None, score, waited, error)
