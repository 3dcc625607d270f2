"""An OpenAPI document as a page of Markdown: what can be asked, with what, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

_BOUNDS = (
    *(("minimum", "≥ {}"), ("maximum", "≤ {}"), ("minLength", "≥ {} characters")),
    *(("maxLength", "≤ {} characters"), ("minItems", "≥ {} items"), ("maxItems", "≤ {} items")),
    *(("pattern", "matches `{}`"), ("default", "default `{}`")),
)


def addresses_page(document: Json, where: str) -> str:
    """``where``: a sentence on which service this is and where it listens."""
    lines = [
        f"# {document['info']['title'].removeprefix('Night School ').capitalize()}: the HTTP API",
        "",
        "Made by `python -m flows.reference` of the document that the service itself serves at "
        "`/openapi.json`.",
        "",
        f"{document['info']['description']} {where}",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += _operation(path, method, operation, document)
    lines += ["", "## Objects"]
    for name, schema in document["components"]["schemas"].items():
        lines += ["", f"### {name}", "", *_fields(schema)]
    return "\n".join(lines) + "\n"


def _operation(path: str, method: str, operation: Json, document: Json) -> list[str]:
    summary = str(operation["summary"]).rstrip(".")
    lines = ["", f"## {method.upper()} {path}", "", f"{summary}. {_key(operation, document)}"]
    parameters = [
        f"- {_field(one['name'], one['schema'], required=bool(one.get('required')))}"
        f" in the {one['in']}{_told(one)}"
        for one in operation.get("parameters", ())
    ]
    lines += ["", *parameters] if parameters else []
    body = operation.get("requestBody")
    if body:
        lines += ["", f"Body: {_contents(body['content'])}"]
        for content in body["content"].values():
            if "$ref" not in content.get("schema", {}):
                lines += ["", *_fields(content["schema"])]
    lines += ["", "| status | means | body |", "| --- | --- | --- |"]
    statuses: dict[str, list[str]] = {}
    for status, answer in operation["responses"].items():
        told = f"{answer['description']}{_headers(answer)}"
        row = f"{told} | {_contents(answer.get('content', {}))} |"
        statuses.setdefault(row, []).append(status)
    return [*lines, *(f"| {', '.join(those)} | {row}" for row, those in statuses.items())]


def _key(operation: Json, document: Json) -> str:
    """Whether an API key is asked for: OpenAPI's empty choice makes it optional."""
    choices = operation.get("security", document.get("security", []))
    if not choices:
        return "Open to everybody."
    if {} in choices:
        return "API key as a bearer token, where the settings ask for one."
    return "Needs an API key as a bearer token."


def _headers(answer: Json) -> str:
    names = ", ".join(f"`{name}`" for name in answer.get("headers", ()))
    return f"; headers {names}" if names else ""


def _contents(contents: Json) -> str:
    return ", ".join(
        f"{_kind(content['schema'])}" if content.get("schema") else f"`{media}`"
        for media, content in contents.items()
    )


def _fields(schema: Json) -> list[str]:
    """An object's properties, one a line; what is no object, in a line."""
    # Of several shapes the first is the one that is meant; the others say what is let through.
    schema = next(iter(schema.get("anyOf", ())), schema) if "type" not in schema else schema
    properties = schema.get("properties")
    if not properties:
        return [f"{_kind(schema).capitalize()}."]
    required = set(schema.get("required", ()))
    lines = []
    for name, inner in properties.items():
        lines.append(f"- {_field(name, inner, required=name in required)}{_told(inner)}")
        nested = inner.get("items", inner)
        if nested.get("properties"):
            lines += [f"  {line}" for line in _fields(nested)]
    return lines


def _field(name: str, schema: Json, *, required: bool) -> str:
    notes = [_kind(schema), *(["required"] if required else []), *_bounds(schema)]
    return f"`{name}` ({', '.join(note for note in notes if note)})"


def _told(described: Json) -> str:
    return f": {described['description']}" if described.get("description") else ""


def _bounds(schema: Json) -> list[str]:
    return [
        text.format(str(schema[name]).replace("\x00", "\\u0000"))
        for name, text in _BOUNDS
        if name in schema
    ]


def _kind(schema: Json) -> str:
    """The type in words; a named one as a link."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema and "type" not in schema:
            return " or ".join(dict.fromkeys(_kind(choice) for choice in schema[several]))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_kind({**schema, "type": one}) for one in kind)
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if (
        kind == "object"
        and "items" in schema.get("properties", {})
        and "next" in schema["properties"]
    ):
        return f"page of {_kind(schema['properties']['items']['items'])}: `items`, `next`"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)
