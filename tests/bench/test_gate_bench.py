"""The bench's shortcuts say what the gate's own bound says."""

from __future__ import annotations

import numpy as np

from bench.gate import LEVEL, MARGIN, differing, nights, passes
from evaluators.gate import non_inferiority_bounds
from evaluators.tries import level_of_try


def test_passing_is_the_gates_bound():
    lost, won = np.array([0, 0, 1, 4, 4]), np.array([0, 9, 3, 0, 30])
    said = passes(lost, won, 100, 2)
    for place, (a, b) in enumerate(zip(lost, won, strict=True)):
        rows = [-1.0] * a + [1.0] * b + [0.0] * (100 - a - b)
        low, _, _ = non_inferiority_bounds(
            rows, level_of_try(LEVEL, 2), incumbent="home@x", margin=MARGIN
        )
        assert said[place] == (low >= -MARGIN)
    assert said.any() and not said.all()


def test_nights_have_the_mean_that_was_asked_for():
    lost, won = nights(0.24, -0.055, 1000, 2000, np.random.default_rng(1))
    assert abs(float((won - lost).mean()) / 1000 + 0.055) < 0.002
    assert abs(float((won + lost).mean()) / 1000 - 0.24) < 0.002


def test_rows_differ_where_one_alone_is_right():
    right = {"a": (1, 1, 0, 0, 0.5), "b": (1, 0, 1, 0, 1)}
    rows = {name: [{"correct": value} for value in values] for name, values in right.items()}
    assert differing(rows) == 0.6
