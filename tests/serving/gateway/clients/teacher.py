"""A teacher that answers every option of chat completions the way that OpenAI's API does, small."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

TOOL_CALLS = [
    {
        "id": f"call_{city}",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": city})},
    }
    for city in ("Oslo", "Rome")
]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
FAILURES = {
    "bad": (400, "invalid_request_error"),
    "unknown": (404, "invalid_request_error"),
    "busy": (429, "requests"),
    "broken": (500, "server_error"),
}


class FullTeacher:
    """Behaves by the model's name: one of FAILURES, ``slow``, ``endless``, or any other."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        """A caller of ``endless`` has hung up."""
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_get("/v1/files", self._files)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] in FAILURES:
            return failure(*FAILURES[body["model"]])
        if body["model"] == "slow":
            await asyncio.sleep(30)
        if body.get("stream"):
            return await self._stream(request, body)
        choices = [
            {
                "index": index,
                "message": message(body),
                "finish_reason": finish(body),
                "logprobs": logprobs(body),
            }
            for index in range(body.get("n") or 1)
        ]
        return web.json_response(
            {**head(body, "chat.completion"), "choices": choices, "usage": USAGE},
            headers={"x-request-id": "req_teacher"},
        )

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(value: Any) -> None:
            await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")

        async def choice(index: int, delta: Any, reason: str | None = None) -> None:
            part = {"index": index, "delta": delta, "finish_reason": reason}
            await send({**head(body, "chat.completion.chunk"), "choices": [part]})

        said = message(body)
        for index in range(body.get("n") or 1):
            await choice(index, {"role": "assistant", "content": ""})
            for word in (said["content"] or "").split(" "):
                await choice(index, {"content": word + " "})
            while body["model"] == "endless":
                try:
                    await choice(index, {"content": "more " * 100})
                    await asyncio.sleep(0.01)
                except (ConnectionError, asyncio.CancelledError):
                    self.gone.set()
                    raise
            for place, call in enumerate(said.get("tool_calls") or []):
                whole = call["function"]
                opening = {**call, "index": place, "function": {**whole, "arguments": ""}}
                await choice(index, {"tool_calls": [opening]})
                for piece in (whole["arguments"][:4], whole["arguments"][4:]):
                    part = {"index": place, "function": {"arguments": piece}}
                    await choice(index, {"tool_calls": [part]})
            await choice(index, {}, finish(body))
        if (body.get("stream_options") or {}).get("include_usage"):
            await send({**head(body, "chat.completion.chunk"), "choices": [], "usage": USAGE})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response(
            {"object": "list", "model": body["model"], "data": data, "usage": usage}
        )

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        made = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": body["model"],
            "output": [
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "hello", "annotations": []}],
                }
            ],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        if not body.get("stream"):
            return web.json_response(made)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        for number, event in enumerate(
            (
                {"type": "response.output_text.delta", "delta": "hel", **place},
                {"type": "response.output_text.delta", "delta": "lo", **place},
                {"type": "response.completed", "response": made},
            )
        ):
            data = json.dumps({**event, "sequence_number": number})
            await response.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
        return response

    async def _model(self, request: web.Request) -> web.Response:
        return failure(404, "invalid_request_error")

    async def _files(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [], "has_more": False})


def head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"]}


def message(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("tools"):
        return {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS}
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return {"role": "assistant", "content": '{"city": "Oslo"}'}
    return {"role": "assistant", "content": "one two three"}


def finish(body: dict[str, Any]) -> str:
    return "tool_calls" if body.get("tools") else "stop"


def logprobs(body: dict[str, Any]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    token = {"token": "one", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    return {"content": [token], "refusal": None}


def failure(status: int, kind: str) -> web.Response:
    code = "model_not_found" if status == 404 else None
    error = {"message": f"a {kind}", "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers={"retry-after": "7"})
