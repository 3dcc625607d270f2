"""A short chaos run: the deployment is broken in turn, and no acknowledged call is lost or doubled.

``bench/chaos.py`` is the long form, with every fault.
"""

from __future__ import annotations

import asyncio
from datetime import date
from io import BytesIO

import pytest

from bench.chaos import run
from bench.support.chaos_plan import Fault, Scheduled
from bench.support.deployment import deployment
from bench.support.programs import scratch
from infra.calls.codec import parse_line, read_lines
from infra.objects.store import ObjectStore

PLAN = [
    Scheduled(0.5, Fault("gateway killed", "kill", ("first",), 0.5)),
    Scheduled(0.5, Fault("object store cut off", "kill", ("store",), 1)),
    Scheduled(0.5, Fault("disk full", "fill", ("second",), 1)),
    Scheduled(0.5, Fault("clock", "clock", ("first",), 3, "-172800")),
    Scheduled(0.5, Fault("teacher cuts streams", "mode", ("teacher",), 0.7, "break")),
    Scheduled(0.2, Fault("all killed", "kill", ("engine", "teacher", "database", "store"), 0.5)),
]


def _days(store: ObjectStore) -> set[date]:
    """Of the records, not of their objects: an object that was begun before the clock went back
    lies under the day of its first record."""
    found = set[date]()
    for info in store.list("logs/v1/"):
        for line in read_lines(BytesIO(store.get(info.key))):
            assert isinstance(line.content, bytes), line
            found.add(parse_line(line.content).time.date())
    return found


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_doubled_or_answered_by_the_wrong_adapter() -> None:
    with scratch("chaos") as folder, deployment(folder) as made:
        verdict = asyncio.run(run(made, PLAN))
        days = _days(made.store())
    assert verdict.passed, verdict.to_json()
    assert verdict.by_small_model > 0 and verdict.acknowledged > verdict.by_small_model
    done = {item.fault.name for item in PLAN} - verdict.skipped.keys()
    assert set(verdict.outages) == done
    # The faults were real: callers of a killed gateway notice, and a clock was two days behind.
    assert "no connection" in verdict.errors["gateway killed"]
    assert "clock" in verdict.skipped or len(days) > 1
