"""The embedded engine over HTTP, in vLLM's dialect. See ``dialect.py`` for what it answers."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from infra.artifacts.base import BaseShape
from serving.engines.embedded import dialect
from serving.engines.embedded.adapter_weights import read_adapter
from serving.engines.embedded.adapters import AdapterProblem, Adapters
from serving.engines.embedded.base_model import BaseModel
from serving.engines.embedded.batcher import Batcher, BatcherClosed, GenerationFailed, QueueFull
from serving.engines.embedded.decoding import Row, RunningBatch
from serving.engines.embedded.generation import Generation
from serving.engines.embedded.metrics import Metrics
from serving.engines.embedded.mixed_lora import BASE_SLOT, AdapterBank

MAX_BODY_BYTES = 2 << 20
OPEN_PATHS = ("/health", "/metrics")


@dataclass(frozen=True)
class Limits:
    """Bounds of one engine. All counts at least 1."""

    max_adapters: int = 8
    max_rank: int = 32
    batch_size: int = 16
    max_waiting: int = 64
    window_seconds: float = 0.008
    max_prompt_tokens: int = 2048
    max_answer_tokens: int = 1024
    threads: int = 1
    drain_seconds: float = 30


class EmbeddedServer:
    """One base model behind an aiohttp application.

    Args:
        base: model and tokenizer.
        shape: the base model as adapters must fit it.
        name: what the base model is called in requests.
        limits: bounds.
        api_key: required as a bearer token when given, except on /health and /metrics.
    """

    def __init__(
        self,
        base: BaseModel,
        shape: BaseShape,
        *,
        name: str = "base",
        limits: Limits | None = None,
        api_key: str | None = None,
    ) -> None:
        limits = limits or Limits()
        self._base = base
        self._name = name
        self._limits = limits
        self._api_key = api_key
        self._created = int(time.time())
        bank = AdapterBank(base.model)
        batch = RunningBatch(base.model, bank, pad_token=base.pad_token, decode=base.decode)
        batch.admit([Row([base.pad_token], BASE_SLOT, max_tokens=1)])  # the first pass is slow
        self._metrics = Metrics(
            waiting=lambda: self._batcher.waiting, adapters=lambda: len(self._adapters.listed())
        )
        self._batcher = Batcher(
            batch,
            batch_size=limits.batch_size,
            max_waiting=limits.max_waiting,
            window_seconds=limits.window_seconds,
            threads=limits.threads,
            observe=self._metrics.observe,
        )
        self._adapters = Adapters(
            read=lambda adapter, folder: read_adapter(
                adapter, folder, shape, bank.layers, max_rank=limits.max_rank
            ),
            add=bank.add,
            remove=bank.remove,
            in_model_thread=lambda function: asyncio.wrap_future(self._batcher.call(function)),
            max_adapters=limits.max_adapters,
            drain_seconds=limits.drain_seconds,
        )
        self._max_tokens = min(base.max_tokens, limits.max_prompt_tokens + limits.max_answer_tokens)

    def application(self) -> web.Application:
        """The application; its start and clean-up own the model's thread."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)
        return app

    async def _start(self, app: web.Application) -> None:
        self._batcher.start()

    async def _stop(self, app: web.Application) -> None:
        await asyncio.to_thread(self._batcher.close)

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if self._api_key and request.path not in OPEN_PATHS:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._api_key}".encode()):
                return _refusal(401, "a valid API key is required")
        try:
            response = await handler(request)
        except dialect.RequestProblem as problem:
            response = _refusal(400, str(problem))
        except AdapterProblem as problem:
            response = _refusal(problem.status, str(problem))
        except QueueFull as problem:
            response = _refusal(429, f"engine is full: {problem}; try again later")
        except BatcherClosed as problem:
            response = _refusal(503, str(problem))
        except web.HTTPException as problem:
            response = _refusal(problem.status, problem.reason)
        if request.path == "/v1/completions":
            self._metrics.requests.labels(str(response.status)).inc()
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._batcher.alive else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), content_type="text/plain", charset="utf-8")

    async def _models(self, request: web.Request) -> web.Response:
        def entry(name: str, root: Path, parent: str | None) -> dict[str, Any]:
            return {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "nightschool",
                "root": str(root),
                "parent": parent,
                "max_model_len": self._max_tokens,
            }

        data = [entry(self._name, self._base.folder, None)]
        data += [entry(held.name, held.folder, self._name) for held in self._adapters.listed()]
        return web.json_response({"object": "list", "data": data})

    async def _load(self, request: web.Request) -> web.Response:
        body = await _json(request)
        name, path = _text(body, "lora_name"), _text(body, "lora_path")
        if name == self._name:
            raise AdapterProblem(400, f"{name} is the base model's name")
        if not path.startswith("/"):
            raise AdapterProblem(400, "lora_path must be an absolute path")
        # Shielded: a caller that goes away must not leave an adapter half loaded.
        await asyncio.shield(self._adapters.load(name, Path(path)))
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = _text(await _json(request), "lora_name")
        await self._adapters.unload(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        asked = dialect.parse_request(await _json(request))
        prompt = await self._encode(asked)
        generations: list[Generation] = []
        try:
            for index in range(asked.n):
                generations.append(self._submit(asked, prompt, index))
            if asked.stream:
                return await _stream(request, generations[0])
            answers = [await generation.answer() for generation in generations]
            return web.json_response(dialect.as_one(answers))
        except GenerationFailed as error:
            return _refusal(500, str(error))
        finally:
            for generation in generations:
                generation.job.cancelled = True

    async def _encode(self, asked: dialect.CompletionRequest) -> list[int]:
        limit = self._limits.max_prompt_tokens
        least = len(asked.prompt) / self._base.longest_token
        if least <= limit:
            encode = partial(
                self._base.encode, asked.prompt, add_special_tokens=asked.add_special_tokens
            )
            short = len(asked.prompt) < 1 << 14
            prompt = encode() if short else await asyncio.to_thread(encode)
            if not prompt:
                raise dialect.RequestProblem("the prompt has no tokens")
            if len(prompt) <= limit:
                if len(prompt) + asked.max_tokens > self._max_tokens:
                    raise dialect.RequestProblem(
                        f"{len(prompt)} prompt tokens and max_tokens {asked.max_tokens} "
                        f"are more than the model's {self._max_tokens}"
                    )
                return prompt
            least = len(prompt)
        raise dialect.RequestProblem(
            f"the prompt has {least:.0f} tokens or more; this engine reads {limit} at most"
        )

    def _submit(
        self, asked: dialect.CompletionRequest, prompt: list[int], index: int
    ) -> Generation:
        name = None if asked.model == self._name else asked.model
        try:
            slot = BASE_SLOT if name is None else self._adapters.acquire(name)
        except KeyError:
            raise AdapterProblem(404, f"no model named {asked.model[:200]!r} is loaded") from None
        # Released when the row is out of the batch, not when the handler ends: a caller that left
        # early leaves its row running for a moment.
        release = partial(self._adapters.release, name) if name is not None else None
        generation = Generation(asked, prompt, slot, self._base, release, index)
        try:
            self._batcher.submit(generation.job)
        except (QueueFull, BatcherClosed):
            if release is not None:
                release()
            raise
        return generation


async def _stream(request: web.Request, generation: Generation) -> web.StreamResponse:
    chunks = generation.chunks()
    # The first token decides between an error status and a stream.
    first = await anext(chunks)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    await _send(response, first)
    try:
        async for chunk in chunks:
            await _send(response, chunk)
        await response.write(b"data: [DONE]\n\n")
    except (GenerationFailed, BatcherClosed) as error:
        await _send(response, dialect.error(500, str(error)))
    await response.write_eof()
    return response


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise dialect.RequestProblem("the body is not JSON") from None
    if not isinstance(body, dict):
        raise dialect.RequestProblem("the body is not a JSON object")
    return body


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value or "\0" in value:
        raise dialect.RequestProblem(f"{field} must be a text that is not empty")
    return value


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response(dialect.error(status, message), status=status)
