from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from evaluators.intervals import (
    binomial_p_value,
    clopper_pearson,
    difference_bounds,
    hoeffding_bentkus_p_value,
    mean_lower_bound,
    proportion_lower,
    proportion_upper,
    session_bootstrap,
)


@given(n=st.integers(1, 400), share=st.floats(0, 1), level=st.floats(0.001, 0.3))
def test_exact_bounds_invert_the_binomial_tail(n, share, level):
    successes = round(share * n)
    upper, lower = proportion_upper(successes, n, level), proportion_lower(successes, n, level)
    assert lower <= successes / n <= upper
    if successes < n:
        assert binom.cdf(successes, n, upper) == pytest.approx(level, rel=1e-6)
    if successes > 0:
        assert binom.sf(successes - 1, n, lower) == pytest.approx(level, rel=1e-6)


def test_nothing_seen_says_nothing():
    assert clopper_pearson(0, 0, 0.05) == (0, 1)
    assert binomial_p_value(0, 0, 0.1) == hoeffding_bentkus_p_value(0, 0, 0.1) == 1
    assert mean_lower_bound([], 0.05) == 0
    assert session_bootstrap([], [], 0.05) == (0, 1)
    with pytest.raises(ValueError):
        clopper_pearson(3, 2, 0.05)


@given(n=st.integers(1, 300), errors=st.integers(0, 40), risk=st.floats(0.01, 0.4))
def test_hoeffding_bentkus_is_never_below_the_exact_p_value(n, errors, risk):
    errors = min(errors, n)
    exact = binomial_p_value(errors, n, risk)
    bound = hoeffding_bentkus_p_value(errors / n, n, risk)
    assert exact * (1 - 1e-9) <= bound <= 1


@pytest.mark.parametrize(
    ("name", "mean", "draw"),
    [
        ("rare failures", 0.95, lambda random, shape: random.random(shape) < 0.95),
        ("coin", 0.5, lambda random, shape: random.random(shape) < 0.5),
        ("graded", 0.8, lambda random, shape: random.beta(4, 1, shape)),
    ],
)
@pytest.mark.parametrize("n", [12, 60])
def test_betting_bound_is_rarely_above_the_mean(name, mean, draw, n):
    random = np.random.default_rng(11)
    missed = sum(
        mean_lower_bound(sample.astype(float), 0.1) > mean for sample in draw(random, (400, n))
    )
    # 400 runs at a rate of at most 0.1: above 60 has a chance below 0.1 %.
    assert missed <= 60


def test_betting_bound_uses_small_variance():
    assert mean_lower_bound(np.ones(80), 0.05) > 0.94
    low, high = difference_bounds(np.zeros(80), 0.05)
    assert -0.06 < low < 0 < high < 0.06
    low, _ = difference_bounds(np.full(200, 0.2), 0.05)
    assert low > 0.1


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_betting_bound_is_below_the_sample_mean(values):
    assert 0 <= mean_lower_bound(values, 0.05) <= np.mean(values) + 1e-9


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError):
        mean_lower_bound([0.2, 1.2], 0.05)
    with pytest.raises(ValueError):
        mean_lower_bound([float("nan")], 0.05)


def test_bootstrap_over_sessions_is_wider_than_over_rows():
    # Ten sessions of ten alike rows hold the information of ten rows.
    values = np.repeat([1, 1, 1, 1, 1, 1, 1, 0, 0, 1], 10).astype(float)
    by_session = session_bootstrap(values, [place // 10 for place in range(100)], 0.05)
    by_row = session_bootstrap(values, list(range(100)), 0.05)
    assert by_session[1] - by_session[0] > 2 * (by_row[1] - by_row[0])
    assert session_bootstrap(values, list(range(100)), 0.05) == by_row
    with pytest.raises(ValueError):
        session_bootstrap(values, ["one"], 0.05)
