"""What a person orders of one rollout, carried out in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from infra.calls.record import utc_now
from serving.registry.errors import IllegalState, RolloutChanged, RouteChanged
from serving.registry.openings import read_rollout
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.registry.routes import read_route
from serving.registry.task_rows import read_task
from serving.rollout.effects import Act, carry_out
from serving.rollout.machine import Order, order
from serving.rollout.states import read_state

ATTEMPTS = 5


def give_order(
    registry: Registry,
    rollout_id: str,
    what: Order,
    *,
    actor: str,
    why: str,
    now: datetime | None = None,
    channels: Sequence[str] = (),
) -> Rollout:
    """Pause, resume, abort or approve a rollout, at once and without asking any lease.

    A person outranks a controller: one that decides at the same time finds the rollout changed, and
    looks again. An abort rejects nobody; ``rollback`` does.

    Raises:
        UnknownRollout.
        IllegalState: the order cannot be carried out; the message says why.
        RolloutChanged, RouteChanged: it moved on again and again meanwhile.
    """
    act = Act(actor, now or utc_now(), None, channels)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with registry.database.begin() as connection:
                task = read_task(
                    connection, read_rollout(connection, rollout_id).task_id, lock=True
                )
                rollout = read_rollout(connection, rollout_id)
                route = read_route(connection, task.id)
                state = read_state(connection, rollout, route, task, act.now)
                transition = order(state, what, why, act.now)
                if isinstance(transition, str):
                    raise IllegalState(f"{what} of rollout {rollout_id}: {transition}")
                return carry_out(connection, rollout, route, task, transition, act)
        except (RouteChanged, RolloutChanged):
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def obstacle(registry: Registry, rollout_id: str, what: Order, now: datetime) -> str | None:
    """Why this order could not be carried out now; None when it could. Raises UnknownRollout."""
    with registry.database.read() as connection:
        rollout = read_rollout(connection, rollout_id)
        task = read_task(connection, rollout.task_id)
        state = read_state(connection, rollout, read_route(connection, task.id), task, now)
    transition = order(state, what, "", now)
    return transition if isinstance(transition, str) else None
