"""How many sessions each arm really got, and whether that can be the split that was asked for.

A sample-ratio mismatch says that something other than the salted hash chose the arms: a gateway that
loses one arm's records, a retry that changes its session, a balancer that knows the canary. Whatever
it was, the arms are no longer alike, and no verdict on them means anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from evaluators.sample_ratio import Split, sample_ratio
from infra.calls.record import CallRecord
from infra.database.events import Event

SplitTest = Callable[[Sequence[Split]], str | None]
"""Why the splits cannot be what was asked for, or None."""


def weights_of(rollout_id: str, events: Iterable[Event]) -> dict[int, float]:
    """The canary's share under each version of the route, from the events of its task."""
    found: dict[int, float] = {}
    for event in events:
        after = event.current if event.what.startswith("route.") else None
        if after and after.get("rollout_id") == rollout_id and after.get("stage") == "canary":
            found[int(after["version"])] = float(after["weight"])
    return found


def exposures(
    calls: Iterable[CallRecord],
    *,
    rollout: str,
    weights: Mapping[int, float],
    settled_seconds: float,
    now: datetime,
) -> list[Split]:
    """What the log says of the rollout's canary stage, a split per version of the route.

    A session counts once, where it was first exposed: later weights only move sessions in, so those
    seen before are no sample of them. Records of one arm may come later than the other's (an audit
    takes time), so only sessions older than ``settled_seconds`` count.
    """
    first: dict[tuple[str, str], CallRecord] = {}
    for call in calls:
        by = call.answered_by
        if by.rollout != rollout or by.arm is None or by.route_version not in weights:
            continue
        key = call.tenant, call.session
        if key not in first or (call.time, call.id) < (first[key].time, first[key].id):
            first[key] = call
    until = now - timedelta(seconds=settled_seconds)
    counted = Counter(
        (call.answered_by.route_version, call.answered_by.arm)
        for call in first.values()
        if call.time <= until
    )
    return [
        Split(counted[version, "canary"], counted[version, "champion"], weight)
        for version, weight in sorted(weights.items())
    ]


def mismatch(splits: Sequence[Split]) -> str | None:
    """Why these cannot be the splits that were asked for, or None (``evaluators.sample_ratio``)."""
    test = sample_ratio(split for split in splits if 0 < split.share < 1)
    return test.reason if test.mismatch else None
