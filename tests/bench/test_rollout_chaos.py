"""The counting of the rollout chaos: what must not be is found when it is there."""

from __future__ import annotations

from pathlib import Path

from bench.rollout_chaos import Tally, check, scripted
from infra.database.open import Database
from serving.registry.registry import Registry
from serving.rollout.controller import tend
from tests.serving.registry.world import NOW, add_task
from tests.serving.rollout.stage import GOOD, bring_to, look


def counted(database: Database, state: str, ending: str) -> Tally:
    add_task(database, "mail")
    registry = Registry(database)
    rollout = bring_to(registry, state)
    tally = Tally()
    check(registry, "mail", rollout.id, rollout.adapter, ending, tally)
    return tally


def test_an_open_rollout_is_stuck(database: Database):
    tally = counted(database, "canary", "silence")
    assert (tally.stuck, tally.passed) == (1, False)


def test_a_promoted_adapter_that_should_be_off_is_a_lost_rollback(database: Database):
    tally = counted(database, "promoted", "kill")
    assert (tally.lost_rollbacks, tally.stuck, tally.passed) == (1, 0, False)


def test_a_promotion_written_twice_is_counted(database: Database):
    from infra.database.events import record_event

    add_task(database, "mail")
    registry = Registry(database)
    rollout = bring_to(registry, "promoted")
    tend(registry, rollout.id, look(GOOD), NOW)
    with database.begin() as connection:
        record_event(
            connection,
            actor="two",
            what="rollout.promoted",
            subject=rollout.id,
            why="again",
            current={"state": "promoted"},
        )
    tally = Tally()
    check(registry, "mail", rollout.id, rollout.adapter, "good", tally)
    assert (tally.double_promotions, tally.passed) == (1, False)


def test_a_few_rollouts_under_kill_end_as_they_must(tmp_path: Path):
    tally = scripted(tmp_path, 8, seed=11)
    assert tally.passed and tally.rollouts == 8 and tally.kills > 8
    assert not [
        end for end in tally.ended if end.startswith(("bad", "kill")) and "rolled" not in end
    ]
