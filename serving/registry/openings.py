"""Opening a rollout, and the rows of rollouts. Every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select

from infra.calls.record import new_id
from infra.database.events import record_event
from infra.database.tables import adapters, rollouts
from infra.database.writes import compare_and_swap
from infra.tasks.joined import merged_into
from serving.registry.catalogue import read_adapter, read_scorecards
from serving.registry.errors import (
    IllegalState,
    RolloutChanged,
    RolloutRefused,
    UnknownRollout,
)
from serving.registry.records import Adapter, Rollout, Route
from serving.registry.routes import cooling_until, read_route, write_route
from serving.registry.task_rows import read_task
from serving.rollout.assignment import new_salt
from serving.rollout.machine import ALLOWED, OPEN, State
from serving.rollout.policy import RolloutPolicy


def read_rollout(connection: Connection, rollout_id: str) -> Rollout:
    row = connection.execute(select(rollouts).where(rollouts.c.id == rollout_id)).one_or_none()
    if row is None:
        raise UnknownRollout(
            f"no rollout {rollout_id!r}: `nightschool rollouts` lists those there are"
        )
    return Rollout.from_row(row)


def read_rollouts(
    connection: Connection,
    *,
    states: Iterable[State] | None = None,
    task_id: str | None = None,
    adapter: str | None = None,
) -> list[Rollout]:
    """Oldest first."""
    query = select(rollouts).order_by(rollouts.c.created, rollouts.c.id)
    if states is not None:
        query = query.where(rollouts.c.state.in_(list(states)))
    if task_id is not None:
        query = query.where(rollouts.c.task_id == task_id)
    if adapter is not None:
        query = query.where(rollouts.c.adapter == adapter)
    return [Rollout.from_row(row) for row in connection.execute(query)]


def write_rollout(
    connection: Connection,
    current: Rollout,
    changes: Mapping[str, Any],
    *,
    actor: str,
    now: datetime,
    evidence: Mapping[str, Any] | None = None,
    what: str | None = None,
) -> Rollout:
    """Change a rollout as it was read; with an event when its state or step changes, or ``what``.

    Raises:
        IllegalState: the state asked for may not follow the present one.
        RolloutChanged: the row is no longer ``current``.
    """
    state: State = changes.get("state", current.state)
    moved = state != current.state or changes.get("step", current.step) != current.step
    if state not in ALLOWED[current.state] and (moved or not current.open):
        raise IllegalState(f"rollout {current.id} is {current.state}, which {state} may not follow")
    values = {**changes, "version": current.version + 1}
    if state != current.state:
        values["entered"] = now
    expected = {"id": current.id, "version": current.version, "state": current.state}
    if not compare_and_swap(connection, rollouts, expected, values):
        raise RolloutChanged(
            f"rollout {current.id} is no longer at version {current.version}: look again"
        )
    written = read_rollout(connection, current.id)
    if moved or what is not None:
        record_event(
            connection,
            actor=actor,
            what=what or f"rollout.{state}",
            subject=current.id,
            why=written.reason,
            evidence=evidence,
            previous={"state": current.state, "step": current.step},
            current={"state": state, "step": written.step, "adapter": current.adapter},
            time=now,
        )
    return written


def claim_route(
    connection: Connection,
    rollout: Rollout,
    route: Route,
    *,
    fence: int | None,
    actor: str,
    now: datetime,
) -> Rollout:
    """Put a pending rollout's adapter on its route as candidate: loaded by engines, exposed to none."""
    claimed = write_route(
        connection,
        route,
        {
            "candidate": rollout.adapter,
            "rollout_id": rollout.id,
            "stage": "none",
            "weight": 0.0,
            "salt": rollout.salt,
        },
        fence=fence,
        actor=actor,
        what="route.claimed",
        why=f"rollout {rollout.id} begins",
        now=now,
    )
    step = {"entered": now.isoformat(), "route_version": claimed.version}
    evidence = {**rollout.evidence, "champion": route.champion, "step": step}
    # From here it has to get loaded; the time it waited in the queue does not count against it.
    deadline = now + timedelta(seconds=rollout.policy.shadow_deadline_seconds)
    changes = {"evidence": evidence, "deadline": deadline}
    return write_rollout(connection, rollout, changes, actor=actor, now=now)


def open_rollout(
    connection: Connection,
    task_id: str,
    adapter: str,
    policy: RolloutPolicy,
    *,
    actor: str,
    why: str,
    now: datetime,
    gate_override: str | None = None,
) -> Rollout:
    """See ``Registry.open_rollout``."""
    task = read_task(connection, task_id, lock=True)
    candidate = read_adapter(connection, adapter)
    open_ones = read_rollouts(connection, states=OPEN, task_id=task_id)
    for rollout in open_ones:
        if rollout.adapter == adapter:
            return rollout
    if (into := merged_into(task.details)) is not None:
        raise RolloutRefused(f"task {task_id} is merged into {into}: roll out an adapter of {into}")
    if task.approval is not None:
        policy = replace(policy, approval=task.approval == "approve")
    if task.policy == "teacher":
        raise RolloutRefused(f"task {task_id} is set to be answered by the teacher only")
    problem = policy.unreachable()
    if problem is not None:
        raise RolloutRefused(f"the terms of this rollout cannot be met: {problem}")
    route = read_route(connection, task_id)
    _check_candidate(connection, candidate, route)
    _check_gate(connection, adapter, gate_override)
    rests_until = cooling_until(connection, task_id, policy.cooldown_seconds)
    if rests_until is not None and now < rests_until:
        raise RolloutRefused(
            f"task {task_id} rests after its last rollout until {rests_until:%Y-%m-%d %H:%M:%S} "
            "UTC ([rollout] cooldown_seconds)"
        )
    opened = _insert(connection, candidate, policy, actor, why, now, gate_override)
    for rollout in open_ones:
        holds_route = route.rollout_id == rollout.id
        if holds_route and policy.when_open == "queue":
            continue
        # Only the newest waits: yesterday's adapter would be judged after a better one exists.
        _supersede(connection, rollout, opened, actor=actor, now=now)
        if holds_route:
            # The successor begins at nothing: own salt, own evidence, exposed to no one.
            route = write_route(
                connection,
                route,
                {"candidate": None, "rollout_id": None, "stage": "none", "weight": 0.0, "salt": ""},
                fence=None,
                actor=actor,
                what="route.superseded",
                why=f"superseded by rollout {opened.id}",
                now=now,
            )
    if route.rollout_id is None:
        return claim_route(connection, opened, route, fence=None, actor=actor, now=now)
    return opened


def _insert(
    connection: Connection,
    candidate: Adapter,
    policy: RolloutPolicy,
    actor: str,
    why: str,
    now: datetime,
    gate_override: str | None,
) -> Rollout:
    rollout_id = new_id()
    evidence: dict[str, Any] = {"salt": new_salt(), "step": {"entered": now.isoformat()}}
    if gate_override is not None:
        evidence["gate_override"] = gate_override
    connection.execute(
        insert(rollouts).values(
            id=rollout_id,
            task_id=candidate.task_id,
            adapter=candidate.name,
            state="pending",
            step=0,
            policy=policy.to_json(),
            evidence=evidence,
            sessions=0,
            reason=why,
            version=1,
            created=now,
            entered=now,
            deadline=now + timedelta(seconds=policy.pending_deadline_seconds),
        )
    )
    record_event(
        connection,
        actor=actor,
        what="rollout.opened",
        subject=rollout_id,
        why=why,
        evidence={"policy": policy.to_json(), "gate_override": gate_override},
        current={"state": "pending", "adapter": candidate.name, "task": candidate.task_id},
        time=now,
    )
    return read_rollout(connection, rollout_id)


def _supersede(
    connection: Connection, old: Rollout, new: Rollout, *, actor: str, now: datetime
) -> None:
    changes: dict[str, Any] = {
        "state": "superseded",
        "reason": f"superseded by {new.adapter} (rollout {new.id})",
    }
    if old.paused:
        changes["evidence"] = {**old.evidence, "paused": None}
    write_rollout(connection, old, changes, actor=actor, now=now)


def _check_candidate(connection: Connection, candidate: Adapter, route: Route) -> None:
    if candidate.task_id != route.task_id:
        raise RolloutRefused(
            f"adapter {candidate.name} belongs to task {candidate.task_id}, not {route.task_id}"
        )
    if candidate.name == route.champion:
        raise RolloutRefused(f"adapter {candidate.name} is the champion of its task already")
    alike = connection.execute(
        select(adapters.c.name, adapters.c.state).where(adapters.c.digest == candidate.digest)
    ).all()
    names = [row.name for row in alike]
    rolled_back = connection.execute(
        select(rollouts.c.id)
        .where(rollouts.c.adapter.in_(names), rollouts.c.state == "rolled_back")
        .limit(1)
    ).scalar_one_or_none()
    if rolled_back is not None or any(row.state == "rejected" for row in alike):
        raise RolloutRefused(
            f"the weights of {candidate.name} were rejected or rolled back once, and a rejected "
            "digest is never retried: train a new adapter"
        )
    if candidate.state != "registered":
        raise RolloutRefused(f"adapter {candidate.name} is {candidate.state}")


def _check_gate(connection: Connection, adapter: str, gate_override: str | None) -> None:
    if gate_override is not None:
        if not gate_override.strip():
            raise RolloutRefused("an override of the gate needs its reason in words")
        return
    cards = read_scorecards(connection, adapter)
    verdict = cards[0].verdict if cards else "missing"
    if verdict != "pass":
        when = f" of {cards[0].created:%Y-%m-%d %H:%M} UTC" if cards else ""
        raise RolloutRefused(
            f"the latest gate verdict of {adapter}{when} is {verdict or 'missing'}, not pass, and "
            f"the latest counts: `nightschool judge {adapter} --keep` judges it anew; otherwise "
            "only gate_override=<reason> lets it through, and the reason is recorded"
        )
