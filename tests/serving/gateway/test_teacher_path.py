"""Calls that the teacher answers: passed on as they are, logged without personal data."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from infra.objects.store import ObjectStore
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import calls, chat, logged, read_log, until

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "send_mail",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string"}},
                "required": ["to"],
            },
        },
    }
]


def call_tool(body: dict) -> dict:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "send_mail", "arguments": '{"to": "ann@example.com"}'},
            }
        ],
    }


async def test_the_official_client_gets_the_teachers_answer(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    async with start() as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="sk-of-the-caller")
        got = await client.chat.completions.with_raw_response.create(**chat("lights on"))
        call_id = got.headers["x-nightschool-call-id"]
        assert got.headers["x-nightschool-answered-by"] == "teacher"
        assert got.headers["x-ratelimit-remaining-requests"] == "41"
        answer = got.parse()
        assert answer.choices[0].message.content == "teacher: lights on"
        assert answer.usage is not None and answer.usage.total_tokens == 18
        record = await logged(store, call_id)
    assert teacher.asked[0]["model"] == "big"  # a name that is not ours is not replaced
    assert teacher.keys == ["Bearer sk-of-the-caller"]
    assert record.request == chat("lights on")
    assert record.answer == {"role": "assistant", "content": "teacher: lights on"}
    assert record.usage.prompt_tokens == 11
    assert record.answered_by.model == "big" and record.answered_by.adapter is None
    assert record.answered_by.arm is None
    assert record.checks.passed


async def test_streams_and_tool_calls_reach_the_client_and_the_log(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    async with start() as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        stream = await client.chat.completions.create(**chat("one two three"), stream=True)
        text = "".join(
            [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        )
        assert text == "teacher: one two three "
        teacher.say = call_tool
        got = await client.chat.completions.with_raw_response.create(
            **chat("write to ann@example.com", tools=TOOLS), stream=True
        )
        arguments = ""
        async for chunk in got.parse():
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                arguments += call.function.arguments or ""
        assert json.loads(arguments) == {"to": "ann@example.com"}
        record = await logged(store, got.headers["x-nightschool-call-id"])
    assert record.answer is not None
    function = record.answer["tool_calls"][0]["function"]
    assert function == {"name": "send_mail", "arguments": '{"to": "<EMAIL_1>"}'}
    assert record.request["messages"][1]["content"] == "write to <EMAIL_1>"
    assert record.checks.tool_known and record.checks.schema_valid
    assert record.anonymization.counts["EMAIL"] >= 2


async def test_nothing_personal_touches_the_disk(
    start: Start, teacher: TeacherServer, store: ObjectStore, tmp_path
) -> None:
    planted = "rosa.munich@example.org"
    async with start(ship_seconds=1000) as running:
        body = chat(
            f"mail {planted}",
            user=planted,
            metadata={"session_id": planted, "task": "mail-task", "note": f"for {planted}"},
        )
        _, _, headers = await running.ask(body)
        await until(lambda: running.gateway.spool.count == 1)
        session = running.gateway.answering.scopes
        assert len(session) == 1
        spooled = b"".join(
            path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()
        )
        assert b"<EMAIL_1>" in spooled
        assert planted.encode() not in spooled
    for info in store.list():
        assert planted.encode() not in store.get(info.key)
    (record,) = read_log(store)
    assert record.id == headers["x-nightschool-call-id"]
    assert planted not in record.model_dump_json()
    assert record.task_tag == "mail-task"
    # What names a session for us stays with us; what is the caller's own goes on.
    assert teacher.asked[0]["metadata"] == {"note": f"for {planted}"}
    assert teacher.asked[0]["user"] == planted


async def test_two_callers_personal_data_never_mix(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    async with start() as running:

        async def talk(name: str) -> str:
            mail = f"{name}@example.com"
            status, body, headers = await running.ask(
                chat(f"write to {mail}"), {"x-session-id": f"session-{name}"}
            )
            assert status == 200
            assert body["choices"][0]["message"]["content"] == f"teacher: write to {mail}"
            return headers["x-nightschool-call-id"]

        ids = await asyncio.gather(*(talk(f"caller{i}") for i in range(20)))
        await until(lambda: set(ids) <= set(calls(store)))
    for record in calls(store).values():
        assert record.request["messages"][1]["content"] == "write to <EMAIL_1>"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_the_teacher_is_passed_on(
    start: Start, teacher: TeacherServer, store: ObjectStore, stream: bool
) -> None:
    teacher.mode = "refuse"
    async with start() as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="bad temperature") as error:
            await client.chat.completions.create(**chat("hello"), stream=stream)
        record = await logged(store, error.value.response.headers["x-nightschool-call-id"])
    assert record.answer is None  # nobody learns from an error
    assert "bad temperature" not in record.model_dump_json()


async def test_a_teacher_that_is_down_is_an_openai_error(
    start: Start, teacher: TeacherServer, settings
) -> None:
    async with start() as running:
        running.gateway.teacher._url = "http://127.0.0.1:9/v1"
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        statuses = []
        for _ in range(6):
            with pytest.raises(openai.InternalServerError) as error:
                await client.chat.completions.create(**chat("hello"))
            statuses.append(error.value.status_code)
            assert error.value.code == "upstream_unavailable"
        # The breaker opens after five: the sixth is refused without asking.
        assert statuses == [502] * 5 + [503]


async def test_a_slow_teacher_is_given_up(start: Start, teacher: TeacherServer) -> None:
    teacher.mode = "hang"
    async with start() as running:
        object.__setattr__(running.gateway.teacher.settings, "timeout_seconds", 0.2)
        status, body, _ = await running.ask(chat("hello"))
    assert status == 504
    assert body["error"]["type"] == "api_error"


async def test_a_stream_that_breaks_ends_in_an_error_and_is_no_label(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    teacher.mode = "break"
    async with start() as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        got = await client.chat.completions.with_raw_response.create(
            **chat("one two three"), stream=True
        )
        with pytest.raises(openai.APIError, match="large model"):
            async for _ in got.parse():
                pass
        record = await logged(store, got.headers["x-nightschool-call-id"])
        assert record.answer is None
        teacher.mode = "ok"
        status, _, _ = await running.ask(chat("again"))
        assert status == 200


async def test_a_caller_that_goes_away_harms_nobody(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    teacher.say = lambda _: {"role": "assistant", "content": "word " * 20_000}
    async with start() as running:
        for _ in range(6):
            response = await running.http.post(
                f"{running.url}/v1/chat/completions", json=chat("talk", stream=True)
            )
            await response.content.readany()
            response.close()
        await until(lambda: len(calls(store)) == 6)
        assert not running.gateway.teacher.breaker.open
        assert all(record.answer is None for record in calls(store).values())


async def test_other_paths_pass_through(start: Start, teacher: TeacherServer) -> None:
    async with start() as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x")
        made = await client.embeddings.create(model="e", input="x", encoding_format="float")
        assert made.data[0].embedding == [0.5, 0.25]
        async with running.http.get(f"{running.url}/v1/files/a.txt?part=2") as response:
            assert await response.read() == b"a.txt?part=2"
        async with running.http.get(f"{running.url}/v1/files/nothing/here") as response:
            assert response.status == 404
        status, body, _ = await running.ask(b"{}", path="/v2/other")
        assert (status, body["error"]["code"]) == (404, "not_found")


async def test_the_response_id_stands_for_the_call_in_feedback(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    async with start() as running:
        _, body, headers = await running.ask(
            chat("write to bob@example.com or ann@example.com"), {"x-session-id": "s1"}
        )
        status, kept, _ = await running.ask(
            {"id": body["id"], "score": 0, "correction": "ann@example.com"}, path="/v1/feedback"
        )
        assert status == 200 and kept["call_id"] == headers["x-nightschool-call-id"]
        assert (await running.ask({"id": body["id"], "score": 2}, path="/v1/feedback"))[0] == 400
        assert (await running.ask({"id": "chatcmpl-x", "score": 1}, path="/v1/feedback"))[0] == 404
        assert (await running.ask({"id": body["id"]}, path="/v1/feedback"))[0] == 400
        await until(lambda: len(read_log(store)) == 2)
    (record,) = [record for record in read_log(store) if record.type == "feedback"]
    assert record.call_id == headers["x-nightschool-call-id"]
    # The call's own second placeholder, not a first one.
    assert record.correction == {"role": "assistant", "content": "<EMAIL_2>"}
