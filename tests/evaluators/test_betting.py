from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.betting import Counts, as_good, paired_worse, worse

SIDES = st.integers(1, 6)
MEANS = st.floats(0, 1)


def expected_factor(
    test, past: list, n: int, k: int, canary: float, champion: float, margin: float
):
    """Exact, by enumeration: mean of the last block's factor, given the blocks before it."""
    before = test(Counts.of(past), margin)[-1] if past else 0.0
    mean = 0.0
    for right, beside in itertools.product(range(n + 1), range(k + 1)):
        chance = math.comb(n, right) * canary**right * (1 - canary) ** (n - right)
        chance *= math.comb(k, beside) * champion**beside * (1 - champion) ** (k - beside)
        after = test(Counts.of([*past, (n, right, k, beside)]), margin)[-1]
        mean += chance * math.exp(after - before)
    return mean


pasts = st.lists(
    st.tuples(SIDES, SIDES, st.floats(0, 1), st.floats(0, 1)).map(
        lambda row: (row[0], row[2] * row[0], row[1], row[3] * row[1])
    ),
    max_size=4,
)


@given(pasts, SIDES, SIDES, MEANS, MEANS, st.floats(0.0, 0.99))
def test_no_block_gains_on_average_under_the_doubted_hypothesis(
    past, n, k, canary, champion, margin
):
    """Whatever the past: this and Ville's inequality are the whole proof."""
    if canary >= champion - margin:
        assert expected_factor(worse, past, n, k, canary, champion, margin) <= 1 + 1e-9
    if canary <= champion - margin:
        assert expected_factor(as_good, past, n, k, canary, champion, margin) <= 1 + 1e-9


@given(pasts, st.integers(1, 4), MEANS, st.floats(0.0, 0.9), st.floats(0, 1))
def test_nor_does_a_canary_alone_beside_a_known_champion(past, n, canary, margin, known):
    for test, doubted in ((worse, canary >= known - margin), (as_good, canary <= known - margin)):
        if not doubted:
            continue
        before = test(Counts.of(past), margin, known)[-1] if past else 0.0
        mean = 0.0
        for right in range(n + 1):
            chance = math.comb(n, right) * canary**right * (1 - canary) ** (n - right)
            after = test(Counts.of([*past, (n, right, 0, 0)]), margin, known)[-1]
            mean += chance * math.exp(after - before)
        assert mean <= 1 + 1e-9


@given(st.lists(st.floats(-1, 1), max_size=5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_nor_does_a_pair(past, only_champion, only_candidate, margin):
    total = only_champion + only_candidate
    if total > 1:
        only_champion, only_candidate = only_champion / total, only_candidate / total
    if only_champion - only_candidate > margin:
        return
    before = paired_worse(np.array(past, dtype=float), margin)[-1] if past else 0.0
    chances = {-1.0: only_champion, 1.0: only_candidate, 0.0: 1 - only_champion - only_candidate}
    factors = {
        value: math.exp(paired_worse(np.array([*past, value]), margin)[-1] - before)
        for value in chances
    }
    assert sum(chance * factors[value] for value, chance in chances.items()) <= 1 + 1e-9
    # The bet knows nothing of the pair that it is placed on: the factor is linear in it.
    assert factors[-1.0] + factors[1.0] == pytest.approx(2 * factors[0.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), MEANS, st.floats(0, 0.5))
def test_a_graded_score_gains_at_most_what_the_drawn_right_or_wrong_answer_does(
    scores, other, margin
):
    """Log factors are concave in the scores, so a fraction is worth less than the average of draws."""
    n = len(scores)
    graded = math.exp(worse(Counts.of([(n, sum(scores), 1, other)]), margin)[-1])
    drawn = 0.0
    for outcome in itertools.product((0, 1), repeat=n + 1):
        chance = math.prod(
            score if right else 1 - score
            for score, right in zip([*scores, other], outcome, strict=True)
        )
        drawn += chance * math.exp(
            worse(Counts.of([(n, sum(outcome[:-1]), 1, outcome[-1])]), margin)[-1]
        )
    assert graded <= drawn * (1 + 1e-9)


@given(pasts, SIDES, SIDES, st.data())
def test_a_better_canary_is_never_more_suspect_and_never_less_fit(past, n, k, data):
    """In the last block: this is what makes filling in the worst case the worst case."""
    one, two = sorted(data.draw(st.tuples(st.floats(0, n), st.floats(0, n))))
    beside = data.draw(st.floats(0, k))
    for test, sign in ((worse, -1), (as_good, 1)):
        low = test(Counts.of([*past, (n, one, k, beside)]), 0.05)[-1]
        high = test(Counts.of([*past, (n, two, k, beside)]), 0.05)[-1]
        assert sign * (high - low) >= -1e-9


def test_the_bet_is_nearly_the_best_there_is():
    """Growth on a canary ten points worse, against the largest possible: that of the projection."""
    canary, champion, margin, k = 0.75, 0.85, 0.01, 9
    share = 1 / (k + 1)
    grid = np.linspace(margin + 1e-4, 1 - 1e-4, 200_001)

    def divergence(p: float, q: np.ndarray) -> np.ndarray:
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    best = (k + 1) * np.min(
        share * divergence(canary, grid - margin) + (1 - share) * divergence(champion, grid)
    )
    random = np.random.default_rng(3)
    shape = (400, 500)
    counts = Counts(
        np.ones(shape),
        (random.random(shape) < canary) * 1.0,
        np.full(shape, float(k)),
        random.binomial(k, champion, shape) * 1.0,
    )
    growth = float(worse(counts, margin)[:, -1].mean()) / shape[1]
    assert 0.85 * best <= growth <= 1.02 * best


@given(pasts)
def test_e_values_are_finite_and_start_from_one(past):
    for test in (worse, as_good):
        running = test(Counts.of(past), 0.1)
        assert running.shape == (len(past),) and np.isfinite(running).all()
    assert worse(Counts.of([]), 0.1).shape == (0,)


def test_a_margin_that_leaves_no_room_is_refused():
    for margin in (-0.01, 0.995, 1.0, math.nan):
        for test in (worse, as_good):
            with pytest.raises(ValueError, match="margin lies"):
                test(Counts.of([(1, 1, 1, 1)]), margin)
        with pytest.raises(ValueError, match="margin lies"):
            paired_worse(np.zeros(1), margin)


def test_long_runs_stay_finite():
    many = 20_000
    counts = Counts(np.ones(many), np.zeros(many), np.ones(many), np.ones(many))
    assert np.isfinite(worse(counts, 0.1)).all() and np.isfinite(as_good(counts, 0.1)).all()


@pytest.mark.parametrize(("canary", "champion"), [(0.9, 0.95), (0.7, 0.75), (0.94, 0.99)])
def test_on_the_edge_of_both_hypotheses_the_level_holds_at_every_look(canary, champion):
    random = np.random.default_rng(29)
    shape = (600, 400)
    counts = Counts(
        np.ones(shape),
        (random.random(shape) < canary) * 1.0,
        np.full(shape, 4.0),
        random.binomial(4, champion, shape) * 1.0,
    )
    for test in (worse, as_good):
        crossed = (test(counts, 0.05) >= math.log(20)).any(axis=1).sum()
        assert crossed <= 48  # 600 runs at 0.05: above that has a chance below 0.1 %
