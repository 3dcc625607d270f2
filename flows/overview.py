"""What an operator wants to see at a glance; each part by itself, so that one that is away hides no other."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from flows.hooks.receipts import Receipts
from flows.orchestrator import OrchestratorDown, OrchestratorRefused
from flows.wiring import Context
from infra.calls.codec import LOG_PREFIX
from infra.calls.record import utc_now
from infra.database.events import list_events
from infra.database.open import DatabaseError
from infra.database.tables import ingested_objects, outbox
from infra.objects.store import ObjectStoreError

ASK_SECONDS = 2.0
MAX_PAGE_BYTES = 8 << 20
MAX_OBJECTS = 10_000
LAG_DAYS = 2
DRIFT_DAYS = 7
_AWAY = (
    OrchestratorDown,
    OrchestratorRefused,
    SQLAlchemyError,
    DatabaseError,
    ObjectStoreError,
    OSError,
    ValueError,
)

Part = dict[str, Any]


def overview(context: Context) -> dict[str, Part]:
    """Traffic, last night, drift and backlog; a part that cannot be read says why under ``error``."""
    parts: dict[str, Callable[[Context], Part]] = {
        "traffic": traffic,
        "last_night": last_night,
        "drift": drift,
        "backlog": backlog,
    }
    return {name: _tried(part, context) for name, part in parts.items()}


def _tried(part: Callable[[Context], Part], context: Context) -> Part:
    try:
        return part(context)
    except _AWAY as error:
        return {"error": str(error).splitlines()[0][:200] if str(error) else type(error).__name__}


def traffic(context: Context) -> Part:
    """Of this machine's gateway since it started: answers, the small models' share, money saved."""
    gateway = context.settings.gateway
    with urllib.request.urlopen(
        f"http://{gateway.host}:{gateway.port}/metrics", timeout=ASK_SECONDS
    ) as answer:
        return traffic_of(answer.read(MAX_PAGE_BYTES).decode())


def traffic_of(page: str) -> Part:
    """The same from a gateway's page for Prometheus. Raises ValueError for another page."""
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] += sample.value
            if sample.name == "nightschool_calls_total":
                found[sample.labels["answerer"]] += sample.value
    calls = found["nightschool_calls_total"]
    return {
        "calls": int(calls),
        "small_model_share": (calls - found["teacher"]) / calls if calls else 0.0,
        "cost_saved": found["nightschool_cost_saved_total"],
        "tokens_saved": int(found["nightschool_small_model_tokens_total"]),
        "spool_records": int(found["nightschool_spool_records"]),
        "spool_objects": int(found["nightschool_spool_objects"]),
        "records_lost": int(found["nightschool_records_lost_total"]),
    }


def last_night(context: Context) -> Part:
    run = context.orchestrator().last_run("night")
    return {"state": None} if run is None else run


def drift(context: Context) -> Part:
    """What drifted lately, and whether a retraining was asked for; the newest of each task."""
    since = utc_now() - timedelta(days=DRIFT_DAYS)
    with context.database.read() as connection:
        events = list_events(connection, what="task.drifted", limit=100, newest_first=True)
    tasks: dict[str, Part] = {}
    for event in events:
        if event.time < since or event.subject in tasks:
            continue
        columns = event.evidence.get("columns", {})
        tasks[event.subject] = {
            "time": event.time,
            "share": float(event.evidence.get("drift_share", 0)),
            "columns": list(dict.fromkeys(name.partition(",")[0] for name in columns)),
            "retraining": str(event.evidence.get("retraining", "")),
        }
    return {"days": DRIFT_DAYS, "tasks": tasks}


def backlog(context: Context) -> Part:
    """What waits: log objects for ingest (of two days), messages, webhooks."""
    waiting, oldest = _not_ingested(context)
    with context.database.read() as connection:
        states = select(outbox.c.state, func.count()).group_by(outbox.c.state)
        messages = {row[0]: int(row[1]) for row in connection.execute(states)}
        taken = connection.execute(select(func.max(ingested_objects.c.finished))).scalar_one()
    kept = Receipts(context.database).count_kept()
    return {
        "log_objects": waiting,
        "oldest_log_object": oldest,
        "last_ingest": taken,
        "messages_waiting": messages.get("waiting", 0),
        "messages_dead": messages.get("dead", 0),
        "webhooks_kept": {hook: count for hook, (count, _) in kept.items()},
    }


def _not_ingested(context: Context) -> tuple[int, str | None]:
    first = utc_now() - timedelta(days=LAG_DAYS)
    after = f"{LOG_PREFIX}dt={first:%Y-%m-%d}/"
    listed = [item.key for item in islice(context.store.list(LOG_PREFIX, after=after), MAX_OBJECTS)]
    query = select(ingested_objects.c.key).where(
        ingested_objects.c.key > after, ingested_objects.c.state == "done"
    )
    with context.database.read() as connection:
        done = set(connection.execute(query.limit(10 * MAX_OBJECTS)).scalars())
    left = [key for key in listed if key not in done]
    return len(left), left[0] if left else None
