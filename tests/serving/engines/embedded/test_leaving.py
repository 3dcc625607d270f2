"""Who leaves the embedded engine early: a caller in the middle of a stream, and the engine itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.serving.engines.building import EngineProcess, start_engine

Named = list[tuple[str, Path]]
MANY = 900


@pytest.fixture
def engine(base: Path) -> Iterator[EngineProcess]:
    with start_engine(base) as engine:
        yield engine


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "0", "max_tokens": MANY, "stop": [], **more}


async def decoded(http: aiohttp.ClientSession) -> float:
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    marks = [line for line in lines if line.startswith('nightschool_engine_tokens_total{kind="dec')]
    return float(marks[0].rpartition(" ")[2]) if marks else 0.0


async def test_a_caller_that_hangs_up_in_a_stream_frees_its_row_and_its_adapter(
    engine: EngineProcess, adapters: Named
) -> None:
    name, folder = adapters[0]
    async with aiohttp.ClientSession(engine.url) as http:
        given = {"lora_name": name, "lora_path": str(folder)}
        async with http.post("/v1/load_lora_adapter", json=given) as response:
            assert response.status == 200
        async with aiohttp.ClientSession(engine.url) as caller:
            stream = await caller.post("/v1/completions", json=body(name, stream=True))
            await stream.content.readline()
            stream.close()
        # Unloading waits for the adapter's rows to be out of the batch.
        async with http.post("/v1/unload_lora_adapter", json={"lora_name": name}) as response:
            assert response.status == 200
        assert await decoded(http) < MANY - 1


async def test_on_sigterm_what_is_under_way_is_answered_and_nothing_new_is_taken(
    engine: EngineProcess,
) -> None:
    async with aiohttp.ClientSession(engine.url) as http:
        whole = asyncio.create_task(read(http, body("base")))
        while await decoded(http) < 2:  # noqa: ASYNC110 - it is another process that gets there
            await asyncio.sleep(0.01)
        stream = await http.post("/v1/completions", json=body("base", stream=True))
        first = await stream.content.readline()
        os.kill(engine.pid, signal.SIGTERM)
        lines = first + await stream.content.read()
        answer = await whole
    tokens = [json.loads(line[5:]) for line in lines.split(b"\n") if line.startswith(b"data: {")]
    assert len(tokens) == MANY and lines.rstrip().endswith(b"[DONE]")
    assert answer["usage"]["completion_tokens"] == MANY
    assert await asyncio.to_thread(engine.process.wait, 20) == 0
    async with aiohttp.ClientSession(engine.url) as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/health")


async def read(http: aiohttp.ClientSession, asked: dict[str, Any]) -> dict[str, Any]:
    async with http.post("/v1/completions", json=asked) as response:
        assert response.status == 200
        value: dict[str, Any] = await response.json()
        return value
