"""The client against servers that misbehave: every failure becomes a typed one, in bounded time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from serving.engines import client as client_module
from serving.engines.client import EngineClient
from serving.engines.protocol import (
    ADAPTER_NAME,
    EngineError,
    EngineOverloaded,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MODELS = {"data": [{"id": "tiny", "parent": None, "root": "/m"}]}
NAME = "task@0123456789abcdef"


@asynccontextmanager
async def serving(
    completions: Handler, models: Any = MODELS, **options: Any
) -> AsyncIterator[EngineClient]:
    async def list_models(request: web.Request) -> web.Response:
        return web.json_response(models)

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", list_models)
    async with (
        TestServer(app) as server,
        EngineClient(str(server.make_url("")), **options) as client,
    ):
        yield client


def saying(status: int, body: Any) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text)

    return handler


@pytest.mark.parametrize(
    ("status", "body", "kind", "part"),
    [
        (400, {"error": {"message": "too long"}}, EngineRefused, "too long"),
        (404, {"message": "no such model"}, EngineRefused, "no such model"),
        (401, "go away", EngineRefused, "go away"),
        (429, {"error": {"message": "full"}}, EngineOverloaded, "full"),
        (503, {"detail": "draining"}, EngineOverloaded, "draining"),
        (500, {"error": {"message": "boom"}}, EngineUnavailable, "boom"),
        (502, "", EngineUnavailable, "HTTP 502"),
        (200, "not json", EngineUnavailable, "JSON"),
        (200, [1], EngineUnavailable, "JSON object"),
        (200, {"choices": []}, EngineUnavailable, "cannot be read"),
        (200, {"choices": [{"text": "x"}]}, EngineUnavailable, "cannot be read"),
    ],
)
async def test_every_answer_that_is_none_is_typed(
    status: int, body: Any, kind: type[EngineError], part: str
) -> None:
    async with serving(saying(status, body)) as client:
        with pytest.raises(kind, match=part) as failure:
            await client.complete(None, "x", max_tokens=1)
    assert type(failure.value) is kind
    if status >= 400:
        assert failure.value.status == status


async def test_silence_is_a_timeout() -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with serving(silent) as client:
        with pytest.raises(EngineTimeout, match=r"0\.05 seconds"):
            await client.complete(None, "x", max_tokens=1, timeout_seconds=0.05)
        with pytest.raises(EngineTimeout):
            async for _ in client.stream(None, "x", max_tokens=1, timeout_seconds=0.05):
                pass


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)
    async with serving(saying(200, "x" * 5000)) as client:
        with pytest.raises(EngineUnavailable, match="longer than 1000 bytes"):
            await client.complete(None, "x", max_tokens=1)


def streaming(*parts: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return handler


def piece(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"text": text, "finish_reason": finish_reason, "logprobs": {"token_logprobs": [-0.5]}}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


async def test_a_stream_that_breaks_off_is_no_answer() -> None:
    async with serving(streaming(piece("a"), piece("b"))) as client:
        got = []
        with pytest.raises(EngineUnavailable, match="broke off"):
            async for chunk in client.stream(None, "x", max_tokens=5):
                got.append(chunk.text)
        assert got == ["a", "b"]


async def test_an_error_inside_a_stream_is_raised() -> None:
    error = b'data: {"error": {"message": "lost a worker"}}\n\n'
    async with serving(streaming(piece("a"), error, b"data: [DONE]\n\n")) as client:
        with pytest.raises(EngineUnavailable, match="lost a worker"):
            async for _ in client.stream(None, "x", max_tokens=5):
                pass


async def test_comments_and_usage_chunks_are_passed_over() -> None:
    usage = b'data: {"choices": [], "usage": {}}\n\n'
    parts = (b": ping\n\n", piece("a"), piece("b", "stop"), usage, b"data: [DONE]\n\n")
    async with serving(streaming(*parts)) as client:
        chunks = [chunk async for chunk in client.stream(None, "x", max_tokens=5)]
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("a", None), ("b", "stop")]
    assert chunks[0].token_logprobs == (-0.5,)


async def test_what_is_sent() -> None:
    seen: list[Any] = []

    async def record(request: web.Request) -> web.Response:
        seen.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response(
            {
                "choices": [{"text": "y", "finish_reason": "stop", "logprobs": None}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        )

    async with serving(record, api_key="sesame") as client:
        await client.complete(None, "prompt", max_tokens=7)
        await client.complete(NAME, "prompt", max_tokens=7, stop=["a", "b"])
    (key, base), (_, adapter) = seen
    assert key == "Bearer sesame"
    assert (base["model"], adapter["model"]) == ("tiny", NAME)
    assert (base["prompt"], base["max_tokens"], base["temperature"]) == ("prompt", 7, 0)
    assert (base["stop"], adapter["stop"]) == (["<|im_end|>"], ["a", "b"])
    assert base["add_special_tokens"] is False


async def test_answers_that_are_drawn_are_asked_for_in_one_request_and_all_there() -> None:
    seen: list[Any] = []

    async def two(request: web.Request) -> web.Response:
        seen.append(await request.json())
        choices = [
            {
                "text": text,
                "finish_reason": reason,
                "logprobs": {"tokens": ["t"] * count, "token_logprobs": [-0.5] * count},
            }
            for text, reason, count in (("a", "stop", 2), ("b", "length", 3))
        ]
        usage = {"prompt_tokens": 4, "completion_tokens": 5}
        return web.json_response({"choices": choices, "usage": usage})

    async with serving(two) as client:
        drawn = await client.draw(NAME, "prompt", count=2, seed=9, max_tokens=3)
        with pytest.raises(EngineUnavailable, match="2 answers of 3"):
            await client.draw(NAME, "prompt", count=3, seed=9, max_tokens=3)
    assert [(one.text, one.finish_reason, one.completion_tokens) for one in drawn] == [
        ("a", "stop", 2),
        ("b", "length", 3),
    ]
    asked = seen[0]
    assert (asked["n"], asked["seed"], asked["temperature"], asked["top_p"]) == (2, 9, 1, 1)
    async with serving(saying(200, {"choices": [None], "usage": {}})) as client:
        with pytest.raises(EngineUnavailable, match="cannot be read"):
            await client.draw(NAME, "prompt", count=1, seed=9, max_tokens=3)


async def test_something_that_is_no_engine() -> None:
    async with serving(saying(200, {}), models={"hello": 1}) as client:
        with pytest.raises(EngineUnavailable, match="is this an engine"):
            await client.loaded()
    async with serving(saying(200, {}), models={"data": []}) as client:
        with pytest.raises(EngineUnavailable, match="lists no base model"):
            await client.base_name()


@pytest.mark.parametrize("name", ["a", NAME, "a.b_c-d@1", "0" * 200])
def test_names_that_engines_may_hold(name: str) -> None:
    assert ADAPTER_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "../a", ".a", "-a", "@a", "a b", "a\n", "0" * 201, "ä"]
)
def test_names_that_engines_may_not_hold(name: str) -> None:
    assert not ADAPTER_NAME.fullmatch(name)
