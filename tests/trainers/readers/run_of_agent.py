"""One short agent run: a tool call, its result put into words, and a call that was refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

TIME = datetime(2026, 3, 2, 9, 30, 15, 250000, tzinfo=UTC)
LATER = TIME + timedelta(seconds=4)
LAST = TIME + timedelta(seconds=9)
LATENCY = 1.5
MODEL = "big-model-1"
SESSION, TASK = "ticket-4711", "damage-report"
SYSTEM = "You sort damage reports."
QUESTION = "What is broken here? Ünïcode 🚲"
PHOTO = "https://pictures.example.com/bike.png"
TOOL = {"name": "find_part", "description": "Look a part up"}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}}}
ARGUMENTS = {"name": "front wheel", "size": 28}
RESULT = '{"stock": 3}'
ANSWER = "The front wheel; three are in stock."
USAGE = (321, 45)

USER = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": PHOTO}}]
CALL = {
    "id": "call_a",
    "type": "function",
    "function": {"name": "find_part", "arguments": json.dumps(ARGUMENTS)},
}
TOOLS = [{"type": "function", "function": {**TOOL, "parameters": SCHEMA}}]
FIRST = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
ACTION = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SECOND = [*FIRST, ACTION, {"role": "tool", "tool_call_id": "call_a", "content": RESULT}]
SAID = {"role": "assistant", "content": ANSWER}


def completion(number: int, message: dict[str, Any], moment: datetime) -> dict[str, Any]:
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(moment.timestamp()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1], "total_tokens": 366},
    }


@dataclass(frozen=True)
class Sample:
    """Three rows (a format's one document counts as three), and what the format can say."""

    name: str
    rows: list[dict[str, Any]]
    session: str | None = SESSION
    """None: the format has none."""
    tag: str | None = TASK
    latency: float = LATENCY
    exact_time: bool = True
    """False: whole seconds, or none at all."""
    failures: bool = True
    """Whether calls without an answer can be written in it."""
