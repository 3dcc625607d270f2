"""Ingest: every log object once, in constant memory, whatever it holds.

Effects per object, in order: claim (database), Parquet files and quarantine (object store, under
keys made from the object's own key and etag, so that doing it again overwrites the same), commit
(database). Only the commit makes the files count; killed anywhere before, the object is simply
done again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from infra.calls.codec import LOG_PREFIX, Problem, RecordError, parse_line, read_lines
from infra.calls.record import CallRecord, LogRecord, utc_now
from infra.database.open import Database
from infra.objects.store import ObjectInfo, ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.model import Settings
from trainers.ingest import claims
from trainers.ingest.privacy import PrivacyCheck
from trainers.ingest.sinks import ParquetFiles, Quarantine

LIST_PAGE = 500
Progress = Callable[[str], None]


@dataclass(frozen=True)
class IngestReport:
    """What one run did (or, from ``totals``, what all runs did)."""

    objects: int = 0
    """Committed."""
    calls: int = 0
    feedback: int = 0
    quarantined: int = 0
    """Lines, cut-off ends and whole objects that could not be read; each is named in quarantine/."""
    duplicates: int = 0
    """Calls that say the same as an earlier one of their file; kept, with less weight."""
    repeated: int = 0
    """Lines whose record id was already seen in their object: left out."""
    left_out: int = 0
    """Records that by ``[anonymizer] kinds`` may not be stored."""
    lost: int = 0
    """Lines read that ended neither as a record, nor in quarantine, as repeated or left out. Always 0."""
    lines: int = 0
    personal_data: Mapping[str, int] = field(default_factory=dict)
    """Kind to how many values were replaced, by the gateway or by the check here."""
    found_here: Mapping[str, int] = field(default_factory=dict)
    """The part of it that only the check here found: others' logs, or a leak."""
    busy: int = 0
    """Objects that another run holds."""
    failed: int = 0
    """Objects that the store did not give: left for the next run."""


def ingest(
    store: ObjectStore,
    database: Database,
    settings: Settings,
    *,
    holder: str,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Ingest every log object that no earlier run has committed.

    Args:
        holder: names this run in its claims; a run again under the same name takes its own claims
            over at once, others wait ``ingest.claim_seconds``.
        now: for tests; aware.
        progress: called with a line of text after every object.

    Raises:
        ObjectStoreError: the store cannot be listed or written.
    """
    # Clock readings per claim, so that a long run keeps its claims; a test's fixed time stays fixed.
    clock = (lambda: now) if now is not None else utc_now
    total: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    here: Counter[str] = Counter()
    objects = store.list(LOG_PREFIX)
    for page in _pages(objects, LIST_PAGE):
        for item in claims.unfinished(database, page):
            held = claims.claim(database, item, holder, settings.ingest.claim_seconds, clock())
            if held is None:
                total["busy"] += 1
                continue
            try:
                counts = _object(store, database, settings, item, held, clock)
            except _Unreadable as problem:
                claims.release(database, held, clock())
                total["failed"] += 1
                _say(progress, f"{item.key}: {problem}; left for the next run")
                continue
            if counts is None:
                total["busy"] += 1
                continue
            total["objects"] += 1
            total.update({name: counts[name] for name in _COUNTED})
            personal.update(counts["personal_data"])
            here.update(counts["found_here"])
            _say(progress, f"{total['objects']} objects, {total['calls']} calls")
    return IngestReport(**total, personal_data=dict(personal), found_here=dict(here))


def totals(database: Database) -> IngestReport:
    """The sum over everything ever committed."""
    total: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    here: Counter[str] = Counter()
    for _, _, counts in claims.every_committed(database):
        total["objects"] += 1
        total.update({name: counts.get(name, 0) for name in _COUNTED})
        personal.update(counts.get("personal_data", {}))
        here.update(counts.get("found_here", {}))
    return IngestReport(**total, personal_data=dict(personal), found_here=dict(here))


_COUNTED = (
    *("calls", "feedback", "quarantined", "duplicates", "repeated", "left_out", "lost", "lines"),
)


class _Unreadable(Exception):
    """The store did not give the object; nothing is known about its content."""


def _object(
    store: ObjectStore,
    database: Database,
    settings: Settings,
    item: ObjectInfo,
    held: claims.Claim,
    clock: Callable[[], datetime],
) -> dict[str, Any] | None:
    """All effects of one object; its counts, or None when another run took it over."""
    ttl = settings.ingest.claim_seconds
    source = hashlib.sha256(f"{item.key}\0{item.etag}".encode()).hexdigest()
    files = ParquetFiles(store, item.key, source, settings.ingest)
    quarantine = Quarantine(store, item.key, source)
    privacy = PrivacyCheck.of(settings.anonymizer)
    ids: set[int] = set()
    lines = repeated = 0
    for line, size, record in _records(store, item, settings):
        lines += 1
        if isinstance(record, Problem):
            quarantine.add(line, record)
        elif (identity := _identity(record)) in ids:
            repeated += 1
        else:
            ids.add(identity)
            checked = privacy.check(record)
            if checked is not None and files.add(checked, size):
                renewed = claims.hold(database, held, ttl, clock())
                if renewed is None:
                    return None
                held = renewed
    files.close()
    left_out = privacy.left_out.total()
    counts = {
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
    return counts if claims.commit(database, held, counts, clock()) else None


def _records(
    store: ObjectStore, item: ObjectInfo, settings: Settings
) -> Iterator[tuple[int, int, LogRecord | Problem]]:
    """(line number, bytes, record or what is wrong) of one object. Raises _Unreadable."""
    if item.size > settings.storage.max_object_bytes:
        limit = settings.storage.max_object_bytes
        yield (
            0,
            0,
            Problem(f"the object has {item.size} bytes, storage.max_object_bytes is {limit}"),
        )
        return
    try:
        stream = store.open(item.key)
    except ObjectMissing:
        raise _Unreadable("the object is gone") from None
    except ObjectStoreError as error:
        raise _Unreadable(f"the store did not give it ({type(error).__name__})") from error
    with stream:
        lines = read_lines(stream, settings.ingest.max_line_bytes)
        while True:
            try:
                number, content = next(lines)
            except StopIteration:
                return
            except (OSError, ObjectStoreError) as error:
                raise _Unreadable(f"reading it broke off ({type(error).__name__})") from error
            if isinstance(content, Problem):
                yield number, 0, content
                continue
            try:
                yield number, len(content), parse_line(content)
            except RecordError as error:
                yield number, 0, Problem(error.reason, error.position)


def _identity(record: LogRecord) -> int:
    """64 bits of the record's kind and id: a set of these stays small for a million lines."""
    kind = "call" if isinstance(record, CallRecord) else "feedback"
    digest = hashlib.blake2b(f"{kind}:{record.tenant}:{record.id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _pages(objects: Iterator[ObjectInfo], size: int) -> Iterator[list[ObjectInfo]]:
    while page := list(islice(objects, size)):
        yield page


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
