"""The embedded engine as a process on a socket, spoken to in raw HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from infra.artifacts.base import read_base_shape
from serving.engines.embedded.base_model import load_base_model
from serving.engines.embedded.server import EmbeddedServer
from tests.contracts.servers import free_port
from tests.serving.engines.building import engine_process, make_adapter

Named = list[tuple[str, Path]]
WAIT_SECONDS = 60
LIMITS = (
    *("--max-adapters", "2", "--max-rank", "16", "--batch-size", "4", "--max-waiting", "3"),
    *("--max-prompt-tokens", "64", "--max-answer-tokens", "900"),
)


@pytest.fixture(scope="module")
def url(base: Path) -> Iterator[str]:
    with engine_process(base, *LIMITS) as url:
        yield url


async def call(
    url: str, method: str, path: str, body: Any = None, **options: Any
) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.request(method, url + path, json=body, **options) as response,
    ):
        raw = await response.text()
    try:
        return response.status, json.loads(raw)
    except ValueError:
        return response.status, raw


async def complete(url: str, model: str = "base", **fields: Any) -> tuple[int, Any]:
    body = {"model": model, "prompt": "turn on the light", "max_tokens": 3} | fields
    return await call(url, "POST", "/v1/completions", body)


async def load(url: str, name: str, folder: Path) -> tuple[int, str]:
    body = {"lora_name": name, "lora_path": str(folder)}
    status, answer = await call(url, "POST", "/v1/load_lora_adapter", body)
    return status, answer["error"]["message"] if isinstance(answer, dict) else answer


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not await holds():
        assert time.monotonic() < deadline, "it never came to hold"


async def unlisted(url: str) -> bool:
    return not (await call(url, "GET", "/v1/models"))[1]["data"][1:]


async def answers(url: str) -> bool:
    return (await complete(url))[0] == 200


async def unload(url: str, name: str) -> int:
    return (await call(url, "POST", "/v1/unload_lora_adapter", {"lora_name": name}))[0]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": 0.7, "stream": True}, "only a greedy answer is streamed"),
        ({"n": 2}, "n must be 1 where the answer is greedy"),
        ({"n": 17, "temperature": 1}, "n:"),
        ({"echo": True}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "more than the model's"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "0 " * 300}, "this engine reads 64"),
        ({"prompt": "secret-word " * 100_000}, "this engine reads 64"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"logprobs": 5}, "logprobs"),
    ],
)
async def test_what_it_cannot_answer_is_refused_by_name(
    url: str, fields: dict[str, Any], part: str
) -> None:
    status, answer = await complete(url, **fields)
    assert status == 400
    assert part in answer["error"]["message"]
    assert "secret-word" not in answer["error"]["message"]
    assert (await complete(url))[0] == 200


async def test_bodies_that_are_no_requests(url: str) -> None:
    assert (await complete(url, prompt="x" * (10 << 20)))[0] == 413
    assert (await call(url, "POST", "/v1/completions", [1]))[0] == 400
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", data=b"[" * 100_000) as response,
    ):
        assert response.status == 400
    assert (await call(url, "GET", "/v1/nothing"))[0] == 404
    assert (await complete(url, model="nobody@0000000000000000"))[0] == 404


async def test_answer_has_vllms_shape(url: str) -> None:
    status, answer = await complete(url, logprobs=1)
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 3
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert [len(values) for values in logprobs.values()] == [3, 3, 3, 3]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert all(value <= 0 for value in logprobs["token_logprobs"])
    assert (await complete(url))[1]["choices"][0]["logprobs"] is None


async def test_stream_says_the_same_and_ends_with_done(url: str) -> None:
    asked = {"logprobs": 1, "max_tokens": 20}
    whole = (await complete(url, **asked))[1]
    body = {"model": "base", "prompt": "turn on the light", "stream": True} | asked
    body["stream_options"] = {"include_usage": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body) as response,
    ):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line.decode().strip() async for line in response.content if line.strip()]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert len(choices) > 2
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    logprobs = [v for choice in choices for v in choice["logprobs"]["token_logprobs"]]
    assert logprobs == pytest.approx(whole["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4)
    assert [choice["finish_reason"] for choice in choices][-2:] == [None, "length"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_stop_texts_never_show_in_a_stream(url: str) -> None:
    whole = (await complete(url, max_tokens=40))[1]["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:5]
    body = {"model": "base", "prompt": "turn on the light", "max_tokens": 40, "stop": stop}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body | {"stream": True}) as response,
    ):
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)
    _, answer = await complete(url, max_tokens=40, stop=stop)
    assert text == answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_load_and_unload(url: str, base: Path, adapters: Named) -> None:
    (first, folder), (second, other), (third, last) = adapters
    assert (await load(url, first, folder))[0] == 200
    status, reason = await load(url, first, folder)
    assert (status, "already loaded" in reason) == (400, True)
    assert (await load(url, second, other))[0] == 200
    status, reason = await load(url, third, last)
    assert (status, "unload one" in reason) == (409, True)
    models = (await call(url, "GET", "/v1/models"))[1]["data"]
    assert [(model["id"], model["parent"], model["root"]) for model in models] == [
        ("base", None, str(base)),
        (first, "base", str(folder)),
        (second, "base", str(other)),
    ]
    texts = {
        (await complete(url, name, max_tokens=16))[1]["choices"][0]["text"]
        for name in (first, "base")
    }
    assert len(texts) == 2
    assert [await unload(url, first), await unload(url, second)] == [200, 200]
    assert await unload(url, first) == 404
    assert (await complete(url, first))[0] == 404


def damaged(adapters: Named, parent: Path, kind: str) -> tuple[str, Path]:
    name, source = adapters[0]
    folder = parent / name
    shutil.copytree(source, folder)
    weights = folder / "adapter_model.safetensors"
    if kind == "no manifest":
        (folder / "manifest.json").unlink()
    elif kind == "pickle":
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    elif kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif kind == "no weights":
        weights.unlink()
    return name, folder


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("no manifest", "manifest.json"),
        ("pickle", "pickle"),
        ("cut off", "corrupt"),
        ("no weights", "adapter_model.safetensors"),
    ],
)
async def test_damaged_folders_are_refused_with_the_reason(
    url: str, adapters: Named, tmp_path: Path, kind: str, part: str
) -> None:
    status, reason = await load(url, *damaged(adapters, tmp_path, kind))
    assert status == 400
    assert part in reason
    assert (await complete(url))[0] == 200


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_adapters_that_do_not_fit_are_refused(url: str, base: Path, tmp_path: Path) -> None:
    from tests.tiny_model import make_tiny_model

    wide = make_adapter(base, tmp_path, task="wide", seed=4, rank=32)
    status, reason = await load(url, *wide)
    assert (status, "max_rank" in reason) == (400, True)
    other = make_tiny_model(tmp_path / "other", hidden=32)
    stranger = make_adapter(other, tmp_path, task="stranger", seed=5)
    status, reason = await load(url, *stranger)
    assert (status, "trained on base" in reason) == (400, True)
    head = make_adapter(base, tmp_path, task="head", seed=6, targets=("embed_tokens",))
    assert (await load(url, *head))[0] == 400


async def test_names_and_paths_are_guarded(url: str, adapters: Named, tmp_path: Path) -> None:
    name, folder = adapters[0]
    for bad in ("../../x", "/etc/passwd", "Upper", "", "a" * 201, ".hidden", "a/b"):
        assert (await load(url, bad, folder))[0] == 400, bad
    assert (await load(url, "other@0123456789abcdef", folder))[0] == 400, "not the folder's name"
    assert (await load(url, "base", folder))[0] == 400
    assert (await load(url, name, tmp_path / "missing"))[0] == 404
    assert (await load(url, name, Path("relative")))[0] == 400
    assert (await call(url, "POST", "/v1/load_lora_adapter", {"lora_name": name}))[0] == 400


async def test_unload_waits_for_requests_and_takes_no_new_ones(url: str, adapters: Named) -> None:
    name, folder = adapters[0]
    assert (await load(url, name, folder))[0] == 200
    body = {"model": name, "prompt": "0", "max_tokens": 300, "stream": True, "stop": []}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body) as response,
    ):
        await response.content.readline()
        unloading = asyncio.create_task(unload(url, name))
        await until(lambda: unlisted(url))
        status, _ = await complete(url, name)
        lines = [line async for line in response.content]
    assert status == 404
    assert b"[DONE]" in b"".join(lines), "the running answer was cut off"
    assert await unloading == 200


async def test_overload_is_429_and_passes(url: str) -> None:
    calls = [complete(url, max_tokens=200) for _ in range(40)]
    statuses = [status for status, _ in await asyncio.gather(*calls)]
    assert set(statuses) == {200, 429}
    assert (await complete(url))[0] == 200


async def test_callers_that_leave_free_their_place(url: str) -> None:
    before = (await counted(url))["decoded"]
    for _ in range(3):
        asks = [asyncio.create_task(complete(url, max_tokens=900)) for _ in range(4)]
        await asyncio.sleep(0.05)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
    await until(lambda: answers(url))
    # Four rows that nobody stopped would have gone on to their limit before this one's turn.
    assert (await counted(url))["decoded"] - before < 4 * 899


async def test_metrics_and_health(url: str) -> None:
    before = await counted(url)
    await complete(url)
    after = await counted(url)
    assert after["requests"] == before["requests"] + 1
    assert after["decoded"] >= before["decoded"] + 2
    assert (await call(url, "GET", "/health"))[0] == 200


async def counted(url: str) -> dict[str, float]:
    text = (await call(url, "GET", "/metrics"))[1]
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert "nightschool_engine_waiting" in values
    return {
        "requests": float(values.get('nightschool_engine_requests_total{status="200"}', 0)),
        "decoded": float(values.get('nightschool_engine_tokens_total{kind="decode"}', 0)),
    }


async def test_key_guards_everything_but_health(base: Path) -> None:
    loaded = load_base_model(base, "float32")
    engine = EmbeddedServer(loaded, read_base_shape(base), api_key="opensesame")
    async with TestServer(engine.application()) as server:
        url = str(server.make_url("")).rstrip("/")
        assert (await complete(url))[0] == 401
        assert (await call(url, "GET", "/v1/models"))[0] == 401
        assert (await unload(url, "a@0123456789abcdef")) == 401
        assert (await call(url, "GET", "/health"))[0] == 200
        key = {"Authorization": "Bearer opensesame"}
        assert (await call(url, "GET", "/v1/models", headers=key))[0] == 200


def start(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving.engines.embedded", *options],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS * 2,
        env={**os.environ},
    )


def test_busy_port_and_missing_model_give_one_clear_line(base: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = start("--model", str(base), "--port", str(port))
    assert result.returncode == 1
    assert f"127.0.0.1:{port} cannot be used" in result.stderr.splitlines()[-1]
    result = start("--model", str(tmp_path), "--port", str(free_port()))
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr.splitlines()[-1]
