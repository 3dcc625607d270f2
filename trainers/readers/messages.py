"""Chat messages of several dialects as OpenAI's: OpenAI, LangChain, Anthropic, OpenTelemetry.

One foreign message may be several of ours, since results of tool calls stand inside a user message
in some dialects and are messages of their own in OpenAI's. What no dialect gives a meaning to is
kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from infra.calls.codec import RecordError
from trainers.readers.fields import embedded, first, mapping, sequence, text

MAX_MESSAGES = 10_000
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
    "HumanMessage": "user",
    "AIMessage": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
    "FunctionMessage": "tool",
    "HumanMessageChunk": "user",
    "AIMessageChunk": "assistant",
    "SystemMessageChunk": "system",
    "ToolMessageChunk": "tool",
}
_REASONING = ("thinking", "reasoning", "redacted_thinking")
_KEPT = ("name", "refusal", "audio", "reasoning_content", "weight")


def messages(value: Any, position: str = "messages") -> list[dict[str, Any]]:
    """A conversation.

    Args:
        value: a list of messages, a list of one such list (a batch of one), JSON text of these, an
            object with ``messages``, or plain text: a user's message.

    Raises:
        RecordError: there is none, or a message has no role that is known.
    """
    value = embedded(value)
    if isinstance(value, Mapping) and "messages" in value:
        value = embedded(value["messages"])
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RecordError("there are no messages", position)
    if isinstance(value[0], list):
        if len(value) > 1:
            raise RecordError("several conversations in one call", position)
        value = value[0]
    if len(value) > MAX_MESSAGES:
        raise RecordError(f"more than {MAX_MESSAGES} messages", position)
    found = [
        one
        for number, item in enumerate(value)
        for one in normal(embedded(item), f"{position}.{number}")
    ]
    if not found:
        raise RecordError("there are no messages", position)
    return found


def normal(value: Any, position: str) -> list[dict[str, Any]]:
    """One message of a dialect as one or more of OpenAI's.

    Raises:
        RecordError: not a message.
    """
    if not isinstance(value, Mapping):
        raise RecordError("a message is not an object", position)
    role, fields = _speaker(value)
    if role is None:
        raise RecordError("a message without a known role", position)
    made = _Made()
    parts = fields.get("parts")
    # Beside OpenAI's stored messages their parts lie under a name of their own.
    content = fields.get("content_parts") or fields.get("content")
    made.content(embedded(parts) if parts is not None else content)
    for call in _calls(fields):
        made.call(call)
    message: dict[str, Any] = {"role": role}
    if made.text or (not made.calls and not made.results):
        message["content"] = made.flat(plain=role == "assistant" or parts is not None)
    elif role == "assistant":
        message["content"] = None
    if made.calls and role == "assistant":
        message["tool_calls"] = made.calls
    if made.reasoning and role == "assistant":
        message["reasoning_content"] = "\n".join(made.reasoning)
    message.update({name: fields[name] for name in _KEPT if fields.get(name) is not None})
    if role == "tool":
        call_id = text(first(fields, "tool_call_id", "id"))
        if call_id is None and fields.get("name"):
            call_id = f"call_{fields['name']}"
        if "content" in message:
            message["tool_call_id"] = call_id or ""
    return [*made.results, message] if "content" in message else made.results


def is_part(value: Mapping[str, Any]) -> bool:
    """Whether it is a part of a message's content, and no message."""
    return "role" not in value and value.get("type") in ("text", "tool_use", *_REASONING)


def tools(value: Any) -> list[dict[str, Any]]:
    """Tool definitions as OpenAI's; those that have no name are left out."""
    value = embedded(value)
    if isinstance(value, Mapping):  # by name
        value = [{"name": name, **mapping(item)} for name, item in value.items()]
    found = []
    for item in value if isinstance(value, list) else []:
        tool = mapping(item)
        function = mapping(tool.get("function")) or tool
        name = text(function.get("name"))
        if name is None:
            continue
        parameters = embedded(first(function, "parameters", "input_schema", "inputSchema"))
        made: dict[str, Any] = {"name": name}
        if function.get("description"):
            made["description"] = function["description"]
        if isinstance(parameters, Mapping):
            made["parameters"] = parameters
        if isinstance(function.get("strict"), bool):
            made["strict"] = function["strict"]
        found.append({"type": "function", "function": made})
    return found


class _Made:
    """What a message says, taken apart."""

    def __init__(self) -> None:
        self.text: list[Any] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.reasoning: list[str] = []
        self._plain: str | None = None

    def content(self, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            self._plain = value if isinstance(value, str) else _json(value)
            self.text = [self._plain] if self._plain else []
            return
        for part in value:
            self._part(part)

    def call(self, call: dict[str, Any]) -> None:
        known = {item["id"] for item in self.calls}
        if call["id"] not in known:
            self.calls.append(call)

    def flat(self, plain: bool) -> Any:
        """Text, or parts. Where every text is a part (``plain``), parts of text alone are text."""
        if self._plain is not None:
            return self._plain
        if plain and all(part.keys() == {"type", "text"} for part in self.text):
            return "".join(str(part["text"]) for part in self.text)
        return self.text or ""

    def _part(self, part: Any) -> None:
        if isinstance(part, str):
            self.text.append({"type": "text", "text": part})
            return
        if not isinstance(part, Mapping):
            return
        kind = part.get("type")
        if kind in ("tool_use", "tool_call"):
            self.call(_call(part, len(self.calls)))
        elif kind in ("tool_result", "tool_call_response"):
            content = first(part, "content", "response", "result")
            self.results.append(
                {
                    "role": "tool",
                    "tool_call_id": text(first(part, "tool_use_id", "id")) or "",
                    "content": content if isinstance(content, str | list) else _json(content),
                }
            )
        elif kind in _REASONING:
            said = first(part, "thinking", "reasoning", "content", "text")
            if isinstance(said, str):
                self.reasoning.append(said)
        elif kind == "text" and "text" not in part and isinstance(part.get("content"), str):
            self.text.append({"type": "text", "text": part["content"]})
        elif kind in ("blob", "uri", "image") and (url := _url(part)):
            self.text.append({"type": "image_url", "image_url": {"url": url}})
        else:
            self.text.append(dict(part))


def _speaker(value: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Role and fields. LangChain writes a constructor's arguments, or a type and its data."""
    if isinstance(value.get("kwargs"), Mapping) and isinstance(value.get("id"), list):
        fields = value["kwargs"]
        kind = value["id"][-1] if value["id"] else None
        role = _ROLES.get(kind) if isinstance(kind, str) else None
        return role or _role(fields.get("role") or fields.get("type")), fields
    if isinstance(value.get("data"), Mapping) and "role" not in value:
        return _role(value.get("type")), value["data"]
    return _role(value.get("role") or value.get("type")), value


def _role(value: Any) -> str | None:
    return _ROLES.get(value) if isinstance(value, str) else None


def _calls(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    more = mapping(fields.get("additional_kwargs"))
    # The provider's own spelling of the arguments is the more exact one.
    given = sequence(more.get("tool_calls")) or sequence(fields.get("tool_calls"))
    made = [_call(item, number) for number, item in enumerate(given) if isinstance(item, Mapping)]
    old = mapping(first(fields, "function_call")) or mapping(more.get("function_call"))
    if not made and text(old.get("name")):
        made = [_call({"id": f"call_{old['name']}", "function": old}, 0)]
    return made


def _call(value: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = mapping(value.get("function")) or value
    arguments = first(function, "arguments", "args", "input")
    return {
        "id": text(value.get("id")) or f"call_{number}",
        "type": "function",
        "function": {
            "name": text(function.get("name")) or "",
            "arguments": arguments if isinstance(arguments, str) else _json(arguments or {}),
        },
    }


def _url(part: Mapping[str, Any]) -> str | None:
    """An image's address or, for inline bytes, its data URL."""
    source = mapping(part.get("source")) or part
    address = first(source, "uri", "url")
    if isinstance(address, str):
        return address
    data = first(source, "data", "content")
    kind = first(source, "media_type", "mime_type")
    if part.get("type") == "image" or part.get("modality") == "image":
        return f"data:{kind or 'image/png'};base64,{data}" if isinstance(data, str) else None
    return None


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()
