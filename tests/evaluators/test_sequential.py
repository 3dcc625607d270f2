from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.sequential import Block, Outcome, block_ends, match_blocks, run_test


def canary(score: float = 1.0, epoch: int = 1, **more) -> Outcome:
    return Outcome("canary", epoch, more.get("low", score), more.get("high", score))


def champion(score: float = 1.0, epoch: int = 1, **more) -> Outcome:
    return Outcome("champion", epoch, more.get("low", score), more.get("high", score))


def counts(block: Block) -> tuple[float, ...]:
    return (
        block.canaries,
        block.champions,
        block.canary_low,
        block.canary_high,
        block.champion_low,
        block.champion_high,
    )


def alone(score: float, many: int) -> list[Block]:
    """Canaries beside a teacher that is known to be right."""
    return match_blocks([canary(score)] * many, champion_is_teacher=True)


def test_a_flawless_canary_is_good_and_a_broken_one_bad_within_few_sessions():
    def first(score: float, wanted: str) -> int:
        ends = (n for n in range(1, 100) if verdict(alone(score, n)) == wanted)
        return next(ends)

    def verdict(blocks: list[Block]) -> str:
        return run_test(blocks, 0.1, 0.05, 0.05).verdict

    assert first(1.0, "good") == 34 and first(0.0, "bad") == 4
    assert verdict(alone(1.0, 1000)) == "good"


def test_a_block_holds_both_arms_in_about_their_usual_ratio():
    b, c = "champion", "canary"
    assert block_ends([b, b, c, b, b, c]) == [3, 6]
    # One champion to a canary where four are usual: the canary waits for one more.
    assert block_ends([b, b, b, b, c, c, b, b]) == [5, 8]
    assert block_ends([c, c, c]) == [] and block_ends([b, b, b]) == []
    assert block_ends([c, b, c], champion_is_teacher=True) == [1, 3]


@given(st.lists(st.sampled_from(["canary", "champion"]), max_size=80))
def test_blocks_lie_end_to_end_and_hold_both_arms(arms):
    ends = block_ends(arms)
    assert ends == sorted(set(ends))
    for start, end in zip([0, *ends], ends, strict=False):
        assert {"canary", "champion"} == set(arms[start:end])
    # Where a block ends is known as soon as it ends.
    for end in ends:
        assert end in block_ends(arms[:end])


def test_a_canary_alone_waits_for_the_next_champion_of_its_epoch():
    outcomes = [canary(1), canary(0), champion(0), champion(1), canary(1, 2)]
    (block,) = match_blocks(outcomes, champion_is_teacher=False)
    assert counts(block) == (2, 1, 1, 1, 0, 0)
    # With the teacher as champion nobody waits: it agrees with itself.
    blocks = match_blocks(outcomes, champion_is_teacher=True)
    assert [(block.canaries, block.champions) for block in blocks] == [(1, 0), (1, 0), (1, 0)]


def test_blocks_never_span_a_change_of_weights():
    outcomes = [champion(0, 1), canary(1, 2), champion(1, 2), canary(1, 3)]
    (block,) = match_blocks(outcomes, champion_is_teacher=False)
    assert counts(block) == (1, 1, 1, 1, 1, 1)
    interleaved = [champion(0, 1), canary(1, 2), canary(1, 1), champion(1, 2)]
    first, second = match_blocks(interleaved, champion_is_teacher=False)
    assert (first.champion_low, second.champion_low) == (0, 1)


def test_missing_labels_are_filled_in_against_each_verdict():
    (unknown,) = match_blocks([champion(1), canary(low=0, high=1)], champion_is_teacher=False)
    assert counts(unknown) == (1, 1, 0, 1, 1, 1)
    (unknown,) = match_blocks([champion(low=0, high=1), canary(1)], champion_is_teacher=False)
    assert counts(unknown) == (1, 1, 1, 1, 0, 1)
    nothing = match_blocks(
        [champion(low=0, high=1), canary(low=0, high=1)] * 300, champion_is_teacher=False
    )
    result = run_test(nothing, 0.1, 0.05, 0.05)
    assert (result.verdict, result.e_bad, result.e_good) == ("continue", 1.0, 1.0)
    # A champion of whom nothing is known is no measure to be worse than.
    unknown_beside = match_blocks(
        [champion(low=0, high=1), canary(0)] * 300, champion_is_teacher=False
    )
    assert run_test(unknown_beside, 0.1, 0.05, 0.05).e_bad == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_hiding_a_canarys_label_never_makes_either_verdict_nearer(rows):
    shown = [
        outcome
        for right, beside, _ in rows
        for outcome in (canary(float(right)), champion(float(beside)))
    ]
    hidden = [
        outcome
        for right, beside, lost in rows
        for outcome in (
            canary(low=0, high=1) if lost else canary(float(right)),
            champion(float(beside)),
        )
    ]
    before = run_test(match_blocks(shown, champion_is_teacher=False), 0.1, 0.05, 0.05)
    after = run_test(match_blocks(hidden, champion_is_teacher=False), 0.1, 0.05, 0.05)
    assert after.e_bad <= before.e_bad * (1 + 1e-9)
    assert after.e_good <= before.e_good * (1 + 1e-9)


def test_bad_comes_before_good_and_stays():
    fine, wrong = alone(1.0, 60), alone(0.0, 40)
    assert run_test(fine, 0.1, 0.05, 0.05).verdict == "good"
    assert run_test(fine + wrong, 0.1, 0.05, 0.05).verdict == "bad"
    recovered = alone(0.0, 10) + alone(1.0, 500)
    assert run_test(recovered, 0.1, 0.05, 0.05).verdict == "bad"


def test_evidence_of_the_shadow_counts():
    blocks = alone(0.0, 3)
    without = run_test(blocks, 0.1, 0.05, 0.05)
    assert without.verdict == "continue"
    carried = run_test(blocks, 0.1, 0.05, 0.05, carried=6.0)
    assert carried.verdict == "bad" and carried.e_bad == pytest.approx(6 * without.e_bad)
    assert run_test([], 0.1, 0.05, 0.05, carried=20.0).verdict == "bad"
    assert run_test(blocks, 0.1, 0.05, 0.05, carried=0.1).e_bad == pytest.approx(
        max(0.1 * without.e_bad, 1.0)
    )


def test_the_paths_end_where_the_test_stands():
    result = run_test(alone(1.0, 20), 0.1, 0.05, 0.05)
    assert len(result.path_bad) == len(result.path_good) == 20
    assert result.path_good[-1] == pytest.approx(result.e_good)


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_verdict_on_a_prefix_is_never_taken_back(bad: int, good: int):
    blocks = alone(0.0, bad) + alone(1.0, good)
    seen = [run_test(blocks[:n], 0.1, 0.05, 0.05) for n in range(len(blocks) + 1)]
    assert [one.e_bad for one in seen] == sorted(one.e_bad for one in seen)
    assert [one.e_good for one in seen] == sorted(one.e_good for one in seen)


def test_no_blocks_no_verdict_and_bad_terms_are_refused():
    assert run_test([], 0.1, 0.05, 0.05).verdict == "continue"
    for terms in ((1.0, 0.05, 0.05), (-0.1, 0.05, 0.05), (0.1, 0, 0.05), (0.1, 0.05, 1)):
        with pytest.raises(ValueError):
            run_test([], *terms)
    with pytest.raises(ValueError, match="margin lies"):
        run_test([], 0.1, 0.05, 0.05, rollback_margin=1.0)
    for low, high in ((0.0, 1.5), (math.nan, math.nan), (0.6, 0.4)):
        with pytest.raises(ValueError, match="score"):
            match_blocks([canary(low=low, high=high), champion(1)], champion_is_teacher=False)


def test_nine_champions_beside_each_canary_say_more_than_one():
    def evidence(beside: int, seed: int) -> float:
        random = np.random.default_rng(seed)
        outcomes = []
        for _ in range(150):
            outcomes += [champion(float(random.random() < 0.9)) for _ in range(beside)]
            outcomes.append(canary(float(random.random() < 0.7)))
        blocks = match_blocks(outcomes, champion_is_teacher=False)
        return math.log(run_test(blocks, 0.1, 0.05, 0.05).e_bad)

    nine, one = (np.mean([evidence(beside, seed) for seed in range(20)]) for beside in (9, 1))
    assert nine > one + 1
