from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.sample_ratio import ALPHA, Split, log_mismatch, sample_ratio

# Log posterior odds of savvi 0.3.1, Multinomial(alpha, [share, 1 - share]) with its default k = 100,
# after the same counts in one to three batches. Stored, because savvi brings cvxpy, four solvers and
# (undeclared) matplotlib: more to install than the whole product for six numbers.
SAVVI = {
    (3, 7, 0.5): 0.025526563581857887,
    (21, 181, 0.1): -0.558248550331264,
    (0, 40, 0.1): 0.6824352133032452,
    (60, 1200, 0.1): 20.250645713981044,
    (8, 599, 0.01): -0.9241043423418677,
    (70, 130, 0.25): 2.7498368519386247,
}


@pytest.mark.parametrize("counts", SAVVI)
def test_it_agrees_with_savvi(counts):
    assert log_mismatch(Split(*counts)) == pytest.approx(SAVVI[counts], abs=1e-8)


def test_a_sound_split_is_left_alone_and_a_broken_one_found():
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(2000):
        arms = random.random(400) < 0.1
        counts = [(int(arms[:n].sum()), n) for n in (50, 100, 200, 400)]
        alarms += any(sample_ratio([Split(k, n - k, 0.1)]).mismatch for k, n in counts)
    assert alarms <= 9  # 2000 runs at 0.001: above 9 has a chance below 0.01 %
    found = sample_ratio([Split(60, 1200, 0.1)])
    assert found.mismatch and found.e_value >= 1 / ALPHA
    assert "60 of 1260 at 10%" in found.reason


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_under_a_sound_split_it_gains_nothing_on_average(n, share):
    mean = sum(
        math.comb(n, k)
        * share**k
        * (1 - share) ** (n - k)
        * math.exp(log_mismatch(Split(k, n - k, share)))
        for k in range(n + 1)
    )
    assert mean == pytest.approx(1, rel=1e-6)


def test_epochs_multiply_and_a_full_canary_has_no_champions():
    one, two = Split(30, 100, 0.25), Split(40, 50, 0.5)
    together = sample_ratio([one, two])
    assert math.log(together.e_value) == pytest.approx(log_mismatch(one) + log_mismatch(two))
    assert sample_ratio([]).e_value == 1 and not sample_ratio([Split(50, 0, 1.0)]).mismatch
    assert sample_ratio([Split(50, 1, 1.0)]).mismatch
    for wrong in (Split(-1, 3, 0.1), Split(1, 3, 0.0), Split(1, 3, 1.1)):
        with pytest.raises(ValueError, match="share"):
            sample_ratio([wrong])
