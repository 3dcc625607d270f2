"""What one night leaves for the next one's plan."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flows.learning import TrainingFailed
from flows.night import _fact
from flows.planning import CUT_OFF, LAST_NIGHT, RunFact, plan_rows, plan_totals, remember_night
from flows.trials import kept_json
from flows.wiring import open_context
from infra.database.open import Database
from infra.settings.model import Settings
from trainers.plan import Plan, PlannedRun

RUNS = tuple(
    PlannedRun(name, "d", 10, seconds, starts, 1.0, "why")
    for name, seconds, starts in (("a", 60.0, 0.0), ("b", 40.0, 0.0), ("c", 30.0, 40.0))
)
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


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TrainingFailed("no space left", "disk_full"), "disk_full"),
        (TrainingFailed("the night ended before its turn came", CUT_OFF), CUT_OFF),
        (ValueError("broken"), "failed"),
    ],
)
def test_what_was_not_trained_is_told_with_its_state_and_reason(
    error: Exception, state: str
) -> None:
    future = SimpleNamespace(
        wait=lambda: None,
        state=SimpleNamespace(is_completed=lambda: False),
        result=lambda raise_on_failure: error,
    )
    fact = _fact(RUNS[0], future)
    assert (fact.task, fact.actual_seconds, fact.state, fact.why) == ("a", None, state, str(error))


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
