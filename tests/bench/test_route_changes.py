"""The measurement itself runs and gives what it says; how fast it was is no test's business."""

from __future__ import annotations

from bench.support.route_changes import measure


async def test_route_changes_reach_both_gateways_and_are_counted() -> None:
    found = await measure(3, database="sqlite", refresh_seconds=0.1)
    assert (found["changes"], found["database"], found["refresh_seconds"]) == (3, "sqlite", 0.1)
    assert 0 <= found["p50"] <= found["p99"] <= found["max"] < 30
