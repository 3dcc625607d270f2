"""What a transition does to the registry: rollout, route, adapter, task, event and message.

All of it happens in the caller's one transaction, or none of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from infra.notify.outbox import enqueue
from serving.registry.catalogue import change_adapter_state
from serving.registry.openings import claim_route, write_rollout
from serving.registry.records import TEACHER, Rollout, Route, Task
from serving.registry.routes import touch_route, write_route
from serving.registry.task_rows import change_task
from serving.rollout.machine import ENDED, Observation, Transition
from serving.rollout.messages import champion_message, rollout_message

MAX_EVIDENCE_BYTES = 64 << 10
CLEARED: Mapping[str, Any] = {
    "candidate": None,
    "rollout_id": None,
    "stage": "none",
    "weight": 0.0,
    "salt": "",
}
_ROUTE_EVENTS = {
    "shadow": "route.shadow",
    "canary": "route.canary",
    "raise": "route.raised",
    "promote": "route.promoted",
    "roll_back": "route.rolled_back",
    "give_up": "route.inconclusive",
    "supersede": "route.superseded",
    "pause": "route.paused",
    "resume": "route.resumed",
    "abort": "route.inconclusive",
}
"""Those that leave the route as it is are missing."""
_ENTERS_STEP = frozenset({"shadow", "canary", "raise"})
_TOLD: Mapping[str, str] = {
    "pause": "rollout.paused",
    "resume": "rollout.resumed",
    "ask": "rollout.asked",
    "approve": "rollout.approved",
}
"""Events of what leaves state and step as they are."""


@dataclass(frozen=True)
class Act:
    """Who acts, when, under which fence (None: a person), and whom to tell."""

    actor: str
    now: datetime
    fence: int | None
    channels: Sequence[str] = ()


def note(
    connection: Connection, rollout: Rollout, route: Route, seen: Observation, act: Act
) -> Rollout:
    """Keep what was seen, and show the gateways that the rollout is being looked after."""
    if route.rollout_id == rollout.id and act.fence is not None:
        touch_route(connection, route, fence=act.fence, now=act.now)
    evidence = {**rollout.evidence, **summary(seen)}
    changes = {"evidence": evidence, "sessions": seen.canary_sessions}
    return write_rollout(connection, rollout, changes, actor=act.actor, now=act.now)


def carry_out(
    connection: Connection,
    rollout: Rollout,
    route: Route,
    task: Task,
    transition: Transition,
    act: Act,
    seen: Observation | None = None,
    decided_on: Mapping[str, Any] | None = None,
) -> Rollout:
    """Take the step. ``seen``: what it rests on; None for a person's decision.

    Args:
        decided_on: the state that the machine decided on, kept with the event for a replay.

    Raises RouteChanged, StaleFence, RolloutChanged; then the caller's transaction must end.
    """
    if transition.kind == "claim":
        return claim_route(
            connection, rollout, route, fence=act.fence, actor=act.actor, now=act.now
        )
    facts = summary(seen) if seen else {}
    if decided_on is not None:
        facts["decided_on"] = {"kind": transition.kind, **decided_on}
    after = _move_route(connection, rollout, route, transition, act, facts)
    evidence = {**rollout.evidence, **facts}
    if transition.kind == "canary" and seen is not None:
        # From here on it is the same at every look, however many records come late.
        evidence["latency_objective_seconds"] = seen.latency_objective_seconds
    if transition.kind in _ENTERS_STEP:
        evidence["step"] = {"entered": act.now.isoformat(), "route_version": after.version}
    evidence |= _waits(rollout, transition, act)
    changes: dict[str, Any] = {
        "state": transition.state,
        "step": transition.step,
        "reason": transition.reason,
        "evidence": evidence,
        "sessions": seen.canary_sessions if seen else rollout.sessions,
    }
    if transition.deadline_seconds is not None:
        changes["deadline"] = act.now + timedelta(seconds=transition.deadline_seconds)
    moved = write_rollout(
        connection,
        rollout,
        changes,
        actor=act.actor,
        now=act.now,
        evidence=facts,
        what=_TOLD.get(transition.kind),
    )
    if transition.kind == "promote":
        _set_task_state(connection, task, "specialized", transition.reason, act)
    if transition.kind == "roll_back":
        reject(connection, rollout.adapter, transition.reason, act, facts)
    message = rollout_message(moved, transition, after, evidence)
    if message is not None and act.channels:
        enqueue(connection, message, act.channels)
    return moved


def replace_champion(
    connection: Connection, route: Route, task: Task, target: str, why: str, act: Act
) -> Route:
    """Put an earlier champion (or the teacher) back and reject the present one for good.

    The route must not carry a rollout any more: its evidence was against the present champion.
    """
    after = write_route(
        connection,
        route,
        {"champion": target},
        fence=act.fence,
        actor=act.actor,
        what="route.rolled_back",
        why=why,
        now=act.now,
    )
    if route.champion != TEACHER:
        reject(connection, route.champion, why, act, {})
    _set_task_state(connection, task, "candidate" if target == TEACHER else "specialized", why, act)
    if act.channels:
        enqueue(connection, champion_message(route, after, why), act.channels)
    return after


def summary(seen: Observation) -> dict[str, Any]:
    """What is kept of an observation, as JSON that every database takes."""
    facts = {
        "counts": seen.counts(),
        "verdicts": {"canary": seen.verdict, "shadow": seen.shadow_verdict},
        "observed": _plain(seen.evidence),
        "loaded": seen.loaded,
    }
    if seen.latency_objective_seconds is not None:
        facts["latency_objective"] = seen.latency_objective_seconds
    if seen.kill is not None:
        facts["kill"] = seen.kill[:500]
    if seen.mismatch is not None:
        facts["mismatch"] = seen.mismatch[:500]
    if seen.source:
        facts["source"] = _plain(seen.source)
    size = len(json.dumps(facts["observed"]).encode())
    if size > MAX_EVIDENCE_BYTES:
        # An oversized note must not keep a rollback from happening.
        facts["observed"] = {"left_out": f"{size} bytes, more than {MAX_EVIDENCE_BYTES}"}
    return facts


def _move_route(
    connection: Connection,
    rollout: Rollout,
    route: Route,
    transition: Transition,
    act: Act,
    facts: Mapping[str, Any],
) -> Route:
    if route.rollout_id != rollout.id:
        # It ends while waiting for its turn, or after its route was taken: not ours to change.
        return route
    if transition.kind not in _ROUTE_EVENTS:
        return route
    changes: dict[str, Any] = {"stage": transition.stage, "weight": transition.weight}
    if transition.state in ENDED:
        changes = dict(CLEARED)
    if transition.kind == "promote":
        changes["champion"] = rollout.adapter
    return write_route(
        connection,
        route,
        changes,
        fence=act.fence,
        actor=act.actor,
        what=_ROUTE_EVENTS[transition.kind],
        why=transition.reason,
        now=act.now,
        evidence={"rollout": rollout.id, **facts},
    )


def _waits(rollout: Rollout, transition: Transition, act: Act) -> dict[str, Any]:
    """What is kept of a pause and of an approval."""
    by = {"at": act.now.isoformat(), "by": act.actor}
    if transition.kind == "pause":
        left = (rollout.deadline - act.now).total_seconds()
        return {"paused": {**by, "left_seconds": left}}
    if transition.kind == "ask":
        return {"approval": {**by, "is": "asked"}}
    if transition.kind == "approve":
        return {"approval": {**by, "is": "given"}}
    if transition.kind == "resume" or (transition.state in ENDED and rollout.paused):
        return {"paused": None}
    return {}


def reject(
    connection: Connection, adapter: str, why: str, act: Act, facts: Mapping[str, Any]
) -> None:
    """Never again: a rejected digest is not rolled out."""
    change_adapter_state(
        connection, adapter, "rejected", actor=act.actor, why=why, now=act.now, evidence=facts
    )


def _set_task_state(connection: Connection, task: Task, state: str, why: str, act: Act) -> None:
    change_task(
        connection,
        task,
        {"state": state},
        what=f"task.{state}",
        actor=act.actor,
        why=why,
        now=act.now,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return _plain(value.item())  # a numpy scalar
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no infinity, and an e-value may well reach it.
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
