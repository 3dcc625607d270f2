"""Read what an engine answers over HTTP: completions, stream chunks, refusals. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.engines.protocol import (
    Completion,
    CompletionChunk,
    EngineError,
    EngineOverloaded,
    EngineRefused,
    EngineUnavailable,
    FinishReason,
)

MAX_REASON_CHARACTERS = 500


def read_completion(body: Mapping[str, Any]) -> Completion:
    """The body of ``/v1/completions``. Raises EngineUnavailable when it is not one."""
    with _readable():
        return _completion(body, body["choices"][0], int(body["usage"]["completion_tokens"]))


def read_drawn(body: Mapping[str, Any], count: int) -> tuple[Completion, ...]:
    """The same of several answers to one prompt. Raises EngineUnavailable also when some are missing."""
    with _readable():
        found = tuple(
            _completion(body, choice, len(_logprobs(choice))) for choice in body["choices"]
        )
    if len(found) != count:
        raise EngineUnavailable(f"the engine sent {len(found)} answers of {count}")
    return found


def read_chunk(data: bytes) -> CompletionChunk | None:
    """One ``data:`` line of a stream; None for one without text, such as the usage.

    Raises EngineUnavailable for an error inside the stream and for what cannot be read.
    """
    try:
        body = json.loads(data)
        if "error" in body:
            raise EngineUnavailable(_reason(data) or "the engine failed within an answer")
        choices = body.get("choices") or []
        if not choices:
            return None
        return CompletionChunk(
            text=str(choices[0].get("text") or ""),
            token_logprobs=_logprobs(choices[0]),
            finish_reason=_finish_reason(choices[0]),
            tokens=_tokens(choices[0]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineUnavailable(
            f"the engine sent a chunk that cannot be read: {type(error).__name__}"
        ) from error


def read_error(status: int, raw: bytes, *, admin: bool = False) -> EngineError:
    """What a status of 400 or more means. ``admin``: it answers a load or an unload."""
    reason = _reason(raw) or f"HTTP {status}"
    if status in (429, 503):
        return EngineOverloaded(reason, status=status)
    # vLLM answers 500 to an adapter that it cannot load (rank above its maximum, wrong shapes).
    if status < 500 or (admin and status == 500):
        return EngineRefused(reason, status=status)
    return EngineUnavailable(reason, status=status)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineUnavailable(
            f"the engine sent a completion that cannot be read: {type(error).__name__}"
        ) from error


def _completion(body: Mapping[str, Any], choice: Mapping[str, Any], tokens: int) -> Completion:
    return Completion(
        text=str(choice["text"]),
        token_logprobs=_logprobs(choice),
        finish_reason=_finish_reason(choice) or "length",
        prompt_tokens=int(body["usage"]["prompt_tokens"]),
        completion_tokens=tokens,
        tokens=_tokens(choice),
    )


def _reason(raw: bytes) -> str:
    try:
        body = json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace").strip()[:MAX_REASON_CHARACTERS]
    if isinstance(body, dict):
        body = body.get("error", body)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or ""
    return str(body)[:MAX_REASON_CHARACTERS]


def _finish_reason(choice: Mapping[str, Any]) -> FinishReason | None:
    reason = choice.get("finish_reason")
    if reason is None:
        return None
    return "stop" if reason == "stop" else "length"


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return tuple(float(value) for value in values if value is not None)


def _tokens(choice: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, (choice.get("logprobs") or {}).get("tokens") or ()))
