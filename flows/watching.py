"""Compare live calls with what a champion learned from and with its own days before; ask for a retraining.

A look is a function of what was logged. What drifted is told once in a cool-down: event, message and the
kept wish to retrain are one transaction, and the wish is carried out as a webhook's is (``hooks``): kept
while Prefect is away, and once however often it is carried. No Prefect here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection

from evaluators.drift import TooFewRows
from flows.drift_reports import (
    STAMP,
    DriftReport,
    clear_old,
    compare,
    finish,
    finish_empty,
    looks,
    prefix_of,
)
from flows.hooks.carrying import Carrier
from flows.hooks.receipts import Receipts
from flows.learning import dataset_of
from flows.live_calls import LiveCalls, Row, example_rows
from flows.orchestrator import OrchestratorDown
from flows.reporting import report_url
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import Event, list_events, record_event
from infra.notify.message import Message
from infra.notify.outbox import enqueue
from infra.objects.store import ObjectMissing
from serving.registry.records import TEACHER
from serving.registry.routes import MAX_HISTORY, ROUTE_EVENTS
from trainers.data_sets.versions import DatasetVersion, read_split

logger = logging.getLogger(__name__)

ACTOR = "watch"
SENDER = "drift:watch"
"""Among the senders of kept messages; a webhook's sender has no colon after ``drift``."""
DRIFTED, ASKING = "task.drifted", "task.drift"
EARLY_SECONDS = 300.0
"""A look may come so much before its time: the hourly run of the next day is a little early or late."""
MAX_TOLD = 6

Against = Literal["training", "before"]


@dataclass(frozen=True)
class Look:
    """One comparison of a task's newest calls."""

    task_id: str
    champion: str
    against: Against
    """``training``: what the champion learned from; ``before``: its own calls of the days before."""
    report: DriftReport

    @property
    def drifted(self) -> bool:
        return bool(self.report.summary.drifted)


def watch_tasks(
    context: Context, *, skip: Collection[str] = (), now: datetime | None = None
) -> list[Look]:
    """Look at every task that an adapter answers and whose time has come, and tell what drifted.

    Args:
        skip: tasks that are being trained anyway.
    """
    now = now or utc_now()
    watch = context.settings.watch
    live: LiveCalls | None = None
    found: list[Look] = []
    for route in context.registry.routes():
        if route.champion == TEACHER or route.task_id in skip:
            continue
        dataset = _learned_from(context, route.champion)
        if dataset is None:
            logger.info("%s is not compared: its champion's data set is gone", route.task_id)
            continue
        prefix = prefix_of(route.task_id, dataset.digest)
        past = looks(context, prefix)
        due = timedelta(seconds=max(0.0, watch.every_seconds - EARLY_SECONDS))
        if past and now - past[-1][0] < due:
            continue
        live = live or LiveCalls.index(context)
        window = timedelta(seconds=watch.window_seconds)
        made = look(
            context, live, route.task_id, route.champion, dataset, now - window, now, prefix
        )
        if any(one.drifted for one in made):
            tell(context, route.task_id, made, now)
        # Only now: one that was killed before it told is looked at again.
        for one in made:
            finish(context, one.report)
        if not made:
            finish_empty(context, route.task_id, prefix, now)
        clear_old(context, prefix)
        found += made
    carry(context)
    return found


def look(
    context: Context,
    live: LiveCalls,
    task_id: str,
    champion: str,
    dataset: DatasetVersion,
    since: datetime,
    until: datetime,
    prefix: str,
) -> list[Look]:
    """Compare a task's calls of a span with what the champion learned from and with those before.

    Args:
        prefix: what the looks' pages lie under.
    """
    most = context.settings.watch.max_rows
    began = max(
        champion_since(context, task_id, champion),
        since - timedelta(seconds=context.settings.watch.before_seconds),
    )
    current = live.rows(context, task_id, since, until, most)
    references: dict[Against, list[Row]] = {
        "training": example_rows(read_split(context.store, dataset, "train")[-most:]),
        "before": live.rows(context, task_id, began, since, most),
    }
    made = []
    for against, reference in references.items():
        more = {
            "champion": champion,
            "against": against,
            "since": since.isoformat(),
            "until": until.isoformat(),
        }
        place = f"{prefix}/{until.strftime(STAMP)}-{against}"
        try:
            kept = compare(context, task_id, reference, current, place, more)
        except TooFewRows as few:
            logger.info("%s is not compared with %s: %s", task_id, against, few)
            continue
        made.append(Look(task_id, champion, against, kept))
    return made


def tell(context: Context, task_id: str, made: list[Look], now: datetime) -> bool:
    """Say that a task drifted, and keep the wish to retrain it; False in the cool-down."""
    drifted = [one for one in made if one.drifted]
    findings = [(one.against, item) for one in drifted for item in one.report.summary.findings]
    findings.sort(key=lambda pair: -pair[1].distance / pair[1].threshold)
    columns = list(dict.fromkeys(item.column for _, item in findings))
    reason = f"drift of {', '.join(columns[:MAX_TOLD])}"
    asks, why_not = retrains(context, task_id)
    told = "; ".join(f"{item.told()}, against {against}" for against, item in findings[:MAX_TOLD])
    evidence: dict[str, Any] = {
        "drift_share": max(one.report.summary.share for one in drifted),
        "champion": drifted[0].champion,
        "columns": {
            f"{item.column}, {against}": [round(item.distance, 4), round(item.threshold, 4)]
            for against, item in findings
        },
        "examples": list(dict.fromkeys(i for _, item in findings for i in item.examples))[:10],
        "reports": [one.report.html_key for one in drifted],
        "retraining": "asked for" if asks else why_not,
    }
    link = report_url(context, drifted[0].report.html_key)
    with context.database.begin() as connection:
        last = last_told(connection, task_id)
        cooldown = timedelta(seconds=context.settings.watch.cooldown_seconds)
        if last is not None and now - last.time < cooldown:
            logger.info("%s drifted (%s); it was told at %s", task_id, reason, last.time)
            return False
        # Of two that look at once both saw the same last event: one of them is the second.
        number = f"{task_id}:{last.id if last else 0}"
        new = Receipts.take_within(
            connection,
            SENDER,
            number,
            "retrain",
            {"task": task_id, "reason": reason[:400], "asked_by": ACTOR},
            actor=ACTOR,
            state="kept" if asks else "ignored",
            detail=why_not,
            now=now,
        )
        if not new:
            return False
        record_event(
            connection,
            actor=ACTOR,
            what=DRIFTED,
            subject=task_id,
            why=told[:2000],
            evidence=evidence,
            time=now,
        )
        asked = "A retraining is asked for." if asks else f"No retraining is asked for: {why_not}."
        message = Message(
            key=f"drift:{number}",
            topic=f"drift:{task_id}"[:200],
            title=f"{task_id}: its calls have drifted",
            what=f"They no longer look as they did. {asked} nightschool drift {task_id} shows examples.",
            why=told[:1500],
            evidence={
                f"{item.column}, against {against}": f"{item.distance:.2f} (limit {item.threshold:.2f})"
                for against, item in findings[:20]
            },
            link=link,
            undo=f"nightschool tasks drift {task_id} off" if asks else "",
        )
        enqueue(connection, message, tuple(context.channels), now)
    return True


def carry(context: Context) -> None:
    """Start what drift asked for; what cannot be started stays kept, and the webhooks' carrier has it too."""
    receipts = Receipts(context.database)
    carrier = Carrier(context.settings.hooks, receipts, context.store, context.orchestrator())
    for receipt in receipts.kept("retrain"):
        if receipt.sender != SENDER:
            continue
        try:
            carrier.start(receipt)
        except OrchestratorDown as error:
            logger.warning("the retraining of %s is kept: %s", receipt.body.get("task"), error)
            return


def retrains(context: Context, task_id: str) -> tuple[bool, str]:
    """Whether drift asks for this task's retraining; if not, why."""
    said = asking(context, task_id)
    if said == "off":
        return False, "it is turned off for this task"
    if said is None and not context.settings.watch.retrain:
        return False, "[watch] retrain is off"
    if context.registry.task(task_id).policy == "teacher":
        return False, "the task is left to the teacher"
    return True, ""


def asking(context: Context, task_id: str) -> str | None:
    """What a person said of this task: on, off, or nothing."""
    with context.database.read() as connection:
        found = list_events(connection, subject=task_id, what=ASKING, limit=1, newest_first=True)
    return found[0].current if found and found[0].current in ("on", "off") else None


def set_asking(context: Context, task_id: str, said: str | None, *, actor: str, why: str) -> None:
    """Say whether drift asks for this task's retraining; None: as set up. Raises UnknownTask."""
    context.registry.task(task_id)
    before = asking(context, task_id)
    with context.database.begin() as connection:
        record_event(
            connection,
            actor=actor,
            what=ASKING,
            subject=task_id,
            why=why,
            previous=before,
            current=said,
        )


def last_told(connection: Connection, task_id: str) -> Event | None:
    found = list_events(connection, subject=task_id, what=DRIFTED, limit=1, newest_first=True)
    return found[0] if found else None


def champion_since(context: Context, task_id: str, champion: str) -> datetime:
    """Since when it is the champion, as far as events tell; its calls before are another's."""
    with context.database.read() as connection:
        changes = list_events(connection, subject=task_id, limit=MAX_HISTORY, newest_first=True)
    since = datetime.fromtimestamp(0, tz=utc_now().tzinfo)
    for change in changes:
        if not change.what.startswith(ROUTE_EVENTS):
            continue
        if (change.current or {}).get("champion") != champion:
            break
        since = change.time
    return since


def _learned_from(context: Context, champion: str) -> DatasetVersion | None:
    try:
        return dataset_of(context, context.registry.adapter(champion).dataset_digest)
    except ObjectMissing:
        return None
