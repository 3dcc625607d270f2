"""The route of a task: one row, changed by compare-and-swap in one transaction with its event.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select

from infra.database.events import list_events, record_event
from infra.database.tables import adapters, events, routes
from infra.database.writes import compare_and_swap, insert_if_absent
from serving.registry.errors import RouteChanged, RouteInvalid, StaleFence
from serving.registry.records import TEACHER, Route

CHANGEABLE = frozenset({"champion", "candidate", "rollout_id", "stage", "weight", "salt"})
ROUTE_EVENTS = "route."
"""Events whose ``what`` begins so have the task as subject and routes as previous and current."""
ENDED_BADLY = ("route.rolled_back", "route.inconclusive")
MAX_HISTORY = 1000


def read_route(connection: Connection, task_id: str) -> Route:
    """The route, or version 0 (the teacher answers) when none was ever written."""
    row = connection.execute(select(routes).where(routes.c.task_id == task_id)).one_or_none()
    return Route(**row._mapping) if row else Route(task_id)


def write_route(
    connection: Connection,
    current: Route,
    changes: Mapping[str, Any],
    *,
    fence: int | None,
    actor: str,
    what: str,
    why: str,
    now: datetime,
    evidence: Mapping[str, Any] | None = None,
) -> Route:
    """Replace ``current`` (as it was read) by a changed one, with its event.

    Args:
        fence: the writer's fencing token; None for a person, who outranks every lease.

    Raises:
        StaleFence: the row carries a newer fence.
        RouteChanged: the row is no longer ``current``.
        RouteInvalid: the result would contradict itself.
    """
    unknown = set(changes) - CHANGEABLE
    if unknown:
        raise RouteInvalid(f"a route has no field {', '.join(sorted(unknown))} to change")
    if fence is not None and fence < current.fence:
        raise StaleFence(
            f"the route of {current.task_id} was written under fence {current.fence}; "
            f"fence {fence} is out of date"
        )
    wanted = replace(
        current,
        **changes,
        version=current.version + 1,
        fence=current.fence if fence is None else fence,
        updated=now,
    )
    _check(connection, current, wanted)
    values = {**wanted.to_json(), "updated": now}
    if current.version == 0:
        written = insert_if_absent(connection, routes, values)
    else:
        expected = {
            "task_id": current.task_id,
            "version": current.version,
            # A tending with a newer fence leaves the version as it was.
            "fence": current.fence,
        }
        written = compare_and_swap(connection, routes, expected, values)
    if not written:
        raise RouteChanged(
            f"the route of {current.task_id} is no longer at version {current.version}: "
            "read it again and decide again"
        )
    record_event(
        connection,
        actor=actor,
        what=what,
        subject=current.task_id,
        why=why,
        evidence=evidence,
        previous=current.to_json(),
        current=wanted.to_json(),
        time=now,
    )
    return wanted


def touch_route(connection: Connection, current: Route, *, fence: int, now: datetime) -> None:
    """Say that the route was looked after: the gateway's dead man's timer starts again.

    Leaves the version as it is, because what the route says has not changed.
    Raises StaleFence, RouteChanged.
    """
    if fence < current.fence:
        raise StaleFence(f"fence {fence} is older than the route's {current.fence}")
    expected = {
        "task_id": current.task_id,
        "version": current.version,
        "fence": current.fence,
    }
    if not compare_and_swap(connection, routes, expected, {"updated": now, "fence": fence}):
        raise RouteChanged(f"the route of {current.task_id} was changed while it was tended")


@dataclass(frozen=True)
class Left:
    """Who was taken off a task's route, from its events."""

    champions: tuple[str, ...]
    """Who answered before the present champion, newest first, each once; the teacher too."""
    times: Mapping[str, datetime]
    """Adapter to when it was last on the route before it left (or changed its place there)."""


def past_champions(connection: Connection, task_id: str) -> list[str]:
    """Who answered before the present champion, newest first, each once, from the events."""
    return list(left_routes(connection, task_id).champions)


def left_routes(connection: Connection, task_id: str) -> Left:
    """Who was on the route before, champions and candidates."""
    present = read_route(connection, task_id).champion
    champions: list[str] = []
    times: dict[str, datetime] = {}
    for change in list_events(connection, subject=task_id, limit=MAX_HISTORY, newest_first=True):
        if not change.what.startswith(ROUTE_EVENTS) or not change.previous:
            continue
        champion = change.previous["champion"]
        if champion != present and champion not in champions:
            champions.append(champion)
        for name in (champion, change.previous["candidate"]):
            if name is not None and name != TEACHER:
                times.setdefault(name, change.time)
    return Left(tuple(champions), times)


def cooling_until(connection: Connection, task_id: str, seconds: float) -> datetime | None:
    """When the task may take a new candidate again, counted from its last bad end; or None."""
    last = connection.execute(
        select(events.c.time)
        .where(events.c.subject == task_id, events.c.what.in_(ENDED_BADLY))
        .order_by(events.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if last is None else last + timedelta(seconds=seconds)


def wanted_adapters(connection: Connection, now: datetime, drain_seconds: float) -> set[str]:
    """Adapters an engine should hold: those on a route, and those that left one just now.

    An adapter taken off a route still has answers in flight and gateways that have not heard yet,
    so it is kept for ``drain_seconds`` more.
    """
    named = {
        name
        for row in connection.execute(select(routes.c.champion, routes.c.candidate))
        for name in row
    }
    recent = connection.execute(
        select(events.c.previous).where(
            events.c.what.startswith(ROUTE_EVENTS),
            events.c.time > now - timedelta(seconds=drain_seconds),
        )
    ).scalars()
    for previous in recent:
        if previous:
            named |= {previous["champion"], previous["candidate"]}
    return {name for name in named if name and name != TEACHER}


def _check(connection: Connection, current: Route, wanted: Route) -> None:
    def refuse(problem: str) -> RouteInvalid:
        return RouteInvalid(f"the route of {wanted.task_id} would {problem}")

    if not 0 <= wanted.weight <= 1:
        raise refuse(f"have weight {wanted.weight}; a weight is a share from 0 to 1")
    if wanted.stage not in ("none", "shadow", "canary"):
        raise refuse(f"have stage {wanted.stage!r}; stages are none, shadow and canary")
    if wanted.stage != "canary" and wanted.weight != 0:
        raise refuse(f"expose {wanted.weight:.0%} of the sessions in stage {wanted.stage}")
    if (wanted.candidate is None) != (wanted.rollout_id is None):
        raise refuse("have a candidate without a rollout, or a rollout without a candidate")
    if wanted.candidate is None and wanted.stage != "none":
        raise refuse(f"be in stage {wanted.stage} without a candidate")
    if wanted.candidate is not None and not wanted.salt:
        raise refuse("have a candidate and no salt to assign sessions with")
    if wanted.candidate == TEACHER or (wanted.candidate and wanted.candidate == wanted.champion):
        raise refuse(f"compare {wanted.candidate} with itself")
    if wanted.champion != current.champion and (
        wanted.rollout_id is not None and wanted.rollout_id == current.rollout_id
    ):
        raise refuse("change the champion under an open rollout; end the rollout first")
    # A bystander that was rejected meanwhile must not block the change that removes the other.
    for name in {wanted.champion, wanted.candidate} - {current.champion, current.candidate}:
        if name is not None and name != TEACHER:
            check_may_answer(connection, wanted.task_id, name)


def check_may_answer(connection: Connection, task_id: str, name: str) -> None:
    """Raises RouteInvalid unless ``name`` is a registered adapter of this task."""
    row = connection.execute(
        select(adapters.c.task_id, adapters.c.state).where(adapters.c.name == name)
    ).one_or_none()
    if row is None:
        raise RouteInvalid(f"no adapter {name!r} is registered: `nightschool adapters` lists them")
    if row.task_id != task_id:
        raise RouteInvalid(f"adapter {name} belongs to task {row.task_id}, not to {task_id}")
    if row.state != "registered":
        raise RouteInvalid(f"adapter {name} is {row.state} and may not answer")
