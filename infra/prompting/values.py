"""What an answer is made of, read without ever raising: its text, its JSON, its tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infra.prompting.template import content_text

Message = Mapping[str, Any]
BROKEN = object()
"""What ``read_json`` gives for text that is not JSON; no JSON value is it."""


def text_of(message: Message | None) -> str:
    return content_text((message or {}).get("content")).strip()


def calls_of(message: Message | None) -> list[Any]:
    calls = (message or {}).get("tool_calls")
    return calls if isinstance(calls, list) else []


def read_call(call: Any) -> tuple[str, dict[str, Any] | None]:
    """A call's name and arguments; None where they are not a JSON object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return "", None
    arguments = function.get("arguments")
    if not isinstance(arguments, dict):
        arguments = read_json(str(arguments or "{}"))
    return str(function.get("name", "")), arguments if isinstance(arguments, dict) else None


def read_json(text: str) -> Any:
    """The value, or BROKEN for what is not JSON, or nested too deeply to compare."""
    try:
        value = json.loads(text)
        canonical(value)
    except (ValueError, RecursionError):
        return BROKEN
    return value


def same_answer(first: Message | None, second: Message | None) -> bool:
    """Whether two answers say the same; spaces in JSON and the order of calls say nothing."""
    return _said(first) == _said(second)


def canonical(value: Any) -> str:
    """A JSON value as text that is equal exactly when the values are: 1 equals 1.0, not true."""
    return json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=True)


def _said(answer: Message | None) -> tuple[object, ...] | None:
    if answer is None:
        return None
    calls = [(name, canonical(values)) for name, values in map(read_call, calls_of(answer))]
    text = text_of(answer)
    if text.startswith(("{", "[")) and (value := read_json(text)) is not BROKEN:
        text = canonical(value)
    return text, *sorted(calls)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
