from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.sequential import Block, Outcome, e_bad, e_good, match_blocks, run_test


def first_crossing(running: np.ndarray, alpha: float) -> int | None:
    over = np.flatnonzero(running >= 1 / alpha)
    return int(over[0]) + 1 if over.size else None


def test_a_flawless_canary_is_good_and_a_broken_one_bad_within_few_sessions():
    assert first_crossing(e_good(np.zeros(100), 0.1), 0.05) == 34
    assert first_crossing(e_bad(-np.ones(20), 0.1), 0.05) == 6
    assert first_crossing(e_bad(np.zeros(1000), 0.1), 0.05) is None
    assert first_crossing(e_good(-np.ones(1000), 0.1), 0.05) is None


def test_e_values_are_the_mixture_of_products():
    from evaluators.sequential import BETS, WEIGHTS

    differences, margin = [0.0, -1.0, 0.25, 1.0], 0.2
    expected = sum(
        weight
        * np.prod([1 + share / (1 - margin) * (difference + margin) for difference in differences])
        for share, weight in zip(BETS, WEIGHTS, strict=True)
    )
    assert e_good(differences, margin)[-1] == pytest.approx(expected)
    assert sum(WEIGHTS) == pytest.approx(1)


NULLS = {
    # (canary right, champion right): on the edge of the hypothesis that the test doubts.
    "rare errors": (0.9, 1.0),
    "both err": (0.75, 0.85),
    "coin": (0.4, 0.5),
}


def simulate(canary: float, champion: float, runs: int, sessions: int, beside: int, seed: int):
    random = np.random.default_rng(seed)
    first = random.random((runs, sessions)) < canary
    second = (random.random((runs, sessions, beside)) < champion).mean(axis=2)
    return first - second


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("beside", [1, 9])
@pytest.mark.parametrize("test", [e_bad, e_good])
def test_looking_after_every_session_keeps_the_error_rate(name, beside, test):
    """On the edge of both hypotheses at once: canary worse by exactly the margin."""
    differences = simulate(*NULLS[name], runs=600, sessions=400, beside=beside, seed=29)
    crossed = sum(first_crossing(test(run, 0.1), 0.05) is not None for run in differences)
    # 600 runs at a rate of at most 0.05: above 48 has a chance below 0.1 %.
    assert crossed <= 48


def test_graded_scores_keep_the_error_rate():
    random = np.random.default_rng(31)
    canary = random.beta(6, 4, (500, 300))  # mean 0.6
    champion = random.beta(7, 3, (500, 300))  # mean 0.7
    for test in (e_bad, e_good):
        crossed = sum(first_crossing(test(run, 0.1), 0.05) is not None for run in canary - champion)
        assert crossed <= 42


def test_power_on_an_adapter_that_is_right_on_96_percent():
    differences = simulate(0.96, 1.0, runs=400, sessions=500, beside=3, seed=37)
    when = [first_crossing(e_good(run, 0.1), 0.05) for run in differences]
    found = [sessions for sessions in when if sessions is not None]
    assert len(found) >= 0.97 * len(when)
    assert np.median(found) <= 130
    wrong = sum(first_crossing(e_bad(run, 0.1), 0.05) is not None for run in differences)
    assert wrong <= 4


def test_a_canary_20_points_worse_is_rolled_back():
    differences = simulate(0.8, 1.0, runs=300, sessions=500, beside=3, seed=41)
    when = [first_crossing(e_bad(run, 0.1), 0.05) for run in differences]
    assert sum(sessions is not None for sessions in when) >= 0.95 * len(when)
    promoted = sum(first_crossing(e_good(run, 0.1), 0.05) is not None for run in differences)
    assert promoted <= 3


def canary(score: float = 1.0, epoch: int = 1, **more) -> Outcome:
    return Outcome(
        "canary", epoch, more.get("low", score), more.get("high", score), more.get("ag", True)
    )


def champion(score: float = 1.0, epoch: int = 1, **more) -> Outcome:
    return Outcome("champion", epoch, more.get("low", score), more.get("high", score))


def test_a_canary_takes_every_champion_beside_it():
    blocks = match_blocks(
        [champion(1), champion(0), canary(1), champion(0), champion(0), canary(0)],
        champion_is_teacher=False,
    )
    assert blocks == [Block(0.5, 0.5), Block(0.0, 0.0)]


def test_a_canary_alone_waits_for_the_next_champion_of_its_epoch():
    outcomes = [canary(1), canary(0), champion(0), champion(1), canary(1), canary(1, 2)]
    assert match_blocks(outcomes, champion_is_teacher=False) == [Block(1, 1), Block(-1, -1)]
    # With the teacher as champion nobody waits: it agrees with itself.
    assert match_blocks(outcomes, champion_is_teacher=True) == [
        Block(0, 0),
        Block(-1, -1),
        Block(0.5, 0.5),
        Block(0, 0),
    ]


def test_blocks_never_span_a_change_of_weights():
    outcomes = [champion(0, 1), canary(1, 2), champion(1, 2), canary(1, 3)]
    assert match_blocks(outcomes, champion_is_teacher=False) == [Block(0, 0)]
    interleaved = [champion(0, 1), canary(1, 2), canary(1, 1), champion(1, 2)]
    assert match_blocks(interleaved, champion_is_teacher=False) == [Block(1, 1), Block(0, 0)]


def test_missing_labels_are_filled_in_against_each_verdict():
    unknown = match_blocks([champion(1), canary(low=0, high=1)], champion_is_teacher=False)
    assert unknown == [Block(0, -1)]
    unknown = match_blocks([champion(low=0, high=1), canary(1)], champion_is_teacher=False)
    assert unknown == [Block(None, 0)]
    half = match_blocks(
        [champion(low=0, high=1), champion(0.5), canary(1)], champion_is_teacher=False
    )
    assert half == [Block(0.5, 0.25)]


def test_feedback_is_not_held_against_the_imagined_teacher():
    assert match_blocks([canary(0.5, ag=False)], champion_is_teacher=True) == [Block(None, -0.5)]


def test_bad_comes_before_good_and_stays():
    blocks = [Block(0.0, 0.0)] * 60 + [Block(-1.0, -1.0)] * 40
    assert run_test(blocks[:60], 0.1, 0.05, 0.05).verdict == "good"
    assert run_test(blocks, 0.1, 0.05, 0.05).verdict == "bad"
    recovered = [Block(-1.0, -1.0)] * 10 + [Block(0.0, 0.0)] * 500
    assert run_test(recovered, 0.1, 0.05, 0.05).verdict == "bad"


def test_no_blocks_no_verdict_and_bad_terms_are_refused():
    assert run_test([], 0.1, 0.05, 0.05).verdict == "continue"
    for terms in ((1.0, 0.05, 0.05), (-0.1, 0.05, 0.05), (0.1, 0, 0.05), (0.1, 0.05, 1)):
        with pytest.raises(ValueError):
            run_test([], *terms)
    with pytest.raises(ValueError):
        e_good([1.5], 0.1)
    with pytest.raises(ValueError):
        e_good([float("nan")], 0.1)


@given(st.lists(st.floats(-1, 1), max_size=60), st.floats(0, 0.9))
def test_e_values_are_finite_and_never_negative(differences, margin):
    for test in (e_bad, e_good):
        running = test(differences, margin)
        assert running.shape == (len(differences),)
        assert np.isfinite(running).all() and (running >= 0).all()


def test_long_runs_do_not_overflow():
    assert np.isfinite(e_bad(-np.ones(20_000), 0.1)).all()


@given(margin=st.floats(0.01, 0.9), right=st.floats(0, 1))
def test_each_factor_has_mean_at_most_one_under_the_doubted_hypothesis(margin, right):
    """Exact, by enumeration of one block against a champion that is always right."""
    if right <= 1 - margin:
        mean = right * e_good([0.0], margin)[0] + (1 - right) * e_good([-1.0], margin)[0]
    else:
        mean = right * e_bad([0.0], margin)[0] + (1 - right) * e_bad([-1.0], margin)[0]
    assert mean <= 1 + 1e-9
