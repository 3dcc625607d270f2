"""The agent run as OpenTelemetry spans, by two generations of the conventions."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from tests.trainers.readers.run_of_agent import (
    ACTION,
    ARGUMENTS,
    FIRST,
    LAST,
    LATENCY,
    LATER,
    MODEL,
    PHOTO,
    QUESTION,
    RESULT,
    SAID,
    SCHEMA,
    SECOND,
    SESSION,
    SYSTEM,
    TASK,
    TIME,
    TOOL,
    USAGE,
    Sample,
)


def attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": value}}


def span(number: int, moment: datetime, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    nanoseconds = int(moment.timestamp() * 1_000_000) * 1000
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.temperature": 0.2,
        "gen_ai.usage.input_tokens": USAGE[0],
        "gen_ai.usage.output_tokens": USAGE[1],
        "gen_ai.conversation.id": SESSION,
        "nightschool.task": TASK,
    }
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": f"eee19b7ec3c1b17{number}",
        "name": f"chat {MODEL}",
        "kind": 3,
        "startTimeUnixNano": str(nanoseconds),
        "endTimeUnixNano": str(nanoseconds + int(LATENCY * 1e9)),
        "attributes": [attribute(key, value) for key, value in {**common, **attributes}.items()],
        "status": {},
        **more,
    }


def document(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [attribute("service.name", "agent")]}
    scope = {"scope": {"name": "instrumentation"}, "spans": list(spans)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _parts(message: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    content = message["content"]
    if message["role"] == "tool":
        parts.append({"type": "tool_call_response", "id": "call_a", "response": RESULT})
    elif isinstance(content, list):
        parts += [
            {"type": "text", "content": QUESTION},
            {"type": "uri", "modality": "image", "uri": PHOTO},
        ]
    elif content:
        parts.append({"type": "text", "content": content})
    if message.get("tool_calls"):
        call = {"type": "tool_call", "id": "call_a", "name": "find_part", "arguments": ARGUMENTS}
        parts.append(call)
    return {"role": message["role"], "parts": parts}


def otel() -> Sample:
    definitions = json.dumps([{"type": "function", **TOOL, "parameters": SCHEMA}])

    def said(messages: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "gen_ai.system_instructions": json.dumps([{"type": "text", "content": SYSTEM}]),
            "gen_ai.input.messages": json.dumps([_parts(message) for message in messages[1:]]),
            "gen_ai.tool.definitions": definitions,
        }

    def out(message: dict[str, Any]) -> dict[str, Any]:
        reason = "tool_call" if message.get("tool_calls") else "stop"
        whole = [{**_parts(message), "finish_reason": reason}]
        return {"gen_ai.output.messages": json.dumps(whole)}

    failed = span(
        3,
        LAST,
        {**said(SECOND), "error.type": "429"},
        status={"code": 2, "message": "too many requests"},
    )
    rows = [
        document(span(1, TIME, {**said(FIRST), **out(ACTION)})),
        document(span(2, LATER, {**said(SECOND), **out(SAID)})),
        document(failed),
    ]
    return Sample("otel", rows)


def otel_flat() -> Sample:
    """The flat attributes of earlier instrumentations."""

    def flat(prefix: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
        start = f"{prefix}.{number}"
        made: dict[str, Any] = {f"{start}.role": message["role"]}
        content = message["content"]
        if content:
            made[f"{start}.content"] = content if isinstance(content, str) else json.dumps(content)
        if message.get("tool_calls"):
            made[f"{start}.tool_calls.0.id"] = "call_a"
            made[f"{start}.tool_calls.0.name"] = "find_part"
            made[f"{start}.tool_calls.0.arguments"] = json.dumps(ARGUMENTS)
        if message.get("tool_call_id"):
            made[f"{start}.tool_call_id"] = message["tool_call_id"]
        return made

    def all_of(said: list[dict[str, Any]], answer: dict[str, Any] | None) -> dict[str, Any]:
        made = {
            "llm.request.functions.0.name": TOOL["name"],
            "llm.request.functions.0.description": TOOL["description"],
            "llm.request.functions.0.parameters": json.dumps(SCHEMA),
        }
        for number, message in enumerate(said):
            made |= flat("gen_ai.prompt", number, message)
        if answer:
            reason = "tool_calls" if answer.get("tool_calls") else "stop"
            made |= flat("gen_ai.completion", 0, answer)
            made["gen_ai.completion.0.finish_reason"] = reason
        return made

    rows = [
        document(span(1, TIME, all_of(FIRST, ACTION))),
        document(span(2, LATER, all_of(SECOND, SAID))),
        document(span(3, LAST, all_of(SECOND, None), status={"code": "STATUS_CODE_ERROR"})),
    ]
    return Sample("otel", rows)
