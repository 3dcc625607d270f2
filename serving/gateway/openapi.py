"""The OpenAPI 3.1 document of what the gateway itself serves, at ``/openapi.json``.

Chat completions are described as strictly as the gateway checks them and no further: options are the
teacher's to know. Every other path under ``/v1`` goes to the teacher, whose own document describes it.
"""

from __future__ import annotations

from typing import Any

from serving.gateway.feedback import MAX_LABEL_CHARACTERS
from serving.gateway.intake import (
    MAX_MESSAGES,
    MAX_TAG_CHARACTERS,
    MAX_TOOLS,
    ROLES,
    SESSION_HEADER,
    TASK_HEADER,
)

Json = dict[str, Any]

_TEXT: Json = {"type": ["string", "null"]}
_OPTIONAL_OBJECT: Json = {"type": ["object", "null"]}
_MODEL = "^[A-Za-z0-9][A-Za-z0-9_.:@~-]{0,199}$"
# More is printable than this; what is, depends on the release of Unicode.
_TAG: Json = {"maxLength": MAX_TAG_CHARACTERS, "pattern": "^[ -~]*$"}
_NUMBER: Json = {"type": "integer", "minimum": 0}


def document(version: str) -> Json:
    """A new copy of the whole document. ``version``: of the product."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Night School gateway",
            "version": version,
            "description": "OpenAI's API in front of a large model and the small ones that learn from "
            "it. Paths under /v1 that are not named here are passed to the large model's server.",
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": _chat()},
            "/v1/feedback": {"post": _feedback()},
            "/v1/models": {
                "get": _get(
                    "List the models that a caller may name.", "ModelList", errors=(401, 429)
                )
            },
            "/v1/models/{model}": {
                "get": {
                    **_get(
                        "One model; what is not known here is asked of the large model's server.",
                        "Model",
                        errors=(400, 401, 403, 404, 429, 502, 503, 504),
                    ),
                    "parameters": [
                        {
                            "name": "model",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "pattern": _MODEL},
                        }
                    ],
                }
            },
            "/healthz": {"get": _get("Whether the process lives.", "Health", security=[])},
            "/readyz": {"get": _get("Whether callers may be sent here.", "Readiness", same=(503,))},
            "/metrics": {
                "get": {
                    "summary": "Figures for Prometheus.",
                    "responses": {
                        "200": {
                            "description": "The figures",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_errors(401, 403),
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "summary": "This document.",
                    "security": [],
                    "responses": {"200": _answer({"type": "object"})},
                }
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _chat() -> Json:
    # Chunks of the answer, where "stream" is true.
    event_stream: Json = {"text/event-stream": {}}
    answer = _answer(_ref("ChatCompletion"))
    answer["content"] |= event_stream
    answer["headers"] = {
        "x-nightschool-call-id": {"schema": {"type": "string", "format": "uuid"}},
        "x-nightschool-answered-by": {"schema": {"type": "string"}},
        "x-nightschool-task": {"schema": {"type": "string"}},
    }
    return {
        "summary": "Answer a conversation: by a small model where one is sure, else by the large one.",
        "parameters": [
            _header(SESSION_HEADER, "The agent's run: its calls stay on one side of a rollout"),
            _header(TASK_HEADER, "The task's tag, where the caller knows it", _TAG),
        ],
        "requestBody": _body("ChatRequest"),
        "responses": {
            "200": answer,
            **_errors(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504),
        },
    }


def _feedback() -> Json:
    return {
        "summary": "What became of an answer.",
        "requestBody": _body("Feedback"),
        "responses": {
            "200": _answer(_ref("FeedbackKept")),
            **_errors(400, 401, 404, 408, 413, 429, 503),
        },
    }


def _schemas() -> Json:
    return {
        "Error": _object(
            {
                "error": _object(
                    {
                        "message": {"type": "string"},
                        "type": _TEXT,
                        "param": _TEXT,
                        "code": {"type": ["string", "integer", "null"]},
                    },
                    "message",
                )
            },
            "error",
        ),
        "ChatRequest": _object(
            {
                "model": _TEXT,
                "messages": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_MESSAGES,
                    "items": _ref("Message"),
                },
                "tools": {
                    "type": ["array", "null"],
                    "maxItems": MAX_TOOLS,
                    "items": _ref("Tool"),
                },
                "metadata": _OPTIONAL_OBJECT
                | {
                    "properties": {
                        "task": {**_TAG, "type": ["string", "null"]},
                        "session_id": {},
                    }
                },
                "response_format": _OPTIONAL_OBJECT,
                "stream_options": _OPTIONAL_OBJECT,
                "stream": {"type": ["boolean", "null"]},
            },
            "messages",
        ),
        "Message": _object(
            {
                "role": {"type": "string", "enum": sorted(ROLES)},
                "content": {
                    "anyOf": [
                        _TEXT,
                        {"type": "array", "items": _object({"text": _TEXT})},
                    ]
                },
                "tool_calls": {"type": ["array", "null"], "items": _ref("ToolCall")},
            },
            "role",
        ),
        "Tool": _function({"name": {"type": "string"}, "parameters": _OPTIONAL_OBJECT}, "name"),
        "ToolCall": _function(
            {"name": {"type": "string"}, "arguments": {"type": "string"}}, "name", "arguments"
        ),
        "ChatCompletion": _object(
            {
                "id": {"type": "string"},
                "object": {"type": "string"},
                "model": {"type": "string"},
                "choices": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(
                        {
                            "index": _NUMBER,
                            "message": _object({"role": {"const": "assistant"}}, "role"),
                            "finish_reason": {"type": "string"},
                        },
                        "index",
                        "message",
                        "finish_reason",
                    ),
                },
                "usage": {
                    "type": ["object", "null"],
                    "properties": {"prompt_tokens": _NUMBER, "completion_tokens": _NUMBER},
                },
            },
            "id",
            "choices",
        ),
        "Feedback": _feedback_schema(),
        "FeedbackKept": _object(
            {
                "object": {"const": "feedback"},
                "id": {"type": "string"},
                "call_id": {"type": "string"},
            },
            "object",
            "id",
            "call_id",
        ),
        "Model": _object({"id": {"type": "string"}, "object": {"const": "model"}}, "id", "object"),
        "ModelList": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
            "object",
            "data",
        ),
        "Health": _object({"status": {"const": "ok"}}, "status"),
        "Readiness": _object(
            {"ready": {"type": "boolean"}, "draining": {"type": "boolean"}}, "ready", "draining"
        ),
    }


def _function(properties: Json, *required: str) -> Json:
    """A function of that shape, or anything that says to be something else."""
    function = _object(
        {"type": {"const": "function"}, "function": _object(properties, *required)}, "function"
    )
    other = _object({"type": {"not": {"const": "function"}}}, "type")
    return {"anyOf": [function, other]}


def _feedback_schema() -> Json:
    identifier = {"type": "string", "minLength": 1, "maxLength": 128}
    fields: Json = {
        "call_id": identifier,
        "id": identifier,
        "score": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "label": {"type": ["string", "null"], "maxLength": MAX_LABEL_CHARACTERS},
        "correction": {"type": ["string", "object", "null"]},
    }
    named = {"anyOf": [{"required": ["call_id"]}, {"required": ["id"]}]}
    # At least one of the three says something.
    said = {
        "anyOf": [
            {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
            for name in ("score", "label", "correction")
        ]
    }
    return {**_object(fields), "allOf": [named, said]}


def _get(
    summary: str,
    schema: str,
    *,
    same: tuple[int, ...] = (),
    errors: tuple[int, ...] = (),
    security: list[Json] | None = None,
) -> Json:
    """``same``: statuses beside 200 with the same body."""
    answers = {str(status): _answer(_ref(schema)) for status in (200, *same)}
    made: Json = {"summary": summary, "responses": {**answers, **_errors(*errors)}}
    if security is not None:
        made["security"] = security
    return made


def _object(properties: Json, *required: str) -> Json:
    made: Json = {"type": "object", "properties": properties}
    return {**made, "required": list(required)} if required else made


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}


def _answer(schema: Json, description: str = "Done") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> Json:
    return {str(status): _answer(_ref("Error"), "OpenAI's error object") for status in statuses}


def _header(name: str, description: str, limits: Json | None = None) -> Json:
    schema: Json = {"type": "string", **(limits or {})}
    return {"name": name, "in": "header", "description": description, "schema": schema}
