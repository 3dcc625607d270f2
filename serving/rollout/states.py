"""The state that a step is decided on: read from the registry, and kept as JSON for a replay."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from serving.registry.records import Rollout, Route, Task
from serving.registry.routes import cooling_until
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


def read_state(
    connection: Connection, rollout: Rollout, route: Route, task: Task, now: datetime
) -> RolloutState:
    """What the machine decides on, as the registry has it in the caller's transaction."""
    holds: RouteHeld = "taken"
    if route.rollout_id == rollout.id:
        # Evidence against another champion is no evidence.
        holds = "own" if route.champion == rollout.champion else "taken"
    elif route.rollout_id is None and route.champion != rollout.adapter:
        rests = cooling_until(connection, task.id, rollout.policy.cooldown_seconds)
        holds = "free" if rests is None or now >= rests else "taken"
    return state_of(rollout, holds, task.policy)


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
