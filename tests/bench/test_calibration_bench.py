"""What the bench counts: what could be shown, and the risk of what a rule shows."""

from __future__ import annotations

import numpy as np

from bench.calibration import measure, most_shown
from infra.prompting.confidence import SCORES


def answer(sure: float, right: bool, checks: bool = True) -> dict[str, object]:
    return {
        "text": '{"a":"b"}',
        "tokens": ['{"a":', '"b"', "}", "<|im_end|>"],
        "logprobs": [-0.001, sure, -0.001, -0.001],
        "correct": float(right),
        "checks": checks,
    }


def test_the_most_that_could_be_shown_is_the_longest_prefix_within_the_risk():
    sure, right = -np.arange(10.0), np.array([1, 1, 1, 1, 0, 1, 1, 1, 1, 0.0])
    assert most_shown(sure, right, 0.12) == 9
    assert most_shown(sure, right, 0.01) == 4
    assert most_shown(np.full(10, -np.inf), right, 0.5) == 0


def test_every_rule_is_measured_on_the_whole_population():
    random = np.random.default_rng(3)
    answers = [
        answer(-float(place) / 100, place < 85, place < 98) | {"agreement_4": float(place < 85)}
        for place in range(100)
    ]
    found = measure([answers[n] for n in random.permutation(100)], 0.03, 300, 4, 5)
    assert (found["answers"], found["right"]) == (100, 0.85)
    for name in (*SCORES, "agreement_4", "best of all, level divided", "chosen on one half"):
        assert found[name]["share beyond the risk"] == 0
        assert 0.7 < found[name]["coverage"] <= 0.87, name
    assert found["plain softmax threshold"]["coverage"] == 0.03
