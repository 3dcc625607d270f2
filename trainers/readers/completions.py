"""Answers of several dialects as one OpenAI chat completion, streamed ones put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.calls.codec import RecordError
from trainers.readers.fields import embedded, first, mapping, parse, sequence, text
from trainers.readers.messages import is_part, normal

MAX_CHUNKS = 1_000_000
MAX_CHOICES = 128
_KEPT = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
}


def completion(value: Any, position: str = "response") -> dict[str, Any]:
    """An answer as a chat completion with ``choices``.

    Args:
        value: a completion, its chunks (a list, or the text of the event stream), a message, a list
            of messages that are choices or of one message's parts, LangChain's generations, plain
            text, or JSON text of these.

    Raises:
        RecordError: none of these, or nobody answered.
    """
    value = embedded(value)
    if isinstance(value, str) and value.lstrip().startswith("data:"):
        value = _events(value, position)
    if isinstance(value, list):
        if any(isinstance(item, Mapping) and _is_chunk(item) for item in value):
            return _with_messages(assembled(value), position)
        if value and all(isinstance(item, Mapping) and is_part(item) for item in value):
            value = [{"role": "assistant", "content": value}]
        return _of_messages(value, position)
    if isinstance(value, str):
        return _of_messages([{"role": "assistant", "content": value}], position)
    if not isinstance(value, Mapping):
        raise RecordError("there is no answer", position)
    if "choices" in value:
        if _is_chunk(value):
            return _with_messages(assembled([value]), position)
        return _with_messages(value, position)
    if "generations" in value:
        return _generations(value, position)
    if value.get("role") or isinstance(value.get("kwargs"), Mapping):
        made = _of_messages([value], position)
        return {**{name: value[name] for name in _KEPT if value.get(name) is not None}, **made}
    for name in ("message", "messages", "output", "content", "tool_calls"):
        if value.get(name):
            if name in ("content", "tool_calls"):
                return _of_messages([{"role": "assistant", **value}], position)
            inner = embedded(value[name])
            if name == "messages" and isinstance(inner, list):
                inner = inner[-1:]
            return completion(inner, f"{position}.{name}")
    raise RecordError("the answer is in no known form", position)


def assembled(chunks: Sequence[Any]) -> dict[str, Any]:
    """One completion out of a stream's chunks. Pieces of tool calls are joined by their index."""
    if len(chunks) > MAX_CHUNKS:
        raise RecordError(f"more than {MAX_CHUNKS} chunks", "response")
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        if not isinstance(chunk, Mapping):
            continue
        whole.update({name: chunk[name] for name in _KEPT if chunk.get(name) is not None})
        for part in sequence(chunk.get("choices")):
            if not isinstance(part, Mapping):
                continue
            index = _index(part, 0)
            choice = choices.setdefault(
                index, {"index": index, "finish_reason": None, "said": [], "calls": {}}
            )
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
            _add(choice, mapping(part.get("delta")))
    whole["object"] = "chat.completion"
    whole["choices"] = [_joined(choices[index]) for index in sorted(choices)]
    return whole


def _add(choice: dict[str, Any], delta: Mapping[str, Any]) -> None:
    if isinstance(delta.get("content"), str):
        choice["said"].append(delta["content"])
    for name in ("refusal", "reasoning_content"):
        if isinstance(delta.get(name), str):
            choice[name] = choice.get(name, "") + delta[name]
    for number, piece in enumerate(sequence(delta.get("tool_calls"))):
        if not isinstance(piece, Mapping):
            continue
        call = choice["calls"].setdefault(_index(piece, number), {"id": "", "name": "", "said": []})
        function = mapping(piece.get("function"))
        call["id"] = text(piece.get("id")) or call["id"]
        call["name"] = text(function.get("name")) or call["name"]
        if isinstance(function.get("arguments"), str):
            call["said"].append(function["arguments"])


def _joined(choice: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(choice["said"]) or None}
    message.update({n: choice[n] for n in ("refusal", "reasoning_content") if choice.get(n)})
    if choice["calls"]:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["said"])},
            }
            for _, call in sorted(choice["calls"].items())
        ]
    reason = choice["finish_reason"]
    return {"index": choice["index"], "message": message, "finish_reason": reason}


def _with_messages(value: Mapping[str, Any], position: str) -> dict[str, Any]:
    choices = []
    given = sequence(value.get("choices"))
    if len(given) > MAX_CHOICES:
        raise RecordError(f"more than {MAX_CHOICES} choices", position)
    for number, choice in enumerate(given):
        said = mapping(choice).get("message")
        if said is None:
            raise RecordError("a choice without a message", f"{position}.choices.{number}")
        made = _assistant(said, f"{position}.choices.{number}.message")
        choices.append({**choice, "message": made})
    if not choices:
        raise RecordError("there is no answer", position)
    return {**value, "choices": choices}


def _of_messages(values: Sequence[Any], position: str) -> dict[str, Any]:
    choices = []
    if len(values) > MAX_CHOICES:
        raise RecordError(f"more than {MAX_CHOICES} choices", position)
    for number, value in enumerate(values):
        fields = mapping(value)
        reason = text(first(fields, "finish_reason", "stop_reason"))
        choices.append(
            {
                "index": number,
                "message": _assistant(value, f"{position}.{number}"),
                "finish_reason": _REASONS.get(reason or "", reason),
            }
        )
    if not choices:
        raise RecordError("there is no answer", position)
    return {"object": "chat.completion", "choices": choices}


def _generations(value: Mapping[str, Any], position: str) -> dict[str, Any]:
    given = sequence(value.get("generations"))
    if given and isinstance(given[0], list):
        if len(given) > 1:
            raise RecordError("several conversations in one call", position)
        given = given[0]
    said = [
        first(mapping(item), "message")
        or {"role": "assistant", "content": mapping(item).get("text")}
        for item in given
    ]
    made = _of_messages(said, f"{position}.generations")
    for choice, item in zip(made["choices"], given, strict=True):
        reason = text(mapping(mapping(item).get("generation_info")).get("finish_reason"))
        choice["finish_reason"] = choice["finish_reason"] or reason
    return made


def _assistant(value: Any, position: str) -> dict[str, Any]:
    value = embedded(value)
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    if isinstance(value, Mapping) and not (value.get("role") or value.get("type")):
        value = {"role": "assistant", **value}
    made = normal(value, position)
    if len(made) != 1 or made[0]["role"] != "assistant":
        raise RecordError("the answer is not an assistant's message", position)
    return made[0]


def _is_chunk(value: Mapping[str, Any]) -> bool:
    if value.get("object") == "chat.completion.chunk":
        return True
    return any(isinstance(c, Mapping) and "delta" in c for c in sequence(value.get("choices")))


def _index(value: Mapping[str, Any], otherwise: int) -> int:
    index = value.get("index")
    return index if isinstance(index, int) and 0 <= index < MAX_CHUNKS else otherwise


def _events(value: str, position: str) -> list[Any]:
    found = []
    for line in value.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            try:
                found.append(parse(data))
            except RecordError:
                raise RecordError("an event of the stream is not JSON", position) from None
    return found
