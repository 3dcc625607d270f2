"""Ask the small model, read its answer, and decide whether it may be shown.

The gateway and the judge both go through here, so what is judged is what is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zlib import crc32

from infra.calls.record import Checks
from infra.prompting.answers import ParsedAnswer, parse_answer
from infra.prompting.confidence import (
    MEAN,
    agreement,
    agreement_name,
    all_confidences,
    answers_drawn,
    confidence_of,
)
from infra.prompting.template import FULL, PromptFormat, render_prompt
from serving.engines.protocol import Completion, Engine, EngineUnavailable

T = TypeVar("T")
U = TypeVar("U")
Growing = Callable[[str, int, float], Awaitable[None]]
"""Hears the text so far, the number of its tokens, and its confidence."""
BELOW_THRESHOLD = "confidence below the threshold"


@dataclass(frozen=True)
class SmallAnswer:
    """What the small model said, and whether the caller may see it."""

    message: dict[str, Any]
    """An OpenAI assistant message."""
    text: str
    """The generated text as it came, without the stop token."""
    checks: Checks
    confidence: float
    """By the score that the adapter is judged by, higher for surer; see ``prompting.confidence``."""
    accepted: bool
    reason: str
    """Why it was not accepted; empty when it was. Holds no text of the answer's values."""
    latency_seconds: float
    prompt_tokens: int
    completion_tokens: int
    confidences: Mapping[str, float] = field(default_factory=dict)
    """Every score, where all were asked for."""
    token_logprobs: tuple[float, ...] = ()
    """As the engine told them."""
    drawn_tokens: int = 0
    """Of the answers that were drawn for it, in all."""


class SmallModel:
    """The small model behind one engine.

    Args:
        engine: where it runs.
        timeout_seconds: for one answer, when the call gives none.
    """

    def __init__(self, engine: Engine, *, timeout_seconds: float = 20) -> None:
        self.engine = engine
        self._timeout_seconds = timeout_seconds

    async def answer(
        self,
        request: Mapping[str, Any],
        *,
        adapter: str | None,
        form: PromptFormat = FULL,
        threshold: float | None = None,
        score: str = MEAN,
        every_score: bool = False,
        drawn: int = 0,
        max_tokens: int = 160,
        timeout_seconds: float | None = None,
        growing: Growing | None = None,
    ) -> SmallAnswer:
        """Answer an OpenAI chat request, already anonymized.

        Args:
            request: the chat-completion request.
            adapter: the adapter's name; None asks the base model.
            form: which parts of the request the adapter was trained without.
            threshold: least confidence to accept; None accepts whatever passes the checks.
            score: which confidence the threshold is for; one that is not known reaches none.
            every_score: compute all of them, to choose among.
            drawn: answers to draw beside it for one score more; at least those that ``score`` takes.
            max_tokens: the answer's limit; one that runs into it is never accepted. A smaller
                limit of the caller's own (``max_completion_tokens``, ``max_tokens``) holds.
            growing: told of the text while it is generated; whatever it raises ends the generation.

        Raises:
            EngineError: no answer; the teacher must answer instead.
        """
        started = time.perf_counter()
        prompt = render_prompt(request, form)
        limit = answer_limit(request, max_tokens)
        seconds = timeout_seconds or self._timeout_seconds
        drawn = max(drawn, answers_drawn(score))
        shown: Awaitable[Completion]
        if growing is None:
            shown = self.engine.complete(adapter, prompt, max_tokens=limit, timeout_seconds=seconds)
        else:
            shown = self._streamed(adapter, prompt, limit, seconds, score, growing)
        others: tuple[Completion, ...] = ()
        if drawn:
            completion, others = await _both(
                shown,
                self.engine.draw(
                    adapter,
                    prompt,
                    count=drawn,
                    seed=seed_of(prompt),
                    max_tokens=limit,
                    timeout_seconds=seconds,
                ),
            )
        else:
            completion = await shown
        latency_seconds = time.perf_counter() - started

        def read(found: Completion) -> ParsedAnswer:
            return parse_answer(found.text, request, complete=found.finish_reason == "stop")

        parsed = read(completion)
        said = (completion.text, completion.tokens, completion.token_logprobs)
        scores = all_confidences(*said) if every_score else {}
        if drawn:
            agreed = agreement(parsed, [read(other) for other in others])
            scores[agreement_name(drawn)] = agreed
        confidence = scores.get(score)
        if confidence is None:
            confidence = confidence_of(score, *said)
        reason = refusal(parsed.checks, confidence, threshold)
        return SmallAnswer(
            message=parsed.message,
            text=completion.text,
            checks=parsed.checks,
            confidence=confidence,
            accepted=not reason,
            reason=reason,
            latency_seconds=latency_seconds,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            confidences=scores,
            token_logprobs=completion.token_logprobs,
            drawn_tokens=sum(other.completion_tokens for other in others),
        )

    async def _streamed(
        self,
        adapter: str | None,
        prompt: str,
        limit: int,
        seconds: float,
        score: str,
        growing: Growing,
    ) -> Completion:
        text = ""
        logprobs: list[float] = []
        tokens: list[str] = []
        stream = self.engine.stream(adapter, prompt, max_tokens=limit, timeout_seconds=seconds)
        try:
            async for chunk in stream:
                text += chunk.text
                logprobs += chunk.token_logprobs
                tokens += chunk.tokens
                if chunk.finish_reason is not None:
                    # The engine does not count the prompt's tokens in a stream.
                    return Completion(
                        text,
                        tuple(logprobs),
                        chunk.finish_reason,
                        0,
                        len(logprobs),
                        tuple(tokens),
                    )
                await growing(text, len(logprobs), confidence_of(score, text, tokens, logprobs))
        finally:
            # Closing it tells the engine that nobody reads on.
            await stream.aclose()  # type: ignore[attr-defined]
        raise EngineUnavailable("the engine's stream ended without a reason")


async def _both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """At the same time, so that an engine batches them; where one fails the other is not waited for."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def seed_of(prompt: str) -> int:
    """Of the answers drawn for it: by the prompt alone, so that the judge draws what serving will."""
    return crc32(prompt.encode("utf-8", "surrogatepass"))


def refusal(checks: Checks, confidence: float, threshold: float | None) -> str:
    """Why an answer must not be shown, or the empty string: the rule of the cascade.

    A confidence that is not a number never reaches a threshold.
    """
    if not checks.passed:
        return checks.reason or "checks failed"
    if threshold is not None and not confidence >= threshold:
        return BELOW_THRESHOLD
    return ""


def answer_limit(request: Mapping[str, Any], max_tokens: int) -> int:
    """The answer's token limit: ours, or the caller's where that is smaller."""
    wanted = request.get("max_completion_tokens") or request.get("max_tokens")
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0:
        return min(wanted, max_tokens)
    return max_tokens
