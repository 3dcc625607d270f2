"""What one night leaves for the next one's plan."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.learning import Trained, TrainingFailed
from flows.night import _fact
from flows.planning import (
    CUT_OFF,
    LAST_NIGHT,
    RunFact,
    plan_rows,
    plan_totals,
    remember_night,
    told_of,
)
from flows.trials import kept_json
from flows.wiring import open_context
from infra.database.open import Database
from infra.objects.store import ObjectRefused
from infra.settings.model import Settings
from trainers.plan import Plan, PlannedRun

RUNS = tuple(
    PlannedRun(name, "d", 10, seconds, starts, 1.0, "why")
    for name, seconds, starts in (("a", 60.0, 0.0), ("b", 40.0, 0.0), ("c", 30.0, 40.0))
)
UNBEGUN = RuntimeError("it waited for another")
PLAN = Plan(RUNS, (("late", "does not fit"),), datetime(2026, 3, 3, tzinfo=UTC), 70.0, ("late",))


def test_what_did_not_fit_is_remembered_with_what_happened(
    settings: Settings, database: Database
) -> None:
    with open_context(settings) as context:
        assert kept_json(context, LAST_NIGHT) == {}
        cut_off = RunFact("b", 40.0, None, 10, CUT_OFF, "the night ended before its turn came")
        remember_night(context, PLAN, [RunFact("a", 60.0, 75.5, 10, "trained"), cut_off])
        kept = kept_json(context, LAST_NIGHT)
        assert kept["deferred"] == ["late", "b"]
        assert kept["runs"][0]["actual_seconds"] == 75.5
        context.store.put("reports/nights/last.json", b"damaged")
        assert kept_json(context, LAST_NIGHT) == {}, "a lost memory costs an order, not a night"


def ended(error: object) -> SimpleNamespace:
    """A step's future: what its task raised, or what it returned."""
    failed = isinstance(error, Exception)
    return SimpleNamespace(
        wait=lambda: None,
        state=SimpleNamespace(is_completed=lambda: not failed),
        result=lambda raise_on_failure=True: error,
    )


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TrainingFailed("no space left", "disk_full"), "disk_full"),
        (TrainingFailed("the night ended before its turn came", CUT_OFF), CUT_OFF),
        (ObjectRefused("the bucket refused it"), "storage_refused"),
        (ValueError("broken"), "unexpected"),
    ],
)
def test_what_was_not_trained_is_told_with_its_state_and_reason(
    error: Exception, state: str
) -> None:
    fact = _fact(RUNS[0], ended(error), ended(UNBEGUN), ended(UNBEGUN))
    assert (fact.task, fact.actual_seconds, fact.state, fact.why) == ("a", None, state, str(error))
    told = told_of([fact])
    assert told == "" if state == CUT_OFF else f"a ({state}: {error})" in told


def test_a_trained_adapter_that_could_not_be_brought_in_is_no_trained_task() -> None:
    done = Trained("a@1", "a", "1", Path(), "d", "s", 60.04)
    assert _fact(RUNS[0], ended(done), ended(1), ended(1)).state == "trained"
    away = ObjectRefused("the bucket refused PutObject")
    for name, futures in (
        ("judging", (ended(away), ended(UNBEGUN))),
        ("releasing", (ended(1), ended(away))),
    ):
        fact = _fact(RUNS[0], ended(done), *futures)
        assert (fact.state, fact.actual_seconds) == ("storage_refused", 60.0)
        assert fact.why == f"{name}: {away}"


def test_a_store_that_keeps_nothing_of_the_night_hides_nothing_of_it(
    settings: Settings, database: Database
) -> None:
    with open_context(settings) as context:
        shutil.rmtree(settings.storage.url)
        fact = RunFact("a", 60.0, None, 10, "disk_full", "no space left")
        forgot = remember_night(context, PLAN, [fact])
    assert "what comes first tomorrow is not kept (storage_unreachable" in forgot
    told = told_of([fact], forgot)
    assert "a (disk_full: no space left)" in told and forgot in told


def test_the_table_has_runs_in_order_and_reasons_for_the_rest() -> None:
    assert [(row["task"], row["starts"]) for row in plan_rows(PLAN)] == [
        ("a", 0.0),
        ("b", 0.0),
        ("c", 40.0),
        ("late", None),
    ]
    totals = plan_totals(PLAN, 2)
    assert (totals["ends_after_seconds"], totals["no_layout_ends_before_seconds"]) == (70.0, 70.0)
    assert totals["deferred"] == ["late"]
