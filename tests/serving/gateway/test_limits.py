"""Rubbish, giants, strangers and crowds: each gets its answer, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime

import openai
import pytest
from sqlalchemy import insert

from infra.calls.codec import StoredLine
from infra.database.open import Database
from infra.database.tables import api_keys
from infra.objects.store import ObjectStore
from infra.tasks.signature import Signature, signature
from serving.gateway import recorder, structure
from serving.gateway.spool import SpoolError
from serving.registry.keys import hash_key
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import add_task, chat, logged, read_log, until

RUBBISH = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b'{"messages": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "nan": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "deep": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "less deep": json.dumps(chat("x", metadata={"a": json.loads("[" * 70 + "]" * 70)})).encode(),
    "no messages": b'{"model": "m"}',
    "empty messages": b'{"messages": []}',
    "messages of numbers": b'{"messages": [1]}',
    "unknown role": b'{"messages": [{"role": "wizard", "content": "x"}]}',
    "role is a list": b'{"messages": [{"role": [], "content": "x"}]}',
    "content is a number": b'{"messages": [{"role": "user", "content": 5}]}',
    "part is text": b'{"messages": [{"role": "user", "content": ["x"]}]}',
    "tool without function": b'{"messages": [{"role": "user", "content": "x"}], "tools": [{}]}',
    "tools is a number": b'{"messages": [{"role": "user", "content": "x"}], "tools": 3}',
    "arguments are no string": (
        b'{"messages": [{"role": "assistant", "tool_calls": '
        b'[{"function": {"name": "f", "arguments": {}}}]}]}'
    ),
    "half a character": b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
    "huge number": b'{"messages": [{"role": "user", "content": "x"}], "seed": '
    + b"9" * 5000
    + b"}",
    "stream is a word": b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
    "model is a number": b'{"messages": [{"role": "user", "content": "x"}], "model": 4}',
}


@pytest.mark.parametrize("name", RUBBISH)
async def test_rubbish_is_400_in_openais_shape_and_goes_no_further(
    start: Start, teacher: TeacherServer, name: str
) -> None:
    async with start() as running:
        status, body, _ = await running.ask(RUBBISH[name])
        assert status == 400
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] == "invalid_request_error"
        assert teacher.asked == []


async def test_a_prompt_beyond_the_limit_is_413(start: Start, teacher: TeacherServer) -> None:
    async with start(max_body_bytes=1 << 20) as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIStatusError) as error:
            await client.chat.completions.create(**chat("x" * (2 << 20)))
        assert error.value.status_code == 413

        async def endless():
            for _ in range(64):
                yield b" " * (64 << 10)

        # Without a length in its head it is found out on the way.
        async with running.http.post(
            f"{running.url}/v1/chat/completions", data=endless()
        ) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "request_too_large"
        assert (await running.ask(chat("small")))[0] == 200
    assert len(teacher.asked) == 1


async def test_a_prompt_of_10_mb_within_the_limit_is_answered_and_logged(
    start: Start, teacher: TeacherServer, store: ObjectStore
) -> None:
    teacher.say = lambda _: {"role": "assistant", "content": "read it"}
    text = "the quick brown fox; " * (10 * (1 << 20) // 21) + " ann@example.com"
    async with start(max_body_bytes=12 << 20) as running:
        status, body, headers = await running.ask(chat(text))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "read it")
        # Others are answered while it is being anonymized.
        assert (await running.ask(chat("short")))[0] == 200
        record = await logged(store, headers["x-nightschool-call-id"])
    assert "ann@example.com" not in record.model_dump_json()


async def test_a_giant_system_prompt_does_not_hold_up_the_others(
    start: Start, teacher: TeacherServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(database)
    looked: list[int] = []

    def watch(request: dict) -> Signature:
        looked.append(len(str(request)))
        return signature(request)

    monkeypatch.setattr(structure, "signature", watch)
    teacher.say = lambda _: {"role": "assistant", "content": "ok"}
    giant = chat("x")
    giant["messages"][0]["content"] = "w1 " * 2_000_000
    async with start() as running:
        await until(lambda: running.gateway.table.current.tasks)
        assert (await running.ask(giant))[0] == 200
        assert looked == []  # that alone would take seconds of the event loop


async def test_callers_need_a_key_where_keys_are_required(
    start: Start, teacher: TeacherServer, database: Database, store: ObjectStore
) -> None:
    with database.begin() as connection:
        for key, tenant, revoked in (
            ("good", "acme", None),
            ("gone", "acme", datetime.now(UTC)),
        ):
            connection.execute(
                insert(api_keys).values(
                    hash=hash_key(key),
                    tenant=tenant,
                    role="call",
                    label=key,
                    created=datetime.now(UTC),
                    revoked=revoked,
                )
            )
    async with start(require_key=True) as running:
        await until(lambda: running.gateway.table.known)
        for key in ("wrong", "gone"):
            client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(**chat("x"))
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
            with pytest.raises(openai.AuthenticationError):
                await client.embeddings.create(model="e", input="x")
        assert (await running.ask({"id": "x", "score": 1}, path="/v1/feedback"))[0] == 401
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="good")
        got = await client.chat.completions.with_raw_response.create(**chat("x"))
        record = await logged(store, got.headers["x-nightschool-call-id"])
    assert record.tenant == "acme"
    assert teacher.keys == [None]  # a key of ours is nobody else's


async def test_more_calls_than_allowed_are_429(start: Start, teacher: TeacherServer) -> None:
    teacher.gate = asyncio.Event()
    async with start(max_in_flight=2) as running:
        slow = [asyncio.create_task(running.ask(chat("x"))) for _ in range(2)]
        await until(lambda: len(teacher.asked) == 2)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError) as error:
            await client.chat.completions.create(**chat("one too many"))
        assert error.value.response.headers["retry-after"] == "1"
        async with running.http.get(f"{running.url}/healthz") as response:
            assert response.status == 200
        teacher.gate.set()
        assert [status for status, _, _ in await asyncio.gather(*slow)] == [200, 200]
        assert (await running.ask(chat("now")))[0] == 200


class Disk:
    """Stands between the gateway and its spool; full until it is told otherwise."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self._append = running.gateway.spool.append
        monkeypatch.setattr(running.gateway.spool, "append", self.append)

    def append(self, record: StoredLine, *, provisional: bool = False) -> None:
        if self.full:
            raise SpoolError("no space")
        self._append(record, provisional=provisional)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_disk_costs_nobody_the_answer_and_the_log_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, store: ObjectStore, stream: bool
) -> None:
    async with start(log_wait_seconds=0.05) as running:
        disk = Disk(running, monkeypatch)
        url = f"{running.url}/v1/chat/completions"
        async with running.http.post(url, json=chat("x", stream=stream)) as response:
            assert response.status == 200
            held = response.headers["x-nightschool-call-id"]
            assert b"teacher:" in await response.read()
        async with running.http.get(f"{running.url}/metrics") as response:
            page = await response.text()
        assert "nightschool_answers_before_log_total 1.0" in page
        assert "nightschool_records_appended_total 0.0" in page
        assert running.gateway.recorder.backlog == 1
        disk.full = False
        await logged(store, held)
        _, _, headers = await running.ask(chat("y"))
        await logged(store, headers["x-nightschool-call-id"])
    assert len(read_log(store)) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_policy_is_to_refuse_no_answer_goes_out_unlogged(
    start: Start, monkeypatch: pytest.MonkeyPatch, store: ObjectStore, stream: bool
) -> None:
    async with start(log_wait_seconds=0.05, unlogged="refuse") as running:
        disk = Disk(running, monkeypatch)
        url = f"{running.url}/v1/chat/completions"
        async with running.http.post(url, json=chat("x", stream=stream)) as response:
            text = await response.text()
            assert response.status == (200 if stream else 503)
            assert "log_unavailable" in text and "[DONE]" not in text
        status, body, _ = await running.ask(
            {"call_id": "0190d6a0-0000-7000-8000-000000000000", "score": 1}, path="/v1/feedback"
        )
        assert (status, body["error"]["code"]) == (503, "log_unavailable")
        disk.full = False
        await until(lambda: running.gateway.recorder.backlog == 0)
        assert (await running.ask(chat("y")))[0] == 200


async def test_a_backlog_that_stays_full_turns_callers_away(
    start: Start, monkeypatch: pytest.MonkeyPatch, teacher: TeacherServer
) -> None:
    monkeypatch.setattr(recorder, "MAX_BACKLOG_RECORDS", 0)
    monkeypatch.setattr(recorder, "ROOM_SECONDS", 0.05)
    async with start(log_wait_seconds=0.01) as running:
        disk = Disk(running, monkeypatch)
        assert (await running.ask(chat("x")))[0] == 200
        status, body, _ = await running.ask(chat("y"))
        assert (status, body["error"]["code"]) == (503, "log_unavailable")
        assert len(teacher.asked) == 1
        disk.full = False
        await until(lambda: running.gateway.recorder.backlog == 0)
        assert (await running.ask(chat("z")))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_records_that_wait_are_bounded_with_their_answers(
    start: Start, teacher: TeacherServer, stream: bool
) -> None:
    teacher.say = lambda _: {"role": "assistant", "content": "x" * 1_000_000}
    async with start(log_wait_seconds=0.05) as running:
        disk = threading.Event()
        running.gateway.recorder._pool.submit(disk.wait)
        try:
            url = f"{running.url}/v1/chat/completions"
            async with running.http.post(url, json=chat("x", stream=stream)) as response:
                assert len(await response.read()) > 1_000_000
            assert running.gateway.recorder._bytes > 1_000_000
        finally:
            disk.set()
        await until(lambda: running.gateway.recorder._bytes == 0)


async def test_a_record_that_cannot_be_anonymized_is_not_written(
    start: Start, monkeypatch: pytest.MonkeyPatch, store: ObjectStore
) -> None:
    from infra.anonymize.anonymizer import Scope

    async with start() as running:

        def fail(*_: object) -> None:
            raise RuntimeError("ann@example.com")

        monkeypatch.setattr(Scope, "fields", fail)
        assert (await running.ask(chat("ann@example.com")))[0] == 200
    assert read_log(store) == []


async def test_a_call_that_may_not_be_stored_is_answered_and_counted(
    start: Start, store: ObjectStore
) -> None:
    async with start(anonymizer={"kinds": {"CARD": "drop_record"}}) as running:
        status, body, headers = await running.ask(chat("pay with 4111 1111 1111 1111"))
        assert (status, body["object"]) == (200, "chat.completion")
        report = {"call_id": headers["x-nightschool-call-id"], "label": "4111111111111111"}
        assert (await running.ask(report, path="/v1/feedback"))[0] == 200
        assert (await running.ask(chat("write to ann@example.com")))[0] == 200
        async with running.http.get(f"{running.url}/metrics") as response:
            page = await response.text()
    assert 'nightschool_records_left_out_total{kinds="CARD"} 2.0' in page
    assert "nightschool_records_lost_total{" not in page
    (record,) = read_log(store)
    assert "<EMAIL_1>" in record.model_dump_json()


async def test_with_the_anonymizer_off_what_was_said_is_stored_as_it_was(
    start: Start, store: ObjectStore
) -> None:
    async with start(anonymizer={"enabled": False}) as running:
        asked = chat("write to ann@example.com")
        assert (await running.ask(asked))[0] == 200
    (record,) = read_log(store)
    assert record.request["messages"] == asked["messages"]
    assert record.anonymization.policy == "none"


async def test_metrics_tell_who_answered(start: Start) -> None:
    async with start() as running:
        await running.ask(chat("x"))
        await running.ask(b"rubbish")
        async with running.http.get(f"{running.url}/metrics") as response:
            page = await response.text()
    assert 'nightschool_calls_total{answerer="teacher",escalation="none",task="none"} 1.0' in page
    assert 'nightschool_errors_total{status="400"} 1.0' in page
    assert "nightschool_small_model_share 0.0" in page
    assert "nightschool_routes_age_seconds" in page
