"""The official Python client, through every option; its errors are of the right class."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest

from tests.serving.gateway.clients.conftest import TASK, Served
from tests.serving.gateway.clients.expected import ERRORS, expected

MESSAGES: Any = [{"role": "user", "content": "say something"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": {"type": "object", "required": ["city"]}},
}


async def joined(stream: AsyncIterator[Any]) -> dict[str, Any]:
    text: dict[int, str] = {}
    calls: dict[int, dict[str, str]] = {}
    out: dict[str, Any] = {"usage": None, "reasons": []}
    async for chunk in stream:
        if chunk.usage:
            out["usage"] = chunk.usage.total_tokens
        for choice in chunk.choices:
            text[choice.index] = text.get(choice.index, "") + (choice.delta.content or "")
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"name": "", "arguments": ""})
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
            if choice.finish_reason:
                out["reasons"].append(choice.finish_reason)
    return {**out, "text": [said.strip() for said in text.values()], "calls": [*calls.values()]}


def called(answer: Any) -> list[dict[str, str]]:
    return [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in answer.choices[0].message.tool_calls
    ]


async def found_by(client: openai.AsyncOpenAI) -> dict[str, Any]:
    async def create(**more: Any) -> Any:
        return await client.chat.completions.create(
            **{"model": "big", "messages": MESSAGES, **more}
        )

    raw = await client.chat.completions.with_raw_response.create(model="big", messages=MESSAGES)
    whole = raw.parse()
    assert whole.usage is not None
    small = {}
    for stream in (False, True):
        got = await client.chat.completions.with_raw_response.create(
            model="big",
            messages=[{"role": "user", "content": "on"}],
            metadata={"task": TASK},
            stream=stream,
        )
        parsed: Any = got.parse()
        small["streamed" if stream else "whole"] = {
            "text": (await joined(parsed))["text"][0]
            if stream
            else parsed.choices[0].message.content,
            "answeredBy": got.headers["x-nightschool-answered-by"],
        }
    response = ""
    async for event in await client.responses.create(model="big", input="x", stream=True):
        if event.type == "response.output_text.delta":
            response += event.delta
    embedding = await client.embeddings.create(model="e", input="x", encoding_format="float")
    return {
        "whole": {
            "text": whole.choices[0].message.content,
            "tokens": whole.usage.total_tokens,
            "answeredBy": raw.headers["x-nightschool-answered-by"],
            "requestId": whole._request_id,
        },
        "stream": await joined(await create(stream=True, stream_options={"include_usage": True})),
        "tools": called(await create(tools=TOOLS)),
        "streamedTools": await joined(await create(tools=TOOLS, stream=True)),
        "schema": json.loads((await create(response_format=SCHEMA)).choices[0].message.content),
        "choices": [choice.message.content for choice in (await create(n=2)).choices],
        "streamedChoices": (await joined(await create(n=2, stream=True)))["text"],
        "logprobs": (await create(logprobs=True)).choices[0].logprobs.content[0].logprob,
        "models": [model.id for model in (await client.models.list()).data],
        "model": (await client.models.retrieve(f"nightschool/{TASK}")).id,
        "embedding": embedding.data[0].embedding,
        "response": (await client.responses.create(model="big", input="x")).output_text,
        "streamedResponse": response,
        "small": small,
    }


async def test_the_official_python_client(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0)
    wanted = expected(served.adapter)
    wanted.pop("afterAbort")
    assert await found_by(client) == wanted


async def test_errors_become_the_right_class(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0)

    def create(**more: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: client.chat.completions.create(
            **{"model": "big", "messages": MESSAGES, **more}
        )

    asks: dict[str, Callable[[], Awaitable[Any]]] = {
        "key": client.with_options(api_key="wrong").models.list,
        "role": client.files.list,
        "model": lambda: client.models.retrieve("nobody"),
        "unknown": create(model="unknown"),
        "bad": create(model="bad"),
        "shape": create(messages=[]),
        "large": create(messages=[{"role": "user", "content": "x" * (2 << 20)}]),
        "limit": client.with_options(api_key=served.spent).models.list,
        "busy": create(model="busy"),
        "broken": create(model="broken"),
    }
    found = {}
    for name, ask in asks.items():
        with pytest.raises(openai.APIStatusError) as error:
            await ask()
        kind = type(error.value).__name__.replace("APIStatusError", "APIError")
        found[name] = (kind, error.value.status_code, error.value.code)
    # The Python client has a class of its own for 413.
    assert found.pop("large")[1:] == ERRORS["large"][1:]
    assert found == {name: error for name, error in ERRORS.items() if name != "large"}
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).chat.completions.create(
            model="slow", messages=MESSAGES
        )


async def test_a_stream_that_its_caller_leaves_ends_at_the_teacher(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0)
    stream = await client.chat.completions.create(model="endless", messages=MESSAGES, stream=True)
    async for chunk in stream:
        if "more" in (chunk.choices[0].delta.content or ""):
            break
    await stream.close()
    await asyncio.wait_for(served.teacher.gone.wait(), 20)
    answer = await client.chat.completions.create(model="big", messages=MESSAGES)
    assert answer.choices[0].message.content == "one two three"
