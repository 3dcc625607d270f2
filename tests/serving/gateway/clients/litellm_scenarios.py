"""What an application does with LiteLLM's library, told as one JSON object. Runs where LiteLLM is installed.

Arguments: base URL, a key that holds, a key whose limit is used up, the small model's task.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

URL, KEY, SPENT, TASK = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "say something"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SCHEMA = {"name": "place", "schema": {"type": "object", "required": ["city"]}}
litellm.telemetry = False


async def ask(key: str = KEY, model: str = "big", **more: Any) -> Any:
    return await litellm.acompletion(
        model=f"openai/{model}",
        api_base=URL,
        api_key=key,
        num_retries=0,
        max_retries=0,
        **{"messages": MESSAGES, **more},
    )


async def streamed(**more: Any) -> dict[str, Any]:
    chunks = [chunk async for chunk in await ask(stream=True, **more)]
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    return told(whole)


def told(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    return {
        "text": (choice.message.content or "").strip(),
        "calls": [
            {"name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or []
        ],
        "reason": choice.finish_reason,
    }


async def failing(**more: Any) -> dict[str, Any]:
    try:
        await ask(**more)
    except Exception as error:  # noqa: BLE001 - its class is what is looked at
        return {"kind": type(error).__name__, "status": getattr(error, "status_code", None)}
    return {}


async def main() -> None:
    whole = await ask()
    small = await ask(messages=[{"role": "user", "content": "on"}], extra_headers={"x-task": TASK})
    form = await ask(response_format={"type": "json_schema", "json_schema": SCHEMA})
    several = await ask(n=2)
    likely = await ask(logprobs=True)
    vectors = await litellm.aembedding(
        model="openai/e", input=["x"], api_base=URL, api_key=KEY, encoding_format="float"
    )
    found = {
        "whole": told(whole),
        "tokens": whole.usage.total_tokens,
        "stream": await streamed(stream_options={"include_usage": True}),
        "tools": told(await ask(tools=TOOLS)),
        "streamedTools": await streamed(tools=TOOLS),
        "schema": json.loads(form.choices[0].message.content),
        "choices": [choice.message.content for choice in several.choices],
        "logprobs": likely.choices[0].logprobs.content[0].logprob,
        "embedding": vectors.data[0]["embedding"],
        "small": small.choices[0].message.content,
        "answeredBy": small._hidden_params["additional_headers"][
            "llm_provider-x-nightschool-answered-by"
        ],
        "errors": {
            "key": await failing(key="wrong"),
            "bad": await failing(model="bad"),
            "unknown": await failing(model="unknown"),
            "limit": await failing(key=SPENT),
            "broken": await failing(model="broken"),
            "slow": await failing(model="slow", timeout=0.5),
        },
    }
    print(json.dumps(found))


asyncio.run(main())
