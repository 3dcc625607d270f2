"""A teacher and an engine on real sockets, whose behaviour a test can change while they run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Say = Callable[[dict[str, Any]], dict[str, Any]]


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """The teacher's message: says back the last message's text."""
    return {"role": "assistant", "content": f"teacher: {body['messages'][-1]['content']}"}


class TeacherServer:
    """Speaks chat completions. ``mode``: ok, error, refuse, hang, break (in the middle of a stream)."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.say: Say = echo
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        """Of what is no chat completion: path and query as they came."""
        self.gate: asyncio.Event | None = None
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/files/{name}", self._file)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    async def _unknown(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        error = {"message": "none", "type": "invalid_request_error", "param": None, "code": None}
        return web.json_response({"error": error}, status=404)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self.headers.append(dict(request.headers))
        if self.gate is not None:
            await self.gate.wait()
        if self.mode == "error":
            return web.json_response(
                {"error": {"message": "boom", "type": "server_error"}}, status=500
            )
        if self.mode == "refuse":
            return web.json_response(
                {"error": {"message": "bad temperature", "type": "invalid_request_error"}},
                status=400,
            )
        if self.mode == "hang":
            await asyncio.sleep(60)
        message = self.say(body)
        if body.get("stream"):
            return await self._stream(request, body, message)
        return web.json_response(
            {
                "id": f"chatcmpl-teacher-{len(self.asked)}",
                "object": "chat.completion",
                "created": 1,
                "model": body.get("model") or "m",
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
                    }
                ],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            },
            headers={"x-ratelimit-remaining-requests": "41"},
        )

    async def _stream(
        self, request: web.Request, body: dict[str, Any], message: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(delta: dict[str, Any], finish: str | None = None) -> None:
            chunk = {
                "id": f"chatcmpl-teacher-{len(self.asked)}",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": body.get("model") or "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            }
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        await send({"role": "assistant", "content": ""})
        for word in (message.get("content") or "").split(" "):
            await send({"content": word + " "})
            if self.mode == "break":
                assert request.transport is not None
                request.transport.abort()
                return response
        for index, call in enumerate(message.get("tool_calls") or []):
            function = call["function"]
            opening = {"name": function["name"], "arguments": ""}
            await send({"tool_calls": [{**call, "index": index, "function": opening}]})
            for part in (function["arguments"][:5], function["arguments"][5:]):
                await send({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        await send({}, "tool_calls" if message.get("tool_calls") else "stop")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        try:
            body = await request.json()
            named = str(body["model"])
        except (ValueError, TypeError, KeyError):
            error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
            return web.json_response({"error": error}, status=400)
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return web.json_response({"object": "list", "model": named, "data": data, "usage": {}})

    async def _file(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        return web.Response(
            body=request.match_info["name"].encode() + b"?" + request.query_string.encode()
        )


class EngineServer:
    """Speaks the engines' dialect. ``mode``: ok, error, full, too long, hang."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.say: Callable[[str, str], str] = lambda _model, _prompt: "small answer"
        self.confidence = -0.01
        self.draws: Callable[[int], str] | None = None
        """What it says where answers are drawn, each by its place; None: what it says always."""
        self.finish_reason = "stop"
        self.pause_seconds = 0.0
        self.turning: int | None = None
        self.breath: Callable[[int], Awaitable[None]] | None = None
        """Awaited after each streamed token."""
        self.loaded: dict[str, str] = {}
        self.load_requests: list[str] = []
        self.listings = 0
        self.prompts: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        self.listings += 1
        data: list[dict[str, Any]] = [
            {"id": "base", "object": "model", "parent": None, "root": "base"}
        ]
        data += [
            {"id": name, "object": "model", "parent": "base", "root": root}
            for name, root in self.loaded.items()
        ]
        return web.json_response({"object": "list", "data": data})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.load_requests.append(body["lora_name"])
        self.loaded[body["lora_name"]] = body["lora_path"]
        return web.Response(text="ok")

    async def _unload(self, request: web.Request) -> web.Response:
        self.loaded.pop((await request.json())["lora_name"], None)
        return web.Response(text="ok")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model, prompt = body["model"], body["prompt"]
        if model != "base" and model not in self.loaded:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if body["max_tokens"] > 1:  # a probe is not a call
            self.prompts.append((model, prompt))
            self.headers.append(dict(request.headers))
            if self.mode == "error":
                return web.json_response({"error": {"message": "boom"}}, status=500)
            if self.mode == "full":
                return web.json_response({"error": {"message": "queue full"}}, status=503)
            if self.mode == "too long":
                return web.json_response({"error": {"message": "prompt too long"}}, status=400)
            if self.mode == "hang":
                await asyncio.sleep(60)
            await asyncio.sleep(self.pause_seconds)
        text = self.say(model, prompt)
        drawn = self.draws if "n" in body else None
        choices = [
            {
                "index": index,
                "text": text if drawn is None else drawn(index),
                "finish_reason": self.finish_reason,
                "logprobs": {"token_logprobs": [self.confidence] * 3, "tokens": ["a", "b", "c"]},
            }
            for index in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 3, "total_tokens": 0}
        if body.get("stream"):
            return await self._stream(request, text)
        return web.json_response(
            {"id": "c", "object": "text_completion", "choices": choices, "usage": usage}
        )

    async def _stream(self, request: web.Request, text: str) -> web.StreamResponse:
        """A token is a word with the space before it; ``turning`` is the place it goes bad at."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = re.findall(r"\s*\S+", text)

        async def send(text: str, logprobs: list[float], finish: str | None) -> None:
            choice = {
                "index": 0,
                "text": text,
                "finish_reason": finish,
                "logprobs": {"token_logprobs": logprobs},
            }
            await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

        for place, word in enumerate(words):
            bad = self.turning is not None and place >= self.turning
            await send(word, [-50.0 if bad else self.confidence], None)
            if self.breath is not None:
                await self.breath(place)
        await send("", [self.confidence], self.finish_reason)
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def listening(
    app: web.Application, kind: type[web.AppRunner] = web.AppRunner
) -> AsyncIterator[str]:
    """The application on a free port; yields its address."""
    runner = kind(app, shutdown_timeout=2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
