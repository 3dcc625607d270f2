from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from evaluators.replay import Outcome, replay
from infra.calls.record import Checks
from tests.evaluators.making import Example, says

PASSED = Checks()


@dataclass(frozen=True)
class Said:
    message: dict[str, Any] | None
    checks: Checks = PASSED
    confidence: float | None = -0.2


def examples(n: int) -> list[Example]:
    return [
        Example(
            {"messages": [], "n": place}, says(f"answer-{place}"), f"s{place // 2}", f"call-{place}"
        )
        for place in range(n)
    ]


class Answerer:
    """Right except where told otherwise; counts how many questions are in flight."""

    def __init__(self, special: dict[int, Any] | None = None) -> None:
        self.special = special or {}
        self.in_flight = self.most = self.asked = 0

    async def __call__(self, request: Any) -> Said:
        self.in_flight += 1
        self.asked += 1
        self.most = max(self.most, self.in_flight)
        try:
            # Later questions finish first, so that order must be kept on purpose.
            for _ in range(20 - request["n"] % 20):
                await asyncio.sleep(0)
            special = self.special.get(request["n"])
            if isinstance(special, Exception):
                raise special
            return special or Said(says(f"answer-{request['n']}"))
        finally:
            self.in_flight -= 1


async def test_outcomes_keep_the_order_and_concurrency_is_bounded():
    answerer, seen = Answerer(), []
    found = await replay(
        answerer, examples(30), concurrency=4, progress=lambda done, of: seen.append((done, of))
    )
    assert [item.example_id for item in found] == [f"call-{place}" for place in range(30)]
    assert all(item.correct == 1 and item.showable and item.session for item in found)
    assert answerer.most == 4
    assert seen == [(place + 1, 30) for place in range(30)]
    assert Outcome.from_dict(json.loads(json.dumps(found[0].to_dict()))) == found[0]


async def test_errors_and_failed_checks_are_wrong_and_say_why():
    answerer = Answerer(
        {
            1: ConnectionError("engine gone"),
            2: Said(says("answer-2"), Checks(schema_valid=False, reason="breaks required at top")),
            3: Said(None, Checks(parsed=False)),
            4: Said(says("something else")),
        }
    )
    found = await replay(answerer, examples(6))
    assert [item.correct for item in found] == [1, 0, 0, 0, 0, 1]
    assert found[1].error == "ConnectionError: engine gone" and found[1].confidence is None
    assert found[2].error is None and found[2].score.stages["exact"] == 1
    assert [item.showable for item in found] == [True, False, False, False, True, True]


async def test_a_confidence_that_is_no_number_is_none_and_fits_into_json():
    found = await replay(Answerer({0: Said(says("answer-0"), confidence=-math.inf)}), examples(1))
    assert found[0].confidence is None and found[0].correct == 1
    json.dumps(found[0].to_dict(), allow_nan=False)


async def test_a_late_answer_is_an_error():
    async def never(request: Any) -> Said:
        await asyncio.Event().wait()
        raise AssertionError

    (found,) = await replay(never, examples(1), timeout_seconds=0.01)
    assert found.correct == 0 and "within 0.01 seconds" in str(found.error)


async def test_a_dead_engine_is_given_up_and_every_row_still_counts():
    answerer = Answerer({place: ConnectionError("refused") for place in range(200)})
    found = await replay(answerer, examples(200), concurrency=2, give_up_after=5)
    assert len(found) == 200 and all(item.error and item.correct == 0 for item in found)
    assert answerer.asked <= 6
    assert "not asked" in str(found[-1].error)


async def test_cancelling_stops_it():
    started = asyncio.Event()

    async def stuck(request: Any) -> Said:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    running = asyncio.create_task(replay(stuck, examples(5), concurrency=2))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_nothing_to_ask_and_senseless_bounds():
    assert await replay(Answerer(), []) == []
    with pytest.raises(ValueError):
        await replay(Answerer(), examples(1), concurrency=0)
