"""What people said of a task's answers: those that the judge's agreement with people is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.calls.record import CallRecord, FeedbackRecord
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from trainers.data_sets.labels import answer_key, latest, own
from trainers.discover import assignments
from trainers.ingest.reading import call_files, feedback_files, read_calls, read_feedback

GOOD_FROM = 0.5
"""Feedback of this score and more calls an answer good."""


@dataclass(frozen=True)
class Opinion:
    """A person's word on an answer that was given."""

    id: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    good: bool
    better: Mapping[str, Any] | None = None
    """The correction, where one was given and it differs."""


def opinions(
    store: ObjectStore, database: Database, settings: Settings, task_id: str, limit: int
) -> list[Opinion]:
    """The newest ones on calls of the task, as of the latest discovery; at most ``limit`` calls.

    Raises ObjectStoreError, AssignmentsCorrupt.
    """
    pointer = assignments.latest(database)
    if pointer is None or limit < 1:
        return []
    members = [call for call, owner in assignments.read(store, pointer).items() if owner == task_id]
    said = read_feedback(store, feedback_files(database), members)
    # Assignments are in order of time.
    newest = [call for call in reversed(members) if any(map(_tells, said.get(call, ())))][:limit]
    files = call_files(database, settings.discovery.max_calls)
    found: list[Opinion] = []
    for record, _ in read_calls(store, files, newest):
        found += opinions_of(record, said[record.id])
    return found


def opinions_of(record: CallRecord, feedback: list[FeedbackRecord]) -> list[Opinion]:
    """Of one call, by its own tenant's latest word of each sort; a correction is a good answer. Pure."""
    answer = record.answer
    reports = own(record, feedback)
    if answer is None:
        return []
    corrected, score = latest(reports, "correction"), latest(reports, "score")
    if corrected is not None and answer_key(corrected) != answer_key(answer):
        better = {"role": "assistant", **corrected}
        return [
            Opinion(record.id, record.request, answer, False, better),
            Opinion(f"{record.id}-corrected", record.request, better, True),
        ]
    if corrected is None and score is None:
        return []
    good = corrected is not None or (score is not None and score >= GOOD_FROM)
    return [Opinion(record.id, record.request, answer, good)]


def _tells(item: FeedbackRecord) -> bool:
    return item.correction is not None or item.score is not None
