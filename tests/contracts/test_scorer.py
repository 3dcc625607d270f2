"""What an installed package's scorer may do, and what becomes of one that does something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluators.scorer_process import Scorable, Scored, score_all
from evaluators.scorers import BadScore, ScorerUnusable, checked_score
from tests.evaluators.making import says
from tests.scorer_package import offer_scorers


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_scorers(tmp_path, monkeypatch)


def answers(*texts: str) -> list[Scorable]:
    request = {"messages": [{"role": "user", "content": "hello"}]}
    return [Scorable(says("right"), says(text), request) for text in texts]


async def scored(use: str, *texts: str, seconds: float = 30, **options: Any) -> list[Scored]:
    return await score_all(use, options, answers(*texts), timeout_seconds=seconds)


async def test_a_packages_scorer_scores_with_its_options():
    assert await scored("length", "12345", "", "1" * 50) == [Scored(0.5), Scored(0.0), Scored(1.0)]
    assert await scored("length", "12345", longest=20) == [Scored(0.25)]
    assert await scored("length") == []


async def test_what_a_scorer_does_costs_its_own_scores_only():
    found = await scored(
        "odd", "raises", "nan", "two", "text", "none", "fine", "yes", "dies", "fine"
    )
    failures = [one.failure for one in found]
    assert failures[:5] == [
        "it raised ValueError",
        "NaN is no score",
        "a score lies between 0 and 1",
        "a text is no score",
        "a NoneType is no score",
    ]
    assert failures[5:] == [None, None, "its process died", None]
    assert [one.value for one in found] == [0, 0, 0, 0, 0, 0.5, 1, 0, 0.5]
    assert "secret" not in json.dumps(failures)


async def test_a_scorer_that_hangs_is_killed_and_given_up_in_the_end():
    found = await scored("odd", "hangs", "hangs", "hangs", "fine", seconds=0.2)
    assert {one.value for one in found} == {0.0}
    assert found[0].failure == "no score within 0.2 seconds"
    assert found[3].failure == "not scored after 3 that hung or died"


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("absent", "no installed package offers the scorer 'absent'; offered: length"),
        ("nothing", "cannot be made: RuntimeError: no licence"),
        ("text", "cannot be called"),
    ],
)
async def test_a_scorer_that_cannot_be_made_says_why(use: str, why: str):
    with pytest.raises(ScorerUnusable, match=why):
        await scored(use, "anything")


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1, "1", b"1", None, [], float("inf")])
def test_what_is_no_score(value: Any):
    with pytest.raises(BadScore):
        checked_score(value)


@pytest.mark.parametrize("make", [int, float, bool])
def test_what_is_a_score(make: Callable[[int], Any]):
    assert checked_score(make(1)) == 1.0
