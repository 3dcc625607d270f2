from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.evidence import EvidencePolicy, judge_canary, judge_shadow
from evaluators.sessions import session_outcomes, settled_prefix
from infra.calls.record import Checks, FeedbackRecord, OtherAnswer
from tests.evaluators.making import CANDIDATE, CHAMPION, ROLLOUT, START, call, report_of, says

POLICY = EvidencePolicy(maturity_seconds=60)
LATER = START + timedelta(hours=3)


def decide(calls, feedback=(), *, champion: str = "teacher", now=LATER, policy=POLICY):
    return judge_canary(calls, feedback, rollout=ROLLOUT, champion=champion, policy=policy, now=now)


def mixed(canaries: int, *, wrong: int = 0, **more: Any):
    """Canary sessions ten seconds apart, a teacher session between each; the first ones wrong."""
    made = []
    for place in range(canaries):
        made.append(call(f"c{place}", place * 10, agrees=place >= wrong, **more))
        made.append(call(f"t{place}", place * 10 + 5, "champion", adapter=None))
    return made


def only(calls, feedback=(), now=LATER):
    (outcome,) = session_outcomes(calls, feedback, rollout=ROLLOUT, maturity_seconds=60, now=now)
    return outcome


def test_a_flawless_canary_is_promoted_and_a_wrong_one_rolled_back():
    good = decide(mixed(40))
    assert good.verdict == "good" and good.e_good >= 20
    assert (good.canary_sessions, good.champion_sessions, good.labelled) == (40, 40, 40)
    assert (good.mean_canary, good.mean_champion) == (1, 1)
    bad = decide(mixed(10, wrong=10))
    assert bad.verdict == "bad" and bad.e_bad >= 20 and bad.mean_canary == 0
    assert "worse than the champion" in bad.reason
    few = decide(mixed(10))
    assert few.verdict == "continue" and "no verdict yet" in few.reason
    json.dumps(good.to_dict())


def test_no_champion_traffic_is_no_obstacle_when_the_teacher_is_champion():
    alone = [item for item in mixed(40) if item.answered_by.arm == "canary"]
    assert decide(alone).verdict == "good"
    assert decide(alone, champion=CHAMPION).verdict == "continue"
    wrong = [item for item in mixed(10, wrong=10) if item.answered_by.arm == "canary"]
    assert decide(wrong).verdict == "bad"


def test_missing_labels_never_promote_and_alone_never_roll_back():
    unlabelled = [call(f"c{place}", place * 10, agrees=None) for place in range(300)]
    decision = decide(unlabelled)
    assert decision.verdict == "continue"
    assert (decision.canary_sessions, decision.labelled, decision.mean_canary) == (300, 0, None)
    unlabelled += [
        call(f"t{place}", place * 10 + 5, "champion", adapter=CHAMPION) for place in range(300)
    ]
    assert decide(unlabelled, champion=CHAMPION).verdict == "continue"
    half = [
        call(f"c{place}", place * 10, agrees=None if place % 2 else True) for place in range(99)
    ]
    assert decide(half).verdict == "continue"


def test_an_unaudited_champion_counts_as_perfect_for_promotion_and_as_useless_for_rollback():
    beside = [
        call(f"t{place}", place * 10 + 5, "champion", adapter=CHAMPION, agrees=None)
        for place in range(60)
    ]
    good = [call(f"c{place}", place * 10) for place in range(60)]
    assert decide(beside + good, champion=CHAMPION).verdict == "good"
    bad = [call(f"c{place}", place * 10, agrees=False) for place in range(60)]
    decision = decide(beside + bad, champion=CHAMPION)
    assert decision.verdict == "continue" and decision.e_bad <= 1 and decision.mean_champion is None
    audited = [
        call(f"t{place}", place * 10 + 5, "champion", adapter=CHAMPION) for place in range(60)
    ]
    assert decide(bad + audited, champion=CHAMPION).verdict == "bad"


@pytest.mark.parametrize(
    ("escalation", "score", "calls_escalated"),
    [
        ("checks:arguments of play are not JSON", 0, 1),
        ("engine_timeout", 0, 1),
        ("engine_unavailable", 0, 1),
        ("kill_switch", 0, 1),
        ("something new", 0, 1),
        ("confidence", 1, 1),
        ("overloaded", 1, 1),
        ("prompt_too_long", 1, 1),
        ("token_limit", 1, 1),
        (None, 1, 0),
    ],
)
def test_the_arm_is_charged_with_its_failures_though_the_teacher_answered(
    escalation, score, calls_escalated
):
    outcome = only([call("one", 0, escalation=escalation)])
    assert (outcome.low, outcome.high, outcome.escalations) == (score, score, calls_escalated)


def test_an_error_response_is_a_failure():
    assert only([call("one", 0, answered=False)]).high == 0


def test_a_session_is_as_good_as_its_worst_call_within_the_horizon():
    # The last moment of the horizon belongs to it.
    early, late = call("one", 60, agrees=False), call("one", 61, agrees=False)
    assert only([call("one", 0), early]).high == 0
    assert only([call("one", 0), late]).low == 1
    assert only([call("one", 0), call("one", 5, agrees=None)]).low == 0


def test_feedback_wins_over_agreement_but_not_over_failure():
    right = call("one", 0, agrees=False)
    assert only([right], [report_of(right, 0.75)]).low == 0.75
    assert only([right], [report_of(right, None, correction=says("YES"))]).low == 1
    assert only([right], [report_of(right, None, label="thumbs")]).low == 0
    failed = call("two", 0, escalation="engine_timeout")
    assert only([failed], [report_of(failed, 1)]).high == 0
    # The latest word counts, if it comes within the horizon and before now.
    both = [report_of(right, 1, 2), report_of(right, 0.5, 60), report_of(right, 0.25, 61)]
    assert only([right], both).low == 0.5


def test_what_is_reported_after_now_is_not_known_yet():
    record = call("s", 0, agrees=None)
    said = [report_of(record, 0.0, 30)]
    for seconds, high in ((29, 1.0), (30, 0.0)):
        outcome = only([record], said, START + timedelta(seconds=seconds))
        assert (outcome.settled, outcome.high) == (False, high)


def test_another_tenants_feedback_and_other_rollouts_do_not_count():
    ours = call("one", 0)
    assert only([ours], [report_of(ours, 0, tenant="other")]).low == 1
    other = call("two", 0, rollout="rollout-2", agrees=False)
    assert [item.session for item in settled_prefix([only([ours, other])])] == ["one"]
    same_name = call("one", 1, tenant="other", agrees=False)
    assert decide([ours, same_name]).canary_sessions == 2


def test_the_head_of_the_line_waits_for_its_label():
    calls = [call("first", 0), call("second", 10, escalation="checks:x"), call("third", 20)]
    at = lambda seconds: decide(calls, now=START + timedelta(seconds=seconds))  # noqa: E731
    assert (at(30).canary_sessions, at(30).waiting) == (0, 3)
    # The first settles at 60; the second's failure was final at once, and is fed after it.
    assert (at(60).canary_sessions, at(60).waiting, at(60).mean_canary) == (2, 1, 0.5)
    assert at(80).canary_sessions == 3


def test_quick_failures_and_slow_successes_do_not_roll_back_an_equal_canary():
    """Counted as they arrive, the first labels would all be failures."""
    calls = []
    for place in range(200):
        failed = place % 10 == 0
        calls.append(call(f"c{place}", place, escalation="checks:x" if failed else None))
        calls.append(
            call(
                f"t{place}",
                place + 0.5,
                "champion",
                adapter=CHAMPION,
                escalation="checks:x" if (place + 5) % 10 == 0 else None,
            )
        )
    for seconds in range(0, 300, 20):
        moment = START + timedelta(seconds=seconds)
        assert decide(calls, champion=CHAMPION, now=moment).verdict != "bad"


def test_shadow_epochs_and_moved_sessions():
    shadowed = [call(f"s{place}", place, "champion", adapter=None, epoch=1) for place in range(9)]
    moved = [
        call("mover", 100, "champion", adapter=None, epoch=2),
        call("other", 101, epoch=2),
        call("mover", 120, "canary", epoch=3, agrees=False),
        call("s1", 130, "canary", epoch=3),
    ]
    outcomes = session_outcomes(
        shadowed + moved, [], rollout=ROLLOUT, maturity_seconds=60, now=LATER
    )
    assert [(item.session, item.arm, item.low) for item in outcomes] == [
        ("mover", "champion", 1),
        ("other", "canary", 1),
        ("s1", "canary", 1),
    ]
    assert decide(shadowed + moved).canary_by_epoch == {"2": 1, "3": 1}


def test_records_read_twice_count_once_and_the_fuller_version_wins():
    thin, full = call("one", 0, agrees=None), call("one", 0, agrees=False)
    for calls in ([thin, full], [full, thin, full]):
        assert only(calls).high == 0


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(0, 900))
def test_same_log_same_verdict_in_any_order(order: random.Random, sessions: int, seconds: int):
    calls = mixed(sessions, wrong=sessions // 6)
    feedback = [report_of(item, 0.5, 7) for item in calls[::5]]
    moment = START + timedelta(seconds=seconds)
    first = decide(calls, feedback, now=moment)
    order.shuffle(calls)
    order.shuffle(feedback)
    assert decide(calls + calls[:3], feedback, now=moment) == first
    # What came after that moment does not change what was decided then.
    before = [item for item in calls if item.time <= moment]
    assert decide(before, feedback, now=moment) == first


def test_the_digest_follows_the_evidence_and_the_terms():
    calls = mixed(5)
    digest = decide(calls).evidence_digest
    assert len(digest) == 64 and decide(calls).evidence_digest == digest
    assert decide(mixed(5, wrong=1)).evidence_digest != digest
    stricter = EvidencePolicy(margin=0.05, maturity_seconds=60)
    assert decide(calls, policy=stricter).evidence_digest != digest


def test_rubbish_feedback_for_unknown_calls_is_ignored():
    stray = FeedbackRecord(call_id="nobody", score=0, time=START)
    assert decide(mixed(3), [stray]).labelled == 3


def shadow(said: str = "yes", *, accepted: bool = True, error: str | None = None, ok: bool = True):
    return OtherAnswer(
        model="small",
        adapter=CANDIDATE,
        purpose="shadow",
        message=None if error else says(said),
        checks=Checks(parsed=ok),
        accepted=accepted,
        error=error,
    )


def shadowed(*answers: OtherAnswer, **more: Any):
    made = {"adapter": None, "agrees": None, **more}
    return [
        call(f"s{place}", place, "champion", shadow=answer, **made)
        for place, answer in enumerate(answers)
    ]


def summary(calls, now=LATER):
    return judge_shadow(calls, rollout=ROLLOUT, candidate=CANDIDATE, policy=POLICY, now=now)


def test_shadow_counts_what_would_have_been_served():
    found = summary(
        shadowed(
            shadow(),
            shadow("no"),
            shadow("no", accepted=False),
            shadow(accepted=False, ok=False),
        )
    )
    assert (found.pairs, found.calls, found.accepted) == (4, 4, 0.5)
    assert found.agreement == 0.75 and found.verdict == "continue"
    json.dumps(found.to_dict())


def test_a_bad_shadow_is_found_before_anyone_is_exposed():
    assert summary(shadowed(*[shadow("no")] * 12)).verdict == "bad"
    assert summary(shadowed(*[shadow(error="EngineTimeout")] * 12)).verdict == "bad"
    assert summary(shadowed(*[shadow()] * 300)).verdict == "continue"
    assert summary(shadowed(*[shadow("no", accepted=False)] * 60)).verdict == "continue"


def test_disagreement_with_an_unaudited_champion_adapter_is_no_evidence_against_the_candidate():
    calls = shadowed(*[shadow("no")] * 30, adapter=CHAMPION)
    found = summary(calls)
    assert (found.verdict, found.e_bad, found.agreement) == ("continue", 1.0, 0.0)
    # With audits both are compared with the teacher: the champion is right, or it is not.
    assert summary(shadowed(*[shadow("no")] * 30, adapter=CHAMPION, agrees=True)).verdict == "bad"
    worse = shadowed(*[shadow("no")] * 30, adapter=CHAMPION, agrees=False)
    assert summary(worse).verdict == "continue"


def test_shadow_pairs_of_unsettled_sessions_and_of_others_wait_outside():
    calls = shadowed(shadow(), shadow())
    assert summary(calls, START + timedelta(seconds=60)).pairs == 1
    assert summary([]).agreement is None
    elsewhere = [call("x", 0, "champion", adapter=None, shadow=shadow(), rollout="rollout-2")]
    assert summary(elsewhere).pairs == 0


def test_refused_answers_of_the_canary_arm_are_no_sample_of_the_shadow():
    paired = shadowed(*[shadow()] * 20)
    # One canary session in twenty is refused: within the margin, whoever counts the other nineteen.
    refused = [
        call(
            f"c{place}",
            100 + place,
            escalation="checks:arguments of play are not JSON",
            shadow=shadow(accepted=False, ok=False),
            epoch=2,
        )
        for place in range(20)
    ]
    assert summary(paired + refused) == summary(paired)
