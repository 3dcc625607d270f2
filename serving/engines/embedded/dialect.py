"""The HTTP dialect: what of vLLM's completion API the embedded engine reads and writes.

What it cannot do (echo, a stream of drawn answers) it refuses, rather than answer something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from infra.settings.bounds import MAX_DRAWN
from serving.engines.protocol import FinishReason


class RequestProblem(ValueError):
    """The request is not one that this engine answers."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """``POST /v1/completions``. Unknown fields are ignored, as vLLM does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str = Field(max_length=256)
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    """None or 0: greedy."""
    n: int = Field(1, ge=1, le=MAX_DRAWN)
    seed: int | None = Field(None, ge=0, lt=1 << 62)
    echo: Literal[False] = False
    stop: tuple[str, ...] = Field((), max_length=8)
    logprobs: int | None = Field(None, ge=0, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True

    @model_validator(mode="after")
    def _drawn_or_not(self) -> Self:
        if self.n > 1 and not self.temperature:
            raise ValueError("n must be 1 where the answer is greedy")
        if self.stream and self.temperature:
            raise ValueError("only a greedy answer is streamed")
        return self

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _bounded(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 0 < len(text) <= 64 for text in value):
            raise ValueError("each stop string must have 1 to 64 characters")
        return value


def parse_request(body: Any) -> CompletionRequest:
    """Raises RequestProblem naming the field; the values, which may be personal, are not in it."""
    try:
        return CompletionRequest.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        raise RequestProblem(
            "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
                for problem in problems[:5]
            )
        ) from None


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(ends)] if ends else text


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of unfinished text that later tokens cannot change: without the beginning of a stop
    string or of a character at its end."""
    text = text.rstrip("\ufffd")
    held = max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text)) + 1)
            if text.endswith(stop[:length])
        ),
        default=0,
    )
    return text[: len(text) - held]


def choice(
    text: str,
    finish_reason: FinishReason | None,
    tokens: Sequence[str],
    logprobs: Sequence[float] | None,
    index: int = 0,
) -> dict[str, Any]:
    """One element of ``choices``. ``logprobs`` None: not asked for."""
    return {
        "index": index,
        "text": text,
        "logprobs": None
        if logprobs is None
        else {
            "tokens": list(tokens),
            "token_logprobs": list(logprobs),
            "top_logprobs": [{token: value} for token, value in zip(tokens, logprobs, strict=True)],
            "text_offset": _offsets(tokens),
        },
        "finish_reason": finish_reason,
    }


def completion(
    identifier: str,
    created: int,
    model: str,
    choices: list[dict[str, Any]],
    usage: dict[str, int] | None,
) -> dict[str, Any]:
    """The body of an answer, or of one chunk of a streamed one."""
    return {
        "id": identifier,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage,
    }


def as_one(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers to one request as one body; its prompt is counted once."""
    prompt_tokens = answers[0]["usage"]["prompt_tokens"]
    told = sum(answer["usage"]["completion_tokens"] for answer in answers)
    choices = [choice for answer in answers for choice in answer["choices"]]
    return answers[0] | {"choices": choices, "usage": usage(prompt_tokens, told)}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": status}}


def _offsets(tokens: Sequence[str]) -> list[int]:
    offsets, place = [], 0
    for token in tokens:
        offsets.append(place)
        place += len(token)
    return offsets
