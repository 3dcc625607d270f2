"""The declared levels hold however feedback comes: for one kind of answer, for one arm, or contrary."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from evaluators.evidence import EvidencePolicy, judge_canary, judge_sessions, verdict_of
from evaluators.sessions import NOTHING_KNOWN, Interval, SessionOutcome
from tests.evaluators.making import CHAMPION, ROLLOUT, START, call, report_of

RUNS, SESSIONS, MARGIN = 100, 200, 0.1
POLICY = EvidencePolicy(maturity_seconds=60, margin=MARGIN, rollback_margin=MARGIN)
# Whether this caller says something of this answer, by arm and by whether the answer was right.
PATTERNS = {
    "of right answers": lambda canary, right, chance: right and chance < 0.8,
    "of wrong answers": lambda canary, right, chance: not right and chance < 0.8,
    "of the canary only": lambda canary, right, chance: canary,
    "of the champion only": lambda canary, right, chance: not canary,
    "of right canaries and wrong champions": lambda canary, right, chance: canary == right,
    "of wrong canaries and right champions": lambda canary, right, chance: canary != right,
    "never": lambda canary, right, chance: False,
}


def session(
    place: int, canary: bool, right: bool, said: float | None, *, audited: bool, by_teacher: bool
) -> SessionOutcome:
    known = audited or (by_teacher and not canary)
    agreed = Interval(float(right), float(right)) if known else NOTHING_KNOWN
    spoken = NOTHING_KNOWN if said is None else Interval(said, said)
    best = agreed if said is None else spoken
    return SessionOutcome(
        tenant="default",
        session=f"s{place}",
        arm="canary" if canary else "champion",
        epoch=1,
        assigned=START + timedelta(seconds=place),
        low=best.low,
        high=best.high,
        settled=True,
        calls=1,
        escalations=0,
        agreed=agreed,
        said=spoken,
    )


def verdicts(
    pattern: str,
    harm: float,
    *,
    by_teacher: bool,
    audited: bool = True,
    contrary: float = 0.0,
    policy: EvidencePolicy = POLICY,
    runs: int = RUNS,
) -> dict[str, float]:
    """Shares of the verdicts. ``contrary``: how often a caller and the teacher differ."""
    random = np.random.default_rng(11)
    speaks = PATTERNS[pattern]
    champion = 1.0 if by_teacher else 0.9
    found = {"bad": 0, "good": 0, "continue": 0}
    for _ in range(runs):
        canaries = random.random(SESSIONS) < 0.5
        rights = random.random(SESSIONS) < np.where(canaries, champion - harm, champion)
        chances, differs = random.random((2, SESSIONS))
        fed = []
        for place in range(SESSIONS):
            canary, right = bool(canaries[place]), bool(rights[place])
            said = None
            if speaks(canary, right, chances[place]):
                said = float(right != (differs[place] < contrary))
            made = session(place, canary, right, said, audited=audited, by_teacher=by_teacher)
            fed.append(made)
        metrics = judge_sessions(fed, policy, champion_is_teacher=by_teacher)
        found[verdict_of(metrics)] += 1
    return {name: count / runs for name, count in found.items()}


# Of 100 runs at a chance of 5 %, more than 12 are seen once in 600 times.
BOUND = 0.12


@pytest.mark.parametrize("by_teacher", [True, False], ids=["teacher", "adapter"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_canary_at_the_margin_is_hardly_ever_rolled_back_or_promoted(pattern, by_teacher):
    found = verdicts(pattern, MARGIN, by_teacher=by_teacher)
    assert found["bad"] <= BOUND and found["good"] <= BOUND


@pytest.mark.parametrize("by_teacher", [True, False], ids=["teacher", "adapter"])
@pytest.mark.parametrize("pattern", ["of the canary only", "of wrong canaries and right champions"])
def test_callers_who_differ_from_the_teacher_in_one_arm_only_roll_nobody_back(pattern, by_teacher):
    """A fifth of the words is contrary to the teacher, and the other arm hears little of it."""
    assert verdicts(pattern, 0.0, by_teacher=by_teacher, contrary=0.2)["bad"] <= BOUND


@pytest.mark.parametrize("by_teacher", [True, False], ids=["teacher", "adapter"])
def test_a_bad_canary_is_found_for_all_the_feedback(by_teacher):
    for pattern in ("never", "of right answers"):
        assert verdicts(pattern, 0.5, by_teacher=by_teacher, runs=30)["bad"] == 1, pattern


def everybody(canary: bool, right: bool, chance: float) -> bool:
    return True


@pytest.mark.parametrize("by_teacher", [True, False], ids=["teacher", "adapter"])
def test_without_audits_feedback_on_both_arms_decides(by_teacher, monkeypatch):
    monkeypatch.setitem(PATTERNS, "of all", everybody)
    policy = EvidencePolicy(maturity_seconds=60, margin=MARGIN, audit_rate=0.0)
    without = {"by_teacher": by_teacher, "audited": False, "policy": policy}
    assert verdicts("of all", 0.6, runs=30, **without)["bad"] == 1
    found = verdicts("of all", MARGIN, **without)
    assert found["bad"] <= BOUND and found["good"] <= BOUND
    assert verdicts("of all", 0.0, runs=30, **without)["good"] >= 0.25
    # What only the happy ones say is no sample of anything.
    assert verdicts("of right answers", MARGIN, **without)["good"] <= BOUND


@pytest.mark.parametrize("champion", ["teacher", CHAMPION])
def test_the_log_is_read_the_same_way(champion):
    """With feedback on right answers only, what is left of a canary are its errors."""
    rolled_back = 0
    random = np.random.default_rng(3)
    for _ in range(40):
        calls, feedback = [], []
        for place in range(200):
            canary = random.random() < 0.5
            right = random.random() < 0.95 if canary else True
            adapter = {} if champion != "teacher" else {"adapter": None}
            more = {} if canary else adapter
            side = "canary" if canary else "champion"
            record = call(f"s{place}", place, side, agrees=right, **more)
            calls.append(record)
            if canary and right and random.random() < 0.8:
                feedback.append(report_of(record, 1.0))
        decision = judge_canary(
            calls,
            feedback,
            rollout=ROLLOUT,
            champion=champion,
            policy=EvidencePolicy(maturity_seconds=60, margin=0.1, rollback_margin=0.05),
            now=START + timedelta(hours=3),
        )
        rolled_back += decision.verdict == "bad"
    assert rolled_back <= 4
