from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.distances import jensen_shannon, null_threshold, wasserstein
from evaluators.drift import MIN_ROWS, TooFewRows, drift_row, report
from tests.evaluators.making import call

WORDS = ["turn", "on", "the", "light", "in", "hall", "kitchen", "attic", "please", "now", "again"]


def rows(n: int, seed: int, *, words: int = 6, tools: tuple[str, ...] = ("on", "off")):
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": " ".join(random.choice(WORDS, 2 + int(random.integers(words)))),
            "answer": "ok " * int(random.integers(1, 4)),
            "action": str(random.choice(tools)),
            "latency_seconds": float(random.gamma(2.0, 0.1)),
            "ignored": object(),
        }
        for _ in range(n)
    ]


def test_changed_prompts_and_tools_drift_and_the_rest_does_not(tmp_path: Path):
    moved = rows(150, 2, words=30, tools=("off", "dim", "dim"))
    found = report(rows(200, 1), moved, tmp_path / "report")
    assert set(found.drifted) == {"prompt_length", "prompt_words", "action"}
    assert found.share == len(found.drifted) / len(found.columns)
    assert "latency_seconds" in found.columns and "ignored" not in found.columns
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


def test_two_small_windows_of_the_same_traffic_do_not_drift(tmp_path: Path):
    found = report(rows(40, 3), rows(30, 4), tmp_path)
    assert found.drifted == () and found.share == 0


def test_samples_are_capped_and_the_result_is_the_same_again(tmp_path: Path):
    first = report(rows(300, 5), iter(rows(300, 6)), tmp_path, max_rows=60)
    assert (first.reference_rows, first.current_rows) == (60, 60)
    assert report(rows(300, 5), rows(300, 6), tmp_path, max_rows=60) == first


def test_too_little_to_compare_is_said(tmp_path: Path):
    with pytest.raises(TooFewRows, match=f"at least {MIN_ROWS}"):
        report(rows(3, 1), rows(200, 2), tmp_path)
    empty: list[dict[str, Any]] = [{"prompt": None}] * 50
    with pytest.raises(TooFewRows, match="no column is filled"):
        report(empty, empty, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_row_of_a_call():
    assert drift_row(call("one", 0)) == {"prompt": "is it?", "answer": "yes", "action": "words"}
    record = call("one", 0)
    function = {"name": "play", "arguments": '{"n": 1}'}
    message = {"content": None, "tool_calls": [{"function": function}, {"function": {"name": "a"}}]}
    tool = record.model_copy(update={"response": {"choices": [{"message": message}]}})
    assert drift_row(tool)["action"] == "a+play" and '"n": 1' in drift_row(tool)["answer"]
    assert drift_row(call("one", 0, answered=False))["answer"] == ""


def test_thresholds_follow_the_sample_size():
    random = np.random.default_rng(1)
    few, many = random.normal(size=25), random.normal(size=2000)
    small = null_threshold(few, random.normal(size=25), wasserstein, random)
    large = null_threshold(many, random.normal(size=2000), wasserstein, random)
    assert large == 0.1 < small
    assert jensen_shannon(np.array([0, 0, 1]), np.array([0, 0, 1])) == 0
    assert jensen_shannon(np.array([0, 0]), np.array([1, 1])) > 0.8


def test_the_room_is_light_to_import():
    code = (
        "import sys, evaluators.drift, evaluators.evidence, evaluators.gate, evaluators.scorecard, "
        "evaluators.calibration; print([m for m in ('evidently', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
