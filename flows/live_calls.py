"""The calls of a task in a span of time, as rows that drift is looked for in. Read from what was ingested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from evaluators.watched import row_of_call, row_of_exchange
from flows.wiring import Context
from infra.calls.record import CallRecord
from infra.objects.store import ObjectMissing
from trainers.data_sets.labels import Example, own
from trainers.discover import assignments
from trainers.ingest.reading import (
    CallFile,
    call_files,
    feedback_files,
    read_calls,
    read_columns,
    read_feedback,
)

MAX_FEEDBACK_ROWS = 200_000
Row = dict[str, Any]


@dataclass(frozen=True)
class LiveCalls:
    """Which calls there are, by task; the newest of what ``discovery.max_calls`` lets in."""

    files: Sequence[CallFile]
    feedback: Sequence[CallFile]
    by_task: dict[str, list[tuple[datetime, str]]]
    """Time and id of each call."""

    @classmethod
    def index(cls, context: Context) -> LiveCalls:
        """A call is the task's that the gateway chose, else the one that discovery found it in."""
        files = call_files(context.database, context.settings.discovery.max_calls)
        owners = _owners(context)
        by_task: dict[str, list[tuple[datetime, str]]] = {}
        for row in read_columns(context.store, files, ["time", "task"]):
            task = row["task"] or owners.get(row["id"])
            if task:
                by_task.setdefault(task, []).append((row["time"].astimezone(UTC), row["id"]))
        feedback = feedback_files(context.database, MAX_FEEDBACK_ROWS)
        return cls(files, feedback, by_task)

    def rows(
        self, context: Context, task_id: str, since: datetime, until: datetime, most: int
    ) -> list[Row]:
        """At most so many of the task's calls from ``since`` to before ``until``, drawn at random,
        canaries left out: the candidate of a rollout is no drift of traffic."""
        ids = sorted(
            call_id for time, call_id in self.by_task.get(task_id, ()) if since <= time < until
        )
        if not ids:
            return []
        if len(ids) > most:
            # The same calls again when it is done again.
            drawn = np.random.default_rng(len(ids)).choice(len(ids), most, replace=False)
            ids = [ids[place] for place in sorted(drawn)]
        records = [record for record, _ in read_calls(context.store, self.files, ids)]
        said = read_feedback(context.store, self.feedback, ids)
        return [
            row_of_call(record, own(record, said.get(record.id, ())))
            for record in sorted(records, key=lambda record: (record.time, record.id))
            if record.answered_by.arm != "canary"
        ]

    def records(self, context: Context, ids: Sequence[str]) -> dict[str, CallRecord]:
        """Those that are still there, by id."""
        return {record.id: record for record, _ in read_calls(context.store, self.files, ids)}


def example_rows(examples: Sequence[Example]) -> list[Row]:
    """Examples of a data set likewise; nobody knows of them who was asked, and what became of it."""
    return [
        row_of_exchange(example.request, example.answer, example.call_id, example.session)
        for example in examples
    ]


def _owners(context: Context) -> dict[str, str]:
    pointer = assignments.latest(context.database)
    if pointer is None:
        return {}
    try:
        return assignments.read(context.store, pointer)
    except (assignments.AssignmentsCorrupt, ObjectMissing):
        return {}  # the next discovery mends it
