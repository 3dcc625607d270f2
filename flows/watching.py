"""Compare live calls with what a champion was trained on. No Prefect here."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from evaluators.drift import TooFewRows, report
from flows.holding import KILLED_SECONDS, NIGHT, Busy, hold
from flows.learning import dataset_of
from flows.reporting import rows
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.notify.message import Message
from infra.notify.outbox import enqueue
from infra.objects.store import ObjectMissing
from serving.registry.records import TEACHER
from trainers.data_sets.freeze import EmptyDataset, freeze
from trainers.data_sets.versions import read_split

logger = logging.getLogger(__name__)

ACTOR = "watch"


def watch_tasks(context: Context) -> dict[str, float]:
    """Tasks whose live traffic drifted from their champion's training data, with the share of
    drifted columns; each gets an event and a message that asks for a night."""
    limit = context.settings.watch.max_rows
    drifted: dict[str, float] = {}
    for route in context.registry.routes():
        if route.champion == TEACHER:
            continue
        try:
            trained_on = dataset_of(
                context, context.registry.adapter(route.champion).dataset_digest
            )
        except ObjectMissing:
            logger.info("%s is not compared: its champion's data set was forgotten", route.task_id)
            continue
        try:
            with hold(context.database, NIGHT, context.holder, wait_seconds=KILLED_SECONDS):
                live = freeze(
                    context.store, context.database, context.settings, route.task_id, utc_now()
                )
        except EmptyDataset:
            continue
        except Busy:
            logger.info("a night is running, or somebody is forgotten: compared the next time")
            break
        if live.digest == trained_on.digest:
            continue
        reference = rows(read_split(context.store, trained_on, "train"))[-limit:]
        current = rows(read_split(context.store, live, "test"))[-limit:]
        try:
            with tempfile.TemporaryDirectory() as folder:
                summary = report(reference, current, Path(folder))
        except TooFewRows as few:
            logger.info("%s is not compared: %s", route.task_id, few)
            continue
        if summary.share >= context.settings.watch.drift_share:
            drifted[route.task_id] = summary.share
            _announce(context, route.task_id, live.digest, summary.share)
    return drifted


def _announce(context: Context, task_id: str, digest: str, share: float) -> None:
    evidence = {"drift_share": share, "dataset": digest}
    why = f"{share:.0%} of the columns drifted from what the champion was trained on"
    with context.database.begin() as connection:
        record_event(
            connection,
            actor=ACTOR,
            what="task.drifted",
            subject=task_id,
            why=why,
            evidence=evidence,
        )
        message = Message(
            key=f"drift:{task_id}:{digest[:16]}",
            topic=f"task:{task_id}",
            title=f"{task_id}: live traffic has drifted",
            what="The calls of this task no longer look like those its champion learned from.",
            why=why,
            evidence=evidence,
            link="",
            undo=f"nightschool retrain {task_id}",
        )
        enqueue(connection, message, tuple(context.channels))
