"""The structural signature of a request: what stays the same over all calls of one kind.

Two calls share a signature when they offer the same tools with the same parameters, ask for the
same response format and carry the same system prompt once per-call variables are masked (see
``masking.py``). Total: any value, however malformed, has a signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.tasks.masking import mask

SIGNATURE_VERSION = 1
MAX_DEPTH = 24
MAX_TOOLS = 1000
MAX_KNOWN = 1000
"""Tool lists whose digests are kept in memory."""
_MAPPING = (dict, Mapping)  # the plain check first: these run for every message of every call

# Prose and samples inside a JSON Schema: they vary (dates, examples) without changing what is asked.
_PROSE = frozenset({"description", "title", "default", "example", "examples", "$comment", "$id"})
# Keywords whose keys are names of the caller's own, not schema keywords.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


@dataclass(frozen=True)
class Signature:
    digest: str
    """sha256 of everything below and the schemas, 64 hex characters."""
    tools: tuple[str, ...]
    """Sorted names of the tools offered."""
    response_kind: str
    """``text``, ``json_object``, ``json_schema``, or what else the caller wrote as its type."""
    response_name: str
    """The response schema's name, or empty."""
    system_template: str
    """Masked words of all system and developer messages."""


def signature(request: Any) -> Signature:
    """The signature of an OpenAI chat-completion request, raw or anonymized. Never raises."""
    body = request if isinstance(request, Mapping) else {}
    tools = sorted(_tools(body))
    kind, name, schema = _response(body.get("response_format"))
    template = mask(system_text(body.get("messages")))
    canonical = [SIGNATURE_VERSION, tools, [kind, name, _digest(schema)], template]
    return Signature(
        digest=_digest(canonical),
        tools=tuple(tool for tool, _ in tools),
        response_kind=kind,
        response_name=name,
        system_template=template,
    )


def message_text(message: Any) -> str:
    """All text of a message's content: a string, or a list of parts; anything else is empty."""
    content = message.get("content") if isinstance(message, _MAPPING) else None
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def role_of(message: Any) -> str:
    role = message.get("role") if isinstance(message, _MAPPING) else None
    return role if isinstance(role, str) else ""


def items(value: Any) -> list[Any]:
    """A list's items; nothing for what is no list."""
    return list(value) if isinstance(value, list | tuple) else []


def system_text(messages: Any) -> str:
    """The text of all system and developer messages; empty for what is no list of messages."""
    # Every system message counts, also a late one: an adapter may leave the system prompt out of
    # its prompts only because the signature vouches for it.
    texts = (message_text(m) for m in items(messages) if role_of(m) in ("system", "developer"))
    return "\n".join(texts)


def _tools(body: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """(name, digest of the parameters) of each tool. Agents send the same list with every call."""
    offered = [items(body.get("tools"))[:MAX_TOOLS], items(body.get("functions"))[:MAX_TOOLS]]
    if not any(offered):
        return []
    try:
        key = hashlib.sha256(json.dumps(offered).encode("utf-8", "surrogatepass")).digest()
    except (TypeError, ValueError, RecursionError):
        return _read_tools(*offered)  # no JSON, so nothing that comes often
    known = _known_tools.get(key)
    if known is None:
        known = _read_tools(*offered)
        if len(_known_tools) >= MAX_KNOWN:
            _known_tools.clear()
        _known_tools[key] = known
    return known


_known_tools: dict[bytes, list[tuple[str, str]]] = {}


def _read_tools(tools: list[Any], functions: list[Any]) -> list[tuple[str, str]]:
    found = []
    for tool in [*tools, *({"function": function} for function in functions)]:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            name = _text(function.get("name"))
            found.append((name, _digest(_schema(function.get("parameters")))))
        else:
            found.append((_text(tool.get("type") if isinstance(tool, Mapping) else tool), ""))
    return found


def _response(form: Any) -> tuple[str, str, Any]:
    if not isinstance(form, Mapping):
        return "text", "", None
    kind = _text(form.get("type")) or "text"
    if kind != "json_schema":
        return kind, "", None
    inner = form.get("json_schema")
    if not isinstance(inner, Mapping):
        return kind, "", None
    return kind, _text(inner.get("name")), _schema(inner.get("schema"))


def _schema(value: Any, depth: int = 0, names: bool = False) -> Any:
    """A JSON Schema without prose, strings masked where they hold per-call variables."""
    if depth > MAX_DEPTH:
        return "deep"
    if isinstance(value, Mapping):
        return {
            _text(key): _schema(item, depth + 1, names=not names and key in _NAMED)
            for key, item in value.items()
            if names or not isinstance(key, str) or key not in _PROSE
        }
    if isinstance(value, list | tuple):
        return [_schema(item, depth + 1) for item in value]
    return mask(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else type(value).__name__


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_text)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
