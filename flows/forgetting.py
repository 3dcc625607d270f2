"""Forget a subject: logs, what ingest made of them, data sets, evidence, looks at drift. No Prefect here.

In this order, so that a run that was killed finds on its second try whatever it has not done: evidence
and data sets while the logs still tell which calls are meant, then the logs, then once more whatever was
made of the logs meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import chain

from flows.drift_reports import every_look
from flows.holding import KILLED_SECONDS, NIGHT, hold
from flows.judged_evidence import words_of
from flows.kept_evidence import FORGOTTEN, MAX_LINE_BYTES, PREFIX, note_logs_forgot
from flows.retraining import learned_from, mark_due
from flows.taking_in import IMPORT, INGEST, INGEST_WAIT_SECONDS
from flows.wiring import Context
from infra.calls.finding import CallNotFound, find_call
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.objects.store import ObjectExists, ObjectMissing
from serving.registry.retention.forgetting import forget_ordered, order
from serving.registry.retention.inventory import read_inventory
from trainers.data_sets.golden import GoldenCase, golden_cases, take_away
from trainers.data_sets.versions import DatasetVersion, find_dataset
from trainers.forgetting.objects import find_in_logs, holds, take_from_logs, without
from trainers.forgetting.subject import Subject
from trainers.forgetting.versions import clear_runs, examples_of, version_without
from trainers.importing import quarantined
from trainers.ingest.expiry import clear_superseded
from trainers.ingest.ingest import ingest

ACTOR = "forget"
MOST_PASSES = 5


class StillFound(Exception):
    """What holds the subject keeps being made anew; the message says what to do."""


def look_for(context: Context, subject: Subject) -> Counter[str]:
    """What ``forget`` would find, and nothing changed. Raises ObjectStoreError, DatasetCorrupt."""
    counts = find_in_logs(context.store, subject, context.settings.ingest.max_line_bytes)
    for version, rows in _versions(context, subject):
        counts.update(datasets=1, examples=rows)
        counts["adapters_due"] += len(learned_from(context, version))
    words = words_of(context.store, subject.has)
    counts["evidence_objects"] = sum(1 for _ in chain(_evidence(context, subject), words))
    counts["quarantine_entries"] = sum(gone for _, _, gone in _quarantine(context, subject))
    counts["golden_cases"] = sum(1 for _ in _golden(context, subject))
    if counts.total():
        counts["drift_reports"] = sum(1 for _ in every_look(context))
    return counts


def forget(
    context: Context, subject: Subject, *, actor: str = ACTOR, now: datetime | None = None
) -> Counter[str]:
    """Take everything of the subject's away; what was done, by counts. Safe to kill and to repeat.

    A data set that a route or an open rollout still rests on gets a version without the subject, and
    goes itself as soon as it may (``nightschool gc``, once a day).

    Raises:
        Busy: a night, an ingest or an import is running.
        StillFound: something of the subject's was made again each time; run it again.
        DatasetCorrupt: what a data set holds cannot be told.
        ObjectStoreError, BeingRemoved: what is done is done; run it again.
    """
    now = now or utc_now()
    with (
        hold(context.database, NIGHT, context.holder, wait_seconds=KILLED_SECONDS),
        hold(context.database, INGEST, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
        hold(context.database, IMPORT, context.holder, wait_seconds=INGEST_WAIT_SECONDS),
    ):
        limit = context.settings.ingest.max_line_bytes
        find_in_logs(context.store, subject, limit)
        counts: Counter[str] = Counter()
        ordered: set[str] = set()
        _take_what_was_made(context, subject, actor, now, counts, ordered)
        counts.update(take_from_logs(context.store, subject, limit))
        ingest(context.store, context.database, context.settings, holder=INGEST)
        clear_superseded(context.store, context.database)
        note_logs_forgot(context.database, now)
        for _ in range(MOST_PASSES):
            if not _take_what_was_made(context, subject, actor, now, counts, ordered):
                break
        else:
            raise StillFound("evidence or data sets with it are still being made: run it again")
        # Any of them may count or name the subject's calls; the next watch looks anew.
        for key in list(every_look(context)):
            context.store.delete(key)
            counts["drift_reports"] += 1
        for done in forget_ordered(context.database, context.store, now):
            counts[f"datasets_{done.outcome}".replace(" ", "_")] += 1
        with context.database.begin() as connection:
            record_event(
                connection,
                actor=actor,
                what="subject.forgotten",
                subject=subject.kind,
                why=f"a {subject.kind} was to be forgotten",
                evidence={**subject.fingerprint(), "counts": dict(counts)},
                time=now,
            )
    return counts


def _take_what_was_made(
    context: Context,
    subject: Subject,
    actor: str,
    now: datetime,
    counts: Counter[str],
    ordered: set[str],
) -> bool:
    """Whether anything was found in evidence, data sets (but those ordered to go already), golden cases
    and quarantine; what was done is added to ``counts`` and ``ordered``.
    """
    found: Counter[str] = Counter(evidence_objects=_take_evidence(context, subject, now))
    for key in list(words_of(context.store, subject.has)):
        context.store.delete(key)
        found["evidence_objects"] += 1
    found.update(_take_datasets(context, subject, now, ordered))
    for case in list(_golden(context, subject)):
        why = f"a {subject.kind} was to be forgotten"
        take_away(context.store, context.database, case.task_id, case.id, why=why, by=actor)
        found["golden_cases"] += 1
    for key, kept, gone in _quarantine(context, subject):
        quarantined.write(context.store, key, kept.entries, kept.unnamed)
        found["quarantine_entries"] += gone
    counts.update(found)
    return bool(found.total())


def _take_evidence(context: Context, subject: Subject, now: datetime) -> int:
    count = 0
    for key in list(_evidence(context, subject)):
        with context.store.open(key) as stream:
            data, _ = without(stream, subject.goes, MAX_LINE_BYTES)
        rollout = key.removeprefix(PREFIX).split("/")[0]
        made = f"{PREFIX}{rollout}/{hashlib.sha256(data).hexdigest()}.jsonl.zst"
        with contextlib.suppress(ObjectExists):
            context.store.create(made, data)
        with context.database.begin() as connection:
            record_event(
                connection,
                actor=ACTOR,
                what=FORGOTTEN,
                subject=rollout,
                why="records were to be forgotten: what was decided on them cannot be shown whole",
                evidence={"object": key, "replaced_by": made},
                time=now,
            )
        context.store.delete(key)
        count += 1
    return count


def _take_datasets(
    context: Context, subject: Subject, now: datetime, ordered: set[str]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for version, rows in list(_versions(context, subject)):
        if version.digest in ordered:
            continue
        ordered.add(version.digest)
        counts.update(datasets=1, examples=rows)
        adapters = learned_from(context, version)
        # Before the data set goes: it is what tells whose adapters these are.
        counts["adapters_due"] += sum(
            mark_due(context, adapter, version.digest, now) for adapter in adapters
        )
        with context.database.read() as connection:
            found = read_inventory(connection, now, task_id=version.task_id)
        own = {a.name for a in adapters if a.dataset_digest == version.digest}
        if own & {*found.routed, *found.rolling, *found.draining}:
            made = version_without(context.store, context.database, version, subject, now)
            counts["new_versions"] += made is not None
        counts["runs_at_work"] += clear_runs(
            context.settings.training.runs, context.store, {version.digest}
        )
        order(context.database, version.digest, now)
    return counts


def _versions(context: Context, subject: Subject) -> Iterator[tuple[DatasetVersion, int]]:
    """Registered versions that are still there and hold examples of the subject's, with how many."""
    for task in context.registry.tasks():
        for row in context.registry.datasets(task.id):
            try:
                version = find_dataset(context.store, row.location)
            except ObjectMissing:
                continue
            if rows := examples_of(context.store, version, subject):
                yield version, rows


def _golden(context: Context, subject: Subject) -> Iterator[GoldenCase]:
    """Cases of the subject's: by what they say, or by the call they were pinned from."""
    for case in golden_cases(context.store):
        if subject.said([case.request, case.answer]):
            yield case
        elif case.call_id is not None:
            with contextlib.suppress(CallNotFound):
                if subject.has(find_call(context.store, case.call_id).record):
                    yield case


def _evidence(context: Context, subject: Subject) -> Iterator[str]:
    for item in context.store.list(PREFIX):
        with contextlib.suppress(ObjectMissing), context.store.open(item.key) as stream:
            if holds(stream, subject.goes, MAX_LINE_BYTES):
                yield item.key


def _quarantine(
    context: Context, subject: Subject
) -> Iterator[tuple[str, quarantined.Listed, int]]:
    """Lists of bad rows without a tenant's. Whose row it is, only an import knows, and only that."""
    if subject.kind != "tenant":
        return
    for listed in quarantined.quarantines(context.store):
        if listed.key.startswith(quarantined.IMPORT_PREFIX):
            kept = tuple(entry for entry in listed.entries if entry.tenant != subject.value)
            gone = len(listed.entries) - len(kept)
            if gone:
                yield listed.key, quarantined.Listed(listed.key, kept, listed.unnamed), gone
