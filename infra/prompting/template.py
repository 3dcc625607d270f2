"""Render an OpenAI chat request as the text a small model is trained on, judged with and served.

Shipped chat templates drop tools and tool calls silently, and a model trained through one template
and served through another is the field's commonest failure. So there is one renderer, of ours, and
the rendered text goes to the engine as a raw completion prompt: the engine's template never runs.

The layout is ChatML. A task's constant parts (system prompt, tool list, response format) may be
*pruned*: an adapter that only ever sees one tool list learns it, and a prompt of 40 tokens is an
order of magnitude cheaper than one of 800. What is pruned is part of the adapter's manifest, and
the router sends it only calls whose signature matches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TEMPLATE_VERSION = 1
TURN = "<|im_start|>"
STOP = "<|im_end|>"

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class PromptFormat:
    """Which parts of a request the prompt leaves out. ``FULL`` leaves out nothing."""

    template: int = TEMPLATE_VERSION
    drop_system: bool = False
    drop_tools: bool = False
    drop_response_format: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: JsonObject) -> PromptFormat:
        """Raises ValueError for a template version that this code does not render."""
        if value.get("template") != TEMPLATE_VERSION:
            raise ValueError(
                f"prompt template version {value.get('template')!r} is not {TEMPLATE_VERSION}: "
                "retrain the adapter, or serve it with the release that trained it"
            )
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


FULL = PromptFormat()
PRUNED = PromptFormat(drop_system=True, drop_tools=True, drop_response_format=True)


def render_prompt(request: JsonObject, form: PromptFormat = FULL) -> str:
    """The prompt up to and including the header of the assistant's turn.

    Args:
        request: an OpenAI chat-completion request (``messages``, ``tools``, ``response_format``).
        form: which constant parts to leave out.
    """
    turns: list[str] = []
    preface = _preface(request, form)
    if preface:
        turns.append(_turn("system", preface))
    for message in request.get("messages") or []:
        role = str(message.get("role", "user"))
        if role in ("system", "developer"):
            continue
        if role == "assistant":
            turns.append(f"{TURN}assistant\n{render_answer(message)}{STOP}\n")
        else:
            turns.append(_turn(role, content_text(message.get("content"))))
    return "".join(turns) + f"{TURN}assistant\n"


def render_answer(message: JsonObject) -> str:
    """The assistant's answer as the model must produce it, without the closing ``STOP``.

    One tool call is a compact JSON object ``{"name":...,"arguments":{...}}``, several are a JSON
    array of those; anything else is the text itself.
    """
    calls = message.get("tool_calls") or []
    if not calls:
        return content_text(message.get("content"))
    rendered = [
        {"name": call["function"]["name"], "arguments": _arguments(call["function"])}
        for call in calls
    ]
    return defuse(compact_json(rendered[0] if len(rendered) == 1 else rendered))


def content_text(content: Any) -> str:
    """The text of an OpenAI message content: a string, a list of parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return defuse(content)
    if isinstance(content, Sequence):
        parts = [
            part.get("text") or f"[{part.get('type', 'part')}]"
            for part in content
            if isinstance(part, Mapping)
        ]
        return defuse("\n".join(parts))
    return defuse(str(content))


def defuse(text: str) -> str:
    """Break control tokens inside content, so that nobody's text can open or close a turn."""
    return text.replace("<|", "< |")


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _turn(role: str, text: str) -> str:
    return f"{TURN}{role}\n{text}{STOP}\n"


def _arguments(function: JsonObject) -> Any:
    """Arguments as an object; text that is not JSON is kept as it is, for the checks to refuse."""
    raw = function.get("arguments")
    if not isinstance(raw, str):
        return raw or {}
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _preface(request: JsonObject, form: PromptFormat) -> str:
    lines: list[str] = []
    if not form.drop_system:
        lines += [
            content_text(message.get("content"))
            for message in request.get("messages") or []
            if message.get("role") in ("system", "developer")
        ]
    tools = request.get("tools") or []
    if tools and not form.drop_tools:
        lines.append('To call a tool, answer only with JSON {"name":...,"arguments":{...}}. Tools:')
        lines += [defuse(_tool_line(tool)) for tool in tools]
    schema = _response_schema(request)
    if schema is not None and not form.drop_response_format:
        lines.append("Answer only with JSON of this schema: " + defuse(compact_json(schema)))
    return "\n".join(lines)


def _tool_line(tool: JsonObject) -> str:
    """A tool in one line: name(argument: type, ...) and its description."""
    function = tool.get("function") or {}
    properties = (function.get("parameters") or {}).get("properties") or {}
    arguments = ", ".join(
        f"{name}: {'|'.join(map(str, spec['enum'])) if 'enum' in spec else spec.get('type', 'any')}"
        for name, spec in properties.items()
    )
    return f"- {function.get('name')}({arguments}): {function.get('description', '')}"


def _response_schema(request: JsonObject) -> Any:
    form = request.get("response_format")
    if not isinstance(form, Mapping):
        return None
    if form.get("type") == "json_schema":
        return (form.get("json_schema") or {}).get("schema")
    return {"type": "object"} if form.get("type") == "json_object" else None
