"""How users of other rollout systems were hurt, and the tests that rule it out here.

The reports are issues of argo-rollouts, flagger, kayenta, tensorzero, aibrix, vllm, mlflow and gitops
platforms; each row's tests must exist under the name given, so that none is renamed or removed without
being missed.
"""

from __future__ import annotations

from importlib import import_module

import pytest

MACHINE, CONTROLLER = "serving.rollout.test_machine", "serving.rollout.test_controller"
AT_ONCE, TAKING_BACK = (
    "serving.rollout.test_controllers_at_once",
    "serving.rollout.test_taking_back",
)
KILLED = "serving.rollout.test_killed_controller"
REGISTRY, BAD_INPUT = "contracts.test_registry", "flows.test_rollout_bad_input"
ASSIGNMENT, KILLS = "serving.rollout.test_assignment", "serving.gateway.test_kill_switch"
RECONCILE, ROUTING = "serving.engines.test_reconcile", "serving.gateway.test_routing"
ORDERS, OPENING = "serving.rollout.test_orders", "contracts.test_registry_rollouts"
EVIDENCE, SEQUENTIAL = "evaluators.test_evidence", "evaluators.test_sequential"
REPLAY = "flows.test_rollout_replay"

RULED_OUT: dict[str, list[tuple[str, str]]] = {
    "stuck rollout": [
        (MACHINE, "test_every_open_state_ends_at_its_deadline"),
        (MACHINE, "test_a_broken_champion_does_not_block_the_end_of_a_canary"),
        (CONTROLLER, "test_a_deadline_ends_every_open_state_and_keeps_the_champion"),
        (ORDERS, "test_a_pause_nobody_ends_is_inconclusive"),
    ],
    "gate that forgets the rollback": [
        (MACHINE, "test_the_rollback_check_precedes_all_other_gates"),
        (ORDERS, "test_a_rollback_comes_before_the_wait_for_a_person"),
    ],
    "rollback to the broken side in the middle of a promotion": [
        (TAKING_BACK, "test_never_back_to_a_broken_side"),
        (AT_ONCE, "test_kill_and_promotion_at_once_leave_the_adapter_off"),
        (MACHINE, "test_nothing_is_exposed_before_the_engine_answers_a_probe"),
        (REGISTRY, "test_engines_keep_an_adapter_until_it_is_drained"),
    ],
    "two controllers, double promotion": [
        (AT_ONCE, "test_many_controllers_at_once_act_once"),
        (AT_ONCE, "test_a_late_controller_with_an_old_fence_writes_nothing"),
        (KILLED, "test_killed_before_any_statement_and_run_again_ends_in_the_same_state"),
    ],
    "inconclusive was promoted": [
        (MACHINE, "test_no_path_leads_from_inconclusive_to_promoted"),
        (MACHINE, "test_a_spent_budget_without_a_verdict_keeps_the_champion"),
    ],
    "a run of nothing but errors passed": [
        (MACHINE, "test_without_a_label_no_canary_grows_or_passes"),
        (BAD_INPUT, "test_all_error_traffic_rolls_back_and_never_passes"),
        (BAD_INPUT, "test_a_metric_that_disappears_stops_the_weight_where_it_is"),
    ],
    "no traffic, or few points": [
        (MACHINE, "test_having_seen_nothing_exposes_nobody"),
        (BAD_INPUT, "test_no_traffic_holds_and_then_keeps_the_champion"),
    ],
    "a new version in the middle of a canary": [
        (OPENING, "test_a_new_adapter_supersedes_and_inherits_nothing"),
        (OPENING, "test_a_queued_rollout_waits_and_only_the_newest_does"),
    ],
    "a failed state that wedges, a rollback that is lost": [
        (OPENING, "test_a_rejected_digest_is_never_retried"),
        (ORDERS, "test_a_kill_after_the_end_still_rejects_the_adapter"),
        (
            "serving.gateway.test_many_tasks",
            "test_a_kill_that_the_registry_refuses_holds_up_no_other",
        ),
    ],
    "sticky sessions drift to a full canary": [
        (ASSIGNMENT, "test_weight_steps_do_not_drift_to_a_full_canary"),
        (ASSIGNMENT, "test_raising_the_weight_never_moves_a_canary_session_back"),
        (ASSIGNMENT, "test_the_split_is_within_half_a_point_of_the_weight"),
        (BAD_INPUT, "test_a_split_that_is_not_as_asked_for_ends_inconclusive"),
    ],
    "flapping": [
        (MACHINE, "test_an_ended_rollout_never_moves_again"),
        (CONTROLLER, "test_after_a_rollback_the_next_in_line_waits_for_the_rest"),
    ],
    "an adapter lost after a restart": [
        (BAD_INPUT, "test_an_adapter_that_is_lost_by_the_engine_is_not_exposed_further"),
        (RECONCILE, "test_from_nothing_to_the_goal_and_onwards"),
        (ROUTING, "test_a_rollout_that_is_not_running_here_has_no_arms"),
    ],
    "missing values that pass, or that roll back an idle canary": [
        (EVIDENCE, "test_missing_labels_never_promote_and_alone_never_roll_back"),
        (SEQUENTIAL, "test_hiding_a_canarys_label_never_makes_either_verdict_nearer"),
    ],
    "labels counted as they arrive": [
        (EVIDENCE, "test_quick_failures_and_slow_successes_do_not_roll_back_an_equal_canary"),
        (EVIDENCE, "test_the_head_of_the_line_waits_for_its_label"),
    ],
    "failures that the fallback hides": [
        (EVIDENCE, "test_the_arm_is_charged_with_its_failures_though_the_teacher_answered"),
    ],
    "a picture of another rule than the one that decides": [
        (REPLAY, "test_the_picture_shows_evidence_thresholds_steps_and_who_acted"),
        (SEQUENTIAL, "test_the_paths_end_where_the_test_stands"),
    ],
    "a name used again for other weights": [
        (REGISTRY, "test_a_name_never_stands_for_something_else"),
        (REGISTRY, "test_engines_keep_an_adapter_until_it_is_drained"),
    ],
    "a pointer moved by two at once, and nobody knows by whom": [
        (REGISTRY, "test_of_many_writers_at_once_exactly_one_wins"),
        (REGISTRY, "test_a_change_and_its_event_are_one"),
    ],
    "a canary that is bad at once and waits for statistics": [
        (KILLS, "test_an_unsafe_answer_is_not_shown_and_ends_the_rollout"),
        (KILLS, "test_a_canary_that_has_become_slow_is_stopped"),
        (KILLS, "test_weights_that_are_not_what_they_should_be_end_the_rollout"),
        (KILLS, "test_a_champion_that_is_itself_broken_is_taken_to_the_teacher"),
    ],
}


@pytest.mark.parametrize("failure", list(RULED_OUT))
def test_each_failure_has_its_tests(failure: str) -> None:
    missing = [
        f"{module}.{name}"
        for module, name in RULED_OUT[failure]
        if not hasattr(import_module(f"tests.{module}"), name)
    ]
    assert missing == []
