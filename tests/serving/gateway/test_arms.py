"""Which arm a session is in, what its shadow and its audit ask, and who stays outside of a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.prompting.template import PRUNED
from serving.rollout.assignment import bucket
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    calls,
    chat,
    logged,
    open_rollout,
    ready,
    set_route,
    until,
)


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
