"""The OpenAPI document of the read API, made from the operations and the documents' shapes."""

from __future__ import annotations

import re
from typing import Any

from serving.registry.reading.operations import OPERATIONS, PATH_PARAMETERS, Operation
from serving.registry.reading.pages import DEFAULT_LIMIT, MAX_CURSOR, MAX_KEY, MAX_LIMIT, MAX_NAME

Schema = dict[str, Any]
LINEAGE_PATH = "/v1/lineage"

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
TIME: Schema = {"type": "string", "format": "date-time"}
TIME_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
OBJECT: Schema = {"type": "object"}
OBJECT_OR_NULL: Schema = {"type": ["object", "null"]}
ANYTHING: Schema = {}

_TASK = {
    "id": TEXT,
    "name": TEXT,
    "state": TEXT,
    "policy": TEXT,
    "tag": TEXT_OR_NULL,
    "calls": WHOLE,
    "version": WHOLE,
    "created": TIME,
    "updated": TIME,
}
_DATASET = {
    "digest": TEXT,
    "task": TEXT,
    "location": TEXT,
    "counts": OBJECT_OR_NULL,
    "created": TIME,
}
_ADAPTER = {
    "name": TEXT,
    "task": TEXT,
    "digest": TEXT,
    "dataset": TEXT,
    "spec": TEXT,
    "location": TEXT,
    "threshold": NUMBER_OR_NULL,
    "state": TEXT,
    "created": TIME,
}
_SCORECARD = {
    "digest": TEXT,
    "adapter": TEXT,
    "dataset": TEXT,
    "verdict": TEXT,
    "scores": OBJECT_OR_NULL,
    "coverage": NUMBER_OR_NULL,
    "report": TEXT_OR_NULL,
    "created": TIME,
}
_ROLLOUT = {
    "id": TEXT,
    "task": TEXT,
    "adapter": TEXT,
    "state": TEXT,
    "step": WHOLE,
    "sessions": WHOLE,
    "reason": TEXT,
    "version": WHOLE,
    "created": TIME,
    "entered": TIME,
    "deadline": TIME,
}
_ROUTE = {
    "task": TEXT,
    "champion": TEXT,
    "candidate": TEXT_OR_NULL,
    "rollout": TEXT_OR_NULL,
    "stage": TEXT,
    "weight": NUMBER,
    "version": WHOLE,
    "fence": WHOLE,
    "updated": TIME_OR_NULL,
}
_EVENT = {
    "id": WHOLE,
    "time": TIME,
    "actor": TEXT,
    "what": TEXT,
    "subject": TEXT,
    "why": TEXT,
    "evidence": ANYTHING,
    "previous": ANYTHING,
    "current": ANYTHING,
}
_CALL = {
    "id": TEXT,
    "time": TIME,
    "tenant": TEXT,
    "task": TEXT_OR_NULL,
    "object": TEXT,
    "model": TEXT,
    "adapter": TEXT_OR_NULL,
    "arm": TEXT_OR_NULL,
    "rollout": TEXT_OR_NULL,
    "route_version": {"type": ["integer", "null"]},
    "escalation": TEXT_OR_NULL,
}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _many(name: str) -> Schema:
    return {"type": "array", "items": reference(name)}


_SOURCES = {"source_count": WHOLE, "source_objects": {"type": "array", "items": TEXT}}
SHAPES: dict[str, dict[str, Schema]] = {
    "Task": _TASK,
    "WholeTask": {
        **_TASK,
        "signature": TEXT,
        "radius": NUMBER,
        "details": OBJECT,
        "route": reference("Route"),
    },
    "Dataset": _DATASET,
    "WholeDataset": {**_DATASET, "manifest": OBJECT},
    "Adapter": _ADAPTER,
    "WholeAdapter": {**_ADAPTER, "manifest": OBJECT, "scorecards": _many("Scorecard")},
    "Scorecard": _SCORECARD,
    "WholeScorecard": {**_SCORECARD, "body": OBJECT, "gate": OBJECT},
    "Rollout": _ROLLOUT,
    "WholeRollout": {**_ROLLOUT, "policy": OBJECT, "evidence": OBJECT},
    "Route": _ROUTE,
    "Event": _EVENT,
    "Source": {"object": TEXT},
    "AdapterLineage": {
        "kind": {"const": "adapter"},
        "adapter": reference("Adapter"),
        "dataset": reference("Dataset"),
        **_SOURCES,
        "base_model": TEXT_OR_NULL,
        "base_digest": TEXT_OR_NULL,
        "scorecards": _many("Scorecard"),
        "rollouts": _many("Rollout"),
    },
    "DatasetLineage": {
        "kind": {"const": "dataset"},
        "dataset": reference("Dataset"),
        **_SOURCES,
        "adapters": _many("Adapter"),
    },
    "ObjectLineage": {
        "kind": {"const": "object"},
        "object": TEXT,
        "state": TEXT_OR_NULL,
        "ingested": TIME_OR_NULL,
        "datasets": _many("Dataset"),
        "adapters": _many("Adapter"),
    },
    "CallLineage": {
        "kind": {"const": "call"},
        "call": {"type": "object", "properties": _CALL, "required": list(_CALL)},
        "adapter": {"anyOf": [reference("AdapterLineage"), {"type": "null"}]},
        "rollout": {"anyOf": [reference("Rollout"), {"type": "null"}]},
    },
    "Error": {
        "error": {
            "type": "object",
            "properties": {"message": TEXT, "code": TEXT},
            "required": ["message", "code"],
        }
    },
}
_REFUSALS = {
    "400": "A parameter cannot be used",
    "401": "No API key, or one that is not known",
    "403": "The key's role may not read the registry",
    "404": "There is nothing of that name",
    "405": "This API only reads: GET",
    "503": "Database or object store did not answer in time, or too many requests wait",
}


def openapi_document(*, require_key: bool = True) -> Schema:
    """OpenAPI 3.1. ``require_key``: whether this server asks for keys."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths[operation.path] = {"get": _operation(operation)}
    paths[LINEAGE_PATH] = {"get": _lineage()}
    paths["/healthz"] = {"get": _open("readHealth", "Whether this process answers", "Status")}
    paths["/readyz"] = {
        "get": _open("readReadiness", "Whether the database answers", "Status", True)
    }
    paths["/openapi.json"] = {"get": _open("readOpenApi", "This document", None)}
    schemas = {
        name: {"type": "object", "properties": shape, "required": list(shape)}
        for name, shape in {**SHAPES, "Status": {"status": TEXT}}.items()
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "Night School registry",
            "version": "1",
            "description": "What was learned, how it was judged, who answers, and why. Read only.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if require_key:
        document["security"] = [{"key": []}]
    return document


def _operation(operation: Operation) -> Schema:
    schema = reference(operation.schema)
    if operation.paged:
        schema = {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": schema, "maxItems": MAX_LIMIT},
                "next": {
                    "type": ["string", "null"],
                    "description": "Pass it as after for the next page; null: this is the last",
                },
            },
            "required": ["items", "next"],
        }
    parameters: list[Schema] = [
        _parameter(name, "path", PATH_PARAMETERS[name])
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters += [_parameter(name, "query", told) for name, told in operation.filters.items()]
    if operation.paged:
        limits = {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        }
        parameters.append({"name": "limit", "in": "query", "schema": limits})
        cursor = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": MAX_CURSOR}
        after = _parameter("after", "query", "What the page before said as next", cursor)
        parameters.append(after)
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(schema),
    }


def _lineage() -> Schema:
    kinds = {"type": "string", "enum": ["adapter", "call", "dataset", "object"]}
    told = "An adapter's name, a call's id, a data set's digest, an object's key"
    of = _parameter("of", "query", told, _name(MAX_KEY))
    schema = {
        "oneOf": [reference(f"{name}Lineage") for name in ("Adapter", "Dataset", "Object", "Call")]
    }
    return {
        "operationId": "readLineage",
        "summary": "Where something comes from, and what became of it",
        "parameters": [
            {**of, "required": True},
            _parameter("kind", "query", "What it is; else told by its form", kinds),
        ],
        "responses": _responses(schema),
    }


def _open(name: str, summary: str, schema: str | None, may_fail: bool = False) -> Schema:
    content = reference(schema) if schema else OBJECT
    responses = {"200": _content("Yes", content)}
    for status in ("400", "405", *(["503"] if may_fail else [])):
        responses[status] = _content(_REFUSALS[status], reference("Error"))
    return {"operationId": name, "summary": summary, "security": [], "responses": responses}


def _responses(schema: Schema) -> Schema:
    found = {"200": _content("Found", schema)}
    for status, told in _REFUSALS.items():
        found[status] = _content(told, reference("Error"))
    return found


def _content(told: str, schema: Schema) -> Schema:
    return {"description": told, "content": {"application/json": {"schema": schema}}}


def _name(longest: int) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": longest, "pattern": "^[^\\u0000]+$"}


def _parameter(name: str, place: str, told: str, schema: Schema | None = None) -> Schema:
    found: Schema = {
        "name": name,
        "in": place,
        "description": told,
        "schema": schema or _name(MAX_NAME),
    }
    if place == "path":
        found["required"] = True
    return found
