"""Read a small model's text back into an OpenAI assistant message, and check what can be checked.

The checks need no right answer: the text parses, the tool is one the caller offered, the arguments
fit the tool's schema, the content fits the response format. Serving refuses what fails them;
judging counts it as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson
from jsonschema_rs import Draft202012Validator, FancyRegexOptions, ValidationError

from infra.anonymize.memory import Generations, key_of, packed
from infra.calls.record import Checks, new_id
from infra.prompting.schema_cost import Recursive, TooDear, check_affordable, expanded

MAX_ANSWER_CHARACTERS = 200_000
MAX_KNOWN_SCHEMAS = 512
TOO_DEAR = "the caller's schema costs too much to check"
CUT_OFF = "cut off at the token limit"
MAX_KNOWN_SCHEMA_BYTES = 64 << 10
"""A longer schema is compiled for each answer: what is remembered is bounded in bytes too. Of that one
only its cost is, which takes longest to tell."""
# A caller's patterns are matched in linear time where they can be, and else given up after so many
# steps: a pattern must not hold up the other callers.
_PATTERNS = FancyRegexOptions(backtrack_limit=20_000)

_MAPPING = (dict, Mapping)  # an abstract class alone is asked slowly
_FITTING_CALL = Checks(tool_known=True, schema_valid=True)
_FITTING_CONTENT = Checks(schema_valid=True)
_TEXT = Checks()


@dataclass(frozen=True)
class ParsedAnswer:
    message: dict[str, Any]
    """An OpenAI assistant message: content, or content None and tool_calls."""
    checks: Checks


def parse_answer(text: str, request: Mapping[str, Any], *, complete: bool = True) -> ParsedAnswer:
    """Turn generated text (without the stop token) into a message and its checks.

    Args:
        text: what the model generated.
        request: the OpenAI request it answers; its tools and response format are what is checked.
        complete: False when generation stopped at the token limit: such an answer never passes.
    """
    text = text.strip()
    calls = _tool_calls(text) if request.get("tools") else None
    if calls is not None:
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    else:
        message = {"role": "assistant", "content": text}
    if not complete or not text or len(text) > MAX_ANSWER_CHARACTERS:
        reason = "no text" if not text else CUT_OFF
        return ParsedAnswer(message, Checks(parsed=False, reason=reason))
    return ParsedAnswer(message, check_answer(message, request))


def check_answer(message: Mapping[str, Any], request: Mapping[str, Any]) -> Checks:
    """Check any assistant message (small model's or teacher's) against what the caller asked for."""
    if message.get("tool_calls"):
        return _check_calls(message["tool_calls"], request)
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = _parts_text(content)
    schema = _schema(request)
    if schema is not None:
        try:
            value = json.loads(content)
        except ValueError:
            return Checks(parsed=False, schema_valid=False, reason="content is not JSON")
        problem = _schema_problem(value, schema)
        return Checks(schema_valid=False, reason=problem) if problem else _FITTING_CONTENT
    if request.get("tools") and content.lstrip()[:1] in ("{", "["):
        return Checks(parsed=False, reason="looks like a tool call but does not parse as one")
    if request.get("tools") and request.get("tool_choice") == "required":
        return Checks(parsed=False, reason="a tool call was required and none was made")
    return _TEXT if content else Checks(parsed=False, reason="empty answer")


def uncheckable(request: Mapping[str, Any]) -> bool:
    """Whether a schema of the request is one that no answer is checked against: it costs too much, or
    is none."""
    tools = request.get("tools")
    schemas = [_schema(request)] + [
        tool["function"].get("parameters")
        for tool in (tools if isinstance(tools, list | tuple) else ())
        if isinstance(tool, _MAPPING) and isinstance(tool.get("function"), _MAPPING)
    ]
    try:
        return any(schema and _is_dear(schema) for schema in schemas)
    except (ValueError, TypeError):
        return True


def _tool_calls(text: str) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    items = value if isinstance(value, list) else [value]
    if not items or not all(
        isinstance(item, dict)
        and set(item) == {"name", "arguments"}
        and isinstance(item["name"], str)
        and isinstance(item["arguments"], dict)
        for item in items
    ):
        return None
    return [
        {
            "id": f"call_{new_id().replace('-', '')[-24:]}",
            "type": "function",
            "function": {
                "name": item["name"],
                "arguments": json.dumps(item["arguments"], ensure_ascii=False),
            },
        }
        for item in items
    ]


def _check_calls(calls: Any, request: Mapping[str, Any]) -> Checks:
    if not isinstance(calls, list | tuple) or not all(_is_call(call) for call in calls):
        return Checks(parsed=False, reason="tool_calls is not a list of function calls")
    tools = request.get("tools")
    offered = {
        function["name"]: function.get("parameters") or {}
        for tool in (tools if isinstance(tools, list | tuple) else ())
        if isinstance(tool, _MAPPING)
        and isinstance(function := tool.get("function"), _MAPPING)
        and isinstance(function.get("name"), str)
    }
    if len(calls) > 1 and request.get("parallel_tool_calls") is False:
        return Checks(parsed=False, reason="more than one tool call where one was allowed")
    for call in calls:
        function = call["function"]
        name = function["name"]
        if name not in offered:
            return Checks(tool_known=False, reason=f"no tool named {str(name)[:80]!r} was offered")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            return Checks(parsed=False, tool_known=True, reason=f"arguments of {name} are not JSON")
        problem = _schema_problem(arguments, offered[name])
        if problem:
            return Checks(tool_known=True, schema_valid=False, reason=f"{name}: {problem}")
    return _FITTING_CALL


def _parts_text(content: Any) -> str:
    """The text of a content in parts."""
    parts = content if isinstance(content, list | tuple) else ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _is_call(call: Any) -> bool:
    """A name, and arguments as JSON text (or none)."""
    function = call.get("function") if isinstance(call, _MAPPING) else None
    return (
        isinstance(function, _MAPPING)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str | None)
    )


def _schema(request: Mapping[str, Any]) -> Any:
    form = request.get("response_format")
    if not isinstance(form, _MAPPING):
        return None
    if form.get("type") == "json_schema":
        named = form.get("json_schema") or {}
        # What is no object is handed on as it is: a schema that none can be checked against.
        return (named.get("schema") or {}) if isinstance(named, _MAPPING) else named
    return {"type": "object"} if form.get("type") == "json_object" else None


Cost = Literal["bounded", "recursive", "dear"]
_costs: Generations[Cost] = Generations(MAX_KNOWN_SCHEMAS)
"""Of long schemas, by their digest."""


class _Known(NamedTuple):
    """What is kept of a schema."""

    validator: Draft202012Validator | None
    """None: checking against it may cost too much."""
    recursive: bool
    """What it costs depends on the value."""


def _known_of(schema: Any) -> _Known:
    """Raises ValueError for what is no JSON Schema, or refers to one elsewhere: nothing is fetched."""
    said = packed(schema)
    if said is None:  # whole numbers beyond 64 bits: nothing that comes often
        return _compiled(schema)
    if len(said) <= MAX_KNOWN_SCHEMA_BYTES:
        return _known(said)
    key = key_of(said)
    cost = _costs.get(key)
    if cost == "dear":
        return _Known(None, recursive=False)
    known = _compiled(schema, cost)
    if cost is None:
        dear, recursive = known.validator is None, known.recursive
        _costs.put(key, "dear" if dear else "recursive" if recursive else "bounded")
    return known


def _is_dear(schema: Any) -> bool:
    """Whether no answer is checked against it. Raises as ``_known_of``."""
    said = packed(schema)
    if said is not None and len(said) > MAX_KNOWN_SCHEMA_BYTES:
        cost = _costs.get(key_of(said))
        if cost is not None:
            return cost == "dear"
    return _known_of(schema).validator is None


@lru_cache(maxsize=MAX_KNOWN_SCHEMAS)
def _known(schema: bytes) -> _Known:
    """The same few schemas come with call after call. They are kept by what they say: a caller's
    object may change."""
    return _compiled(orjson.loads(schema))


def _compiled(schema: Any, cost: Cost | None = None) -> _Known:
    validator = Draft202012Validator(schema, offline=True, pattern_options=_PATTERNS)
    cost = cost or _cost(schema)
    return _Known(None if cost == "dear" else validator, recursive=cost == "recursive")


def _cost(schema: Any) -> Cost:
    try:
        expanded(schema)
    except Recursive:
        return "recursive"
    except TooDear:
        return "dear"
    return "bounded"


def _schema_problem(value: Any, schema: Any) -> str | None:
    try:
        known = _known_of(schema)
    except (ValueError, TypeError):
        return "the caller's schema is not valid JSON Schema"
    if known.validator is None:
        return TOO_DEAR
    try:
        if known.recursive:
            check_affordable(schema, value)
        known.validator.validate(value)
    except TooDear:
        return TOO_DEAR
    except ValidationError as error:
        # The message quotes the value, which may be personal: name the rule and the place instead.
        where = "/".join(map(str, error.instance_path)) or "top"
        return f"breaks {error.schema_path[-1] if error.schema_path else 'schema'} at {where}"
    except ValueError:
        return "cannot be checked against the caller's schema"
    return None
