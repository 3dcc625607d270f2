"""Tending rollouts: observe, decide, act. And taking adapters back.

``tend`` may be called by any number of processes as often as they like. A lease per task keeps them
from doing the same work twice; what keeps them from *acting* twice is that each action is one
transaction which checks the lease's fence and swaps the versions that the decision was taken on.
A kill at any moment leaves either the old state or the new one, and the next call goes on from it.

A rollout that is tended has its route's ``updated`` time renewed; the gateways take the weight away
from a canary whose route has not been touched for ``[gateway] dead_man_seconds``. So a controller
that cannot observe (its observer raises) stops exposing callers, without any message from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection

from infra.calls.record import new_id, utc_now
from infra.database.leases import LeaseLost, acquire, guard, release, renew
from infra.tasks.joined import merged_into
from serving.registry.catalogue import read_adapter
from serving.registry.errors import (
    NothingToRollBack,
    RolloutChanged,
    RouteChanged,
    RouteInvalid,
    StaleFence,
)
from serving.registry.openings import read_rollout, read_rollouts
from serving.registry.records import TEACHER, Rollout, Route, Task
from serving.registry.registry import Registry
from serving.registry.routes import past_champions, read_route
from serving.registry.task_rows import read_task
from serving.rollout.effects import Act, carry_out, note, reject, replace_champion
from serving.rollout.machine import (
    MAX_REASON,
    Observation,
    end,
    next_step,
)
from serving.rollout.states import read_state, state_to_json
from serving.rollout.targets import resolve

LEASE_SECONDS = 60.0
"""How long a killed controller keeps others waiting; nothing but waiting depends on it."""
ATTEMPTS = 5

Observe = Callable[[Rollout], Observation]


def tend(
    registry: Registry,
    rollout_id: str,
    observe: Observe,
    now: datetime | None = None,
    actor: str = "rollout-controller",
    channels: Sequence[str] = (),
    *,
    lease_seconds: float = LEASE_SECONDS,
) -> Rollout:
    """Look after one rollout: take at most one step, and return the rollout as it is afterwards.

    Args:
        observe: what is seen of the rollout. Called outside any transaction, and only while the
            rollout's adapter stands on its route; it may take long. What it raises goes through,
            and the rollout is then left untouched.
        now: the present, for callers with a clock of their own.
        channels: names of the notification channels that hear of it.

    When another controller is at it, or was faster, nothing is done and nothing is raised.

    Raises:
        UnknownRollout.
    """
    now = now or utc_now()
    clock = _clock(now)
    database = registry.database
    rollout = registry.rollout(rollout_id)
    if not rollout.open:
        return rollout
    lease, holder = f"rollout:{rollout.task_id}", f"{actor[:60]}/{new_id()}"
    fence = acquire(database, lease, holder, lease_seconds, clock())
    if fence is None:
        return rollout
    try:
        rollout = registry.rollout(rollout_id)
        if not rollout.open:
            return rollout
        seen = Observation()
        if registry.route(rollout.task_id).rollout_id == rollout.id:
            seen = observe(rollout)
        if not renew(database, lease, holder, fence, lease_seconds, clock()):
            # Observing took longer than the lease. If nobody has taken it, what was seen still
            # holds for this version of the rollout, which the transaction below compares.
            again = acquire(database, lease, holder, lease_seconds, clock())
            if again is None:
                return registry.rollout(rollout_id)
            fence = again
        with database.begin() as connection:
            guard(connection, lease, fence, clock())
            return _step(connection, rollout, seen, Act(actor, clock(), fence, channels))
    except (LeaseLost, StaleFence, RouteChanged, RolloutChanged):
        return registry.rollout(rollout_id)
    finally:
        # Free from the moment this began, so that a caller whose clock stands still gets on too.
        release(database, lease, holder, fence, now)


def rollback(
    registry: Registry,
    task_id: str,
    to: str | None = None,
    *,
    actor: str,
    why: str,
    now: datetime | None = None,
    channels: Sequence[str] = (),
    only: str | None = None,
) -> Route:
    """Take back what was brought in last, at once and without asking any lease; the route after it.

    - An open candidate: removed and rejected, the champion stays.
    - Else the champion: rejected; the one before it answers again, or the teacher.
    - With ``to`` (``"teacher"`` or an adapter that was champion before, by its name, its digest or
      the start of it): that one answers; an open
      candidate, whose evidence was against another champion, is superseded. The one that answered
      until now is rejected, unless it is the teacher.

    A rejected adapter is never rolled out again.

    Args:
        only: id of a rollout; take back what it brought in and nothing else, for who decided it some
            time ago. The same adapter may have been brought in again since.

    Raises:
        UnknownTask.
        NothingToRollBack: the teacher answers and no candidate is open, or ``to`` answers already; or
            what was brought in last is not ``only``'s.
        RouteInvalid: ``to`` never answered this task, or was rejected; or the task is merged into another,
            so that only the teacher may be put back.
    """
    if to is None:
        return _take_back(registry, task_id, "last", only, actor, why, now, channels)
    return _take_back(registry, task_id, "to", to, actor, why, now, channels)


def request_rollback(
    registry: Registry,
    task_id: str,
    adapter: str,
    reason: str,
    actor: str,
    *,
    now: datetime | None = None,
    channels: Sequence[str] = (),
) -> bool:
    """The kill switch's message: take this adapter off, whether candidate or champion.

    In a broken champion's place the teacher answers, not an earlier champion: that one is loaded
    nowhere, and the teacher is there at once.

    Any number of gateways may say so; True for the one that took it off, False when it was off.
    One that was off already, because its rollout ended before the message came, is rejected all the
    same: what had to be stopped once must not be tried again.

    Raises UnknownTask; RouteChanged where others are at it, and it must be said again.
    """
    why = f"kill switch: {reason}"
    try:
        _take_back(registry, task_id, "adapter", adapter, actor, why, now, channels)
    except NothingToRollBack:
        _reject_late(registry, task_id, adapter, why, Act(actor, now or utc_now(), None))
        return False
    return True


def _reject_late(registry: Registry, task_id: str, adapter: str, why: str, act: Act) -> None:
    with registry.database.begin() as connection:
        task = read_task(connection, task_id, lock=True)
        route = read_route(connection, task.id)
        known = read_rollouts(connection, task_id=task_id, adapter=adapter)
        if adapter in (route.champion, route.candidate):
            raise RouteChanged(
                f"{adapter} came back to the route of {task.id} meanwhile: say it again"
            )
        if not known:
            return
        if read_adapter(connection, adapter).state != "registered":
            return
        for rollout in known:
            if rollout.open:
                # Opened again before the message came, and waiting for its turn.
                ends = end("roll_back", "rolled_back", rollout.step, why)
                carry_out(connection, rollout, route, task, ends, act)
                return
        reject(connection, adapter, why[:MAX_REASON], act, {})


def _step(connection: Connection, rollout: Rollout, seen: Observation, act: Act) -> Rollout:
    task = read_task(connection, rollout.task_id, lock=True)
    current = read_rollout(connection, rollout.id)
    if current.version != rollout.version:
        raise RolloutChanged(f"rollout {rollout.id} moved while it was observed")
    route = read_route(connection, task.id)
    state = read_state(connection, current, route, task, act.now)
    transition = next_step(state, seen, act.now)
    if transition is None:
        return note(connection, current, route, seen, act)
    decided_on = {
        **state_to_json(state),
        "step_route_version": current.step_route_version,
        "route_version": route.version,
    }
    return carry_out(connection, current, route, task, transition, act, seen, decided_on)


def _take_back(
    registry: Registry,
    task_id: str,
    which: Literal["last", "to", "adapter"],
    name: str | None,
    actor: str,
    why: str,
    now: datetime | None,
    channels: Sequence[str],
) -> Route:
    why = why[:MAX_REASON]
    act = Act(actor, now or utc_now(), None, channels)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with registry.database.begin() as connection:
                task = read_task(connection, task_id, lock=True)
                route = read_route(connection, task_id)
                return _take_back_once(connection, task, route, which, name, why, act)
        except (RouteChanged, RolloutChanged):
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _take_back_once(
    connection: Connection,
    task: Task,
    route: Route,
    which: Literal["last", "to", "adapter"],
    name: str | None,
    why: str,
    act: Act,
) -> Route:
    candidate = route.candidate
    past = past_champions(connection, task.id)
    if which == "last" and name not in (None, last_rollout(connection, route)):
        raise NothingToRollBack(
            f"rollout {name} is not what brought in {candidate or route.champion}, the last in {task.id}"
        )
    if which == "to":
        assert name is not None
        name = resolve(name, [route.champion, *past])
    if candidate is not None and (
        which == "last"
        or (which == "adapter" and name == candidate)
        or (which == "to" and name == route.champion)
    ):
        return _end_open(connection, task, route, "roll_back", why, act)
    if which == "adapter" and name != route.champion:
        raise NothingToRollBack(f"{name} is not on the route of {task.id}")
    if route.champion == TEACHER and (which != "to" or name == TEACHER):
        raise NothingToRollBack(
            f"task {task.id} is answered by the teacher and has no open rollout: "
            "there is nothing to roll back"
        )
    if which == "to" and name == route.champion:
        raise NothingToRollBack(f"task {task.id} is answered by {name} already")
    if which == "to":
        assert name is not None
        _check_target(connection, name, past, task)
        target = name
    elif which == "adapter" or merged_into(task.details) is not None:
        target = TEACHER
    else:
        target = next((one for one in past if _may_answer(connection, one)), TEACHER)
    if candidate is not None:
        ends = f"its champion {route.champion} was rolled back"
        route = _end_open(connection, task, route, "supersede", ends, act)
    return replace_champion(connection, route, task, target, why, act)


def last_rollout(connection: Connection, route: Route) -> str | None:
    """Id of the rollout that brought in what a rollback takes back; None for what none brought in."""
    if route.rollout_id is not None:
        return route.rollout_id
    brought = read_rollouts(
        connection, states=("promoted",), task_id=route.task_id, adapter=route.champion
    )
    return brought[-1].id if brought else None


def _end_open(
    connection: Connection,
    task: Task,
    route: Route,
    kind: Literal["roll_back", "supersede"],
    why: str,
    act: Act,
) -> Route:
    assert route.rollout_id is not None
    rollout = read_rollout(connection, route.rollout_id)
    state: Literal["rolled_back", "superseded"] = (
        "rolled_back" if kind == "roll_back" else "superseded"
    )
    carry_out(connection, rollout, route, task, end(kind, state, rollout.step, why), act)
    return read_route(connection, task.id)


def _check_target(connection: Connection, target: str, past: Sequence[str], task: Task) -> None:
    if target == TEACHER:
        return
    if (into := merged_into(task.details)) is not None:
        raise RouteInvalid(
            f"{task.id} is merged into {into}, whose adapters answer its calls: name {into}, or "
            f"`nightschool tasks merge --undo {task.id}` first"
        )
    if target not in past:
        known = ", ".join([*(one for one in past if one != TEACHER), TEACHER])
        raise RouteInvalid(
            f"{target} was never the champion of {task.id}; a rollback goes to one of: {known}"
        )
    if not _may_answer(connection, target):
        raise RouteInvalid(
            f"{target} was rejected or retired and may not answer; roll back to the teacher"
        )


def _may_answer(connection: Connection, name: str) -> bool:
    return name == TEACHER or read_adapter(connection, name).state == "registered"


def _clock(start: datetime) -> Callable[[], datetime]:
    """A clock that stands at ``start`` at this moment and runs on."""
    began = time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - began)
