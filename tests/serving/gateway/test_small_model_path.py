"""Calls that an adapter answers, or should have answered."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from serving.engines.client import EngineClient
from serving.engines.protocol import EngineAbsent, EngineUnavailable
from serving.gateway.cascade import failed
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    chat,
    logged,
    read_log,
    ready,
    set_route,
    until,
)


async def test_an_adapter_answers_and_placeholders_are_restored(
    start: Start, champion: str, engine: EngineServer, store: ObjectStore, teacher: TeacherServer
) -> None:
    engine.say = lambda _model, _prompt: "mailed <EMAIL_1>"
    async with start() as running:
        await ready(running.http, running.url, champion)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        got = await client.chat.completions.with_raw_response.create(
            **chat("switch on and mail ann@example.com")
        )
        answer = got.parse()
        assert answer.choices[0].message.content == "mailed ann@example.com"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == champion
        assert got.headers["x-nightschool-answered-by"] == champion
        assert got.headers["x-nightschool-task"] == "lights"
        record = await logged(store, got.headers["x-nightschool-call-id"])
    assert teacher.asked == []
    ((model, prompt),) = engine.prompts
    assert model == champion
    assert "ann@example.com" not in prompt and "<EMAIL_1>" in prompt
    assert record.answered_by.adapter == champion
    assert record.answered_by.route_version == 4
    assert record.answered_by.escalation is None
    assert record.answer is not None and record.answer["content"] == "mailed <EMAIL_1>"
    assert record.confidence == pytest.approx(-0.01)
    assert record.task == "lights"
    assert record.usage.completion_tokens == 3


async def test_a_schema_that_costs_too_much_to_check_is_the_teachers(
    start: Start, champion: str, engine: EngineServer, teacher: TeacherServer
) -> None:
    dear: dict[str, Any] = {"$ref": "#/$defs/40", "$defs": {"0": {"type": "string"}}}
    for level in range(1, 41):
        below = {"$ref": f"#/$defs/{level - 1}"}
        dear["$defs"][str(level)] = {"allOf": [below, below]}
    form = {"type": "json_schema", "json_schema": {"name": "dear", "schema": dear}}
    async with start() as running:
        await ready(running.http, running.url, champion)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        got = await client.chat.completions.with_raw_response.create(
            **chat("on", response_format=form), extra_headers={"x-task": "lights"}
        )
    assert got.headers["x-nightschool-answered-by"] == "teacher"
    assert len(teacher.asked) == 1 and engine.prompts == []


@pytest.mark.parametrize(
    "schema", [{"schema": {"type": "strnig"}}, {"schema": {"$ref": "#/no"}}, "none"]
)
async def test_a_schema_that_is_none_is_the_teachers_and_nobodys_failure(
    start: Start, candidate: str, engine: EngineServer, teacher: TeacherServer, schema: Any
) -> None:
    form = {"type": "json_schema", "json_schema": schema}
    engine.say = lambda *_: '"on"'
    async with start(kill_error_burst=2) as running:
        await ready(running.http, running.url, candidate)
        for _ in range(3):
            status, _, headers = await running.ask(
                chat("on", response_format=form), headers={"x-task": "lights"}
            )
            assert (status, headers["x-nightschool-answered-by"]) == (200, "teacher")
        assert not running.gateway.kills.killed("rollout-1")
    assert len(teacher.asked) == 3 and engine.prompts == []


async def test_a_streaming_caller_gets_the_adapters_answer_in_chunks(
    start: Start, champion: str, engine: EngineServer
) -> None:
    engine.say = lambda *_: json.dumps({"name": "light", "arguments": {"mail": "<EMAIL_1>"}})
    tools = [
        {
            "type": "function",
            "function": {
                "name": "light",
                "parameters": {"type": "object", "properties": {"mail": {"type": "string"}}},
            },
        }
    ]
    async with start() as running:
        await ready(running.http, running.url, champion)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        stream = await client.chat.completions.create(
            **chat("on, ann@example.com", tools=tools),
            extra_headers={"x-task": "lights"},
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    calls_ = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
    assert len(calls_) == 1 and calls_[0].function is not None
    assert json.loads(calls_[0].function.arguments or "") == {"mail": "ann@example.com"}
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, "tool_calls"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6  # five words and the stop


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda e: setattr(e, "confidence", -3.0), "confidence"),
        (lambda e: setattr(e, "say", lambda *_: ""), "checks:no text"),
        (lambda e: setattr(e, "say", lambda *_: "to <PHONE_9>"), "checks:names a placeholder"),
        (lambda e: setattr(e, "mode", "error"), "engine_unavailable"),
        (lambda e: setattr(e, "mode", "full"), "overloaded"),
        (lambda e: setattr(e, "mode", "too long"), "prompt_too_long"),
        (lambda e: setattr(e, "finish_reason", "length"), "checks:cut off at the token limit"),
        (lambda e: setattr(e, "mode", "hang"), "engine_timeout"),
        (lambda e: setattr(e, "mode", "restarted"), "engine_absent"),
    ],
    ids=[
        *("confidence", "empty", "placeholder", "error", "full", "too long", "cut off", "hang"),
        "restarted",
    ],
)
async def test_the_teacher_answers_what_the_canary_should_not(
    start: Start,
    candidate: str,
    engine: EngineServer,
    store: ObjectStore,
    break_it,
    reason: str,
) -> None:
    break_it(engine)
    async with start(small_model_timeout_seconds=0.3) as running:
        await ready(running.http, running.url, candidate)
        if engine.mode == "restarted":
            engine.loaded.clear()
        status, body, headers = await running.ask(chat("on"))
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "teacher: on"
        assert headers["x-nightschool-answered-by"] == "teacher"
        record = await logged(store, headers["x-nightschool-call-id"])
    by = record.answered_by
    # The arm is charged with its own failure.
    assert (by.arm, by.rollout, by.adapter) == ("canary", "rollout-1", None)
    assert by.escalation is not None and by.escalation.startswith(reason)
    (refused,) = record.other_answers
    assert refused.adapter == candidate and not refused.accepted
    assert (refused.message is None) == (refused.error is not None)


async def test_an_engine_that_nobody_reaches_is_told_from_one_that_breaks() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    async with EngineClient(url) as away:
        with pytest.raises(EngineAbsent):
            await away.complete(None, "hello", max_tokens=1)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, EngineClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as it:
        with pytest.raises(EngineUnavailable) as broken:
            await it.complete("a@1", "hello", max_tokens=1)
    assert not isinstance(broken.value, EngineAbsent)
    escalations = [
        failed("a@1", error, 0.0).escalation for error in (EngineAbsent(""), broken.value)
    ]
    assert escalations == ["engine_absent", "engine_unavailable"]


async def test_what_the_callers_own_limit_cuts_off_is_not_held_against_the_canary(
    start: Start, candidate: str, engine: EngineServer, store: ObjectStore
) -> None:
    engine.finish_reason = "length"
    async with start(kill_error_burst=1) as running:
        await ready(running.http, running.url, candidate)
        _, _, headers = await running.ask({**chat("on"), "max_tokens": 5})
        record = await logged(store, headers["x-nightschool-call-id"])
        assert not running.gateway.kills.killed("rollout-1")
    by = record.answered_by
    assert (by.arm, by.adapter, by.escalation) == ("canary", None, "token_limit")


async def test_a_prompt_too_long_for_the_engine_is_no_shadow_pair(
    start: Start, candidate: str, database: Database, engine: EngineServer, store: ObjectStore
) -> None:
    set_route(database, candidate=candidate, rollout_id="rollout-1", stage="shadow")
    engine.mode = "too long"
    async with start() as running:
        await ready(running.http, running.url, candidate)
        _, _, headers = await running.ask(chat("on"))
        record = await logged(store, headers["x-nightschool-call-id"])
    assert record.answered_by.arm == "champion" and record.other_answers == []


async def test_models_are_the_teacher_and_the_tasks(start: Start, champion: str) -> None:
    async with start() as running:
        await ready(running.http, running.url, champion)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        models = {model.id: model async for model in client.models.list()}
        assert set(models) == {"teacher-model", "lights"}
        assert models["lights"].champion == champion  # type: ignore[attr-defined]
        got = await client.chat.completions.create(**{**chat("anything else"), "model": "lights"})
        assert got.model == champion


async def test_a_crash_between_answer_and_audit_keeps_the_call(
    start: Start, database: Database, store: ObjectStore, tmp_path: Path, teacher: TeacherServer
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name)
    teacher.gate = asyncio.Event()
    async with start(audit_rate=1.0, ship_seconds=0.05) as running:
        await ready(running.http, running.url, name)
        _, _, headers = await running.ask(chat("on"))
        await until(lambda: len(teacher.asked) == 1)
        await until(lambda: running.gateway.spool.count >= 1)
        assert read_log(store) == []  # not shipped while its audit may still come
        teacher.gate.set()
        record = await logged(store, headers["x-nightschool-call-id"])
    assert [other.purpose for other in record.other_answers] == ["audit"]
