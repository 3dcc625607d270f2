"""Limits of keys: the arithmetic with a clock of its own, and what clients of OpenAI make of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import orjson
import pytest

from infra.database.open import Database
from serving.gateway.keys import Caller
from serving.gateway.problems import GatewayError
from serving.gateway.rate_limits import RateLimits
from serving.gateway.routes import KeyRoute
from serving.registry.keys import create_key, hash_key, limit_key
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import chat, until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(name: str = "a", **limits: int) -> Caller:
    return Caller("acme", True, KeyRoute("acme", **limits), name)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_key_without_limits_is_charged_nothing(clock: Clock) -> None:
    limits = RateLimits(clock=clock)
    assert limits.admit(caller(), 10**9) is None
    assert limits.admit(Caller("default", key_known=False), 10**9) is None


def test_a_minutes_worth_at_once_and_then_steadily(clock: Clock) -> None:
    limits = RateLimits(clock=clock)
    who = caller(requests_per_minute=6)
    for _ in range(6):
        assert limits.admit(who, 0) is not None
    with pytest.raises(GatewayError) as error:
        limits.admit(who, 0)
    assert (error.value.status, error.value.code) == (429, "rate_limit_exceeded")
    assert error.value.retry_after_seconds == 10
    assert error.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.value.headers["retry-after-ms"] == "10000"
    assert limits.admit(caller("b", requests_per_minute=6), 0) is not None  # another key's own
    clock.now += 9.99
    with pytest.raises(GatewayError):
        limits.admit(who, 0)
    clock.now += 0.02
    assert limits.admit(who, 0) is not None
    clock.now -= 3600  # a clock that is set back gives and takes nothing
    with pytest.raises(GatewayError):
        limits.admit(who, 0)


def test_tokens_are_charged_by_length_first_and_by_what_they_were_then(clock: Clock) -> None:
    limits = RateLimits(clock=clock)
    who = caller(tokens_per_minute=600)
    first = limits.admit(who, 400)
    assert first is not None and first.headers(clock())["x-ratelimit-remaining-tokens"] == "500"
    first.settle({"usage": {"total_tokens": 50}})
    assert first.headers(clock())["x-ratelimit-remaining-tokens"] == "550"
    second = limits.admit(who, 0)
    assert second is not None
    second.settle({"usage": {"total_tokens": 5550}})
    with pytest.raises(GatewayError) as error:
        limits.admit(who, 0)
    assert error.value.kind == "tokens"
    assert error.value.retry_after_seconds == 501  # what was overdrawn is paid back first
    clock.now += 501
    third = limits.admit(who, 0)
    assert third is not None
    third.settle({"choices": [{"message": {"content": "x" * 4000}}]})  # no usage was asked for
    with pytest.raises(GatewayError):
        limits.admit(who, 0)


def test_a_giant_is_charged_a_minutes_worth_until_its_usage_is_known(clock: Clock) -> None:
    limits = RateLimits(clock=clock)
    who = caller(tokens_per_minute=600)
    giant = limits.admit(who, 8 << 20)
    assert giant is not None
    with pytest.raises(GatewayError) as error:
        limits.admit(who, 0)
    assert error.value.retry_after_seconds == 1
    giant.settle({"usage": {"total_tokens": 100}})
    assert giant.headers(clock())["x-ratelimit-remaining-tokens"] == "500"


def test_a_call_without_an_answer_keeps_its_estimate_only(clock: Clock) -> None:
    limits = RateLimits(clock=clock)
    admission = limits.admit(caller(tokens_per_minute=600), 400)
    assert admission is not None
    admission.settle({"error": {"status": 502}})
    assert admission.headers(clock())["x-ratelimit-remaining-tokens"] == "500"


def test_limits_are_shared_between_gateways_and_follow_a_change(clock: Clock) -> None:
    limits = RateLimits(gateways=3, clock=clock)
    who = caller(requests_per_minute=6)
    assert [bool(limits.admit(who, 0)) for _ in range(2)] == [True, True]
    with pytest.raises(GatewayError):
        limits.admit(who, 0)
    more = caller(requests_per_minute=12)  # what was spent stays spent
    assert [bool(limits.admit(more, 0)) for _ in range(2)] == [True, True]
    with pytest.raises(GatewayError):
        limits.admit(more, 0)
    least = caller("b", requests_per_minute=1)
    assert limits.admit(least, 0) is not None


def test_the_memory_of_keys_is_bounded(clock: Clock) -> None:
    limits = RateLimits(clock=clock, most=2)
    for name in "abc":
        limits.admit(caller(name, requests_per_minute=1), 0)
    assert len(limits._buckets) == 2
    with pytest.raises(GatewayError):
        limits.admit(caller("c", requests_per_minute=1), 0)


async def test_the_official_client_sees_its_limits_and_waits(
    start: Start, teacher: TeacherServer, database: Database
) -> None:
    key = create_key(database, "acme", "call", "", requests_per_minute=3, tokens_per_minute=100_000)
    async with start(require_key=True) as running:
        await until(lambda: running.gateway.table.current.keys)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
        got = await client.chat.completions.with_raw_response.create(**chat("x"))
        assert got.headers["x-ratelimit-limit-requests"] == "3"
        # Ours, not the teacher's 41.
        assert got.headers["x-ratelimit-remaining-requests"] == "2"
        assert int(got.headers["x-ratelimit-remaining-tokens"]) > 99_900
        stream = await client.chat.completions.with_raw_response.create(**chat("x"), stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "1"
        async for _ in stream.parse():
            pass
        await client.models.list()
        for ask in (
            lambda: client.chat.completions.create(**chat("x")),
            client.models.list,
            lambda: client.embeddings.create(model="e", input="x"),
        ):
            with pytest.raises(openai.RateLimitError) as error:
                await ask()
            assert error.value.code == "rate_limit_exceeded"
            assert error.value.type == "requests"
            assert 1 <= int(error.value.response.headers["retry-after"]) <= 20
        assert len(teacher.asked) == 2
        # A limit that is raised is known within a second; the client's own waiting does the rest.
        limit_key(database, hash_key(key), {"requests_per_minute": 6000})
        patient = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=8)
        await patient.chat.completions.create(**chat("y"))


async def test_tokens_of_streams_and_answers_are_charged(
    start: Start, teacher: TeacherServer, database: Database
) -> None:
    key = create_key(database, "acme", "call", "", tokens_per_minute=1000)
    teacher.say = lambda _: {"role": "assistant", "content": "long " * 2000}
    async with start(require_key=True) as running:
        await until(lambda: running.gateway.table.current.keys)
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)

        async def drain() -> Any:
            async for _ in await client.chat.completions.create(**chat("x"), stream=True):
                pass

        await drain()
        with pytest.raises(openai.RateLimitError) as error:
            await client.chat.completions.create(**chat("x"))
        assert error.value.type == "tokens"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "audio/mpeg"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_text_is_charged_however_it_is_sent(
    start: Start, teacher: TeacherServer, database: Database, kind: str, chunked: bool
) -> None:
    """The teacher answers with an error, so the estimate is all that is ever charged."""
    key = create_key(database, "acme", "call", "", tokens_per_minute=10_000)
    teacher.mode = "refuse"
    body = orjson.dumps(chat("x" * 8000))

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:4000]
        yield body[4000:]

    head = {"Authorization": f"Bearer {key}", "Content-Type": kind}
    async with start(require_key=True) as running:
        await until(lambda: running.gateway.table.current.keys)
        url = f"{running.url}/v1/chat/completions"
        data = pieces() if chunked else body
        async with running.http.post(url, data=data, headers=head) as answer:
            assert answer.status == 400
            left = int(answer.headers["x-ratelimit-remaining-tokens"])
    charged = 10_000 - len(body) / 4
    assert charged - 5 <= left < charged + 500


async def test_a_refused_call_costs_no_body(
    start: Start, teacher: TeacherServer, database: Database
) -> None:
    key = create_key(database, "acme", "call", "", requests_per_minute=1)
    async with start(require_key=True) as running:
        await until(lambda: running.gateway.table.current.keys)
        headers = {"Authorization": f"Bearer {key}"}
        assert (await running.ask(chat("x"), headers))[0] == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.split(":")[2]))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n"
            b"Authorization: Bearer " + key.encode() + b"\r\n\r\n"
        )
        # Not one byte of the body was sent.
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 429")
        writer.close()
