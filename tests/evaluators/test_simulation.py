from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evaluators.policy_trial import draw, try_policy
from evaluators.reach import reachable
from evaluators.sequential import Outcome, match_blocks, run_test
from evaluators.simulation import (
    Stream,
    Terms,
    Traffic,
    draw_sessions,
    draw_stream,
    judge,
    simulate,
    simulate_shadow,
)

TERMS = Terms(max_sessions=200)


def test_a_simulated_rollout_ends_as_run_test_ends_it():
    """The vectorized path and the path of production are one test: same outcomes, same verdict."""
    random = np.random.default_rng(13)
    terms = Terms(
        margin=0.1, rollback_margin=0.02, steps=(0.2, 0.5), step_sessions=10, max_sessions=80
    )
    sessions = draw_sessions(random, terms)
    traffic = Traffic(champion=0.9, harm=0.25, missing_right=0.05, forgiven=0.3)
    stream = draw_stream(random, traffic, sessions, runs=40)
    ends = judge(stream, terms)
    edge = int(np.flatnonzero(np.cumsum(sessions.canary) == terms.step_sessions)[0]) + 1
    for run in range(40):
        outcomes = [
            Outcome(
                "canary" if canary else "champion",
                int(place >= edge),
                float(right and known),
                float(right or not known or forgiven),
            )
            for place, (canary, right, known, forgiven) in enumerate(
                zip(
                    sessions.canary,
                    stream.right[run],
                    stream.known[run],
                    stream.forgiven[run],
                    strict=True,
                )
            )
        ]
        blocks = match_blocks(outcomes, champion_is_teacher=False)
        canaries = np.cumsum([block.canaries for block in blocks])
        looks = (
            run_test(
                blocks[: n + 1],
                terms.margin,
                terms.alpha_bad,
                terms.alpha_good,
                rollback_margin=terms.rollback_margin,
            ).verdict
            for n in range(len(blocks))
        )
        first = next(
            ((verdict, canaries[n]) for n, verdict in enumerate(looks) if verdict != "continue"),
            ("continue", 0),
        )
        assert (int(ends.bad[run]), int(ends.good[run])) == (
            first[1] if first[0] == "bad" else 0,
            first[1] if first[0] == "good" else 0,
        )
    assert (ends.bad > 0).any() and not stream.forgiven[:, ~sessions.canary].any()


def test_the_same_seed_gives_the_same_answer_and_another_does_not():
    one, same = (simulate(Traffic(harm=0.2), TERMS, runs=60, seed=3) for _ in range(2))
    other = simulate(Traffic(harm=0.2), TERMS, runs=60, seed=4)
    assert (one.bad == same.bad).all() and (one.sessions == same.sessions).all()
    assert (one.bad != other.bad).any()


def test_the_declared_errors_hold_and_a_harmful_canary_is_found():
    equal = simulate(Traffic(), Terms(), runs=1500, seed=7)
    assert (equal.bad > 0).mean() <= 0.02
    worse = simulate(Traffic(champion=0.95, harm=0.05), Terms(), runs=1000, seed=7)
    assert (worse.good > 0).mean() <= 0.07
    late = simulate(Traffic(drift=-0.1, missing_right=0.05), Terms(), runs=1000, seed=7)
    assert (late.bad > 0).mean() <= 0.02
    ten, twenty = (simulate(Traffic(harm=harm), Terms(), runs=1000, seed=7) for harm in (0.1, 0.2))
    assert (ten.bad > 0).mean() >= 0.95 and np.median(ten.bad[ten.bad > 0]) <= 160
    assert (twenty.bad > 0).all() and np.median(twenty.bad) <= 50


def test_the_shadow_finds_it_in_fewer_labels():
    def pairs(only_champion: float, only_candidate: float):
        return simulate_shadow(
            only_champion,
            only_candidate,
            rollback_margin=0.01,
            alpha_bad=0.0275,
            pairs=500,
            runs=2000,
            seed=5,
        )

    worse = pairs(0.12, 0.02)
    assert (worse > 0).mean() >= 0.97 and np.median(worse[worse > 0]) <= 105
    assert (pairs(0.05, 0.05) > 0).mean() <= 0.0275


def test_labels_that_never_come_decide_nothing():
    nothing = Traffic(missing_right=1.0, missing_wrong=1.0, harm=0.3)
    ends = simulate(nothing, TERMS, runs=20, seed=1)
    assert not ends.bad.any() and not ends.good.any()


def test_steps_follow_each_other_and_blocks_lie_end_to_end():
    terms = Terms(steps=(0.1, 0.5), step_sessions=30, max_sessions=100)
    sessions = draw_sessions(np.random.default_rng(1), terms)
    assert sessions.starts[0] == 0 and sessions.starts[-1] == len(sessions.canary)
    assert (np.diff(sessions.starts) > 0).all()
    assert 80 <= sessions.canary.sum() <= 100
    for start, end in zip(sessions.starts, sessions.starts[1:], strict=False):
        assert 0 < sessions.canary[start:end].sum() < end - start
    half = len(sessions.canary) // 2
    assert sessions.canary[:half].mean() < sessions.canary[half:].mean()


def test_impossible_traffic_and_terms_are_refused():
    for wrong in (
        {"champion": 1.2},
        {"harm": 2.0},
        {"sessions_per_hour": 0.0},
        {"missing_right": -1},
    ):
        with pytest.raises(ValueError):
            Traffic(**wrong)
    for wrong in ({"margin": 1.0}, {"alpha_bad": 0.0}, {"steps": ()}, {"steps": (1.0,)}):
        with pytest.raises(ValueError):
            Terms(**wrong)
    with pytest.raises(ValueError):
        try_policy(Traffic(), TERMS, (), runs=10, seed=1)


def test_what_a_policy_can_reach():
    easy = reachable(Terms(margin=0.1, max_sessions=2000), Traffic(), harm=0.1)
    assert easy.met and easy.promotion_sessions < 200 and easy.rollback_sessions < 250
    few = reachable(Terms(margin=0.1, max_sessions=60), Traffic())
    assert not few.met and "more than the 60 allowed" in few.reasons[0]
    lost = Traffic(missing_right=0.3, missing_wrong=0.3)
    never = reachable(Terms(margin=0.1, max_sessions=2000), lost)
    assert never.promotion_sessions == math.inf and "can never happen" in never.reasons[0]
    slow = replace(Traffic(), sessions_per_hour=0.5)
    late = reachable(Terms(margin=0.1, max_sessions=2000), slow, deadline_hours=168)
    assert late.reasons and "deadline" in late.reasons[0]
    with pytest.raises(ValueError, match="within the rollback margin"):
        reachable(Terms(rollback_margin=0.1), Traffic(), harm=0.1)


@pytest.mark.parametrize(("harm", "forgiven"), [(0.1, 0.0), (0.2, 0.0), (0.2, 0.2)])
def test_what_is_expected_is_what_happens(harm, forgiven):
    traffic = Traffic(forgiven=forgiven)
    expected = reachable(Terms(), traffic, harm=harm).rollback_sessions
    found = simulate(replace(traffic, harm=harm), Terms(max_sessions=3000), runs=300, seed=2).bad
    assert 0.7 * expected <= found[found > 0].mean() <= 1.5 * expected


def test_a_trial_says_what_each_share_means_and_draws_itself(tmp_path):
    pytest.importorskip("plotly")
    heard: list[int] = []
    trial = try_policy(
        Traffic(maturity_hours=2), TERMS, (0.0, 0.2), runs=60, seed=1, progress=heard.append
    )
    equal, worse = trial.rows()
    assert heard[-1] == 120 and heard == sorted(heard)
    assert equal.reading.startswith("false rollback") and "promotion is right" in equal.reading
    assert worse.reading == "rollback is right, false promotion" and worse.rolled_back > 0.9
    assert worse.hours is not None and worse.hours > 2
    assert equal.rolled_back + equal.promoted + equal.inconclusive == pytest.approx(1)
    draw(trial, tmp_path / "trial.html")
    page = (tmp_path / "trial.html").read_text()
    assert "20 points worse: rolled back" in page and "<script src=" not in page


def test_streams_share_arms_but_not_outcomes():
    sessions = draw_sessions(np.random.default_rng(1), TERMS)
    stream: Stream = draw_stream(np.random.default_rng(2), Traffic(), sessions, 3)
    assert (stream.right[0] != stream.right[1]).any() and stream.known.all()
