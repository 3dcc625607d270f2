"""One client for every engine that speaks vLLM's HTTP dialect: the embedded server and vLLM."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from infra.artifacts.base import BaseShape
from infra.artifacts.folder import verify_folder
from infra.artifacts.manifest import ArtifactError
from serving.engines.answers import read_chunk, read_completion, read_drawn, read_error
from serving.engines.protocol import (
    STOPS,
    Completion,
    CompletionChunk,
    EngineAbsent,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    check_adapter_name,
)

MAX_ANSWER_BYTES = 16 << 20
PROBE_PROMPT = "<|im_start|>user\nping<|im_end|>\n<|im_start|>assistant\n"


class EngineClient:
    """Speaks to one engine. Safe for concurrent use inside one event loop.

    Args:
        url: the engine's address without ``/v1``.
        api_key: sent as a bearer token.
        timeout_seconds: for a completion when the call gives none.
        admin_timeout_seconds: for listing, loading, unloading and probing.
        max_connections: sockets at the same time; more calls wait, inside their own timeout.
        base: the engine's base model. With it, an adapter's tensors and its base's fingerprint are
            checked before every load (vLLM accepts an adapter smaller than the model without a
            word); without it, only the folder in itself is.
        max_rank: the largest rank that the engine takes; None leaves that to the engine.
        trace_headers: headers that continue the caller's trace, asked for at each request.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 60,
        admin_timeout_seconds: float = 60,
        max_connections: int = 128,
        base: BaseShape | None = None,
        max_rank: int | None = None,
        trace_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_seconds = timeout_seconds
        self._admin_timeout_seconds = admin_timeout_seconds
        self._max_connections = max_connections
        self._base_shape = base
        self._max_rank = max_rank
        self._trace_headers = trace_headers
        self._session: aiohttp.ClientSession | None = None
        self._base: str | None = None

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the sockets. The client opens new ones if it is used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def healthy(self) -> bool:
        """Whether the engine says that it serves. Never raises an EngineError."""
        try:
            await self._call("GET", "/health", timeout_seconds=min(5, self._admin_timeout_seconds))
        except EngineError:
            return False
        return True

    async def models(
        self, *, timeout_seconds: float | None = None
    ) -> dict[str, tuple[str | None, str | None]]:
        """Everything the engine serves: name to (parent, root); the base has no parent."""
        limit = timeout_seconds or self._admin_timeout_seconds
        body = await self._json("GET", "/v1/models", timeout_seconds=limit)
        try:
            return {
                str(model["id"]): (model.get("parent"), model.get("root")) for model in body["data"]
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise EngineUnavailable(
                f"{self.url}/v1/models is not a model list: is this an engine?"
            ) from error

    async def loaded(self) -> Mapping[str, str]:
        return {
            name: root or "" for name, (parent, root) in (await self.models()).items() if parent
        }

    async def base_name(self, *, timeout_seconds: float | None = None) -> str:
        """The name under which the engine serves its base model. Asked once, then remembered."""
        if self._base is None:
            models = await self.models(timeout_seconds=timeout_seconds)
            bases = [name for name, (parent, _) in models.items() if not parent]
            if not bases:
                raise EngineUnavailable(f"{self.url} lists no base model")
            self._base = bases[0]
        return self._base

    async def ensure_loaded(self, name: str, folder: Path) -> bool:
        check_adapter_name(name)
        if name in await self.loaded():
            return False
        await asyncio.to_thread(self._verify, name, folder)
        body = {"lora_name": name, "lora_path": _absolute(folder)}
        try:
            await self._call("POST", "/v1/load_lora_adapter", body, admin=True)
        except EngineRefused:
            # Two callers may load the same name at the same time: the loser finds it loaded.
            if name in await self.loaded():
                return False
            raise
        return True

    async def ensure_unloaded(self, name: str) -> bool:
        check_adapter_name(name)
        if name not in await self.loaded():
            return False
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, admin=True)
        except EngineRefused as error:
            if error.status == 404:
                return False
            raise
        return True

    async def probe(self, name: str | None) -> float:
        started = time.perf_counter()
        answer = await self.complete(
            name, PROBE_PROMPT, max_tokens=1, timeout_seconds=self._admin_timeout_seconds
        )
        if answer.completion_tokens < 1:
            raise EngineUnavailable(f"probe of {name or 'the base model'} generated nothing")
        return time.perf_counter() - started

    async def complete(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> Completion:
        limit = timeout_seconds or self._timeout_seconds
        request = await self._request(model, prompt, max_tokens, stop, limit)
        body = await self._json("POST", "/v1/completions", request, timeout_seconds=limit)
        return read_completion(body)

    async def draw(
        self,
        model: str | None,
        prompt: str,
        *,
        count: int,
        seed: int,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> tuple[Completion, ...]:
        limit = timeout_seconds or self._timeout_seconds
        request = await self._request(model, prompt, max_tokens, stop, limit)
        # All that vLLM might take from a base model's own generation_config.json is said.
        request |= {"n": count, "seed": seed, "temperature": 1.0, "top_p": 1.0, "top_k": -1}
        body = await self._json("POST", "/v1/completions", request, timeout_seconds=limit)
        return read_drawn(body, count)

    async def stream(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> AsyncIterator[CompletionChunk]:
        limit = timeout_seconds or self._timeout_seconds
        request = await self._request(model, prompt, max_tokens, stop, limit) | {"stream": True}
        finished = False
        try:
            async with self._open().post(
                f"{self.url}/v1/completions",
                json=request,
                headers=self._trace_headers(),
                timeout=_total(limit),
            ) as response:
                if response.status != 200:
                    raise read_error(response.status, await response.content.read(4096))
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        finished = True
                        break
                    chunk = read_chunk(data)
                    if chunk is not None:
                        yield chunk
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failure(error, limit) from error
        if not finished:
            raise EngineUnavailable(f"{self.url} broke off in the middle of an answer")

    def _verify(self, name: str, folder: Path) -> None:
        try:
            manifest = verify_folder(folder, self._base_shape, max_rank=self._max_rank)
        except ArtifactError as error:
            status = 400 if folder.is_dir() else 404
            raise EngineRefused(f"adapter {name} not loaded: {error}", status=status) from error
        if manifest.name != name:
            raise EngineRefused(f"{folder} holds {manifest.name}, not {name}", status=400)

    async def _request(
        self,
        model: str | None,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str],
        timeout_seconds: float,
    ) -> dict[str, Any]:
        if model is None:
            model = await self.base_name(timeout_seconds=timeout_seconds)
        else:
            # vLLM's resolver takes a name for a path: only names that we may have given go there.
            check_adapter_name(model)
        return {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stop": list(stop),
            "logprobs": 1,
            # The prompt is rendered in full by us, and a control token in the answer must show.
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }

    async def _json(
        self, method: str, path: str, body: Any = None, *, timeout_seconds: float
    ) -> dict[str, Any]:
        raw = await self._call(method, path, body, timeout_seconds=timeout_seconds)
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise EngineUnavailable(f"{self.url}{path} did not answer in JSON") from error
        if not isinstance(value, dict):
            raise EngineUnavailable(f"{self.url}{path} did not answer with a JSON object")
        return value

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_seconds: float | None = None,
        admin: bool = False,
    ) -> bytes:
        limit = timeout_seconds or self._admin_timeout_seconds
        try:
            async with self._open().request(
                method,
                f"{self.url}{path}",
                json=body,
                headers=self._trace_headers(),
                timeout=_total(limit),
            ) as response:
                raw = await _read(response)
                if response.status >= 400:
                    raise read_error(response.status, raw, admin=admin)
                return raw
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._failure(error, limit) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=self._max_connections),
                trust_env=False,
            )
        return self._session

    def _failure(self, error: Exception, limit: float) -> EngineError:
        if isinstance(error, TimeoutError):
            return EngineTimeout(f"{self.url} did not answer within {limit:g} seconds")
        unsent = isinstance(error, aiohttp.ClientConnectorError)
        kind = EngineAbsent if unsent else EngineUnavailable
        return kind(f"no engine answers at {self.url}: {type(error).__name__}")


def _absolute(folder: Path) -> str:
    # The engine's working directory is not ours.
    return str(folder.absolute())


def _total(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise EngineUnavailable(f"the engine's answer is longer than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)
