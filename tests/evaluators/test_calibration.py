from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.calibration import (
    calibrate,
    calibrate_best,
    calibrate_outcomes,
    rows_needed,
)
from evaluators.intervals import binomial_p_value
from tests.evaluators.making import outcome


def ranked(n: int, wrong: set[int]) -> tuple[list[float], list[float]]:
    """Confidences falling from 0 and correctness; ``wrong`` are ranks from 0."""
    return [-place / n for place in range(n)], [float(place not in wrong) for place in range(n)]


def test_what_n_certifies_what():
    assert [rows_needed(errors, 0.05, 0.05) for errors in range(3)] == [59, 93, 124]
    assert [rows_needed(errors, 0.1, 0.05) for errors in range(3)] == [29, 46, 61]
    assert calibrate(*ranked(58, set()), 0.05, 0.05).value is None
    full = calibrate(*ranked(59, set()), 0.05, 0.05)
    assert full.coverage == 1 and full.value == pytest.approx(-58 / 59) and full.certified


def test_too_few_rows_say_so():
    found = calibrate(*ranked(20, set()), 0.05, 0.05)
    assert (found.value, found.coverage, found.shown, found.needed) == (None, 0, 0, 59)
    assert "at least 59" in found.reason
    assert not found.accepts(0.0) and not found.certified


def test_no_rows_certify_nothing():
    assert calibrate([], [], 0.05, 0.05).value is None


def test_the_unsure_half_is_left_to_the_teacher():
    found = calibrate(*ranked(100, set(range(70, 100))), 0.05, 0.05)
    assert found.shown == 70 and found.errors == 0 and found.coverage == 0.7
    assert found.accepts(-0.69) and not found.accepts(-0.7) and not found.accepts(None)
    assert found.p_value <= 0.05


def test_one_error_is_affordable_with_more_rows():
    found = calibrate(*ranked(240, {10}), 0.05, 0.05)
    assert found.coverage == 1 and found.errors == 1


def test_one_that_is_right_on_less_than_half_and_knows_which_is_shown_there():
    found = calibrate(*ranked(300, set(range(140, 300, 2))), 0.05, 0.05)
    assert found.certified and 140 <= found.shown <= 160


def test_confidently_wrong_shows_nothing():
    found = calibrate(*ranked(120, set(range(0, 120, 5))), 0.05, 0.05)
    assert found.value is None and "too many errors" in found.reason


def test_equal_confidences_stand_or_fall_together():
    found = calibrate([0.5] * 100, [1.0] * 97 + [0.0] * 3, 0.05, 0.05)
    assert found.value is None
    found = calibrate([0.9] * 60 + [0.5] * 10, [1.0] * 60 + [0.0] * 10, 0.05, 0.05)
    assert (found.value, found.shown) == (0.9, 60)


def test_answers_that_fail_their_checks_are_never_shown_but_count_as_uncovered():
    rows = [outcome(f"a{place}", 1.0, -0.1 - place / 1000) for place in range(60)]
    rows += [outcome(f"b{place}", 0.0, 0.0, passed=False) for place in range(20)]
    rows += [outcome(f"c{place}", 0.0, None, error="EngineUnavailable: x") for place in range(20)]
    found = calibrate_outcomes(rows, 0.05, 0.05)
    assert (found.rows, found.eligible, found.shown, found.coverage) == (100, 60, 60, 0.6)
    assert calibrate([math.nan, -math.inf, None], [1, 1, 1], 0.05, 0.05).eligible == 0


def test_graded_correctness_uses_the_bounded_loss():
    sure = [-place / 400 for place in range(400)]
    assert calibrate(sure, [0.99] * 400, 0.05, 0.05).coverage == 1
    assert not calibrate(sure, [0.94] * 400, 0.05, 0.05).certified


@pytest.mark.parametrize(
    "bad",
    [
        ([0.1], [], 0.05, 0.05),
        ([0.1], [1.5], 0.05, 0.05),
        ([0.1], [1.0], 0.0, 0.05),
        ([0.1], [1.0], 0.05, 1.0),
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError):
        calibrate(*bad)


@pytest.mark.parametrize(
    ("name", "error_rate"),
    [
        # In each the risk at every threshold is a hair above 10 %: any certificate is false.
        ("useless confidence", lambda sure: np.full_like(sure, 0.101)),
        # Here all thresholds below 0.5 are bad, those above are good.
        ("step", lambda sure: np.where(sure > 0.5, 0.02, 0.19)),
        ("slope", lambda sure: 0.3 * (1 - sure)),
        ("perverse", lambda sure: 0.101 + 0.1 * sure),
    ],
)
@pytest.mark.parametrize("n", [60, 150])
def test_false_certificates_stay_under_the_level(name, error_rate, n):
    random = np.random.default_rng(5)
    grid = np.linspace(0, 1, 20_001)
    # True risk among answers at least this confident, for confidences uniform in [0, 1].
    risk_above = np.cumsum(error_rate(grid)[::-1])[::-1] / np.arange(len(grid), 0, -1)
    false = 0
    for _ in range(300):
        sure = random.random(n)
        correct = (random.random(n) >= error_rate(sure)).astype(float)
        found = calibrate(sure.tolist(), correct.tolist(), 0.1, 0.1)
        if found.value is not None:
            false += bool(risk_above[int(found.value * 20_000)] > 0.1)
    # 300 runs at a rate of at most 0.1: above 47 has a chance below 0.1 %.
    assert false <= 47


@given(
    st.lists(st.tuples(st.floats(-5, 0), st.booleans()), max_size=150),
    st.sampled_from([0.05, 0.1, 0.2]),
)
def test_a_threshold_is_exactly_what_its_numbers_say(rows, risk):
    confidences = [confidence for confidence, _ in rows]
    correct = [float(right) for _, right in rows]
    found = calibrate(confidences, correct, risk, 0.05)
    json.dumps(found.to_dict())
    shown = [right for sure, right in zip(confidences, correct, strict=True) if found.accepts(sure)]
    assert len(shown) == found.shown
    if found.certified:
        errors = shown.count(0.0)
        assert errors == found.errors
        assert binomial_p_value(errors, len(shown), risk) == pytest.approx(found.p_value)
        assert found.p_value <= 0.05 and found.shown >= found.needed


def test_the_score_that_certifies_most_is_taken_at_its_share_of_the_level():
    sure, right = ranked(300, set(range(200, 300)))
    blind = [sure[(place * 7) % 300] for place in range(300)]
    found = calibrate_best({"mean": blind, "least_value": sure}, right, 0.05, 0.05)
    assert (found.score, found.level) == ("least_value", 0.05)
    assert found.shown == calibrate(sure, right, 0.05, 0.025).shown
    assert found.compared == {"mean": 0.0, "least_value": found.coverage}


def test_scores_compete_only_where_the_rows_suffice():
    sure, right = ranked(150, set())
    found = calibrate_best({"mean": sure, "sequence": sure}, right, 0.05, 0.05)
    assert (found.score, found.compared, found.shown) == ("mean", {}, 150)


def test_the_best_of_several_scores_keeps_the_risk():
    """Sixteen scores that tell nothing of answers a little too bad: none may be certified often."""
    random = np.random.default_rng(5)
    wrong = 0
    for _ in range(200):
        right = (random.random(400) > 0.06).astype(float)
        scores = {f"score {place}": list(random.random(400)) for place in range(16)}
        wrong += calibrate_best(scores, list(right), 0.05, 0.05).certified
    assert wrong <= 8


def test_outcomes_choose_among_the_scores_that_all_of_them_have():
    rows = [outcome(f"{place}") for place in range(300)]
    told = [replace(row, confidences={"mean": -0.1, "least_value": -0.2}) for row in rows]
    assert set(calibrate_outcomes(told, 0.05, 0.05).compared) == {"mean", "least_value"}
    found = calibrate_outcomes([*told[:-1], rows[-1]], 0.05, 0.05)
    assert (found.score, found.compared) == ("mean", {})
    assert told[0].by("least_value").confidence == -0.2 and rows[0].by("sequence") == rows[0]


def test_an_agreement_competes_last_and_its_answers_cost_where_it_is_taken():
    rows = [outcome(f"{place}") for place in range(400)]
    scores = {"mean": -0.1, "agreement_4": 1.0}
    told = [replace(row, confidences=scores, completion_tokens=10, drawn_tokens=40) for row in rows]
    found = calibrate_outcomes(told, 0.05, 0.05)
    assert list(found.compared) == ["mean", "agreement_4"] and found.score == "mean"
    misled = [
        replace(outcome(f"{place}", float(place >= 40)), confidences=scores)
        for place, scores in enumerate(
            {"mean": -float(place), "agreement_4": float(place >= 40)} for place in range(400)
        )
    ]
    assert calibrate_outcomes(misled, 0.05, 0.05).score == "agreement_4"
    taken = told[0].by("agreement_4")
    assert (taken.confidence, taken.completion_tokens) == (1.0, 50)
    assert taken.by("agreement_4") == taken and told[0].by("mean").completion_tokens == 10
