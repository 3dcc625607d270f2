"""Controllers killed in the middle and run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.database.open import Database
from serving.registry.records import Rollout
from serving.registry.registry import Registry
from serving.rollout.controller import request_rollback, tend
from serving.rollout.machine import Observation
from tests.serving.registry.world import add_adapter, add_task
from tests.serving.rollout.stage import (
    BAD,
    CHANNELS,
    FINE,
    GOOD,
    POLICY,
    Killed,
    bring_to,
    copy_of,
    killed_at,
    later,
    snapshot,
)

Action = Callable[[Registry, Rollout, float], Any]


def _tending(seen: Observation) -> Action:
    def action(registry: Registry, rollout: Rollout, minute: float) -> Any:
        def observe(current: Rollout) -> Observation:
            # The step was taken: from then on there is nothing new to see.
            moved = (current.state, current.step) != (rollout.state, rollout.step)
            return replace(seen, step_sessions=0, shadow_pairs=0) if moved else seen

        return tend(registry, rollout.id, observe, later(minute), "test", CHANNELS)

    return action


def _taking_back(registry: Registry, rollout: Rollout, minute: float) -> Any:
    return request_rollback(
        registry,
        "mail",
        rollout.adapter,
        "burst",
        "gateway",
        now=later(minute),
        channels=CHANNELS,
    )


def _opening(registry: Registry, rollout: Rollout, minute: float) -> Any:
    adapter = add_adapter(registry, "mail", 2)
    policy = replace(POLICY, when_open="supersede")
    return registry.open_rollout(
        "mail", adapter.name, policy, actor="night", why="better", now=later(minute)
    )


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("pending", _tending(FINE)),
        ("shadow", _tending(FINE)),
        ("canary", _tending(FINE)),
        ("canary", _tending(GOOD)),
        ("canary", _tending(BAD)),
        ("canary", _taking_back),
        ("promoted", _taking_back),
        ("canary", _opening),
    ],
    ids=["shadow", "canary", "raise", "promote", "bad", "kill", "kill-champion", "supersede"],
)
def test_killed_before_any_statement_and_run_again_ends_in_the_same_state(
    database: Database, tmp_path: Path, state: str, action: Action
) -> None:
    add_task(database, "mail")
    rollout = bring_to(Registry(database), state)
    start = snapshot(database)

    def played(name: str, killed_after: int | None) -> tuple[dict[str, Any], bool]:
        copied = copy_of(database, tmp_path / "copies", name)
        registry = Registry(copied)
        died = False
        if killed_after is not None:
            with killed_at(copied, killed_after):
                try:
                    action(registry, rollout, 2)
                except Killed:
                    died = True
            assert_whole(snapshot(copied), start, wanted)
        # The dead one's lease has run out.
        action(registry, rollout, 4)
        result = snapshot(copied)
        copied.close()
        return result, died

    wanted: dict[str, Any] = {}
    wanted.update(played("whole", None)[0])
    deaths = 0
    for statement in range(200):
        found, died = played(f"killed-{statement}", statement)
        assert found == wanted, f"killed before statement {statement}"
        if not died:
            break
        deaths += 1
    else:
        raise AssertionError("no run came through")
    assert deaths > 8, "the run was killed at each of its statements"


def assert_whole(now: dict[str, Any], start: dict[str, Any], end: dict[str, Any]) -> None:
    """All of the change or none of it, whatever the moment of the kill."""
    for part in ("routes", "rollouts", "outbox", "tasks"):
        assert now[part] in (start[part], end[part]), part
    moved = {part for part in ("routes", "rollouts", "outbox") if now[part] != start[part]}
    should = {part for part in ("routes", "rollouts", "outbox") if end[part] != start[part]}
    assert moved in (set(), should)
