from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.calibration import calibrate
from evaluators.gate import GateEvidence, GatePolicy, decide, non_inferiority_bounds
from evaluators.guards import slices_of
from evaluators.honesty import Honesty, check_honesty
from evaluators.intervals import proportion_upper
from evaluators.served import GateRow, gate_rows, serve
from evaluators.tries import level_of_try
from infra.settings.learning import Gate
from tests.evaluators.making import outcome, row

POLICY = GatePolicy.from_settings(Gate(slices=()))


def evidence(rows, **more) -> GateEvidence:
    return GateEvidence(
        "lights@0123456789abcdef", more.pop("incumbent", "teacher"), tuple(rows), **more
    )


def test_a_perfect_adapter_passes_with_enough_rows_and_is_inconclusive_with_few():
    result = decide(POLICY, evidence([row(place) for place in range(69)]))
    assert result.verdict == "pass" and result.passed
    level = 0.05 * 6 / np.pi**2
    assert result.numbers["lower_bound"] == pytest.approx(level ** (1 / 69) - 1)
    few = decide(POLICY, evidence([row(place) for place in range(68)]))
    assert few.verdict == "inconclusive" and not few.passed
    assert "not shown to be as good" in few.reasons[0]
    fewer = decide(POLICY, evidence([row(place) for place in range(29)]))
    assert fewer.verdict == "inconclusive" and "fewer than the 30" in fewer.reasons[0]
    assert decide(POLICY, evidence([])).verdict == "inconclusive"


def test_sixty_percent_right_that_knows_which_sixty_goes_to_work():
    rows = [row(place, float(place % 5 < 3), accepted=place % 5 < 3) for place in range(100)]
    result = decide(POLICY, evidence(rows))
    assert result.verdict == "pass"
    assert result.numbers["coverage"] == 0.6 and result.numbers["adapter_score"] == 0.6
    assert result.numbers["served_score"] == 1


def test_confidently_wrong_fails():
    rows = [row(place, float(place % 5 != 0)) for place in range(100)]
    result = decide(POLICY, evidence(rows))
    assert result.verdict == "fail" and result.reasons[0].startswith("worse than the incumbent")


def test_too_little_coverage_fails_however_right():
    rows = [row(place, accepted=place < 20) for place in range(100)]
    result = decide(POLICY, evidence(rows))
    assert result.verdict == "fail" and "20%" in result.reasons[0]


def test_no_better_than_the_base_model_fails_and_unmeasured_base_is_inconclusive():
    same = decide(POLICY, evidence([row(place, base=1.0) for place in range(80)]))
    assert same.verdict == "fail" and "untrained base" in same.reasons[0]
    unmeasured = decide(POLICY, evidence([row(place, base=None) for place in range(80)]))
    assert unmeasured.verdict == "inconclusive"
    hardly = [row(place, base=0.0 if place < 2 else 1.0) for place in range(80)]
    assert decide(POLICY, evidence(hardly)).verdict == "inconclusive"


def test_a_sick_engine_is_no_verdict_on_the_adapter():
    rows = [row(place, 0.0, accepted=False, error=place < 12) for place in range(100)]
    result = decide(POLICY, evidence(rows))
    assert result.verdict == "inconclusive" and "engine failed on 12" in result.reasons[0]


def test_losses_gathered_in_one_session_are_not_independent_rows():
    scattered = [row(place, float(place not in (3, 150))) for place in range(200)]
    assert decide(POLICY, evidence(scattered)).verdict == "pass"
    gathered = [row(place, float(place >= 4), session=f"s{place // 40}") for place in range(200)]
    result = decide(POLICY, evidence(gathered))
    assert result.verdict == "inconclusive" and "few sessions" in result.reasons[0]


def test_uncertified_threshold():
    too_few = calibrate([0.5] * 20, [1.0] * 20, 0.05, 0.05).to_dict()
    unshown = [row(place, accepted=False) for place in range(80)]
    assert decide(POLICY, evidence(unshown, calibration=too_few)).verdict == "inconclusive"
    wrong = calibrate([0.5] * 80, [0.0] * 80, 0.05, 0.05).to_dict()
    result = decide(POLICY, evidence(unshown, calibration=wrong))
    assert result.verdict == "fail" and "no confidence threshold" in result.reasons[0]


def test_what_was_learned_before_must_not_be_lost():
    rows = [row(place) for place in range(80)]
    kept = {"ab" * 32: tuple(row(place) for place in range(20))}
    assert decide(POLICY, evidence(rows, earlier=kept)).verdict == "pass"
    doubtful = {"ab" * 32: tuple(row(place, float(place > 1)) for place in range(20))}
    assert decide(POLICY, evidence(rows, earlier=doubtful)).verdict == "inconclusive"
    lost = {"ab" * 32: tuple(row(place, float(place > 15)) for place in range(20))}
    result = decide(POLICY, evidence(rows, earlier=lost))
    assert result.verdict == "fail" and "unlearned" in result.reasons[0]


def test_a_better_adapter_replaces_a_champion_that_errs():
    rows = [
        row(place, float(place % 50 != 0), incumbent=float(place % 5 != 0)) for place in range(300)
    ]
    assert decide(POLICY, evidence(rows, incumbent="lights@fedcba9876543210")).verdict == "pass"
    graded = [row(place, 0.95, incumbent=0.9) for place in range(120)]
    result = decide(POLICY, evidence(graded, incumbent="lights@fedcba9876543210"))
    assert result.verdict == "pass" and result.numbers["method"] == "betting"


@pytest.mark.parametrize(
    ("incumbent", "lost", "won"),
    [
        ("teacher", 0.05, 0.0),
        ("teacher", 0.08, 0.03),
        ("adapter", 0.08, 0.03),
        ("adapter", 0.3, 0.25),
    ],
)
@pytest.mark.parametrize("n", [40, 100])
def test_false_passes_stay_under_the_level(incumbent, lost, won, n):
    """On the edge of the margin, where the chance of a false pass is largest."""
    random = np.random.default_rng(3)
    drawn = random.choice([-1.0, 1.0, 0.0], p=[lost, won, 1 - lost - won], size=(300, n))
    passes = sum(
        non_inferiority_bounds(list(sample), 0.1, incumbent=incumbent)[0] >= -0.05
        for sample in drawn
    )
    # 300 runs at a rate of at most 0.1: above 47 has a chance below 0.1 %.
    assert passes <= 47


def test_each_further_try_against_the_same_incumbent_takes_more():
    rows = [row(place) for place in range(80)]
    assert decide(POLICY, evidence(rows)).verdict == "pass"
    second = decide(POLICY, evidence(rows, tries=2))
    assert second.verdict == "inconclusive" and "try 2" in second.reasons[0]
    more = [row(place) for place in range(201)]
    assert decide(POLICY, evidence(more, tries=30)).verdict == "pass"
    assert sum(level_of_try(0.05, number) for number in range(1, 10_000)) <= 0.05
    with pytest.raises(ValueError, match="from 1"):
        level_of_try(0.05, 0)


def test_thirty_nights_of_adapters_worse_than_the_margin_pass_no_more_often_than_one_may():
    """On the edge of the margin, a new adapter and a new test of 100 rows a night."""
    random = np.random.default_rng(5)
    nights = random.binomial(100, POLICY.margin, size=(2000, 30))
    worst = {
        (lost, number): proportion_upper(lost, 100, level_of_try(POLICY.level, number))
        for lost in range(30)
        for number in range(1, 31)
    }
    at_once = {lost: proportion_upper(lost, 100, POLICY.level) for lost in range(30)}
    spent = full = 0
    for tries in nights:
        spent += any(worst[lost, place + 1] <= POLICY.margin for place, lost in enumerate(tries))
        full += any(at_once[lost] <= POLICY.margin for lost in tries)
    # 5 % of the runs at most; 135 of 2000 would come once in a thousand.
    assert spent <= 135
    assert full >= 500, "without spending, thirty nights let a bad adapter through"


ROWS = st.lists(
    st.builds(
        row,
        st.integers(0, 10_000),
        st.sampled_from([0.0, 0.5, 1.0]),
        accepted=st.booleans(),
        incumbent=st.sampled_from([0.0, 1.0]),
        base=st.sampled_from([None, 0.0, 1.0]),
        error=st.booleans(),
        session=st.sampled_from([None, "one", "two"]),
    ),
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(["teacher", "lights@fedcba9876543210"]))
def test_decision_replays_from_json_and_passes_only_with_every_bound(rows, incumbent):
    given_ = evidence(rows, incumbent=incumbent)
    again = GateEvidence.from_dict(json.loads(json.dumps(given_.to_dict())))
    result = decide(POLICY, given_)
    assert decide(POLICY, again) == result and again.digest == given_.digest
    assert result.reasons and json.dumps(result.to_dict())
    if result.passed:
        numbers = result.numbers
        assert numbers["lower_bound"] >= -POLICY.margin
        assert numbers["session_lower_bound"] >= -POLICY.margin
        assert numbers["coverage"] >= POLICY.min_coverage and len(rows) >= POLICY.min_rows


def test_rows_line_up_what_the_caller_would_get():
    candidate = [
        outcome("a", 1.0, -0.1),
        outcome("b", 0.0, -0.1),
        outcome("c", 0.0, -0.9),
        outcome("d", 0.0, 0.0, passed=False),
        outcome("e", 0.0, None, error="EngineUnavailable: gone"),
    ]
    teacher = [outcome(name, 0.9) for name in "abcde"]
    base = [outcome("a", 0.5), outcome("b", 0.0, error="TimeoutError: x")]
    rows = {
        made.example_id: made for made in gate_rows(candidate, -0.5, teacher=teacher, base=base)
    }
    assert rows["a"] == GateRow("a", "session-a", True, 1.0, 1.0, 0.9, 0.5)
    assert (rows["b"].served, rows["b"].base) == (0.0, None)
    assert (rows["c"].accepted, rows["c"].served) == (False, 0.9)
    assert (rows["d"].accepted, rows["e"].accepted, rows["e"].error) == (False, False, True)
    assert [made.accepted for made in serve(candidate, None)] == [True, True, True, False, False]
    assert not any(made.accepted for made in serve(candidate, float("inf")))
    assert serve(candidate, -0.5)[2].correct == 1.0
    champion = [replace(made, correct=0.25) for made in serve(candidate, -0.5)]
    assert gate_rows(candidate, -0.5, champion=champion)[0].incumbent == 0.25


def test_rows_that_the_incumbent_never_answered_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        gate_rows([outcome("a"), outcome("b")], None, champion=serve([outcome("a")], None))
    with pytest.raises(ValueError, match="no teacher score"):
        serve([outcome("a"), outcome("b")], None, [outcome("a")])


def test_no_golden_case_that_the_incumbent_gets_right_may_be_lost():
    rows = [row(place) for place in range(80)]
    kept = tuple(row(place) for place in range(5))
    result = decide(POLICY, evidence(rows, golden=kept, golden_seen=2))
    assert result.passed and any("2 of 5 golden" in reason for reason in result.reasons)
    lost = (*kept, row(9, 0.0))
    result = decide(POLICY, evidence(rows, golden=lost))
    assert result.verdict == "fail" and "row-9" in result.reasons[0]
    escalated = (*kept, row(9, 0.0, accepted=False), row(10, 0.0, incumbent=0.0))
    assert decide(POLICY, evidence(rows, golden=escalated)).passed
    unasked = (*kept, row(9, 0.0, accepted=False, error=True))
    assert decide(POLICY, evidence(rows, golden=unasked)).verdict == "inconclusive"
    given_ = evidence(rows, golden=lost, golden_seen=1)
    assert GateEvidence.from_dict(json.loads(json.dumps(given_.to_dict()))) == given_


def test_a_slice_may_not_regress_behind_a_good_mean():
    def tools(lost: int, small: int):
        """``small`` of 300 rows are of another tool, ``lost`` of them wrong."""
        return [
            row(n, float(n >= lost), slices={"tool": "rare" if n < small else "send"})
            for n in range(300)
        ]

    guarded = replace(POLICY, slices=("tool",))
    assert decide(guarded, evidence(tools(1, 20))).passed
    doubtful = evidence(tools(2, 20))
    assert decide(POLICY, doubtful).passed
    result = decide(guarded, doubtful)
    assert result.verdict == "inconclusive" and "20 rows of tool=rare" in result.reasons[0]
    assert result.numbers["slices"]["tool=rare"] == {"rows": 20, "difference": -0.1}
    worse = decide(guarded, evidence(tools(8, 20)))
    assert worse.verdict == "fail" and any("regressed on a slice" in r for r in worse.reasons)
    unjudged = decide(guarded, evidence(tools(2, 19)))
    assert unjudged.passed and any("not judged: tool=rare" in r for r in unjudged.reasons)


def test_a_declared_slice_that_is_empty_or_small_never_passes_and_says_so():
    rows = [row(n, slices={"tool": "rare" if n < 5 else "send"}) for n in range(100)]
    for declared, said in (
        ("tool=gone", "tool=gone is empty"),
        ("tool=rare", "has 5 rows of 20"),
        ("tenant", "tells its tenant"),
    ):
        result = decide(replace(POLICY, slices=(declared,)), evidence(rows))
        assert result.verdict == "inconclusive" and said in result.reasons[0]
    policy = replace(POLICY, slices=("tool", "tool=send"))
    assert decide(policy, evidence(rows)).passed
    assert GatePolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    with pytest.raises(ValueError, match="slices"):
        Gate(slices=("colour",))


def test_what_slices_an_example_belongs_to():
    request = {"messages": [{"role": "user", "content": "x" * 600}]}
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("b", "a", "b")]
    assert slices_of(request, {"tool_calls": calls}, "acme") == {
        "tool": "a+b",
        "length": "medium",
        "tenant": "acme",
    }
    assert slices_of({"messages": []}, {"content": "x"}, "t")["tool"] == "words"


def test_what_the_scores_do_not_say_of_themselves_is_said():
    rows = [row(place) for place in range(80)]
    prompts = [f"p{place}" for place in range(76)] + ["p0", "p0", "p1", "p2"]
    labels = ["yes"] * 79 + ["no"]
    found = check_honesty(prompts, labels, [False] * 80, {"p5", "p0", "gone"})
    assert found == Honesty(80, 4, 76, 3, 2, 0, 74)
    given_ = evidence(rows, honesty=found)
    result = decide(POLICY, given_)
    assert result.passed and result.numbers["honesty"]["seen_in_training"] == 4
    for said in ("teacher's own", "4 of 80", "3 of 80 test rows repeat", "2 of 80"):
        assert any(said in reason for reason in result.reasons)
    assert GateEvidence.from_dict(json.loads(json.dumps(given_.to_dict()))) == given_
    person = check_honesty(prompts[:76], labels[:76], [True] * 76, ())
    assert person.notes() == []


def test_a_few_prompts_asked_often_are_few():
    rows = [row(place) for place in range(80)]
    few = check_honesty([f"p{n % 29}" for n in range(80)], ["yes"] * 80, [True] * 80, ())
    result = decide(POLICY, evidence(rows, honesty=few))
    assert result.verdict == "inconclusive" and "29 different prompts" in result.reasons[0]


def test_what_was_learned_by_heart_shows_nothing_and_decisions_of_before_replay():
    rows = [row(place) for place in range(80)]
    prompts = [f"p{n}" for n in range(80)]
    leaked = check_honesty(prompts, ["yes"] * 80, [True] * 80, set(prompts[29:]))
    result = decide(POLICY, evidence(rows, honesty=leaked))
    assert result.verdict == "inconclusive"
    assert "29 different prompts that it was not trained on" in result.reasons[0]
    enough = check_honesty(prompts, ["yes"] * 80, [True] * 80, set(prompts[30:]))
    assert decide(POLICY, evidence(rows, honesty=enough)).passed
    before = Honesty.from_dict(
        {name: value for name, value in leaked.to_dict().items() if name != "unseen_prompts"}
    )
    assert "unseen_prompts" not in before.to_dict()
    assert decide(POLICY, evidence(rows, honesty=before)).passed, "as it was decided then"
