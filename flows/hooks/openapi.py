"""The OpenAPI 3.1 document of the receiver, at ``/openapi.json``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_ASKED: Json = {
    "type": "object",
    "properties": {
        "task": {"type": ["string", "null"], "description": "A task's id; all or null: every task"},
        "reason": {"type": "string", "minLength": 1, "maxLength": 500},
        "parameters": {"type": "object", "description": "Further parameters of the flow"},
    },
    "additionalProperties": False,
}
_FEEDBACK: Json = {
    "type": "object",
    "properties": {
        "call_id": {"type": "string", "description": "From x-nightschool-call-id"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "label": {"type": "string", "maxLength": 256},
        "correction": {"description": "The assistant message that would have been right"},
    },
    "required": ["call_id"],
}
_RECEIPT = {
    "id": _TEXT,
    "sender": _TEXT,
    "hook": _TEXT,
    "state": {"enum": ["kept", "started", "done", "ignored", "failed"]},
    "flow_run_id": _TEXT_OR_NULL,
    "detail": _TEXT,
    "received": {"type": "string", "format": "date-time"},
}
_TOLD = {
    "400": "Not understood; the reason is said",
    "401": "No signature or key that is known here, or too old",
    "403": "Whoever asks may not",
    "404": "No hook, task or message of that name",
    "408": "The body did not come in time",
    "409": "The id came before with other content, or several senders used it",
    "413": "Larger than hooks.max_body_bytes",
    "422": "Taken, and Prefect refused to start it",
    "429": "More than the sender may in a minute",
    "503": "It could not be kept: send it again",
}
_HOOKS = {
    "retrain": ("Train one task or all now", _ASKED),
    "rollback": ("Put a task's previous champion back", {**_ASKED, "required": ["task"]}),
    "feedback": ("What became of an answer", _FEEDBACK),
    "objects": ("New objects in the store: S3's event notification", {"type": "object"}),
}


def document() -> Json:
    """A new copy of the whole document."""
    paths: Json = {
        "/hooks/status/{id}": {
            "get": {
                "summary": "What became of a message; its sender signs the id as the body",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": _TEXT},
                    _SENDER,
                ],
                "responses": {
                    "200": _answer("What became of it", {"$ref": "#/components/schemas/Status"}),
                    **_refusals("401", "404", "409", "503"),
                },
            }
        },
        "/reports/{key}": {
            "get": {
                "summary": "A report, by its link or with a key of the role operate",
                "parameters": [
                    {"name": "key", "in": "path", "required": True, "schema": _TEXT},
                    {"name": "link", "in": "query", "schema": _TEXT},
                ],
                "responses": {
                    "200": {"description": "The report"},
                    **_refusals("401", "403", "404", "503"),
                },
            }
        },
        "/healthz": {"get": _open("Whether the process lives")},
        "/openapi.json": {"get": _open("This document")},
    }
    for hook, (summary, body) in _HOOKS.items():
        paths[f"/hooks/{hook}"] = {
            "post": {
                "summary": summary,
                "parameters": [
                    _SENDER,
                    *(
                        {"name": f"webhook-{name}", "in": "header", "schema": _TEXT}
                        for name in ("id", "timestamp", "signature")
                    ),
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": body}},
                },
                "responses": {
                    "202": _answer("Taken", {"$ref": "#/components/schemas/Receipt"}),
                    **_refusals(*_TOLD),
                },
            }
        }
    receipt = {**_RECEIPT, "status_url": _TEXT, "duplicate": {"type": "boolean"}}
    status = {**_RECEIPT, "run_url": _TEXT, "run_state": _TEXT_OR_NULL}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Night School webhooks",
            "version": version("nightschool"),
            "description": "Signed by Standard Webhooks, GitHub's header or a plain HMAC, as the "
            "sender is set up; or with an API key.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Receipt": _object(receipt, list(receipt)),
                "Status": _object(status, list(_RECEIPT)),
                "Error": _object({"error": _TEXT}, ["error"]),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


_SENDER: Json = {
    "name": "sender",
    "in": "query",
    "schema": _TEXT,
    "description": "Whose signature it is, where many senders are known",
}


def _object(properties: Json, required: list[str]) -> Json:
    return {"type": "object", "properties": properties, "required": required}


def _answer(told: str, schema: Json) -> Json:
    return {"description": told, "content": {"application/json": {"schema": schema}}}


def _refusals(*statuses: str) -> Json:
    shape = {"$ref": "#/components/schemas/Error"}
    receipt = {"$ref": "#/components/schemas/Receipt"}
    return {
        status: _answer(_TOLD[status], receipt if status == "422" else shape) for status in statuses
    }


def _open(summary: str) -> Json:
    return {
        "summary": summary,
        "security": [],
        "responses": {"200": _answer("Yes", {"type": "object"})},
    }
