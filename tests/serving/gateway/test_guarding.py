"""Adapters that fail, engines that forget them, and what the gateway does of itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import adapters, routes
from infra.objects.store import ObjectStore
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import (
    calls,
    chat,
    logged,
    ready,
    set_route,
    until,
)


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
