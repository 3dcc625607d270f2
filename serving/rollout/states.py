"""The state a step was decided on, as JSON: kept with its event, so that the step can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from serving.registry.records import Rollout
from serving.rollout.machine import RolloutState, RouteHeld, TaskPolicy
from serving.rollout.policy import RolloutPolicy


def state_of(rollout: Rollout, route: RouteHeld, task_policy: TaskPolicy) -> RolloutState:
    """What the machine decides on, from the rollout's row, its route and its task's policy."""
    return RolloutState(
        state=rollout.state,
        step=rollout.step,
        policy=rollout.policy,
        deadline=rollout.deadline,
        route=route,
        task_policy=task_policy,
        paused=rollout.paused,
        paused_left_seconds=rollout.paused_left_seconds,
        approval=rollout.approval,
    )


def state_to_json(state: RolloutState) -> dict[str, Any]:
    """Without the policy, which the rollout's row holds and which never changes."""
    return {
        "state": state.state,
        "step": state.step,
        "deadline": state.deadline.isoformat(),
        "route": state.route,
        "task_policy": state.task_policy,
        "paused": state.paused,
        "paused_left_seconds": state.paused_left_seconds,
        "approval": state.approval,
    }


def state_from_json(stored: Mapping[str, Any], policy: RolloutPolicy) -> RolloutState:
    return RolloutState(
        state=stored["state"],
        step=stored["step"],
        policy=policy,
        deadline=datetime.fromisoformat(stored["deadline"]),
        route=stored["route"],
        task_policy=stored["task_policy"],
        paused=stored["paused"],
        paused_left_seconds=stored["paused_left_seconds"],
        approval=stored["approval"],
    )
