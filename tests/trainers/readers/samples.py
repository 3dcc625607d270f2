"""The agent run written down in the published shape of every format."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from tests.trainers.readers.run_of_agent import (
    ACTION,
    ARGUMENTS,
    FIRST,
    LAST,
    LATENCY,
    LATER,
    MODEL,
    SAID,
    SECOND,
    SESSION,
    TASK,
    TIME,
    TOOLS,
    USAGE,
    Sample,
    completion,
)
from tests.trainers.readers.span_samples import otel, otel_flat


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
