from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.distances import Column, dealt, distances, limits, thresholds
from evaluators.drift import MIN_ROWS, Sensitivity, TooFewRows, report
from evaluators.languages import language_of
from evaluators.localising import locate
from evaluators.topics import topics
from evaluators.watched import row_of_call
from infra.calls.record import FeedbackRecord
from tests.evaluators.making import call

WORDS = ["turn", "on", "the", "light", "in", "hall", "kitchen", "attic", "please", "now", "again"]


def rows(n: int, seed: int, *, words: int = 6, tools: tuple[str, ...] = ("on", "off")):
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": " ".join(random.choice(WORDS, 2 + int(random.integers(words)))),
            "answer": "ok " * int(random.integers(1, 4)),
            "action": str(random.choice(tools)),
            "feedback": float(random.gamma(2.0, 0.1)),
            "ignored": object(),
            "call_id": f"{seed}-{number}",
        }
        for number in range(n)
    ]


def test_changed_prompts_and_tools_drift_and_the_rest_does_not(tmp_path: Path):
    moved = rows(150, 2, words=30, tools=("off", "dim", "dim"))
    found = report(rows(200, 1), moved, tmp_path / "report")
    assert {"prompt_length", "prompt_words", "action"} <= set(found.drifted)
    assert not {name for name in found.drifted if name.startswith(("answer", "feedback"))}
    assert found.share == len(found.drifted) / len(found.columns)
    assert "feedback" in found.columns and "ignored" not in found.columns
    first = {finding.column: finding for finding in found.findings}
    assert first["prompt_length"].now["mean"] > 2 * first["prompt_length"].before["mean"]
    longest = max(moved, key=lambda row: len(row["prompt"]))
    assert first["prompt_length"].examples[0] == longest["call_id"]
    assert (first["action"].before["dim"], first["action"].now["dim"] > 0.5) == (0.0, True)
    by_id = {row["call_id"]: row for row in moved}
    assert {by_id[name]["action"] for name in first["action"].examples} == {"dim"}
    stored = json.loads(found.json.read_text())
    assert stored["summary"]["drifted"] == list(found.drifted)
    assert stored["report"]["metrics"]
    page = found.html.read_text()
    assert "<html" in page and "prompt_words" in page
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "drift.html",
        "drift.json",
    ]
    json.dumps(found.to_dict())


def test_samples_are_capped_and_the_result_is_the_same_again(tmp_path: Path):
    few = Sensitivity(max_rows=60)
    first = report(rows(300, 5), iter(rows(300, 6)), tmp_path, sensitivity=few)
    assert (first.reference_rows, first.current_rows, first.drifted) == (60, 60, ())
    assert report(rows(300, 5), rows(300, 6), tmp_path, sensitivity=few) == first


def test_too_little_to_compare_is_said(tmp_path: Path):
    with pytest.raises(TooFewRows, match=f"at least {MIN_ROWS}"):
        report(rows(3, 1), rows(200, 2), tmp_path)
    empty: list[dict[str, Any]] = [{"prompt": None}] * 50
    with pytest.raises(TooFewRows, match="no column is filled"):
        report(empty, empty, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_falls_silent_is_found(tmp_path: Path):
    silent = [row | {"answer": "" if n % 2 else "  "} for n, row in enumerate(rows(60, 9))]
    silent[0] |= {"prompt": ""}
    found = report(rows(60, 8), [*silent, *rows(60, 10)], tmp_path)
    assert "answer_words" in found.drifted


def test_the_row_of_a_call():
    plain = row_of_call(call("one", 0))
    assert (plain["prompt"], plain["answer"], plain["action"]) == ("is it?", "yes", "words")
    assert (plain["label"], plain["refused"], plain["escalated"]) == ("yes", "no", "no")
    record = call("one", 0)
    function = {"name": "play", "arguments": '{"n": 1}'}
    message = {"content": None, "tool_calls": [{"function": function}, {"function": {"name": "a"}}]}
    tool = row_of_call(record.model_copy(update={"response": {"choices": [{"message": message}]}}))
    assert tool["action"] == "a+play" and '"n": 1' in tool["answer"] and tool["label"] is None
    assert row_of_call(call("one", 0, answered=False))["action"] == "nothing"
    sorry = {"content": "I'm sorry, but I can't help with that."}
    refused = record.model_copy(update={"response": {"choices": [{"message": sorry}]}})
    said = [FeedbackRecord(call_id=record.id, correction={"content": "no"})]
    row = row_of_call(refused, said)
    assert (row["refused"], row["feedback"]) == ("yes", 0.0)
    odd = record.model_copy(
        update={"response": {"choices": [{"message": {"tool_calls": ["x", {"function": 3}]}}]}}
    )
    assert row_of_call(odd)["action"] == "nothing"


def test_languages_and_topics_tell_texts_apart():
    assert language_of("please turn on the light in the kitchen") == "en"
    assert language_of("schalte bitte das Licht in der Küche ein") == "de"
    assert language_of("<EMAIL_1> 4711") == "short"
    texts = ["where is my parcel, it is late"] * 5 + ["turn on the kitchen light"] * 5
    many = [f"{text} {number % 7 * 'please '}" for number, text in enumerate(texts * 10)]
    found = topics(many, np.random.default_rng(1))
    parcels = {t for t, text in zip(found, many, strict=True) if "parcel" in text}
    lights = {t for t, text in zip(found, many, strict=True) if "light" in text}
    assert parcels and lights and not parcels & lights
    assert set(topics([""] * 100, np.random.default_rng(1))) == {"topic 01"}


class TestThresholds:
    def test_they_are_kept_in_stationary_traffic_for_all_columns_together(self):
        """Sessions of eight calls that are alike, and columns that say nearly the same."""
        random, drifted, rounds = np.random.default_rng(1), 0, 150
        session = np.repeat(np.arange(30), 8)
        for _ in range(rounds):
            base = random.normal(size=30)[session]
            values = base + random.normal(size=240) / 2
            columns = {
                "number": Column("number", values, 1e-6),
                "again": Column("number", values + random.normal(size=240) / 9, 1e-6),
                "category": Column("category", (base > 0.5).astype(float), 1e-6),
            }
            side = np.arange(240) < 160
            found = distances(columns, side)
            reached = thresholds(columns, [str(s) for s in session], side, 0.1, random, 200)
            drifted += any(found[name] >= reached[name] for name in columns)
        # 0.1 of 150 are 15; more than 27 come in one of a thousand such tests.
        assert drifted <= 27
        # Rows by themselves, as if calls of a session knew nothing of each other, would cry wolf.
        reached = thresholds(columns, [str(n) for n in range(240)], side, 0.1, random, 200)
        whole = thresholds(columns, [str(s) for s in session], side, 0.1, random, 200)
        assert reached["number"] < 0.7 * whole["number"]

    def test_they_fall_with_rows_to_the_least_that_counts(self):
        random = np.random.default_rng(2)
        few, many = (
            thresholds(
                {"n": Column("number", random.normal(size=size), 0.1)},
                [str(n) for n in range(size)],
                np.arange(size) < size // 2,
                0.01,
                random,
                200,
            )["n"]
            for size in (50, 4000)
        )
        assert many == 0.1 < few

    def test_a_missing_value_is_of_no_window_and_a_constant_column_never_drifts(self):
        values = np.array([1.0, np.nan, 1.0, 1.0, np.nan, 1.0])
        side = np.arange(6) < 3
        columns = {
            "number": Column("number", values, 0.1),
            "category": Column("category", np.array([5.0, 5, 5, 9, 9, np.nan]), 0.1),
            "none": Column("number", np.full(6, np.nan), 0.1),
        }
        found = distances(columns, side)
        assert (found["number"], found["none"]) == (0.0, 0.0)
        assert found["category"] == pytest.approx(np.sqrt(np.log(2)))
        drawn = dealt(columns, list("abcdef"), side, np.random.default_rng(1), 20)
        assert limits(drawn, columns, 0.05)["number"] >= 0.1


def test_a_change_of_spread_is_shown_at_both_ends():
    values = [*np.linspace(-1, 1, 50), *np.linspace(-9, 9, 50)]
    ids = [f"c{n}" for n in range(100)]
    found = locate("n", "number", values, np.arange(100) < 50, ids, 1.0, 0.5)
    assert {"c50", "c99"} <= set(found.examples)
    wording = locate("label", "category", ["a"] * 50 + ["b"] * 50, np.arange(100) < 50, ids, 1, 0.5)
    assert "b 0%, now 100%" in wording.told()


def test_what_callers_wrote_is_kept_as_codes_and_not_at_all_of_few_sessions(tmp_path: Path):
    """The frequent one of many sessions has a code; one session's, however often, is among the others."""
    before = [{"label": "paid by Jane", "session": f"s{n}"} for n in range(60)]
    often = [{"label": "billing", "session": f"t{n}"} for n in range(30)]
    now = [*often, *({"label": "Jane Doe, Elm 4", "session": "one"} for _ in range(12))]
    found = report(before, now, tmp_path)
    (finding,) = found.findings
    assert finding.column == "label" and set(finding.now) == {"label 01", "label 02", "(others)"}
    assert finding.now["label 02"] == pytest.approx(30 / 42)
    kept = found.json.read_text() + found.html.read_text() + finding.told()
    assert not any(text in kept for text in ("Jane", "billing")) and "label 02 0%, now" in kept


def test_the_room_is_light_to_import():
    code = (
        "import sys, evaluators.drift, evaluators.evidence, evaluators.gate, evaluators.scorecard, "
        "evaluators.calibration; "
        "heavy = ('evidently', 'pandas', 'scipy', 'sklearn', 'py3langid'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
