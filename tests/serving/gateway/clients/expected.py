"""What every client must find, in whatever language it asks."""

from __future__ import annotations

import json
from typing import Any

CALLS = [{"name": "weather", "arguments": json.dumps({"city": city})} for city in ("Oslo", "Rome")]


def expected(adapter: str) -> dict[str, Any]:
    return {
        "whole": {
            "text": "one two three",
            "tokens": 18,
            "answeredBy": "teacher",
            "requestId": "req_teacher",
        },
        "stream": {"text": ["one two three"], "calls": [], "usage": 18, "reasons": ["stop"]},
        "tools": CALLS,
        "streamedTools": {"text": [""], "calls": CALLS, "usage": None, "reasons": ["tool_calls"]},
        "schema": {"city": "Oslo"},
        "choices": ["one two three"] * 2,
        "streamedChoices": ["one two three"] * 2,
        "logprobs": -0.5,
        "models": ["teacher-model", "lights"],
        "model": "nightschool/lights",
        "embedding": [0.5, 0.25],
        "response": "hello",
        "streamedResponse": "hello",
        "small": {
            way: {"text": "small answer", "answeredBy": adapter} for way in ("whole", "streamed")
        },
        "afterAbort": "one two three",
    }


# Class, status, code.
ERRORS: dict[str, tuple[str, int | None, str | None]] = {
    "key": ("AuthenticationError", 401, "invalid_api_key"),
    "role": ("PermissionDeniedError", 403, "insufficient_permissions"),
    "model": ("NotFoundError", 404, "model_not_found"),
    "unknown": ("NotFoundError", 404, "model_not_found"),
    "bad": ("BadRequestError", 400, None),
    "shape": ("BadRequestError", 400, None),
    "large": ("APIError", 413, "request_too_large"),
    "limit": ("RateLimitError", 429, "rate_limit_exceeded"),
    "busy": ("RateLimitError", 429, None),
    "broken": ("InternalServerError", 500, None),
}
