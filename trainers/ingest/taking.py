"""Read one object whole: lines to Parquet files and to quarantine; who does it where.

What is written lies under keys made from the object's own key and etag, with the same bytes each time:
done twice, or by two at once, it is done once. Nothing of it counts before the claim is committed, which
is the business of ``ingest``: those who read need the object store and no database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

from infra.calls.codec import Problem, RecordError, parse_line, read_lines
from infra.calls.record import CallRecord, FeedbackRecord, LogRecord, utc_now
from infra.objects.store import ObjectInfo, ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.learning import Ingest
from infra.settings.serving import Anonymizer
from trainers.ingest.privacy import PrivacyCheck
from trainers.ingest.sinks import ParquetFiles, Quarantine

MAX_AHEAD = timedelta(hours=1)
"""How far another machine's clock may be ahead of ours."""
T = TypeVar("T")
Counts = dict[str, Any]
StillOurs = Callable[[ObjectInfo], bool]


class Unreadable(Exception):
    """The store did not give the object; nothing is known about its content."""


class WorkersLost(Exception):
    """Those who read are gone for good; what they had not finished is left for the next run."""


class Taken(NamedTuple):
    """What became of one object."""

    item: ObjectInfo
    counts: Counts | None = None
    """For its row, once its files are written; None: another run took it over, or ``problem`` says why."""
    problem: str | None = None


class Workers(Protocol):
    """Where objects are read. Both pass ``tests/trainers/executors/test_ingest_workers.py``."""

    def take(self, items: Iterable[ObjectInfo], still_ours: StillOurs) -> Iterator[Taken]:
        """Read each object and write its files.

        Args:
            items: claimed while they are drawn.
            still_ours: to be asked now and then while an object is read; keeps its claim. False: it was
                taken over, and what becomes of it matters no more.

        Raises:
            ObjectStoreError: the store cannot be written.
            WorkersLost: nobody is left to read.
        """
        ...


class Here:
    """In this process, one object after another."""

    def __init__(
        self, store: ObjectStore, ingest: Ingest, anonymizer: Anonymizer, max_object_bytes: int
    ) -> None:
        self._store, self._max_object_bytes = store, max_object_bytes
        self._ingest, self._anonymizer = ingest, anonymizer

    def take(self, items: Iterable[ObjectInfo], still_ours: StillOurs) -> Iterator[Taken]:
        for item in items:
            yield self.one(item, still_ours)

    def one(self, item: ObjectInfo, still_ours: StillOurs = lambda _: True) -> Taken:
        try:
            return Taken(item, self._read(item, still_ours))
        except Unreadable as problem:
            return Taken(item, problem=str(problem))

    def _read(self, item: ObjectInfo, still_ours: StillOurs) -> Counts | None:
        source = hashlib.sha256(f"{item.key}\0{item.etag}".encode()).hexdigest()
        files = ParquetFiles(self._store, item.key, source, self._ingest)
        quarantine = Quarantine(self._store, item.key, source)
        privacy = PrivacyCheck.of(self._anonymizer)
        ids: set[int] = set()
        lines = repeated = 0
        now = utc_now()
        for line, size, record in self._records(item):
            lines += 1
            record = timely(record, now)
            if isinstance(record, Problem):
                quarantine.add(line, record)
            elif (identity := _identity(record)) in ids:
                repeated += 1
            else:
                ids.add(identity)
                checked = privacy.check(record)
                if checked is not None and files.add(checked, size) and not still_ours(item):
                    return None
        files.close()
        left_out = privacy.left_out.total()
        return {
            **files.counts(),
            "lines": lines,
            "repeated": repeated,
            "quarantined": quarantine.size,
            "quarantine": quarantine.close(),
            "left_out": left_out,
            "left_out_for": dict(privacy.left_out),
            "lost": lines - files.calls - files.feedback - quarantine.size - repeated - left_out,
            "personal_data": dict(privacy.counts),
            "found_here": dict(privacy.found_here),
        }

    def _records(self, item: ObjectInfo) -> Iterator[tuple[int, int, LogRecord | Problem]]:
        """(line number, bytes, record or what is wrong) of one object. Raises Unreadable."""
        if item.size > self._max_object_bytes:
            limit = self._max_object_bytes
            reason = f"the object has {item.size} bytes, storage.max_object_bytes is {limit}"
            yield 0, 0, Problem(reason)
            return
        try:
            stream = self._store.open(item.key)
        except ObjectMissing:
            raise Unreadable("the object is gone") from None
        except ObjectStoreError as error:
            raise Unreadable(f"the store did not give it ({type(error).__name__})") from error
        with stream:
            lines = read_lines(stream, self._ingest.max_line_bytes)
            while True:
                try:
                    number, content = next(lines)
                except StopIteration:
                    return
                except (OSError, ObjectStoreError) as error:
                    raise Unreadable(f"reading it broke off ({type(error).__name__})") from error
                if isinstance(content, Problem):
                    yield number, 0, content
                    continue
                try:
                    yield number, len(content), parse_line(content)
                except RecordError as error:
                    yield number, 0, Problem(error.reason, error.position)


def timely(item: T, now: datetime) -> T | Problem:
    """The item, or a Problem: a record of the future would count as the newest for ever."""
    if isinstance(item, CallRecord | FeedbackRecord) and item.time > now + MAX_AHEAD:
        return Problem("a time in the future: is a clock wrong?", "time")
    return item


def _identity(record: LogRecord) -> int:
    """64 bits of the record's kind and id: a set of these stays small for a million lines."""
    kind = "call" if isinstance(record, CallRecord) else "feedback"
    digest = hashlib.blake2b(f"{kind}:{record.tenant}:{record.id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
