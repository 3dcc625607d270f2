"""The page that a person reads, and the curve on it."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from xml.etree import ElementTree

import pytest

from evaluators.calibration import calibrate_outcomes
from evaluators.pages import Heading, Items, Picture, Table, Words, html, markdown
from evaluators.risk_coverage import MAX_POINTS, Point, draw, risk_coverage
from evaluators.scorecard import make_scorecard
from evaluators.scorecard_page import Price, costs_per_thousand, scorecard_page
from evaluators.served import serve
from flows.answerers import compared_cards, curves_of
from infra.settings.learning import Gate
from tests.evaluators.making import START, outcome
from trainers.data_sets.labels import Example

DATA = "d" * 64


def test_the_curve_shows_the_surest_first() -> None:
    points = risk_coverage([-0.1, -0.2, -0.2, -0.3, None, -math.inf], [1, 1, 0, 0, 1, 1])
    assert points == (Point(1 / 6, 0), Point(0.5, 1 / 3), Point(4 / 6, 0.5))
    many = risk_coverage([-n / 1000 for n in range(1000)], [1.0] * 1000)
    assert len(many) <= MAX_POINTS and many[-1] == Point(1.0, 0.0)
    assert risk_coverage([None, None], [1, 0]) == ()


def test_the_picture_is_drawn_whatever_there_is() -> None:
    for curves, served in (
        ({"mean": [Point(0.5, 0.0), Point(1.0, 0.2)]}, Point(0.5, 0.0)),
        ({"mean": []}, None),
        ({}, None),
    ):
        root = ElementTree.fromstring(draw(curves, 0.05, served, 0.3))
        assert root.tag.endswith("svg")
        assert len(root.findall("{*}circle")) == (served is not None)


def test_a_page_is_the_same_in_both_forms_and_says_what_it_was_given() -> None:
    blocks = [
        Heading("h"),
        Words("<b>&"),
        Items(["one", "two"]),
        Table(["a", "b"], [["x|y", "<i>"]]),
        Picture("<svg/>", "p"),
    ]
    text, page = markdown("t", blocks, "p.svg"), html("t", blocks)
    assert text.splitlines()[0] == "# t" and "| x\\|y | <i> |" in text and "![p](p.svg)" in text
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page and "<svg/>" in page
    assert page.index("<h2>h") < page.index("<li>one") < page.index("<td>x|y")


def test_a_thousand_calls_cost_what_is_asked_of_whom() -> None:
    cards = {
        "adapter": {"tokens": {"prompt": 100, "completion": 20}},
        "base": {"tokens": {"prompt": 500, "completion": 90}},
        "teacher": {"tokens": {}},
    }
    found = costs_per_thousand(Price(5.0, 0.5), cards, 0.75)
    assert found["adapter"] == pytest.approx(0.06)
    assert found["teacher"] == pytest.approx(2.6)
    assert found["served"] == pytest.approx(0.06 + 0.25 * 2.6)
    assert costs_per_thousand(Price(5.0, 0.5), {"adapter": {}, "base": {}}, 0.5) == {}


def test_everybody_stands_on_the_page_on_the_same_rows() -> None:
    rows = [
        outcome(f"r{n}", float(n % 10 > 0), -0.01 * (1 + 9 * (n % 10 == 0))) for n in range(200)
    ]
    rows = [replace(row, prompt_tokens=100, completion_tokens=20) for row in rows]
    request = {"messages": [{"role": "user", "content": "is it?"}]}
    test = [
        Example(row.example_id, row.session, START, request, {"content": "yes"}, 1.0, source, "s")
        for row, source in zip(rows, ["correction"] * 20 + ["teacher"] * 180, strict=True)
    ]
    threshold = calibrate_outcomes(rows, 0.05, 0.05)
    slices = {row.example_id: {"tool": "on" if n % 2 else "off"} for n, row in enumerate(rows)}
    own = {
        "adapter": make_scorecard("lights@1", DATA, rows, slices=slices),
        "base": make_scorecard("tiny", DATA, rows[:20], slices=slices),
        **compared_cards(
            DATA,
            test,
            slices,
            adapter=("lights@1", rows),
            served=serve(rows, threshold.value),
            incumbent=("lights@0", rows),
            teacher="large",
        ),
    }
    assert own["teacher"].mean == 0.9 and own["adapter"].mean == 0.9
    # Two of the corrected answers are asked of the teacher, which was wrong there.
    assert own["served"].mean == pytest.approx(0.99)
    assert own["incumbent"].answerer == "lights@0" and own["served"].latency_seconds == {}
    cards = {name: card.to_dict() for name, card in own.items()}
    judgement = {
        "adapter": "lights@1",
        "verdict": "pass",
        "reasons": ["as good as the incumbent"],
        "dataset_digest": DATA,
        "threshold": threshold.value,
        "confidence": "mean",
        "scorecards": cards,
        "gate": {"evidence": {"calibration": threshold.to_dict()}},
        "risk_coverage": curves_of(rows, threshold, Gate()),
        "costs": costs_per_thousand(Price(5.0, 0.0), cards, 0.9),
    }
    title, blocks = scorecard_page(judgement)
    text = markdown(title, blocks, "p.svg")
    assert title == "lights@1 passes"
    assert "| what callers get | 99.0%" in text and "| teacher: large | 90.0%" in text
    assert "answers 90.0% of the calls, of which 0.0% are wrong" in text
    assert len(re.findall(r"^\| r\d+ \|", text, re.MULTILINE)) == 20
    assert "tool=off | 100 | 80.0%" in text
    # What a judgement of an earlier release lacks is left out.
    old = {k: v for k, v in judgement.items() if k not in ("risk_coverage", "costs", "confidence")}
    plain = {**asdict(own["adapter"]), "stages": {"exact": {"rows": 200, "mean": 0.9}}}
    plain["slices"] = {"tool=on": {"rows": 100, "mean": 1.0}}
    assert "tool=on" in markdown(*scorecard_page({**old, "scorecards": {"adapter": plain}}), "p")
