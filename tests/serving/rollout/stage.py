"""A registry with a rollout to tend, and processes that die in the middle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from infra.database.open import Database
from infra.database.tables import adapters, events, outbox, rollouts, routes, tasks
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import tend
from serving.rollout.machine import Observation
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import MINUTE, NOW, add_adapter

POLICY = RolloutPolicy(
    shadow_sessions=5,
    steps=(0.1, 0.5),
    step_sessions=10,
    max_sessions=100,
    cooldown_seconds=600,
)
FINE = Observation(
    loaded=True,
    labels=30,
    shadow_pairs=5,
    step_sessions=10,
    canary_sessions=30,
    evidence={"e_bad": 0.4, "e_good": 3.0},
)
GOOD = replace(FINE, verdict="good")
BAD = replace(FINE, verdict="bad")
CHANNELS = ("console",)
BY = {"actor": "ann", "why": "it answers nonsense"}


class Killed(BaseException):
    """Stands for kill -9: nothing of the program may catch it."""


def look(seen: Observation) -> Callable[[Rollout], Observation]:
    return lambda _rollout: seen


def bring_to(
    registry: Registry,
    state: str,
    number: int = 1,
    *,
    task_id: str = "mail",
    now: datetime = NOW,
    policy: RolloutPolicy = POLICY,
) -> Rollout:
    """Open a rollout of a new adapter and tend it until it is in ``state``."""
    adapter = add_adapter(registry, task_id, number)
    rollout = registry.open_rollout(
        task_id, adapter.name, policy, actor="test", why="trained", now=now
    )
    for seen in (FINE, FINE, GOOD):
        if rollout.state == state:
            return rollout
        rollout = tend(registry, rollout.id, look(seen), now, "test", CHANNELS)
    assert rollout.state == state
    return rollout


@contextmanager
def killed_at(database: Database, statement: int) -> Iterator[list[int]]:
    """The process dies before its n-th statement (commits count) and does nothing any more."""
    count = [0]

    def die(*_: Any) -> None:
        count[0] += 1
        if count[0] > statement:
            raise Killed

    engine = database.engine
    event.listen(engine, "before_cursor_execute", die)
    event.listen(engine, "commit", die)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", die)
        event.remove(engine, "commit", die)


def copy_of(database: Database, folder: Path, name: str) -> Database:
    """A copy of a SQLite database, as it is now."""
    database.close()
    source = database.url.database
    assert source is not None
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.db"
    shutil.copy(source, target)
    return Database(f"sqlite:///{target}")


def snapshot(database: Database) -> dict[str, Any]:
    """What the registry says, without times, ids made at random, and counts of looks taken."""
    with database.read() as connection:
        ids = [row.id for row in connection.execute(select(rollouts.c.id).order_by("created"))]

        def named(text: Any) -> Any:
            for position, known in enumerate(ids):
                if isinstance(text, str):
                    text = text.replace(known, f"rollout {position}")
            return text

        def rows(query: Any) -> list[tuple[Any, ...]]:
            return [tuple(named(value) for value in row) for row in connection.execute(query)]

        return {
            "tasks": rows(select(tasks.c.id, tasks.c.state, tasks.c.version)),
            "adapters": rows(select(adapters.c.name, adapters.c.state).order_by("name")),
            "rollouts": rows(
                select(
                    rollouts.c.id,
                    rollouts.c.adapter,
                    rollouts.c.state,
                    rollouts.c.step,
                    rollouts.c.reason,
                    rollouts.c.sessions,
                ).order_by(rollouts.c.created)
            ),
            "routes": rows(
                select(
                    routes.c.task_id,
                    routes.c.champion,
                    routes.c.candidate,
                    routes.c.rollout_id,
                    routes.c.stage,
                    routes.c.weight,
                    routes.c.version,
                )
            ),
            "events": rows(
                select(events.c.what, events.c.subject, events.c.why).order_by(events.c.id)
            ),
            "outbox": rows(select(outbox.c.key, outbox.c.channel).order_by(outbox.c.id)),
        }


def later(minutes: float) -> datetime:
    return NOW + minutes * MINUTE


def messages(registry: Registry) -> list[dict[str, Any]]:
    with registry.database.read() as connection:
        return list(connection.execute(select(outbox.c.body).order_by(outbox.c.id)).scalars())


def chain_is_whole(registry: Registry, task_id: str = "mail") -> None:
    """The route's events follow one from the other without a gap, up to the present route."""
    changes = [
        event
        for event in reversed(registry.events(task_id, limit=1000))
        if event.what.startswith("route.")
    ]
    for sooner, later_one in pairwise(changes):
        assert sooner.current["version"] + 1 == later_one.current["version"]
        assert {**later_one.previous, "fence": 0} == {**sooner.current, "fence": 0}
    if changes:
        assert {**changes[-1].current, "fence": 0} == {
            **registry.route(task_id).to_json(),
            "fence": 0,
        }
