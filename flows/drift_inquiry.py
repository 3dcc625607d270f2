"""What somebody who asks after a task's drift is shown: a comparison made now, and what was told before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evaluators.watched import row_of_call
from flows.drift_reports import asked_prefix, clear_old, finish, prefix_of
from flows.learning import dataset_of
from flows.live_calls import LiveCalls
from flows.reporting import report_url
from flows.watching import Look, champion_since, last_told, look, retrains
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.objects.store import ObjectMissing
from serving.registry.records import TEACHER

EXCERPT_CHARACTERS = 160


class NothingToCompare(Exception):
    """The task has no champion, or too few calls; the message says which."""


@dataclass(frozen=True)
class Inquiry:
    task: str
    champion: str
    since: datetime
    until: datetime
    looks: list[dict[str, Any]]
    last_told: dict[str, Any] | None
    cools_down_until: datetime | None
    asks: str
    """``on``, or why no retraining is asked for."""


def inquire(
    context: Context, task_id: str, *, days: float | None = None, now: datetime | None = None
) -> Inquiry:
    """Compare the newest calls now. Nothing is told and nothing asked for: ``watch`` does that.

    Args:
        days: how far back the calls go; None: ``watch.window_seconds``.

    Raises:
        UnknownTask, NothingToCompare.
    """
    now = now or utc_now()
    context.registry.task(task_id)
    champion = context.registry.route(task_id).champion
    if champion == TEACHER:
        raise NothingToCompare(
            f"{task_id} is answered by the teacher: drift is measured against what a champion learned from"
        )
    try:
        dataset = dataset_of(context, context.registry.adapter(champion).dataset_digest)
    except ObjectMissing:
        raise NothingToCompare(
            f"the data set that {champion} learned from is gone: nightschool retrain {task_id}"
        ) from None
    watch = context.settings.watch
    window = timedelta(days=days) if days is not None else timedelta(seconds=watch.window_seconds)
    live = LiveCalls.index(context)
    prefix = asked_prefix(prefix_of(task_id, dataset.digest))
    made = look(context, live, task_id, champion, dataset, now - window, now, prefix)
    if not made:
        since = champion_since(context, task_id, champion)
        raise NothingToCompare(
            f"too few calls of {task_id} between {now - window:%Y-%m-%d %H:%M} and {now:%Y-%m-%d %H:%M} "
            f"were taken in (its champion answers since {since:%Y-%m-%d}): try --days"
        )
    for one in made:
        finish(context, one.report)
    clear_old(context, prefix)
    with context.database.read() as connection:
        told = last_told(connection, task_id)
    cooldown = timedelta(seconds=watch.cooldown_seconds)
    asks, why_not = retrains(context, task_id)
    return Inquiry(
        task=task_id,
        champion=champion,
        since=now - window,
        until=now,
        looks=[_shown(context, live, one) for one in made],
        last_told=None
        if told is None
        else {"time": told.time, "why": told.why, **dict(told.evidence)},
        cools_down_until=told.time + cooldown if told and told.time + cooldown > now else None,
        asks="on" if asks else why_not,
    )


def _shown(context: Context, live: LiveCalls, made: Look) -> dict[str, Any]:
    summary = made.report.summary
    wanted = sorted({name for finding in summary.findings for name in finding.examples})
    records = live.records(context, wanted)
    return {
        "against": made.against,
        "calls": summary.current_rows,
        "compared_with": summary.reference_rows,
        "drifted": list(summary.drifted),
        "columns": {
            name: {
                "distance": round(summary.scores[name], 4),
                "limit": round(summary.thresholds[name], 4),
            }
            for name in summary.columns
        },
        "findings": [
            {
                **finding.to_dict(),
                "told": finding.told(),
                # Read from the logs each time: what was forgotten there is not shown here.
                "examples": [
                    {"call": name, **_excerpt(row_of_call(records[name]))}
                    for name in finding.examples
                    if name in records
                ],
            }
            for finding in summary.findings
        ],
        "report": report_url(context, made.report.html_key),
        "data": made.report.json_key,
    }


def _excerpt(row: dict[str, Any]) -> dict[str, str]:
    return {
        name: " ".join(str(row[name]).split())[:EXCERPT_CHARACTERS] for name in ("prompt", "answer")
    }
