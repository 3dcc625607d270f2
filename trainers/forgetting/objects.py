"""Take a subject's lines out of log objects: one object at a time, each replaced in one step.

The object keeps its key, by which its lineage and its hour are found, and gets another etag, by which
ingest takes it in anew; the commit of that ends what was made of the object before
(``trainers.ingest.claims``). So nothing counts twice and nothing is lost, wherever it is killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from infra.calls.codec import (
    COMPRESSION_LEVEL,
    LOG_PREFIX,
    Problem,
    RecordError,
    parse_line,
    read_lines,
)
from infra.calls.record import FeedbackRecord, LogRecord
from infra.objects.store import ObjectMissing, ObjectStore
from trainers.forgetting.subject import Subject

Goes = Callable[[LogRecord | bytes], bool]
"""Whether a record, or a line that is none, is to go."""


def find_in_logs(store: ObjectStore, subject: Subject, max_line_bytes: int) -> Counter[str]:
    """Count the subject's lines, and make its calls known to it. Raises ObjectStoreError.

    Feedback is counted where it is found after its call, which is where it mostly lies.
    """
    counts: Counter[str] = Counter()
    for item in store.list(LOG_PREFIX):
        found = 0
        for record in _records(store, item.key, max_line_bytes):
            if isinstance(record, Problem) or not subject.goes(record):
                continue
            found += 1
            counts[_kind(record)] += 1
            if not isinstance(record, bytes):
                subject.know(record)
        counts["log_objects"] += bool(found)
    return counts


def take_from_logs(store: ObjectStore, subject: Subject, max_line_bytes: int) -> Counter[str]:
    """Rewrite every log object without the subject's lines. Raises ObjectStoreError.

    First the feedback, everywhere, and then the calls: killed in between, the calls are still there
    to tell whose feedback it is.
    """
    counts: Counter[str] = Counter()

    def feedback(line: LogRecord | bytes) -> bool:
        return isinstance(line, FeedbackRecord) and subject.goes(line)

    for goes in (feedback, subject.goes):
        for item in store.list(LOG_PREFIX):
            try:
                with store.open(item.key) as stream:
                    if not holds(stream, goes, max_line_bytes):
                        continue
                with store.open(item.key) as stream:
                    data, gone = without(stream, goes, max_line_bytes)
                store.replace(item.key, data, item.etag)
            except ObjectMissing:
                continue  # past its time and cleared away meanwhile
            counts.update(gone)
            counts["log_objects"] += 1
    return counts


def without(stream: BinaryIO, goes: Goes, max_line_bytes: int) -> tuple[bytes, Counter[str]]:
    """A compressed object without the lines that go, and how many of what went.

    What cannot be read (a line too long, a damaged end) cannot be shown to be free of the subject:
    it goes too, counted as ``unreadable``.
    """
    gone: Counter[str] = Counter()
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
    frame = compressor.compressobj()
    parts = []
    for line, record in _parsed(stream, max_line_bytes):
        if isinstance(record, Problem):
            gone["unreadable"] += 1
        elif goes(record):
            gone[_kind(record)] += 1
        else:
            parts.append(frame.compress(line + b"\n"))
    parts.append(frame.flush())
    return b"".join(parts), gone


def holds(stream: BinaryIO, goes: Goes, max_line_bytes: int) -> bool:
    """Whether any line goes."""
    return any(
        not isinstance(record, Problem) and goes(record)
        for _, record in _parsed(stream, max_line_bytes)
    )


def _kind(record: LogRecord | bytes) -> str:
    if isinstance(record, bytes):
        return "other_lines"
    return "feedback" if isinstance(record, FeedbackRecord) else "calls"


def _records(store: ObjectStore, key: str, limit: int) -> Iterator[LogRecord | Problem | bytes]:
    try:
        stream = store.open(key)
    except ObjectMissing:
        return
    with stream:
        for _, record in _parsed(stream, limit):
            yield record


def _parsed(stream: BinaryIO, limit: int) -> Iterator[tuple[bytes, LogRecord | Problem | bytes]]:
    """(line, what it says); a line that is no record stands for itself."""
    for _, content in read_lines(stream, limit):
        if isinstance(content, Problem):
            yield b"", content
            continue
        try:
            yield content, parse_line(content)
        except RecordError:
            yield content, content
