"""Calls that an adapter answers, or should have answered: cascade, arms, shadow, audit, guard."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import adapters, routes
from infra.objects.store import ObjectStore
from infra.prompting.template import PRUNED
from serving.engines.client import EngineClient
from serving.engines.protocol import EngineAbsent, EngineUnavailable
from serving.gateway.cascade import failed
from serving.rollout.assignment import bucket
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    calls,
    chat,
    logged,
    open_rollout,
    read_log,
    ready,
    set_route,
    until,
)


@pytest.fixture
def champion(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    """The lights task is answered by an adapter."""
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name, version=4)
    return name


@pytest.fixture
def candidate(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    """The lights task is answered by the teacher, and an adapter is in canary for all sessions."""
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    open_rollout(database, name)
    set_route(database, candidate=name, rollout_id="rollout-1", stage="canary", weight=1.0)
    return name


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


async def test_sessions_split_by_their_bucket_and_stay(
    start: Start, candidate: str, database: Database, store: ObjectStore
) -> None:
    set_route(database, candidate=candidate, rollout_id="rollout-1", stage="canary", weight=0.4)
    sessions = [f"session-{i}" for i in range(30)]
    async with start() as running:
        await ready(running.http, running.url, candidate)
        by = {}
        for session in sessions:
            seen = {
                (await running.ask(chat(text), {"x-session-id": session}))[2][
                    "x-nightschool-answered-by"
                ]
                for text in ("on", "off")
            }
            (by[session],) = seen
        await until(lambda: len(calls(store)) == 60)
    exposed = {session for session in sessions if by[session] == candidate}
    assert exposed == {session for session in sessions if bucket("salt", session) < 0.4}
    assert 0 < len(exposed) < 30
    for record in calls(store).values():
        arm = "canary" if record.session in exposed else "champion"
        assert (record.answered_by.arm, record.answered_by.rollout) == (arm, "rollout-1")


async def test_shadow_answers_reach_the_log_and_no_caller(
    start: Start,
    candidate: str,
    database: Database,
    store: ObjectStore,
    engine: EngineServer,
) -> None:
    set_route(database, candidate=candidate, rollout_id="rollout-1", stage="shadow")
    engine.say = lambda *_: "for <EMAIL_1>"
    async with start() as running:
        await ready(running.http, running.url, candidate)
        _, body, headers = await running.ask(chat("on ann@example.com"))
        assert body["choices"][0]["message"]["content"] == "teacher: on ann@example.com"
        record = await logged(store, headers["x-nightschool-call-id"])
    assert (record.answered_by.arm, record.answered_by.adapter) == ("champion", None)
    assert record.answer is not None
    assert record.answer["content"] == "teacher: on <EMAIL_1>"
    (shadow,) = record.other_answers
    assert (shadow.purpose, shadow.adapter, shadow.accepted) == ("shadow", candidate, True)
    assert shadow.message is not None and shadow.message["content"] == "for <EMAIL_1>"


async def test_audits_ask_the_teacher_too(
    start: Start,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    teacher: TeacherServer,
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    open_rollout(database, name, audit_rate=1.0)
    set_route(database, candidate=name, rollout_id="rollout-1", stage="canary", weight=1.0)
    async with start() as running:
        await ready(running.http, running.url, name)
        _, body, headers = await running.ask(
            chat("on ann@example.com", stream=False, model="lights")
        )
        assert body["choices"][0]["message"]["content"] == "small answer"
        record = await logged(store, headers["x-nightschool-call-id"])
    (audit,) = record.other_answers
    assert (audit.purpose, audit.adapter) == ("audit", None)
    assert audit.message == {"role": "assistant", "content": "teacher: on <EMAIL_1>"}
    # The teacher sees the original, under its own name.
    assert teacher.asked[0]["model"] == "teacher-model"
    assert teacher.asked[0]["messages"][1]["content"] == "on ann@example.com"


@pytest.mark.parametrize(
    "option",
    [
        {"n": 2},
        {"logprobs": True},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
    ids=["n", "logprobs", "tool_choice", "image"],
)
async def test_what_the_small_model_cannot_do_is_outside_the_experiment(
    start: Start, candidate: str, engine: EngineServer, store: ObjectStore, option: dict
) -> None:
    async with start() as running:
        await ready(running.http, running.url, candidate)
        status, _, headers = await running.ask({**chat("on"), **option}, {"x-task": "lights"})
        assert (status, headers["x-nightschool-answered-by"]) == (200, "teacher")
        record = await logged(store, headers["x-nightschool-call-id"])
    assert record.answered_by.arm is None and record.answered_by.escalation is None
    assert engine.prompts == []


async def test_a_pruned_adapter_gets_only_calls_of_its_own_structure(
    start: Start,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path, form=PRUNED)
    set_route(database, champion=name)
    other = chat("on")
    other["messages"][0]["content"] = "You are a pirate."
    async with start() as running:
        await ready(running.http, running.url, name)
        same = await running.ask(chat("on"), {"x-task": "lights"})
        assert same[2]["x-nightschool-answered-by"] == name
        stranger = await running.ask(other, {"x-task": "lights"})
        assert stranger[2]["x-nightschool-answered-by"] == "teacher"


async def test_an_adapter_that_may_not_answer_never_does(
    start: Start, database: Database, store: ObjectStore, tmp_path: Path, engine: EngineServer
) -> None:
    add_task(database)
    add_task(database, "doors", chat("open", tools=[]), signature="d" * 64)
    rejected = add_adapter(database, store, tmp_path, state="rejected")
    of_doors = add_adapter(database, store, tmp_path, "doors", seed=2)
    set_route(database, champion=rejected)
    async with start() as running:
        await ready(running.http, running.url)
        await until(lambda: len(running.gateway.table.current.tasks) == 2)
        assert (await running.ask(chat("on")))[2]["x-nightschool-answered-by"] == "teacher"
        set_route(database, champion=of_doors)  # another task's weights
        await until(lambda: running.gateway.table.current.tasks[1].champion is None)
        assert (await running.ask(chat("on")))[2]["x-nightschool-answered-by"] == "teacher"
    assert engine.prompts == [] and engine.loaded == {}


async def test_damaged_weights_are_not_served(
    start: Start, champion: str, store: ObjectStore, engine: EngineServer
) -> None:
    (weights,) = [i.key for i in store.list("adapters/") if i.key.endswith(".safetensors")]
    store.put(weights, store.get(weights)[:-1] + b"x")
    async with start() as running:
        await until(lambda: running.gateway.holdings._retry_at)
        status, body, _ = await running.ask(chat("on"))
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "teacher: on"
    assert engine.loaded == {}


async def test_an_engine_that_forgot_its_adapters_is_filled_again(
    start: Start, champion: str, engine: EngineServer
) -> None:
    async with start() as running:
        await ready(running.http, running.url, champion)
        engine.loaded.clear()
        assert (await running.ask(chat("on")))[0] == 200  # the teacher steps in
        await until(lambda: champion in engine.loaded)

        async def by() -> str:
            return (await running.ask(chat("on")))[2]["x-nightschool-answered-by"]

        for _ in range(200):
            if await by() == champion:
                break
        else:
            pytest.fail("the adapter never came back")


async def test_hard_failures_stop_a_canary_and_roll_it_back(
    start: Start,
    candidate: str,
    engine: EngineServer,
    database: Database,
    store: ObjectStore,
) -> None:
    engine.say = lambda *_: ""
    async with start(kill_error_burst=3) as running:
        await ready(running.http, running.url, candidate)
        ids = [(await ask_once(running, f"s{i}")) for i in range(4)]
        assert len(engine.prompts) == 3  # the fourth session never met it

        def taken_off() -> bool:
            with database.read() as connection:
                return connection.execute(select(routes.c.candidate)).scalar() is None

        await until(taken_off)
        await until(lambda: set(ids) <= set(calls(store)))
    fourth = calls(store)[ids[3]].answered_by
    assert (fourth.arm, fourth.escalation) == ("canary", "kill_switch")
    with database.read() as connection:
        assert connection.execute(select(adapters.c.state)).scalar() == "rejected"


async def test_failures_that_are_not_the_adapters_own_stop_nothing(
    start: Start, candidate: str, engine: EngineServer
) -> None:
    engine.mode = "full"
    async with start(kill_error_burst=2) as running:
        await ready(running.http, running.url, candidate)
        for i in range(5):
            await ask_once(running, f"s{i}")
        assert not running.gateway.kills.killed("rollout-1")
        engine.mode = "ok"
        assert (await running.ask(chat("on")))[2]["x-nightschool-answered-by"] == candidate


async def test_a_canary_that_nobody_tends_gets_no_traffic(
    start: Start, candidate: str, database: Database, store: ObjectStore
) -> None:
    set_route(
        database,
        candidate=candidate,
        rollout_id="rollout-1",
        stage="canary",
        weight=1.0,
        updated=datetime.now(UTC) - timedelta(seconds=120),
    )
    async with start(dead_man_seconds=100) as running:
        await ready(running.http, running.url, candidate)
        call = await ask_once(running, "s")
        record = await logged(store, call)
    assert record.answered_by.adapter is None
    # Nobody was treated: no arm is charged.
    assert record.answered_by.arm is None and record.answered_by.rollout is None


async def test_with_everything_but_the_engine_down_it_answers_from_disk(
    start: Start,
    champion: str,
    database: Database,
    settings,
    teacher: TeacherServer,
    store: ObjectStore,
) -> None:
    async with start() as running:
        await ready(running.http, running.url, champion)
    lose(database)
    async with start() as running:
        running.gateway.teacher._url = "http://127.0.0.1:9/v1"
        body = await ready(running.http, running.url, champion)
        await until(lambda: running.gateway.table.failing)
        _, _, headers = await running.ask(chat("on"))
        assert headers["x-nightschool-answered-by"] == champion
        async with running.http.get(f"{running.url}/readyz") as response:
            body = await response.json()
        assert body["ready"] and not body["registry_reachable"]
        assert body["routes_age_seconds"] > 0
        await logged(store, headers["x-nightschool-call-id"])


async def test_models_are_the_teacher_and_the_tasks(start: Start, champion: str) -> None:
    async with start() as running:
        await ready(running.http, running.url, champion)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        models = {model.id: model async for model in client.models.list()}
        assert set(models) == {"teacher-model", "lights"}
        assert models["lights"].champion == champion  # type: ignore[attr-defined]
        got = await client.chat.completions.create(**{**chat("anything else"), "model": "lights"})
        assert got.model == champion


def lose(database: Database) -> None:
    """Nothing can be opened where the database was."""
    database.close()
    path = Path(str(database.url.database))
    for file in path.parent.glob("nightschool.db*"):
        file.unlink()
    path.mkdir()


async def ask_once(running: Running, session: str) -> str:
    status, _, headers = await running.ask(chat("on"), {"x-session-id": session})
    assert status == 200
    return headers["x-nightschool-call-id"]


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
