"""What the registry hands out: from real rows, and nothing that a holder could change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import UTC

import pytest

from infra.database import tables
from infra.database.open import Database
from serving.registry.records import (
    TEACHER,
    Adapter,
    DatasetVersion,
    Rollout,
    Route,
    Scorecard,
    Task,
)
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import NOW, add_adapter, add_task


@pytest.mark.parametrize(
    ("record", "table"),
    [
        (Task, tables.tasks),
        (DatasetVersion, tables.dataset_versions),
        (Adapter, tables.adapters),
        (Scorecard, tables.scorecards),
        (Rollout, tables.rollouts),
        (Route, tables.routes),
    ],
)
def test_records_and_tables_have_the_same_fields(record: type, table: object) -> None:
    assert {field.name for field in fields(record)} == set(table.c.keys())  # type: ignore[attr-defined]


def test_records_are_frozen_and_their_times_are_in_utc(database: Database) -> None:
    add_task(database, "mail")
    registry = Registry(database)
    adapter = add_adapter(registry, "mail", 1)
    rollout = registry.open_rollout(
        "mail", adapter.name, RolloutPolicy(), actor="a", why="w", now=NOW
    )
    for record in (registry.task("mail"), adapter, rollout, registry.route("mail")):
        with pytest.raises(FrozenInstanceError):
            record.version = 7  # type: ignore[union-attr]
    assert rollout.created == NOW and rollout.created.tzinfo is UTC
    assert rollout.step_entered == NOW
    assert rollout.step_route_version == registry.route("mail").version == 1


def test_a_route_that_was_never_written_is_the_teachers() -> None:
    route = Route("mail")
    assert route.champion == TEACHER
    assert (route.stage, route.weight, route.candidate) == ("none", 0, None)
    assert "updated" not in route.to_json()
