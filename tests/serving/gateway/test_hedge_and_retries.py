"""A slow small model raced by the teacher; a failing teacher asked again, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.serving import Teacher as TeacherSettings
from serving.gateway.problems import GatewayError
from serving.gateway.retries import LONGEST_PAUSE_SECONDS, RetryBudget, pause_seconds
from serving.gateway.upstream import Teacher
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer, listening
from tests.serving.gateway.world import add_adapter, add_task, chat, logged, ready, set_route


@pytest.fixture
def champion(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name)
    return name


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_small_model_is_overtaken(
    start: Start,
    champion: str,
    engine: EngineServer,
    teacher: TeacherServer,
    store: ObjectStore,
    stream: bool,
) -> None:
    async with start(hedge_after_seconds=0.05, stream_hold_tokens=0) as running:
        await ready(running.http, running.url, champion)
        engine.mode = "hang"
        url = f"{running.url}/v1/chat/completions"
        async with running.http.post(url, json=chat("x", stream=stream)) as response:
            assert "teacher: x" in await response.text()
            assert response.headers["x-nightschool-answered-by"] == "teacher"
            assert ("event-stream" in response.headers["Content-Type"]) == stream
            record = await logged(store, response.headers["x-nightschool-call-id"])
    assert len(teacher.asked) == 1 and "stream" not in teacher.asked[0]
    assert record.answered_by.escalation == "hedged"


async def test_a_quick_small_model_is_not_raced(
    start: Start, champion: str, engine: EngineServer, teacher: TeacherServer
) -> None:
    async with start(hedge_after_seconds=5) as running:
        await ready(running.http, running.url, champion)
        _, _, headers = await running.ask(chat("x"))
    assert headers["x-nightschool-answered-by"] == champion
    assert teacher.asked == []


async def test_with_the_teacher_down_the_slow_answer_is_still_an_answer(
    start: Start, champion: str, engine: EngineServer, teacher: TeacherServer
) -> None:
    async with start(hedge_after_seconds=0.01) as running:
        await ready(running.http, running.url, champion)
        teacher.mode = "error"
        engine.pause_seconds = 0.3
        status, body, headers = await running.ask(chat("x"))
    assert (status, headers["x-nightschool-answered-by"]) == (200, champion)
    assert body["choices"][0]["message"]["content"] == "small answer"


class Failing:
    """A teacher that fails so many times before it answers."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses = statuses
        self.asked = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.+}", self.answer)
        return app

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        status = self.statuses.pop(0) if self.statuses else 200
        return web.json_response({"choices": []}, status=status)


async def outcome(statuses: list[int], **settings: Any) -> tuple[int, int]:
    """Status that the caller gets, and how often the teacher was asked."""
    server = Failing(statuses)
    async with listening(server.app()) as url:
        teacher = Teacher(TeacherSettings(url=f"{url}/v1", **settings))
        try:
            reply = await teacher.ask({"messages": []}, {})
        finally:
            await teacher.close()
    return reply.status, server.asked


@pytest.mark.parametrize(
    ("statuses", "settings", "expected"),
    [
        ([503], {}, (200, 2)),
        ([502, 504], {}, (200, 3)),
        ([503, 503, 503], {}, (503, 3)),
        ([500], {}, (500, 1)),  # somebody worked on it
        ([429], {}, (429, 1)),  # the caller's to wait for
        ([503], {"retries": 0}, (503, 1)),
        ([503], {"retry_share": 0}, (503, 1)),
    ],
)
async def test_only_what_nobody_worked_on_is_sent_again(
    statuses: list[int], settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert await outcome(statuses, **settings) == expected


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("POST", {}, (502, 1)),
        ("DELETE", {}, (502, 1)),
        ("POST", {"idempotency-key": "k"}, (200, 2)),
        ("GET", {}, (200, 2)),
    ],
)
async def test_what_changes_something_at_the_teacher_is_not_done_twice(
    method: str, headers: dict[str, str], expected: tuple[int, int]
) -> None:
    server = Failing([502])
    async with listening(server.app()) as url:
        teacher = Teacher(TeacherSettings(url=f"{url}/v1"))
        async with teacher.open(method, "/batches", None, headers) as response:
            status = response.status
        await teacher.close()
    assert (status, server.asked) == expected


async def test_nobody_there_is_asked_again_and_then_said() -> None:
    teacher = Teacher(TeacherSettings(url="http://127.0.0.1:9/v1"))
    with pytest.raises(GatewayError) as caught:
        await teacher.ask({"messages": []}, {})
    await teacher.close()
    assert caught.value.status == 502


def test_retries_stay_a_small_share_of_the_calls() -> None:
    budget = RetryBudget(0.1, burst=10)
    made = 0
    for _ in range(1000):
        budget.called()
        made += budget.take()
    assert 100 <= made <= 110
    idle = RetryBudget(0.1, burst=10)
    for _ in range(1000):
        idle.called()
    assert sum(idle.take() for _ in range(100)) == 10  # nothing is saved up beyond the burst


def test_pauses_are_bounded() -> None:
    assert all(0 <= pause_seconds(attempt) <= LONGEST_PAUSE_SECONDS for attempt in range(1, 60))
