"""Which requests the small model can honour in every option; all others are the teacher's.

An option counts as beyond it unless it is known not to be, so a new one of OpenAI's, or an extension of
somebody's server, is never silently dropped. The small model answers greedily and was trained on the
teacher's answers to calls with whatever sampling options the caller uses, so ``temperature``, ``top_p``
and ``seed`` change nothing that a caller may rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Read, or a hint that asks for nothing that the caller could miss in the answer.
_HONOURED = frozenset(
    {
        *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
        *("stream", "stream_options", "n", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "seed", "reasoning_effort", "verbosity", "service_tier"),
        *("metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    }
)
# Neither of these asks for anything.
_NOTHING: tuple[Any, ...] = (None, False, [], 0)
_WORDS = {"tool_choice": ("auto", "required"), "modalities": (["text"],)}
_RESPONSE_FORMATS = ("text", "json_object", "json_schema")
# What lies outside is refused by the teacher, and must not be answered by anybody else.
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "max_tokens": (1, 1 << 31),
    "max_completion_tokens": (1, 1 << 31),
    "n": (1, 1),
}


def beyond_small_model(request: Mapping[str, Any]) -> str | None:
    """The option that the small model cannot honour, or None. Depends on the request alone.

    Args:
        request: has passed ``intake.check_chat``.
    """
    for name, value in request.items():
        if name in _HONOURED:
            if name in _RANGES and not _within(value, _RANGES[name]):
                return name
        elif value not in _NOTHING and value not in _WORDS.get(name, ()):
            return name
    return _beyond_tools(request) or _beyond_messages(request["messages"])


def _within(value: Any, bounds: tuple[float, float]) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and bounds[0] <= value <= bounds[1]
    )


def _beyond_tools(request: Mapping[str, Any]) -> str | None:
    tools, choice = request.get("tools") or [], request.get("tool_choice")
    if any(tool.get("type", "function") != "function" for tool in tools):
        return "tools"
    # A forced tool, a choice among some, none at all; and a choice where there is nothing to choose.
    if choice is not None and (choice not in _WORDS["tool_choice"] or not tools):
        return "tool_choice"
    if request.get("parallel_tool_calls") not in (None, True, False):
        return "parallel_tool_calls"
    form = request.get("response_format")
    if form is not None and form.get("type") not in _RESPONSE_FORMATS:
        return "response_format"
    return None


def _beyond_messages(messages: list[Mapping[str, Any]]) -> str | None:
    for message in messages:
        if message.get("audio") or message.get("role") == "function":
            return "messages"
        for call in message.get("tool_calls") or []:
            if call.get("type", "function") != "function":
                return "messages"
        content = message.get("content")
        if isinstance(content, list) and any(
            part.get("type") not in ("text", "refusal") for part in content
        ):
            return "content"
    return None
