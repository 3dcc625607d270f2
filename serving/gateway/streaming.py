"""Server-sent events of chat completions: read them, assemble them, and write our own.

Written against OpenAI's published chunk objects: ``choices[].delta`` fragments that concatenate,
tool calls keyed by ``index``, a last chunk with ``usage`` and no choices when it was asked for, then
``data: [DONE]``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 4 << 20
MAX_ASSEMBLED_BYTES = 64 << 20
_TEXT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")


class StreamProblem(Exception):
    """The upstream's stream is not what it should be; the message has none of its text."""


class EventReader:
    """Incremental parser of an event stream: bytes in, ``data`` payloads out."""

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield each finished event's data. Raises StreamProblem for an event beyond the bound."""
        self._tail += chunk
        *lines, self._tail = self._tail.split(b"\n")
        if len(self._tail) > MAX_EVENT_BYTES:
            raise StreamProblem("an event of the stream is too long")
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    yield b"\n".join(self._data)
                    self._data, self._data_bytes = [], 0
            elif line.startswith(b"data:"):
                data = line[5:].removeprefix(b" ")
                self._data_bytes += len(data)
                if self._data_bytes > MAX_EVENT_BYTES:
                    raise StreamProblem("an event of the stream is too long")
                self._data.append(data)


class Assembler:
    """Collects the chunks of one streamed answer into the response object it stands for."""

    def __init__(self) -> None:
        self._reader = EventReader()
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None
        self._bytes = 0
        self.done = False
        self.error = False

    def feed(self, chunk: bytes) -> None:
        """Raises StreamProblem for what cannot be a chat-completion stream."""
        self._bytes += len(chunk)
        if self._bytes > MAX_ASSEMBLED_BYTES:
            raise StreamProblem("the stream is too long to log")
        for data in self._reader.feed(chunk):
            if data.strip() == b"[DONE]":
                self.done = True
                continue
            try:
                value = orjson.loads(data)
            except orjson.JSONDecodeError:
                raise StreamProblem("a chunk of the stream is not JSON") from None
            if not isinstance(value, dict):
                raise StreamProblem("a chunk of the stream is not an object")
            if value.get("error"):
                self.error = True
                continue
            self._add(value)

    @property
    def complete(self) -> bool:
        """Whether every choice that began has ended, without an error in between."""
        return (
            not self.error
            and bool(self._choices)
            and all(choice["finish_reason"] for choice in self._choices.values())
        )

    def response(self) -> dict[str, Any]:
        """The chat.completion object. Tool-call fragments are joined by index."""
        choices = []
        for index in sorted(self._choices):
            choice = self._choices[index]
            message = dict(choice["message"])
            calls = choice["calls"]
            if calls:
                message["tool_calls"] = [calls[key] for key in sorted(calls)]
            message.setdefault("content", None)
            choices.append(
                {"index": index, "message": message, "finish_reason": choice["finish_reason"]}
            )
        response = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            response["usage"] = self._usage
        return response

    def _add(self, value: Mapping[str, Any]) -> None:
        for name in ("id", "created", "model", "system_fingerprint", "service_tier"):
            if value.get(name) is not None:
                self._head.setdefault(name, value[name])
        if isinstance(value.get("usage"), dict):
            self._usage = value["usage"]
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and isinstance(choice.get("index", 0), int):
                self._add_choice(choice)

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        kept = self._choices.setdefault(
            choice.get("index", 0),
            {"message": {"role": "assistant"}, "calls": {}, "finish_reason": None},
        )
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        message = kept["message"]
        if isinstance(delta.get("role"), str):
            message["role"] = delta["role"]
        for name in _TEXT_FIELDS:
            if isinstance(delta.get(name), str):
                message[name] = (message.get(name) or "") + delta[name]
        calls = delta.get("tool_calls")
        for position, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                _add_call(kept["calls"], call, position)
        if choice.get("finish_reason"):
            kept["finish_reason"] = choice["finish_reason"]


class TextStream:
    """A text of ours on its way to the caller, part by part.

    Args:
        response: where it goes; its head carries the answerer's name.
    """

    def __init__(self, call_id: str, model: str, response: web.StreamResponse) -> None:
        self.response = response
        self._head = {
            "id": f"chatcmpl-{call_id}",
            "created": int(time.time()),
            "model": model,
            "object": "chat.completion.chunk",
        }
        self._sent = ""

    def more(self, text: str) -> bytes:
        """The events that add ``text``."""
        first = not self._sent
        self._sent += text
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return self._event(delta, None)

    def rest(self, response: Mapping[str, Any], include_usage: bool) -> bytes:
        """The events that end the stream as ``response``, whose text has been sent."""
        ending = self._event({}, response["choices"][0]["finish_reason"])
        if include_usage:
            ending += event({**self._head, "choices": [], "usage": response.get("usage")})
        return ending + DONE

    def _event(self, delta: Mapping[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head, "choices": [choice]})


def event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def completion(
    call_id: str,
    model: str,
    message: Mapping[str, Any],
    *,
    prompt_tokens: int,
    completion_tokens: int,
    created: int | None = None,
) -> dict[str, Any]:
    """The chat.completion object of an answer of ours."""
    return {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion",
        "created": int(time.time()) if created is None else created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"refusal": None, **message},
                "logprobs": None,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def chunks(response: Mapping[str, Any], *, include_usage: bool) -> Iterator[bytes]:
    """A whole response object as the events a streaming caller expects, ``[DONE]`` included."""
    head = {name: response[name] for name in ("id", "created", "model") if name in response}
    head["object"] = "chat.completion.chunk"
    if include_usage:
        head["usage"] = None
    for choice in response["choices"]:
        message = choice["message"]
        delta: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
        calls = message.get("tool_calls")
        if calls:
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        for part, reason in ((delta, None), ({}, choice["finish_reason"])):
            yield event(
                {
                    **head,
                    "choices": [
                        {
                            "index": choice["index"],
                            "delta": part,
                            "logprobs": None,
                            "finish_reason": reason,
                        }
                    ],
                }
            )
    if include_usage:
        yield event({**head, "choices": [], "usage": response.get("usage")})
    yield DONE


def _add_call(calls: dict[int, dict[str, Any]], call: Mapping[str, Any], position: int) -> None:
    index = call.get("index", position)
    if not isinstance(index, int):
        index = position
    kept = calls.setdefault(
        index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
    )
    if isinstance(call.get("id"), str):
        kept["id"] = call["id"]
    function = call.get("function")
    if isinstance(function, dict):
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                kept["function"][name] += function[name]
