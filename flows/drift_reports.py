"""Evidently's reports of drift, kept in object storage: of a night's data sets, and of the looks between.

    reports/drift/<task>-<data set>/drift.html, .json                    a data set's train against test
    reports/drift/<task>-<data set>/<time>-<against>/drift.html, .json   a look at live calls
    reports/drift/<task>-<data set>/asked/<time>-<against>/drift.html, .json   likewise, for who asked

They lie under the data set that they compare with, and go when it goes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evaluators.drift import DriftSummary, Sensitivity, report
from flows.live_calls import Row, example_rows
from flows.wiring import Context
from trainers.data_sets.versions import DatasetVersion, read_split

MAX_KEPT = 28
"""Looks kept of one data set: two comparisons a day for two weeks, by default."""
ROOT = "reports/drift"
STAMP = "%Y%m%dT%H%M%SZ"
UNFINISHED = timedelta(hours=1)
"""So much older than a whole look, one without data is no longer at work."""
_HTML, _JSON = "drift.html", "drift.json"


@dataclass(frozen=True)
class DriftReport:
    task_id: str
    summary: DriftSummary
    html_key: str
    """Object key of the page; ``report_url`` makes it a link."""
    json_key: str
    data: bytes
    """What ``finish`` puts at ``json_key``."""


def prefix_of(task_id: str, dataset_digest: str) -> str:
    return f"{ROOT}/{task_id}-{dataset_digest[:16]}"


def asked_prefix(prefix: str) -> str:
    """Where looks lie that somebody asked for; they are none of the daily ones, and delay none."""
    return f"{prefix}/asked"


def sensitivity_of(context: Context) -> Sensitivity:
    """What is drift, as set up; a look makes two comparisons, and each has half of the chance."""
    watch = context.settings.watch
    return Sensitivity(
        level=watch.false_alarm_share / 2,
        least_shift=watch.least_shift,
        least_mix=watch.least_mix,
        max_rows=watch.max_rows,
    )


def drift_report(context: Context, dataset: DatasetVersion) -> DriftReport:
    """Compare what the adapter learns from (older sessions) with the newest sessions. Raises TooFewRows."""
    reference = example_rows(read_split(context.store, dataset, "train"))
    current = example_rows(read_split(context.store, dataset, "test"))
    place = prefix_of(dataset.task_id, dataset.digest)
    made = compare(context, dataset.task_id, reference, current, place)
    finish(context, made)
    return made


def compare(
    context: Context,
    task_id: str,
    reference: Sequence[Row],
    current: Sequence[Row],
    prefix: str,
    more: dict[str, Any] | None = None,
) -> DriftReport:
    """Compare, and keep the page.

    Args:
        more: kept in the data beside the summary.

    Raises TooFewRows.
    """
    with tempfile.TemporaryDirectory() as folder:
        summary = report(reference, current, Path(folder), sensitivity=sensitivity_of(context))
        context.store.put(f"{prefix}/{_HTML}", summary.html.read_bytes())
        data = {"task": task_id, **(more or {}), **json.loads(summary.json.read_bytes())}
    return DriftReport(
        task_id,
        summary,
        f"{prefix}/{_HTML}",
        f"{prefix}/{_JSON}",
        json.dumps(data, default=str).encode(),
    )


def finish(context: Context, made: DriftReport) -> None:
    """Keep the data: they say that all is done that a comparison leads to."""
    context.store.put(made.json_key, made.data)


def finish_empty(context: Context, task_id: str, prefix: str, until: datetime) -> None:
    """Keep that there were too few rows to compare: until the next look's time it is not tried again."""
    data = json.dumps({"task": task_id, "until": until.isoformat(), "compared": False})
    context.store.put(f"{prefix}/{until.strftime(STAMP)}-nothing/{_JSON}", data.encode())


def looks(context: Context, prefix: str) -> list[tuple[datetime, str]]:
    """Time and key prefix of the looks right under ``prefix`` that are whole, oldest first."""
    found = []
    for item in context.store.list(f"{prefix}/"):
        folder, _, name = item.key.rpartition("/")
        time = _time_of(folder, prefix)
        if name == _JSON and time is not None:
            found.append((time, folder))
    return sorted(found)


def every_look(context: Context) -> Iterator[str]:
    """Keys of all that was kept of looks at live calls, of every task; the nights' reports go with
    their data sets."""
    for item in context.store.list(f"{ROOT}/"):
        if item.key.removeprefix(f"{ROOT}/").count("/") > 1:
            yield item.key


def clear_old(context: Context, prefix: str) -> None:
    """Leave the newest ``MAX_KEPT`` looks, and no page of one that was killed before its data."""
    whole = looks(context, prefix)
    for _, folder in whole[:-MAX_KEPT]:
        for name in (_JSON, _HTML):
            context.store.delete(f"{folder}/{name}")
    if not whole:
        return
    done, newest = {folder for _, folder in whole}, whole[-1][0]
    for item in list(context.store.list(f"{prefix}/")):
        folder = item.key.rpartition("/")[0]
        time = _time_of(folder, prefix)
        if time is not None and folder not in done and newest - time > UNFINISHED:
            context.store.delete(item.key)


def _time_of(folder: str, prefix: str) -> datetime | None:
    over, _, own = folder.rpartition("/")
    try:
        time = datetime.strptime(own.partition("-")[0], STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return time if over == prefix else None
