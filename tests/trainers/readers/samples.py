"""One short agent run, written down in the published shape of every format.

The first call looks at a photo and calls a tool; the second has the tool's result and answers in
words; the third was refused by the provider.
"""

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


def litellm() -> Sample:
    def row(number: int, said: Any, response: Any, moment: datetime, **more: Any) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{number}",
            "trace_id": SESSION,
            "call_type": "acompletion",
            "stream": False,
            "response_cost": 0.002,
            "status": "success",
            "custom_llm_provider": "openai",
            "total_tokens": sum(USAGE),
            "prompt_tokens": USAGE[0],
            "completion_tokens": USAGE[1],
            "startTime": moment.timestamp(),
            "endTime": moment.timestamp() + LATENCY,
            "completionStartTime": moment.timestamp() + 1,
            "response_time": LATENCY,
            "model": MODEL,
            "model_group": "main",
            "api_base": "https://api.example.com",
            "metadata": {"user_api_key_hash": "ab12", "spend_logs_metadata": {"task": TASK}},
            "cache_hit": None,
            "request_tags": ["User-Agent: agent/1.0"],
            "end_user": "",
            "messages": said,
            "response": response,
            "model_parameters": {"tools": TOOLS, "temperature": 0.2},
            "hidden_params": {"additional_headers": {}},
            **more,
        }

    return Sample(
        "litellm",
        [
            row(1, FIRST, completion(1, ACTION, TIME), TIME),
            row(2, SECOND, completion(2, SAID, LATER), LATER),
            row(
                3,
                SECOND,
                None,
                LAST,
                status="failure",
                error_str="429",
                error_information={"error_code": "429", "error_message": "too many requests"},
            ),
        ],
    )


def langfuse() -> Sample:
    def row(number: int, said: Any, output: Any, moment: datetime, **more: Any) -> dict[str, Any]:
        return {
            "id": f"obs-{number}",
            "trace_id": "trace-1",
            "session_id": SESSION,
            "project_id": "p",
            "environment": "default",
            "type": "GENERATION",
            "parent_observation_id": None,
            "start_time": f"{moment:%Y-%m-%d %H:%M:%S.%f}",
            "end_time": f"{moment + timedelta(seconds=LATENCY):%Y-%m-%d %H:%M:%S.%f}",
            "name": "chat",
            "metadata": {"task": TASK},
            "level": "DEFAULT",
            "status_message": None,
            "input": json.dumps({"messages": said, "tools": TOOLS}),
            "output": json.dumps(output) if output else None,
            "provided_model_name": MODEL,
            "model_parameters": json.dumps({"temperature": 0.2}),
            "usage_details": {"input": USAGE[0], "output": USAGE[1], "total": sum(USAGE)},
            **more,
        }

    return Sample(
        "langfuse",
        [
            row(1, FIRST, ACTION, TIME),
            row(2, SECOND, SAID, LATER),
            row(3, SECOND, None, LAST, level="ERROR", status_message="429 too many requests"),
        ],
    )


def _langchain(message: dict[str, Any]) -> dict[str, Any]:
    kind = {"system": "System", "user": "Human", "assistant": "AI", "tool": "Tool"}[message["role"]]
    fields: dict[str, Any] = {"content": message["content"] or "", "type": kind.lower()}
    if message.get("tool_calls"):
        fields["tool_calls"] = [
            {"name": "find_part", "args": ARGUMENTS, "id": "call_a", "type": "tool_call"}
        ]
    if message["role"] == "tool":
        fields["tool_call_id"] = message["tool_call_id"]
    name = ["langchain", "schema", "messages", f"{kind}Message"]
    return {"lc": 1, "type": "constructor", "id": name, "kwargs": fields}


def langsmith() -> Sample:
    def row(number: int, said: Any, answer: Any, moment: datetime, **more: Any) -> dict[str, Any]:
        outputs = None
        if answer:
            generation = {"text": answer["content"] or "", "message": _langchain(answer)}
            usage = {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1]}
            outputs = {"generations": [[generation]], "llm_output": {"token_usage": usage}}
        return {
            "id": f"00000000-0000-0000-0000-00000000000{number}",
            "trace_id": "10000000-0000-0000-0000-000000000001",
            "session_id": "20000000-0000-0000-0000-000000000001",
            "name": "ChatModel",
            "run_type": "llm",
            "start_time": moment.isoformat(),
            "end_time": (moment + timedelta(seconds=LATENCY)).isoformat(),
            "status": "success" if answer else "error",
            "error": None,
            "inputs": json.dumps({"messages": [[_langchain(message) for message in said]]}),
            "outputs": json.dumps(outputs) if outputs else None,
            "extra": json.dumps(
                {
                    "invocation_params": {"model": MODEL, "temperature": 0.2, "tools": TOOLS},
                    "metadata": {"thread_id": SESSION, "task": TASK},
                }
            ),
            "tags": ["seq:step:1"],
            "dotted_order": "20260302T093015250000Z1",
            **more,
        }

    return Sample(
        "langsmith",
        [
            row(1, FIRST, ACTION, TIME),
            row(2, SECOND, SAID, LATER),
            row(3, SECOND, None, LAST, error="RateLimitError: too many requests"),
        ],
    )


def stored_completions() -> Sample:
    def row(number: int, said: Any, message: Any, moment: datetime) -> dict[str, Any]:
        return {
            **completion(number, message, moment),
            "messages": {"object": "list", "data": said},
            "tools": TOOLS,
            "temperature": 0.2,
            "metadata": {"session_id": SESSION, "task": TASK},
        }

    rows = [row(1, FIRST, ACTION, TIME), row(2, SECOND, SAID, LATER)]
    return Sample("openai", rows, latency=0.0, exact_time=False, failures=False)


def flywheel() -> Sample:
    def row(said: Any, response: Any, moment: datetime) -> dict[str, Any]:
        return {
            "timestamp": int(moment.timestamp()),
            "workload_id": TASK,
            "client_id": "shop",
            "request": {"model": MODEL, "messages": said, "tools": TOOLS, "temperature": 0.2},
            "response": response,
        }

    return Sample(
        "flywheel",
        [
            row(FIRST, completion(1, ACTION, TIME), TIME),
            row(SECOND, completion(2, SAID, LATER), LATER),
            row(SECOND, {"error": {"code": 429, "message": "too many requests"}}, LAST),
        ],
        session=None,
        latency=0.0,
        exact_time=False,
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


def own() -> Sample:
    def row(number: int, said: Any, response: Any, moment: datetime) -> dict[str, Any]:
        return {
            "type": "call",
            "schema_version": 1,
            "id": f"call-{number}",
            "time": moment.isoformat(),
            "tenant": "default",
            "session": SESSION,
            "task_tag": TASK,
            "request": {"model": MODEL, "messages": said, "tools": TOOLS, "temperature": 0.2},
            "response": response,
            "usage": {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1]},
            "latency_seconds": LATENCY,
            "answered_by": {"model": MODEL},
        }

    return Sample(
        "nightschool",
        [
            row(1, FIRST, completion(1, ACTION, TIME), TIME),
            row(2, SECOND, completion(2, SAID, LATER), LATER),
            row(3, SECOND, {"error": {"status": 429, "code": "rate_limit"}}, LAST),
        ],
    )


SAMPLES = {
    made.__name__: made()
    for made in (
        litellm,
        langfuse,
        langsmith,
        stored_completions,
        flywheel,
        otel,
        otel_flat,
        own,
    )
}
