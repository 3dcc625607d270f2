"""What a champion takes to answer, as an objective for who wants its place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime

from evaluators.sessions import unique_calls
from infra.calls.record import CallRecord

FEWEST_CALLS = 20
"""Fewer say nothing of a 95th percentile."""
QUANTILE, SLACK = 0.95, 2.0


def champion_objective(
    calls: Iterable[CallRecord], *, rollout: str, now: datetime, floor_seconds: float
) -> float | None:
    """Twice the champion's 95th percentile in the rollout's shadow, in seconds; at least the floor.

    Only what the champion itself answered counts, not what was left to somebody else. None without
    ``FEWEST_CALLS`` of them.
    """
    taken = sorted(
        call.latency_seconds
        for call in unique_calls(calls)
        if call.answered_by.rollout == rollout
        and call.answered_by.arm == "champion"
        and call.answered_by.escalation is None
        and call.answer is not None
        and call.time <= now
    )
    if len(taken) < FEWEST_CALLS:
        return None
    return max(floor_seconds, SLACK * taken[math.ceil(QUANTILE * len(taken)) - 1])
