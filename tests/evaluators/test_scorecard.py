from __future__ import annotations

import json

import pytest

from evaluators.intervals import clopper_pearson
from evaluators.scorecard import Scorecard, compare, make_scorecard, mean_interval
from tests.evaluators.making import outcome


def test_one_row_per_session_gets_the_exact_interval():
    card = make_scorecard("base", "d" * 64, [outcome(f"r{n}", float(n > 2)) for n in range(30)])
    assert (card.rows, card.sessions, card.mean) == (30, 30, 0.9)
    assert card.interval.method == "clopper-pearson"
    assert (card.interval.low, card.interval.high) == clopper_pearson(27, 30, 0.05)
    low, high = clopper_pearson(27, 30, 0.05)
    assert card.stages == {"exact": {"rows": 30, "mean": 0.9, "low": low, "high": high}}
    assert card.tokens == {}


def test_sessions_are_the_unit_where_they_repeat():
    rows = [outcome(f"r{n}", float(n >= 5), session=f"s{n // 5}") for n in range(50)]
    card = make_scorecard("adapter", "d" * 64, rows)
    assert card.interval.method == "session bootstrap" and card.sessions == 10
    assert card.interval.low < 0.9 < card.interval.high
    all_right = mean_interval([1.0] * 50, [n // 5 for n in range(50)], 0.05)
    assert (all_right.low, all_right.high) == clopper_pearson(10, 10, 0.05)


def test_slices_are_scored_each():
    rows = [outcome(f"r{n}", float(n > 3)) for n in range(10)]
    slices = {f"r{n}": {"tool": "a" if n < 5 else "b"} for n in range(10)}
    card = make_scorecard("adapter", "d" * 64, rows, slices=slices)
    means = {name: (found["rows"], found["mean"]) for name, found in card.slices.items()}
    assert means == {"tool=a": (5, 0.2), "tool=b": (5, 1.0)}
    assert card.slices["tool=a"]["low"] < 0.2 < card.slices["tool=a"]["high"]
    assert Scorecard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_worst_rows_errors_and_latencies():
    rows = [outcome(f"r{n:02}", 0.0 if n < 30 else 1.0) for n in range(60)]
    rows += [outcome("broken", 0.0, error="EngineTimeout: said something long about a person")]
    card = make_scorecard("adapter", "d" * 64, rows)
    assert len(card.worst) == 20 and all(row["correct"] == 0 for row in card.worst)
    assert card.errors == 1 and card.error_reasons == {"EngineTimeout": 1}
    assert "person" not in json.dumps(card.to_dict())
    assert card.latency_seconds == {"p50": 0.5, "p90": 0.5, "p95": 0.5, "p99": 0.5}
    dead = make_scorecard("adapter", "d" * 64, [outcome("x", 0.0, error="EngineTimeout: x")])
    assert dead.latency_seconds == {} and dead.mean == 0


def test_round_trip_keeps_the_digest_and_content_changes_it():
    rows = [outcome(f"r{n}", float(n % 3 > 0)) for n in range(30)]
    card = make_scorecard("adapter", "d" * 64, rows)
    assert make_scorecard("adapter", "d" * 64, rows).digest == card.digest
    assert Scorecard.from_dict(json.loads(json.dumps(card.to_dict()))).digest == card.digest
    assert make_scorecard("adapter", "e" * 64, rows).digest != card.digest


def test_paired_comparison_on_the_rows_both_answered():
    first = [outcome(f"r{n}", 1.0, session=f"s{n // 2}") for n in range(40)]
    second = [outcome(f"r{n}", float(n % 4 > 0), session=f"s{n // 2}") for n in range(30)]
    found = compare(first, second)
    assert (found.rows, found.sessions, found.first_better, found.second_better) == (30, 15, 8, 0)
    assert found.difference == pytest.approx(8 / 30)
    assert 0 < found.interval.low < 8 / 30 < found.interval.high
    assert compare(first, second) == found
    assert compare(second, first).difference == -found.difference


def test_nothing_is_no_evidence():
    with pytest.raises(ValueError, match="test split"):
        make_scorecard("adapter", "d" * 64, [])
    with pytest.raises(ValueError, match="in common"):
        compare([outcome("a")], [outcome("b")])
