from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI, NotFoundError

from flows.demo.player import Tally, play
from flows.demo.teacher import Teacher
from flows.demo.traffic import sessions


@pytest.fixture
def traffic():
    return sessions(5, 30)


@pytest.fixture
async def server(traffic):
    answers = {call.key: call.answer for session in traffic for call in session.calls}
    async with TestServer(Teacher(json.loads(json.dumps(answers))).application()) as running:
        yield running


async def test_agents_get_the_recorded_answers_streamed_or_not(server, traffic):
    heard: list[int] = []
    tally = await play(
        [str(server.make_url("/v1"))],
        traffic,
        concurrency=4,
        on_call=lambda t: heard.append(t.calls),
    )
    assert tally.failed == 0
    assert tally.calls == sum(len(session.calls) for session in traffic) == heard[-1]
    assert tally.agreement == 1.0
    # Nobody but the teacher answered, so nothing can be said of a small model.
    assert (tally.small_share, tally.small_agreement) == (0.0, None)


async def test_a_request_that_was_never_recorded_is_an_error_in_openais_shape(server):
    client = AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="x", max_retries=0)
    with pytest.raises(NotFoundError, match="no answer was recorded"):
        await client.chat.completions.create(
            model="teacher", messages=[{"role": "user", "content": "never asked"}]
        )


def test_a_tally_tells_small_answers_from_the_teachers():
    tally = Tally()
    tally.add("home", "1", "teacher", 1.0)
    tally.add("home", "2", "lights@0123456789abcdef", 0.0)
    tally.add("home", "3", "lights@0123456789abcdef", 1.0)
    total = Tally()
    total.merge(tally)
    assert total.small_share == pytest.approx(2 / 3)
    assert total.small_agreement == 0.5
    assert total.agreement == pytest.approx(2 / 3)
