"""Read the call log for the evidence of open rollouts, each object once per process."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from infra.calls.codec import LOG_PREFIX, Problem, RecordError, parse_line, read_lines
from infra.calls.record import CallRecord, FeedbackRecord
from infra.objects.store import ObjectMissing, ObjectStore

logger = logging.getLogger(__name__)

LATE = timedelta(hours=1)
"""A record lies in the hour it was made in, give or take the spool's delay and clocks."""
MAX_RECORDS = 500_000


class EvidenceLog:
    """The log records that belong to open rollouts, kept in memory between two looks.

    An object that was read is not read again, unless it was replaced by one without some records.
    """

    def __init__(self, store: ObjectStore, max_line_bytes: int) -> None:
        self._store = store
        self._max_line_bytes = max_line_bytes
        self._read: dict[str, str] = {}
        self._calls: dict[str, list[CallRecord]] = defaultdict(list)
        self._feedback: deque[FeedbackRecord] = deque(maxlen=MAX_RECORDS)

    def look(self, since: datetime) -> None:
        """Take in what was logged since then and was not read yet.

        Raises ObjectStoreError when the store cannot be read: then nothing is decided.
        """
        first_hour = (since - LATE).astimezone(UTC)
        after = f"{LOG_PREFIX}dt={first_hour:%Y-%m-%d}/hh={first_hour:%H}/"
        found = list(self._store.list(LOG_PREFIX, after=after))
        if any(self._read.get(item.key, item.etag) != item.etag for item in found):
            # Somebody's records were taken out of the log: what is in memory goes too.
            self._read.clear()
            self._calls.clear()
            self._feedback.clear()
        for item in found:
            if item.key not in self._read:
                self._take(item.key)
                self._read[item.key] = item.etag

    def forget_all_but(self, rollouts: Collection[str]) -> None:
        """Free what belongs to rollouts that have ended."""
        for rollout in set(self._calls) - set(rollouts):
            del self._calls[rollout]
        if not rollouts:
            self._feedback.clear()

    def calls(self, rollout: str) -> list[CallRecord]:
        return self._calls.get(rollout, [])

    def feedback(self) -> list[FeedbackRecord]:
        return list(self._feedback)

    def _take(self, key: str) -> None:
        try:
            stream = self._store.open(key)
        except ObjectMissing:
            return
        with stream:
            for _, line in read_lines(stream, self._max_line_bytes):
                # What cannot be read is no evidence; ingest puts it into quarantine and says so.
                if isinstance(line, Problem):
                    continue
                try:
                    record = parse_line(line)
                except RecordError:
                    continue
                if isinstance(record, FeedbackRecord):
                    if len(self._feedback) == MAX_RECORDS:
                        logger.warning("over %d reports: the oldest are left out", MAX_RECORDS)
                    self._feedback.append(record)
                elif record.answered_by.rollout is not None:
                    self._keep(record.answered_by.rollout, record)

    def _keep(self, rollout: str, record: CallRecord) -> None:
        if len(self._calls[rollout]) >= MAX_RECORDS:
            logger.warning(
                "rollout %s has over %d records: the rest is left out", rollout, MAX_RECORDS
            )
            return
        self._calls[rollout].append(record)
