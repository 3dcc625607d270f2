"""What is read off a gateway's parts when its metrics are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from infra.calls.record import utc_now
from infra.settings.model import Settings
from serving.engines.fleet import Fleet
from serving.gateway.background import Background
from serving.gateway.guard import tended
from serving.gateway.holdings import Holdings
from serving.gateway.metrics import Metrics
from serving.gateway.refresh import RouteTable
from serving.gateway.small_calls import SmallCalls
from serving.gateway.spool import Spool


class Parts(Protocol):
    """Of a gateway, what is looked at."""

    settings: Settings
    metrics: Metrics
    table: RouteTable
    spool: Spool
    small: SmallCalls
    audits: Background
    shadows: Background
    engine: Fleet
    holdings: Holdings


def watch(parts: Parts, *, in_flight: Callable[[], int]) -> None:
    """Add the gauges to the gateway's metrics."""

    def age() -> float:
        seconds = parts.table.current.age_seconds(utc_now())
        return float("nan") if seconds is None else seconds

    def rollouts(untended_only: bool) -> int:
        now, limit = utc_now(), parts.settings.gateway.dead_man_seconds
        return sum(
            task.stage != "none" and not (untended_only and tended(task, now, limit))
            for task in parts.table.current.tasks
        )

    def replicas() -> int:
        return sum(replica.listed is not None for replica in parts.engine.replicas)

    add, spool = parts.metrics.watch, parts.spool
    add("nightschool_routes_age_seconds", "Since the routes were last read", age)
    add("nightschool_rollouts", "Open, with a stage", lambda: rollouts(False))
    add(
        "nightschool_rollouts_untended",
        "Whose canary gets nothing because nobody tends it: the dead man's timer",
        lambda: rollouts(True),
    )
    add("nightschool_spool_records", "In the open spool file", lambda: spool.count)
    add("nightschool_spool_bytes", "In the open spool file", lambda: spool.size_bytes)
    add("nightschool_spool_objects", "Made and not yet shipped", spool.waiting)
    add("nightschool_in_flight", "Calls being answered", in_flight)
    add(
        "nightschool_small_model_under_way",
        "Small-model calls under way",
        lambda: parts.small.under_way,
    )
    add(
        "nightschool_background_waiting",
        "Second opinions waiting",
        lambda: parts.audits.depth() + parts.shadows.depth(),
    )
    add(
        "nightschool_engine_replicas_ready",
        "Replicas of the engine that were there when last asked",
        replicas,
    )
    add(
        "nightschool_adapters_ready",
        "Adapters that may get traffic",
        lambda: len(parts.holdings.ready),
    )
