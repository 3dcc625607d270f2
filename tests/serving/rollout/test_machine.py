"""The transition table. Each failure that other rollout systems had is ruled out by name here or
in ``test_controller.py``."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rollout.machine import (
    ALLOWED,
    ENDED,
    OPEN,
    Observation,
    RolloutState,
    Transition,
    next_step,
)
from serving.rollout.policy import RolloutPolicy

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
POLICY = RolloutPolicy(
    shadow_sessions=10, steps=(0.1, 0.3, 0.5), step_sessions=20, max_sessions=200
)
PENDING = RolloutState("pending", 0, POLICY, NOW + timedelta(days=1), "own")
SHADOW = replace(PENDING, state="shadow")
CANARY = replace(PENDING, state="canary")
FINE = Observation(loaded=True, labels=50, shadow_pairs=10, step_sessions=20, canary_sessions=60)


def step(state: RolloutState, seen: Observation, now: datetime = NOW) -> Transition:
    transition = next_step(state, seen, now)
    assert transition is not None
    return transition


states = st.builds(
    RolloutState,
    state=st.sampled_from(sorted(OPEN | ENDED)),
    step=st.integers(0, 2),
    policy=st.sampled_from([POLICY, replace(POLICY, shadow_sessions=0)]),
    deadline=st.sampled_from([NOW - timedelta(days=1), NOW, NOW + timedelta(days=1)]),
    route=st.sampled_from(["own", "free", "taken"]),
    task_policy=st.sampled_from(["specialize", "shadow", "teacher"]),
)
verdicts = st.sampled_from(["bad", "good", "continue"])
counts = st.sampled_from([0, 1, 9, 10, 19, 20, 199, 200, 500])
observations = st.builds(
    Observation,
    loaded=st.booleans(),
    kill=st.sampled_from([None, "error burst", ""]),
    verdict=verdicts,
    labels=counts,
    shadow_verdict=verdicts,
    shadow_pairs=counts,
    step_sessions=counts,
    canary_sessions=counts,
)


def test_the_way_from_pending_to_promoted() -> None:
    free = replace(PENDING, route="free")
    assert step(free, FINE).kind == "claim"
    shadow = step(PENDING, FINE)
    assert (shadow.state, shadow.stage, shadow.weight) == ("shadow", "shadow", 0)
    assert shadow.deadline_seconds == POLICY.shadow_deadline_seconds
    canary = step(SHADOW, FINE)
    assert (canary.state, canary.step, canary.weight) == ("canary", 0, 0.1)
    assert canary.deadline_seconds == POLICY.canary_deadline_seconds
    for position, weight in ((0, 0.3), (1, 0.5)):
        raised = step(replace(CANARY, step=position), FINE)
        assert (raised.kind, raised.step, raised.weight) == ("raise", position + 1, weight)
        assert raised.deadline_seconds is None, "raising the weight must not renew the deadline"
    assert next_step(replace(CANARY, step=2), FINE, NOW) is None
    promoted = step(replace(CANARY, step=2), replace(FINE, verdict="good"))
    assert (promoted.state, promoted.stage, promoted.weight) == ("promoted", "none", 0)


def test_a_good_verdict_promotes_at_any_step_after_enough_sessions() -> None:
    good = replace(FINE, verdict="good", canary_sessions=20)
    assert step(CANARY, good).state == "promoted"
    assert next_step(CANARY, replace(good, canary_sessions=19, step_sessions=19), NOW) is None


def test_no_shadow_sessions_asked_for_means_no_shadow() -> None:
    policy = replace(POLICY, shadow_sessions=0)
    assert step(replace(PENDING, policy=policy), FINE).state == "canary"


@pytest.mark.parametrize("state", [PENDING, SHADOW, CANARY])
def test_nothing_is_exposed_before_the_engine_answers_a_probe(state: RolloutState) -> None:
    good = replace(FINE, loaded=False, verdict="good")
    assert next_step(state, good, NOW) is None


@given(states, observations)
def test_every_step_is_in_the_table(state: RolloutState, seen: Observation) -> None:
    transition = next_step(state, seen, NOW)
    if transition is not None:
        assert transition.state in ALLOWED[state.state]
        assert 0 <= transition.weight <= 1
        assert transition.reason
        assert (transition.weight > 0) == (transition.stage == "canary")
        assert (transition.stage == "canary") == (transition.state == "canary")


@given(states, observations)
def test_an_ended_rollout_never_moves_again(state: RolloutState, seen: Observation) -> None:
    # tensorzero#4163: a stopped experiment reverted on later data.
    for ended in ENDED:
        assert next_step(replace(state, state=ended), seen, NOW) is None
        assert not ALLOWED[ended]


@given(
    states,
    observations,
    st.sampled_from([{"kill": "burst"}, {"verdict": "bad"}, {"shadow_verdict": "bad"}]),
)
def test_the_rollback_check_precedes_all_other_gates(
    state: RolloutState, seen: Observation, found: dict[str, Any]
) -> None:
    # flagger#1801: 18 failures, threshold 5, no rollback, because another gate held first.
    bad = replace(seen, **found)
    for still_open in OPEN:
        transition = step(replace(state, state=still_open), bad)
        assert transition.state == "rolled_back"
        assert transition.weight == 0


@given(states, observations)
def test_an_empty_kill_reason_still_kills(state: RolloutState, seen: Observation) -> None:
    assert step(replace(state, state="canary"), replace(seen, kill="")).state == "rolled_back"


@given(states, observations)
def test_only_a_good_verdict_on_counted_labels_promotes(
    state: RolloutState, seen: Observation
) -> None:
    # argo-rollouts#3850, #3873: inconclusive was promoted. argo-rollouts#4479, flagger#1581: a run
    # of nothing but errors was successful. kayenta#377, #799: too few points passed.
    transition = next_step(state, seen, NOW)
    if transition is not None and transition.state == "promoted":
        assert state.state == "canary" and state.route == "own"
        assert seen.verdict == "good" and seen.kill is None
        assert seen.loaded and seen.labels > 0
        assert seen.canary_sessions >= state.policy.step_sessions
        assert state.deadline > NOW


@given(states, observations)
def test_without_a_label_no_canary_grows_or_passes(state: RolloutState, seen: Observation) -> None:
    blind = replace(seen, labels=0)
    transition = next_step(replace(state, state="canary"), blind, NOW)
    assert transition is None or transition.state not in ("canary", "promoted")


@given(states)
def test_having_seen_nothing_exposes_nobody(state: RolloutState) -> None:
    # flagger#1035: an idle canary was rolled back for want of traffic. The policy here is to hold.
    transition = next_step(state, Observation(), NOW)
    assert transition is None or transition.weight == 0
    if state.deadline > NOW and state.route == "own" and state.task_policy == "specialize":
        assert transition is None


@given(states, observations)
def test_every_open_state_ends_at_its_deadline(state: RolloutState, seen: Observation) -> None:
    # argo-rollouts#2522, #942, #1774, flagger#1152: stuck for ever.
    late = state.deadline + timedelta(seconds=1)
    for still_open in OPEN:
        assert step(replace(state, state=still_open), seen, late).state in (
            "rolled_back",
            "inconclusive",
            "superseded",
        )


def test_a_spent_budget_without_a_verdict_keeps_the_champion() -> None:
    # GrowthBook ships a safe rollout that ends inconclusive.
    spent = replace(FINE, canary_sessions=200)
    assert step(replace(CANARY, step=2), spent).state == "inconclusive"
    assert step(CANARY, replace(spent, labels=0, verdict="good")).state == "inconclusive"


def test_a_broken_champion_does_not_block_the_end_of_a_canary() -> None:
    # The machine is told nothing of the champion's health, so nothing can wait for it.
    assert step(CANARY, Observation(verdict="bad")).state == "rolled_back"
    assert step(CANARY, Observation(), CANARY.deadline).state == "inconclusive"


def test_a_route_that_was_taken_ends_the_rollout() -> None:
    for state in (SHADOW, CANARY):
        for other in ("free", "taken"):
            taken = replace(state, route=other)  # type: ignore[arg-type]
            assert step(taken, replace(FINE, verdict="good")).state == "superseded"
    waiting = replace(PENDING, route="taken")
    assert next_step(waiting, FINE, NOW) is None


def test_a_task_that_is_held_back_is_not_exposed() -> None:
    held = replace(SHADOW, task_policy="shadow")
    assert next_step(held, FINE, NOW) is None
    assert step(replace(CANARY, task_policy="shadow"), FINE).state == "inconclusive"
    assert (
        step(
            replace(PENDING, task_policy="shadow", policy=replace(POLICY, shadow_sessions=0)), FINE
        ).state
        == "shadow"
    )
    for state in (PENDING, SHADOW, CANARY):
        assert step(replace(state, task_policy="teacher"), FINE).state == "inconclusive"


@settings(max_examples=60)
@given(st.lists(st.tuples(observations, st.integers(0, 40)), max_size=60))
def test_no_path_leads_from_inconclusive_to_promoted(
    path: list[tuple[Observation, int]],
) -> None:
    state, now, seen_states, weight = SHADOW, NOW, ["shadow"], 0.0
    for seen, hours in path:
        now += timedelta(hours=hours)
        transition = next_step(state, seen, now)
        if transition is None:
            continue
        if transition.state == "canary":
            assert transition.weight > weight, "a canary's weight only rises"
            weight = transition.weight
        seen_states.append(transition.state)
        deadline = state.deadline
        if transition.deadline_seconds is not None:
            deadline = now + timedelta(seconds=transition.deadline_seconds)
        state = replace(state, state=transition.state, step=transition.step, deadline=deadline)
    ends = [one for one in seen_states if one in ENDED]
    assert len(ends) <= 1, f"a verdict is latched, got {seen_states}"
