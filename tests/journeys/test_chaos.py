"""A short chaos run: the deployment is broken in turn, and no acknowledged call is lost or doubled.

``bench/chaos.py`` is the long form, with every fault.
"""

from __future__ import annotations

import asyncio

import pytest

from bench.chaos import run
from bench.support.chaos_plan import Fault, Scheduled
from bench.support.deployment import deployment
from bench.support.programs import scratch

PLAN = [
    Scheduled(0.5, Fault("gateway killed", "kill", ("first",), 0.5)),
    Scheduled(0.5, Fault("object store cut off", "kill", ("store",), 1)),
    Scheduled(0.5, Fault("disk full", "fill", ("second",), 1)),
    Scheduled(0.5, Fault("clock", "clock", ("first",), 1.5, "-172800")),
    Scheduled(0.5, Fault("teacher cuts streams", "mode", ("teacher",), 0.7, "break")),
    Scheduled(0.2, Fault("all killed", "kill", ("engine", "teacher", "database", "store"), 0.5)),
]


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_doubled_or_answered_by_the_wrong_adapter() -> None:
    with scratch("chaos") as folder, deployment(folder) as made:
        verdict = asyncio.run(run(made, PLAN))
        days = {info.key.split("/")[2] for info in made.store().list("logs/v1/")}
    assert verdict.passed, verdict.to_json()
    assert verdict.by_small_model > 0 and verdict.acknowledged > verdict.by_small_model
    done = {item.fault.name for item in PLAN} - verdict.skipped.keys()
    assert set(verdict.outages) == done
    # The faults were real: callers of a killed gateway notice, and a clock was two days behind.
    assert "no connection" in verdict.errors["gateway killed"]
    assert "clock" in verdict.skipped or len(days) > 1
