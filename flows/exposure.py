"""How many sessions each arm really got, and whether that can be the split that was asked for.

A sample-ratio mismatch says that something other than the salted hash chose the arms: a gateway that
loses one arm's records, a retry that changes its session, a balancer that knows the canary. Whatever
it was, the arms are no longer alike, and no verdict on them means anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.calls.record import CallRecord
from infra.database.events import Event

ALPHA = 0.001
"""Chance that a split as it was asked for is ever called a mismatch, over the whole rollout."""
PRIOR_SESSIONS = 20.0
"""Weight of the prior around the share asked for: it finds a lost half of an arm in some dozens."""


@dataclass(frozen=True)
class Split:
    """Sessions first exposed under one version of the route."""

    route_version: int
    weight: float
    """Share asked for."""
    canary: int
    champion: int


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
        Split(version, weight, counted[version, "canary"], counted[version, "champion"])
        for version, weight in sorted(weights.items())
    ]


def mismatch(splits: Sequence[Split]) -> str | None:
    """A beta-binomial mixture against the share asked for, multiplied over the route's versions.

    The ratio of a mixture's likelihood to the hypothesis's is a martingale from 1 under the latter, so
    it may be looked at after every session (Robbins, Ann. Math. Stat. 41 (1970) 1397).
    """
    evidence = sum(_log_evidence(split) for split in splits)
    if evidence < math.log(1 / ALPHA):
        return None
    told = ", ".join(
        f"{split.canary} of {split.canary + split.champion} sessions in the canary at "
        f"{split.weight:.0%}"
        for split in splits
        if split.canary + split.champion
    )
    return f"{told} (evidence {math.exp(min(evidence, 700.0)):.3g}, limit {1 / ALPHA:g})"


def _log_evidence(split: Split) -> float:
    if not 0 < split.weight < 1:
        return 0.0
    a, b = PRIOR_SESSIONS * split.weight, PRIOR_SESSIONS * (1 - split.weight)
    mixed = _log_beta(a + split.canary, b + split.champion) - _log_beta(a, b)
    asked = split.canary * math.log(split.weight) + split.champion * math.log1p(-split.weight)
    return mixed - asked


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
