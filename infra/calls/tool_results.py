"""What an agent says of its tools: a result that is an error, feedback that there was one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TOOL_ERROR = "tool_error"
"""The label of feedback on a call whose tool call failed."""
_MAX_RESULT_CHARACTERS = 1 << 20


def is_error(content: Any) -> bool:
    """Whether a tool message's content says, as JSON, that the tool failed."""
    if not isinstance(content, str) or len(content) > _MAX_RESULT_CHARACTERS:
        return False
    if not content.lstrip().startswith("{"):
        return False
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(body, dict):
        return False
    flagged = any(body.get(key) for key in ("error", "is_error", "isError"))
    return flagged or body.get("status") == "error"


def tool_call_ids(answer: Mapping[str, Any] | None) -> list[str]:
    """The ids of an assistant message's tool calls."""
    calls = (answer or {}).get("tool_calls")
    if not isinstance(calls, list):
        return []
    return [
        call["id"]
        for call in calls
        if isinstance(call, Mapping) and isinstance(call.get("id"), str)
    ]
