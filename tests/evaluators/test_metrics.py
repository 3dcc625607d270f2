from __future__ import annotations

from datetime import timedelta

import pytest

from evaluators.evidence import EvidencePolicy, judge_canary, judge_shadow
from evaluators.latency import champion_objective
from evaluators.metrics import Metric
from evaluators.sessions import session_outcomes
from infra.calls.record import Checks, OtherAnswer
from infra.calls.tool_results import is_error
from tests.evaluators.making import CANDIDATE, CHAMPION, ROLLOUT, START, call, report_of, says

LATER = START + timedelta(hours=3)


def decide(calls, feedback=(), *, champion=CHAMPION, candidate=None, **terms):
    return judge_canary(
        calls,
        feedback,
        rollout=ROLLOUT,
        champion=champion,
        policy=EvidencePolicy(maturity_seconds=60, **terms),
        now=LATER,
        candidate=candidate,
    )


def both(many: int, *, canary=None, champion=None):
    """Canary and champion sessions in turn, both right unless said otherwise."""
    made = []
    for place in range(many):
        made.append(call(f"c{place}", place * 10, **(canary(place) if canary else {})))
        more = champion(place) if champion else {}
        made.append(call(f"t{place}", place * 10 + 5, "champion", adapter=CHAMPION, **more))
    return made


def slow(record, seconds: float):
    return record.model_copy(update={"latency_seconds": seconds})


def one(decision, name):
    (found,) = [metric for metric in decision.metrics if metric.name == name]
    return found


def test_levels_of_rollback_add_up_and_promotion_asks_for_every_metric():
    policy = EvidencePolicy(latency_objective_seconds=2)
    levels = policy.levels(champion_is_teacher=False)
    assert set(levels) == {"quality", "errors", "latency", "escalation", "feedback"}
    assert sum(levels.values()) == pytest.approx(policy.alpha_bad)
    teacher = EvidencePolicy().levels(champion_is_teacher=True)
    assert set(teacher) == {"quality", "errors", "tools", "feedback"}
    assert sum(teacher.values()) == pytest.approx(0.05)

    good = decide(both(60), latency_objective_seconds=2)
    assert good.verdict == "good"
    assert [metric.verdict for metric in good.metrics if metric.asked] == ["good"] * 3
    assert good.e_good == min(metric.e_good for metric in good.metrics if metric.asked)


def test_a_slow_canary_is_rolled_back_though_its_answers_are_right():
    calls = [slow(item, 9.0 if item.answered_by.arm == "canary" else 0.5) for item in both(60)]
    decision = decide(calls, latency_objective_seconds=2)
    assert decision.verdict == "bad" and one(decision, "latency").verdict == "bad"
    assert decision.reason.startswith("latency worse") and decision.e_bad >= 20
    assert one(decision, "quality").verdict == "good"
    # Without an objective latency is no metric; with both arms slow it is no difference.
    assert decide(calls).verdict == "good"
    assert decide([slow(item, 9.0) for item in calls], latency_objective_seconds=2).verdict != "bad"


def test_a_teacher_that_is_slow_at_times_is_no_measure_of_perfection():
    calls = []
    for place in range(80):
        seconds = 9.0 if place % 4 == 0 else 0.5
        calls.append(slow(call(f"c{place}", place * 10), seconds))
        calls.append(slow(call(f"t{place}", place * 10 + 5, "champion", adapter=None), seconds))
    decision = decide(calls, champion="teacher", latency_objective_seconds=2)
    assert one(decision, "latency").verdict == "continue" and decision.verdict == "continue"
    quick = [slow(item, 0.5) for item in calls]
    assert decide(quick, champion="teacher", latency_objective_seconds=2).verdict == "good"


def test_the_objective_is_twice_what_nearly_all_answers_took_and_never_below_the_floor():
    answers = [
        slow(call(f"t{place}", place, "champion", adapter=CHAMPION), float(place))
        for place in range(1, 21)
    ]

    def objective(calls, floor_seconds=5.0, now=LATER):
        return champion_objective(calls, rollout=ROLLOUT, now=now, floor_seconds=floor_seconds)

    others = [slow(call(f"c{place}", place), 90.0) for place in range(20)]
    assert objective([*answers, *others]) == 2 * 19
    assert objective(answers, floor_seconds=60) == 60
    assert objective(answers[1:]) is None and objective(answers, now=START) is None


def test_one_unfit_metric_holds_a_promotion_back():
    calls = [
        slow(item, 9.0 if item.answered_by.arm == "canary" and place % 10 == 0 else 0.5)
        for place, item in enumerate(both(60))
    ]
    decision = decide(calls, latency_objective_seconds=2)
    assert one(decision, "quality").verdict == "good"
    assert decision.verdict == "continue" and "latency" in decision.reason


def test_escalating_more_than_the_champion_rolls_back_and_escalating_less_is_not_asked_for():
    calls = both(80, canary=lambda place: {"escalation": "confidence"})
    decision = decide(calls)
    assert decision.verdict == "bad" and one(decision, "escalation").verdict == "bad"
    fewer = both(80, champion=lambda place: {"escalation": "confidence" if place % 2 else None})
    assert decide(fewer).verdict == "good"
    # The teacher never escalates: what is allowed beside it has to be said.
    alone = [item for item in calls if item.answered_by.arm == "canary"]
    assert decide(alone, champion="teacher").verdict == "good"
    assert decide(alone, champion="teacher", escalation_allowance=0.5).verdict == "bad"
    assert decide(alone, champion="teacher", escalation_allowance=0.99).verdict == "good"


def test_a_metric_that_disappears_holds_the_promotion_and_is_named():
    fine = both(60)
    assert decide(fine).verdict == "good"
    silent = [
        item
        if item.answered_by.arm == "champion" or item.time < START + timedelta(seconds=400)
        else item.model_copy(update={"other_answers": []})
        for item in fine
    ]
    decision = decide(silent)
    assert decision.disappeared == ("quality",) and decision.verdict == "continue"
    assert "no label in the latest sessions" in decision.reason
    never = both(60, canary=lambda place: {"agrees": None})
    assert decide(never).verdict == "continue" and one(decide(never), "quality").labelled == 0


@pytest.mark.parametrize(
    ("content", "failed"),
    [
        ('{"error": "no such device"}', True),
        ('{"is_error": true}', True),
        (' {"status": "error"}', True),
        ('{"error": null, "result": 3}', False),
        ('{"status": "ok"}', False),
        ("Error: not JSON", False),
        ('["error"]', False),
        ("{broken", False),
        (None, False),
        ([{"type": "text"}], False),
    ],
)
def test_a_tool_error_is_what_the_agent_says_is_one(content, failed):
    assert is_error(content) is failed


def tool_session(content: str | None, answered_id: str = "call-1"):
    asked = {
        **says(""),
        "tool_calls": [
            {"id": "call-1", "type": "function", "function": {"name": "play", "arguments": "{}"}}
        ],
    }
    first = call("one", 0).model_copy(update={"response": {"choices": [{"message": asked}]}})
    messages = [
        {"role": "user", "content": "play"},
        asked,
        {"role": "tool", "tool_call_id": answered_id, "content": content},
    ]
    return [first, call("one", 5).model_copy(update={"request": {"messages": messages}})]


def test_a_reported_tool_error_is_an_error_of_the_session():
    def failed(calls, feedback=()):
        (found,) = session_outcomes(
            calls, feedback, rollout=ROLLOUT, maturity_seconds=60, now=LATER
        )
        return found.tool_failed

    assert failed(tool_session('{"error": "no such device"}'))
    assert not failed(tool_session('{"result": 1}'))
    assert not failed(tool_session('{"error": "x"}', answered_id="of another call"))
    fine = call("two", 0)
    assert failed([fine], [report_of(fine, None, label="tool_error")])
    assert not failed([fine], [report_of(fine, None, label="tool_error", after_seconds=61)])
    assert not failed([fine], [report_of(fine, None, label="thumbs")])


def test_tool_errors_beside_the_teacher_are_compared_with_the_teachers_own():
    def rollout(canary_errors: int, teacher_errors: int):
        calls, feedback = [], []
        for place in range(120):
            ours = call(f"c{place}", place * 10)
            beside = call(f"t{place}", place * 10 + 5, "champion", adapter=None)
            calls += [ours, beside]
            for record, errors in ((ours, canary_errors), (beside, teacher_errors)):
                if place % 10 < errors:
                    feedback.append(report_of(record, None, label="tool_error"))
        return decide(calls, feedback, champion="teacher")

    more = rollout(6, 1)
    assert more.verdict == "bad" and one(more, "tools").verdict == "bad"
    # The same tools fail for both: nothing to hold against the canary, and nothing to promote it on.
    alike = rollout(6, 6)
    assert alike.verdict == "continue" and one(alike, "tools").e_bad < 5
    assert rollout(0, 0).verdict == "good"


def absent(**more):
    return {"escalation": "engine_absent", **more}


def test_an_engine_that_is_away_is_nobodys_failure():
    """All calls of a restart go to the teacher: no verdict, whoever is the champion."""
    away = both(80, canary=lambda place: absent(), champion=lambda place: absent())
    assert decide(away).verdict == "continue" and decide(away).canary_sessions == 0
    beside_teacher = [item for item in away if item.answered_by.arm == "canary"]
    assert decide(beside_teacher, champion="teacher", escalation_allowance=0.1).verdict != "bad"
    # What was found before and after it decides as if it had not been.
    calls = both(60) + [
        item.model_copy(update={"time": item.time + timedelta(hours=1), "session": f"x{place}"})
        for place, item in enumerate(away)
    ]
    assert decide(calls).verdict == "good"
    # An engine that breaks while it works on an answer may have been broken by the adapter.
    broken = [call(f"c{place}", place, escalation="engine_unavailable") for place in range(20)]
    assert decide(broken, champion="teacher").verdict == "bad"
    # A session that met it at one call only is judged by the others, and may be good or bad.
    mixed = [
        item for p in range(9) for item in (call(f"m{p}", p, **absent()), call(f"m{p}", p + 1))
    ]
    found = decide(mixed, champion="teacher")
    assert (found.canary_sessions, found.labelled) == (9, 0)


def test_a_teacher_that_does_not_answer_is_held_against_nobody():
    calls = [
        call(f"c{place}", place, escalation="confidence", answered=False) for place in range(60)
    ]
    decision = decide(calls, champion="teacher")
    assert decision.verdict == "continue" and one(decision, "errors").e_bad <= 1
    assert decide([call(f"c{p}", p, answered=False) for p in range(20)]).mean_canary == 0


def test_what_comes_after_a_failure_does_not_change_the_session_any_more():
    failed = call("one", 0, escalation="checks:x")
    later = slow(call("one", 30, escalation="confidence"), 60)
    for calls in ([failed], [failed, later]):
        (found,) = session_outcomes(
            calls,
            [],
            rollout=ROLLOUT,
            maturity_seconds=60,
            now=LATER,
            latency_objective_seconds=1,
        )
        assert (found.calls, found.escalations, found.slow, found.failed) == (1, 1, 0, True)


def answer(said: str) -> OtherAnswer:
    return OtherAnswer(
        model="small",
        adapter=CANDIDATE,
        purpose="shadow",
        message=says(said),
        checks=Checks(parsed=True),
    )


def test_a_session_of_the_shadow_is_as_good_as_its_worst_call_on_either_side():
    """An equal candidate, whose errors merely fall on other calls, is no worse for it."""
    calls = []
    for place in range(40):
        for step, agrees in enumerate((True, False)):
            # The teacher says "yes", then "no"; the champion "yes" twice, the candidate "no" twice.
            made = {"adapter": CHAMPION, "agrees": agrees, "shadow": answer("no")}
            calls.append(call(f"s{place}", place * 10 + step, "champion", **made))
    found = judge_shadow(
        calls,
        rollout=ROLLOUT,
        candidate=CANDIDATE,
        policy=EvidencePolicy(maturity_seconds=60, rollback_margin=0.02),
        now=LATER,
        champion_is_teacher=False,
    )
    assert found.pairs == 40 and found.verdict == "continue"


def test_the_canary_goes_on_where_the_shadow_ended():
    shadowed = [
        call(f"s{place}", place, "champion", adapter=None, shadow=answer("no"), epoch=1)
        for place in range(5)
    ]
    wrong = [call(f"c{place}", 100 + place, agrees=False, epoch=2) for place in range(3)]
    alone = decide(wrong, champion="teacher", candidate=CANDIDATE)
    carried = decide(shadowed + wrong, champion="teacher", candidate=CANDIDATE)
    assert alone.carried == 1 and carried.carried > 2
    assert carried.e_bad == pytest.approx(carried.carried * alone.e_bad, rel=1e-6)
    assert (alone.verdict, carried.verdict) == ("continue", "bad")
    # What it ended with, not its best moment: a maximum is no e-value.
    recovered = [
        call(f"r{place}", 10 + place, "champion", adapter=None, shadow=answer("yes"), epoch=1)
        for place in range(20)
    ]
    calls = shadowed + recovered + wrong
    least = decide(calls, champion="teacher", candidate=CANDIDATE).carried
    shadow = judge_shadow(
        calls, rollout=ROLLOUT, candidate=CANDIDATE, policy=EvidencePolicy(), now=LATER
    )
    assert least == pytest.approx(shadow.path[-1]) and least < 0.9 * shadow.e_bad
    # The shadow has quality's share of the level, as the canary has: 0.55 of 0.875 in use.
    assert shadow.needed_bad == pytest.approx(20 * 0.875 / 0.55)
    # While a pair of the shadow still waits, the canary does too: order is that of assignment.
    early = [call(f"c{place}", 30 + place, escalation="checks:x", epoch=2) for place in range(3)]
    waiting = judge_canary(
        shadowed + early,
        [],
        rollout=ROLLOUT,
        champion="teacher",
        policy=EvidencePolicy(maturity_seconds=60),
        now=START + timedelta(seconds=40),
        candidate=CANDIDATE,
    )
    assert (waiting.canary_sessions, waiting.waiting) == (0, 3)


def test_impossible_policies_are_refused():
    quality = Metric("quality", 0.1, 0.1, 1.0)
    with pytest.raises(ValueError, match="twice"):
        EvidencePolicy(metrics=(quality, quality))
    with pytest.raises(ValueError, match="at least one"):
        EvidencePolicy(metrics=())
    with pytest.raises(ValueError, match="weight"):
        Metric("quality", 0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="margin lies"):
        Metric("quality", 1.0, 0.1, 1.0)
    only = decide(both(60), metrics=(quality,))
    assert [metric.name for metric in only.metrics] == ["quality"]
    assert only.metrics[0].needed_bad == pytest.approx(20)
