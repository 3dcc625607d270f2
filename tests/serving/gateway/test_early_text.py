"""Text of the small model that goes out before the answer is complete, and what stops it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.prompting.template import PRUNED
from infra.settings.model import Settings
from serving.gateway.early import EarlyText, TextTurnedBad, may_stream
from serving.gateway.problems import CallerGone
from serving.gateway.routes import AdapterRoute
from serving.gateway.small_calls import SmallCalls
from serving.small_model import Growing
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import EngineServer, TeacherServer
from tests.serving.gateway.world import add_adapter, add_task, chat, logged, ready, set_route


@pytest.fixture
def champion(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name)
    return name


async def texts(running: Running, body: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The text deltas of a streamed answer, and the response's headers."""
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
    raw = await client.chat.completions.with_raw_response.create(**body, stream=True)
    found = []
    async for chunk in raw.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            found.append(chunk.choices[0].delta.content)
    return found, dict(raw.headers)


async def test_a_score_that_can_only_fall_lets_nothing_out_before_the_end(
    start: Start,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    engine: EngineServer,
    teacher: TeacherServer,
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path, threshold=-0.05, confidence="sequence")
    set_route(database, champion=name)
    async with start(stream_hold_tokens=2) as running:
        await ready(running.http, running.url, name)
        engine.say = lambda *_: "all of it"
        found, headers = await texts(running, chat("on"))
        assert (found, headers["x-nightschool-answered-by"]) == (["all of it"], name)
        # In sum below, though no beginning of it was: the teacher's answer, not one that breaks off.
        engine.confidence = -0.02
        _, headers = await texts(running, chat("on"))
        assert headers["x-nightschool-answered-by"] != name
    assert len(teacher.asked) == 1


async def test_an_adapter_judged_by_agreement_is_drawn_from_and_shown_where_it_agrees(
    start: Start,
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    engine: EngineServer,
    teacher: TeacherServer,
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path, threshold=0.75, confidence="agreement_4")
    set_route(database, champion=name)
    engine.say = lambda *_: "all of it"
    async with start(stream_hold_tokens=2) as running:
        await ready(running.http, running.url, name)
        engine.draws = lambda index: "all of it" if index else "half of it"
        found, headers = await texts(running, chat("on"))
        assert (found, headers["x-nightschool-answered-by"]) == (["all of it"], name)
        record = await logged(store, headers["x-nightschool-call-id"])
        assert record.confidence == 0.75 and record.usage.completion_tokens == 3
        engine.draws = lambda index: "all of it" if index > 1 else "half of it"
        _, headers = await texts(running, chat("on"))
        assert headers["x-nightschool-answered-by"] != name
        record = await logged(store, headers["x-nightschool-call-id"])
        assert record.answered_by.escalation == "confidence"
    assert len(teacher.asked) == 1


async def test_a_confident_text_is_read_while_it_is_generated(
    start: Start, champion: str, engine: EngineServer, store: ObjectStore
) -> None:
    engine.say = lambda _model, _prompt: "mail goes to <EMAIL_1> and then some more words"
    first_read = asyncio.Event()

    async def breath(place: int) -> None:
        if place == 5:  # the engine waits until the caller has read what there is
            await asyncio.wait_for(first_read.wait(), 10)

    engine.breath = breath
    async with start(stream_hold_tokens=4) as running:
        await ready(running.http, running.url, champion)
        body = chat("to ann@example.com", stream=True, stream_options={"include_usage": True})
        url = f"{running.url}/v1/chat/completions"
        events = []
        async with running.http.post(url, json=body) as response:
            assert response.headers["x-nightschool-answered-by"] == champion
            call_id = response.headers["x-nightschool-call-id"]
            async for line in response.content:
                if line.startswith(b"data: {"):
                    events.append(json.loads(line[6:]))
                    first_read.set()
        record = await logged(store, call_id)
    parts = [e["choices"][0]["delta"].get("content") for e in events if e["choices"]]
    assert len([part for part in parts if part]) >= 2
    assert "".join(filter(None, parts)) == "mail goes to ann@example.com and then some more words"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == 10
    assert record.answered_by.adapter == champion and record.answered_by.escalation is None
    assert record.answer is not None and "<EMAIL_1>" in record.answer["content"]


async def test_until_the_hold_is_over_the_teacher_can_still_answer(
    start: Start, champion: str, engine: EngineServer, teacher: TeacherServer
) -> None:
    engine.say = lambda _model, _prompt: "one two three four five six"
    engine.turning = 2
    async with start(stream_hold_tokens=5) as running:
        await ready(running.http, running.url, champion)
        found, headers = await texts(running, chat("x"))
    assert "".join(found).strip() == "teacher: x"
    assert headers["x-nightschool-answered-by"] == "teacher"


async def test_a_text_that_turns_bad_is_broken_off_and_the_retry_is_the_teachers(
    start: Start, champion: str, engine: EngineServer, store: ObjectStore, teacher: TeacherServer
) -> None:
    engine.say = lambda _model, _prompt: "one two three four five six"
    engine.turning = 4
    session = {"x-session-id": "s-1"}
    async with start(stream_hold_tokens=2) as running:
        await ready(running.http, running.url, champion)
        url = f"{running.url}/v1/chat/completions"
        async with running.http.post(url, json=chat("x", stream=True), headers=session) as response:
            text = await response.text()
            call_id = response.headers["x-nightschool-call-id"]
        assert "one two" in text and "answer_broken_off" in text
        assert "six" not in text and "[DONE]" not in text
        record = await logged(store, call_id)
        assert record.answered_by.escalation == "aborted:confidence"
        assert record.answered_by.adapter is None and record.answer is None
        with pytest.raises(openai.APIError, match="broken off"):
            await texts(running, chat("x"))
        async with running.http.post(url, json=chat("x", stream=True), headers=session) as response:
            assert response.headers["x-nightschool-answered-by"] == "teacher"
            assert "teacher:" in await response.text()
            again = await logged(store, response.headers["x-nightschool-call-id"])
        assert again.answered_by.escalation == "retry_after_abort"


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object"}},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "required",
        },
        {"stream": False},
    ],
)
def test_what_has_a_form_is_checked_whole(more: dict[str, Any]) -> None:
    assert may_stream(chat("x", stream=True), 64)
    assert not may_stream(chat("x", stream=True) | more, 64)
    assert not may_stream(chat("x", stream=True), 0)


async def test_a_tool_call_is_released_only_when_it_is_whole(
    start: Start, champion: str, engine: EngineServer, teacher: TeacherServer
) -> None:
    tools = [{"type": "function", "function": {"name": "switch", "parameters": {}}}]
    engine.say = lambda _model, _prompt: '{"name": "swi tch", "arguments": { "a": 1 } }'
    async with start(stream_hold_tokens=1) as running:
        await ready(running.http, running.url, champion)
        found, headers = await texts(running, chat("x", tools=tools))
    assert headers["x-nightschool-answered-by"] == "teacher"  # no such tool was offered
    assert "swi" not in "".join(found)


@given(
    st.lists(
        st.sampled_from(["a ", " ", "<EMAIL_1>", "<EMA", "IL_1>", "<", "b", "<x>"]), max_size=12
    ),
    st.integers(1, 6),
)
def test_what_is_sent_is_always_the_beginning_of_the_whole(parts: list[str], hold: int) -> None:
    """Growing in any steps; the text restored and stripped is what the caller ends up with."""

    def restore(text: str) -> str:
        return text.replace("<EMAIL_1>", "ann@example.com")

    sent: list[str] = []

    async def send(text: str) -> None:
        sent.append(text)

    async def grow() -> None:
        early = EarlyText(hold, -1.0, frozenset({"<EMAIL_1>"}), restore, send)
        text = ""
        for number, part in enumerate(parts, 1):
            text += part
            try:
                await early.grown(text, number, -0.5)
            except TextTurnedBad:
                assert "<IL_1>" in text
                return
        whole = restore(text.strip())
        assert whole.startswith(early.sent)
        if early.begun:
            await early.finish(whole)
            assert "".join(sent) == whole

    asyncio.run(grow())


@pytest.mark.parametrize(
    ("text", "confidence"),
    [("<EMAIL_2> writes", -0.1), ('{"a": 1', -0.1), ("a <|im_end|>", -0.1), ("fine", -2.0)],
)
async def test_nothing_doubtful_is_released_or_continued(text: str, confidence: float) -> None:
    sent: list[str] = []

    async def send(part: str) -> None:
        sent.append(part)

    early = EarlyText(1, -1.0, frozenset({"<EMAIL_1>"}), str, send)
    await early.grown(text, 5, confidence)
    assert sent == []
    begun = EarlyText(1, -1.0, frozenset({"<EMAIL_1>"}), str, send)
    await begun.grown("so far so good", 4, -0.1)
    assert sent == ["so far so good"]
    if not text.startswith("{"):
        with pytest.raises(TextTurnedBad):
            await begun.grown(f"so far so good {text}", 5, confidence)


class Generating:
    """A small model whose text grows once."""

    async def answer(self, _request: object, *, growing: Growing, **_: object) -> object:
        await growing("on", 8, -0.1)
        raise AssertionError("whoever listens was to raise")


async def test_a_caller_that_leaves_during_early_text_is_no_failure_of_anybody(
    settings: Settings,
) -> None:
    calls = SmallCalls(Generating(), None, settings)  # type: ignore[arg-type]
    adapter = AdapterRoute("light@" + "1" * 16, "1" * 64, "x", PRUNED.to_dict(), -0.3)

    async def gone(*_: object) -> None:
        raise CallerGone

    for _ in range(6):  # more often than the breaker has patience
        with pytest.raises(CallerGone):
            await calls.ask(adapter, chat("x"), gone)
    assert calls.under_way == 0 and calls.breaker.allow()
