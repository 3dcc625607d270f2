"""The demo's teacher: an OpenAI-compatible server that answers with recorded answers.

A large model is out of reach on a newcomer's machine, so its answers, recorded as the labels that
the data sets ship, stand for it: over a real socket, streamed or not. Started as
``python -m flows.demo.teacher --answers FILE --port N``; FILE maps request keys to messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from flows.demo.traffic import request_key
from infra.calls.record import new_id, utc_now

MAX_BODY_BYTES = 16 << 20
CHARACTERS_PER_TOKEN = 4
LATENCY_SECONDS = 0.05
"""A large model takes a second or more; the demo does not wait that long for each of its calls."""

Message = Mapping[str, Any]


class Teacher:
    def __init__(self, answers: Mapping[str, Message]) -> None:
        self._answers = answers
        self.asked = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "answers": len(self._answers)})

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": "teacher", "object": "model", "created": 0, "owned_by": "demo"}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        body = await request.json()
        key = request_key(
            body.get("messages") or [], body.get("tools"), body.get("response_format")
        )
        message = self._answers.get(key)
        if message is None:
            error = {"message": "no answer was recorded for this request", "type": "not_recorded"}
            return web.json_response({"error": error}, status=404)
        await asyncio.sleep(LATENCY_SECONDS)
        usage = _usage(body, message)
        if body.get("stream"):
            return await self._stream(request, body, message, usage)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": dict(message), "finish_reason": finish}
        return web.json_response(
            {**_envelope("chat.completion", body), "choices": [choice], "usage": usage}
        )

    async def _stream(
        self, request: web.Request, body: Message, message: Message, usage: Mapping[str, int]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        envelope = _envelope("chat.completion.chunk", body)
        for delta, finish in _deltas(message):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await _send(response, {**envelope, "choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await _send(response, {**envelope, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


def _deltas(message: Message) -> Iterator[tuple[dict[str, Any], str | None]]:
    yield {"role": "assistant", "content": None if message.get("tool_calls") else ""}, None
    for index, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        start = {"name": function["name"], "arguments": ""}
        head = {"index": index, "id": call["id"], "type": "function", "function": start}
        yield {"tool_calls": [head]}, None
        text = function["arguments"]
        for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
    for piece in re.findall(r"\s*\S+|\s+$", message.get("content") or ""):
        yield {"content": piece}, None
    yield {}, "tool_calls" if message.get("tool_calls") else "stop"


def _envelope(kind: str, body: Message) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{new_id()}",
        "object": kind,
        "created": int(utc_now().timestamp()),
        "model": body.get("model", "teacher"),
    }


def _usage(body: Message, message: Message) -> dict[str, int]:
    """Token counts, estimated from characters: the recorded answers came without any."""
    asked = [body.get("messages"), body.get("tools"), body.get("response_format")]
    prompt = len(json.dumps(asked)) // CHARACTERS_PER_TOKEN
    completion = max(1, len(json.dumps(dict(message))) // CHARACTERS_PER_TOKEN)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def _send(response: web.StreamResponse, value: Any) -> None:
    await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    teacher = Teacher(json.loads(options.answers.read_text()))
    web.run_app(teacher.application(), host=options.host, port=options.port, print=None)


if __name__ == "__main__":
    main()
