"""LiteLLM in front of the gateway: as a library, and as the proxy that many put before everything.

Its pins exclude ours, so it runs in the environment that ``bench/make-peers.sh`` builds.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from bench.support.programs import Program, serves
from tests.contracts.servers import free_port
from tests.serving.gateway.clients.conftest import TASK, Served
from tests.serving.gateway.clients.expected import CALLS

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
PEERS = ROOT / ".venv-peers"
# Nothing of LiteLLM's own is asked of the network.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DO_NOT_TRACK": "1"}


@pytest.fixture
def python() -> Path:
    found = PEERS / "bin" / "python"
    if not found.exists() or not list(PEERS.glob("lib/python*/site-packages/litellm/__init__.py")):
        pytest.skip("LiteLLM is not installed: make test-clients builds its environment")
    return found


async def test_litellms_library_in_front(served: Served, python: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(HERE / "litellm_scenarios.py"),
        *(served.url, served.key, served.spent, TASK),
        env={**os.environ, **QUIET, "PYTHONPATH": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, problems.decode()[-3000:]
    text = {"text": "one two three", "calls": [], "reason": "stop"}
    tools = {"text": "", "calls": CALLS, "reason": "tool_calls"}
    assert json.loads(out.decode().strip().splitlines()[-1]) == {
        "whole": text,
        "tokens": 18,
        "stream": text,
        "tools": tools,
        "streamedTools": tools,
        "schema": {"city": "Oslo"},
        "choices": ["one two three"] * 2,
        "logprobs": -0.5,
        "embedding": [0.5, 0.25],
        "small": "small answer",
        "answeredBy": served.adapter,
        "errors": {
            "key": {"kind": "AuthenticationError", "status": 401},
            "bad": {"kind": "BadRequestError", "status": 400},
            # LiteLLM's own reading of the type invalid_request_error, whatever the status.
            "unknown": {"kind": "BadRequestError", "status": 404},
            "limit": {"kind": "RateLimitError", "status": 429},
            "broken": {"kind": "InternalServerError", "status": 500},
            "slow": {"kind": "Timeout", "status": 408},
        },
    }


@pytest.fixture
async def proxy(served: Served, python: Path, tmp_path: Path) -> AsyncIterator[str]:
    config = tmp_path / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        '  - model_name: "*"\n'
        "    litellm_params:\n"
        '      model: "openai/*"\n'
        f"      api_base: {served.url}\n"
        f"      api_key: {served.key}\n"
        "litellm_settings:\n  telemetry: false\n  num_retries: 0\n"
        # The session and the task of a call are in headers of the caller's.
        "general_settings:\n  forward_client_headers_to_llm_api: true\n"
    )
    port = free_port()
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port)]
    program = Program(
        "litellm",
        [*command, "--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"],
        logs=tmp_path,
        answers=lambda: serves(f"http://127.0.0.1:{port}/health/liveliness"),
        environment={
            **QUIET,
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "PYTHONPATH": "",
        },
    )
    program.start(wait=False)
    try:
        await asyncio.to_thread(program.await_answer)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        program.kill()


async def test_litellms_proxy_in_front(served: Served, proxy: str) -> None:
    client = openai.AsyncOpenAI(base_url=proxy, api_key="sk-any", max_retries=0)
    messages: Any = [{"role": "user", "content": "say something"}]
    answer = await client.chat.completions.create(model="big", messages=messages)
    assert answer.choices[0].message.content == "one two three"
    assert served.teacher.bodies[-1]["model"] == "big"
    stream = await client.chat.completions.create(model="big", messages=messages, stream=True)
    text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert text.strip() == "one two three"
    for streamed in (False, True):
        got = await client.chat.completions.with_raw_response.create(
            model="big",
            messages=[{"role": "user", "content": "on"}],
            extra_headers={"x-task": TASK, "x-session-id": "run-1"},
            stream=streamed,
        )
        small: Any = got.parse()
        if streamed:
            said = "".join([c.choices[0].delta.content or "" async for c in small if c.choices])
        else:
            said = small.choices[0].message.content
        assert said.strip() == "small answer"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="bad", messages=messages)
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="broken", messages=messages)
