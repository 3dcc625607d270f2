"""What counts as lost, doubled and wrong, and which fault an error belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.support.chaos_plan import FAULTS, Fault, Scheduled, plan, possible, quick_plan
from bench.support.chaos_verdict import Attempt, Named, Window, judge

GOOD = Attempt(
    started=10.0,
    ended=10.5,
    gateway="first",
    streamed=False,
    outcome="answered",
    call_id="c1",
    answered_by="a",
    said_by="a",
)
BY_TEACHER = replace(GOOD, call_id="c2", answered_by="teacher", said_by="teacher")
REFUSED = replace(GOOD, outcome="HTTP 503", call_id="c3", answered_by="", said_by="")
ROUTES = [Named("a", 0, 20), Named("b", 19, float("inf"))]
STORED = {"c1": ["a"], "c2": ["teacher"]}
FAULT = Window("engine killed", 10.2, 11.0, 12.0)


def test_a_run_in_which_all_went_well_passes() -> None:
    verdict = judge([GOOD, BY_TEACHER], STORED, ROUTES, [])
    assert verdict.passed and (verdict.acknowledged, verdict.by_small_model) == (2, 1)
    assert verdict.to_json()["lost"] == 0 and not verdict.to_json()["offending"]


def test_a_run_without_an_answer_shows_nothing() -> None:
    assert not judge([REFUSED], {}, ROUTES, []).passed
    assert not judge([], {}, ROUTES, []).passed


@pytest.mark.parametrize(
    ("attempt", "stored", "which"),
    [
        (GOOD, {}, "lost"),
        (GOOD, {"c1": []}, "lost"),
        (GOOD, {"c1": ["a", "a"]}, "duplicated"),
        # Nobody was told that it is kept, and still it may be there only once.
        (GOOD, {"c1": ["a"], "never-acknowledged": ["a", "a"]}, "duplicated"),
        (replace(GOOD, said_by="b"), {"c1": ["a"]}, "wrong_answers"),
        (replace(GOOD, said_by="teacher"), {"c1": ["a"]}, "wrong_answers"),
        (replace(GOOD, said_by=""), {"c1": ["a"]}, "wrong_answers"),
        (GOOD, {"c1": ["b"]}, "wrong_records"),
        (GOOD, {"c1": ["teacher"]}, "wrong_records"),
        (replace(GOOD, answered_by="b", said_by="b"), {"c1": ["b"]}, "wrong_routes"),
        (replace(GOOD, started=21.1, ended=21.2), {"c1": ["a"]}, "wrong_routes"),
        (replace(GOOD, answered_by="x", said_by="x"), {"c1": ["x"]}, "wrong_routes"),
    ],
)
def test_each_wrong_is_found_and_fails_the_run(
    attempt: Attempt, stored: dict[str, list[str]], which: str
) -> None:
    verdict = judge([attempt, BY_TEACHER], {"c2": ["teacher"], **stored}, ROUTES, [])
    found = {
        name: getattr(verdict, name)
        for name in ("lost", "duplicated", "wrong_answers", "wrong_routes", "wrong_records")
    }
    assert [name for name, ids in found.items() if ids] == [which]
    assert not verdict.passed
    assert verdict.to_json()[which] == 1 and verdict.to_json()["offending"][which]


@pytest.mark.parametrize(
    ("started", "ended", "by"),
    [
        (20.9, 21.0, "a"),  # within the second after its end
        (15.0, 25.0, "a"),
        (19.2, 19.3, "b"),  # while it was being written
        (5.0, 19.5, "b"),
    ],
)
def test_a_route_holds_from_its_writing_to_a_second_after_its_end(
    started: float, ended: float, by: str
) -> None:
    attempt = replace(GOOD, started=started, ended=ended, answered_by=by, said_by=by)
    assert judge([attempt], {"c1": [by]}, ROUTES, []).passed


def test_an_error_belongs_to_the_fault_that_it_fell_into() -> None:
    at = [
        replace(REFUSED, started=started, ended=started + 0.1)
        for started in (1.0, 10.15, 11.5, 12.5, 40.0)
    ]
    later = replace(REFUSED, outcome="timeout", started=11.9, ended=15.0)
    assert judge([GOOD, *at, later], STORED, ROUTES, [FAULT]).errors == {
        "none": {"HTTP 503": 2},
        "engine killed": {"HTTP 503": 2, "timeout": 1},
        "after engine killed": {"HTTP 503": 1},
    }


def test_the_longest_outage_is_the_longest_time_without_an_answer() -> None:
    answers = [replace(GOOD, ended=ended) for ended in (10.3, 10.4, 11.4, 11.5)]
    assert judge(answers, STORED, ROUTES, [FAULT]).outages == {"engine killed": 1.0}
    assert judge([GOOD], STORED, ROUTES, [replace(FAULT, fault="x")]).outages == {"x": 1.5}
    # Answers outside of the window do not shorten it; of two windows the worse one counts.
    worse = Window("engine killed", 30.0, 33.0, 34.0)
    assert judge(answers, STORED, ROUTES, [FAULT, worse]).outages == {"engine killed": 4.0}


def test_a_plan_takes_about_its_time_and_has_every_fault() -> None:
    for made in (plan(0.1), plan(10), quick_plan()):
        assert {item.fault.name for item in made} == {fault.name for fault in FAULTS}
    lasting = sum(item.calm_seconds + item.fault.seconds for item in plan(10))
    assert 400 < lasting < 600
    assert sum(item.calm_seconds + item.fault.seconds for item in quick_plan()) < 40


def test_what_cannot_be_done_is_left_out_with_its_reason() -> None:
    wanted = [
        Scheduled(1, Fault("one", "kill", ("database",), 1)),
        Scheduled(1, Fault("some", "kill", ("engine", "database"), 1)),
        Scheduled(1, Fault("fill", "fill", ("second",), 1)),
        Scheduled(1, Fault("good", "kill", ("engine",), 1)),
    ]
    kept, skipped = possible(
        wanted, without={"database": "none here", "fill": "not root"}, actions=("fill", "clock")
    )
    assert [(item.fault.name, item.fault.targets) for item in kept] == [
        ("some", ("engine",)),
        ("good", ("engine",)),
    ]
    assert skipped == {"one": "none here", "fill": "not root"}
    assert possible(wanted, without={}) == (wanted, {})
