"""Find one call in the log by its id, without an index and without reading the log.

An id of ours is time-ordered, so it names the hour that the record lies in. Within an hour each writer
numbers its objects in the order of time, so the right ones are found by halving. Only then, for
logs that others wrote, is the rest of the hour read, up to a bound.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from infra.calls.codec import (
    DEFAULT_MAX_LINE_BYTES,
    LOG_PREFIX,
    Problem,
    RecordError,
    parse_line,
    read_lines,
)
from infra.calls.record import CallRecord
from infra.objects.store import ObjectMissing, ObjectStore

CLOCK = timedelta(seconds=5)
"""An id and its record's time are made one after the other; an hour may end in between."""
LONGEST_CALL = timedelta(minutes=15)
"""A record is written when its call ends, so so long after its id was made."""
MAX_OBJECTS = 5000


class CallNotFound(Exception):
    """No such call in the log; the message says where it was looked for."""


@dataclass(frozen=True)
class FoundCall:
    record: CallRecord
    object_key: str


def time_of_id(call_id: str) -> datetime | None:
    """When an id of ours (UUID version 7) was made; None for any other text."""
    try:
        parsed = UUID(call_id)
    except ValueError:
        return None
    if parsed.version != 7:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=parsed.int >> 80)


def find_call(
    store: ObjectStore,
    call_id: str,
    *,
    max_objects: int = MAX_OBJECTS,
    within_seconds: float = 60.0,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> FoundCall:
    """The call's record and the log object that it lies in.

    Args:
        max_objects: read at most.
        within_seconds: no further object is begun after so long.

    Raises:
        CallNotFound: the id is none of ours, or its hour does not hold it (within the bounds).
        ObjectStoreError: the store cannot be read.
    """
    call_id = call_id.strip().lower()
    made = time_of_id(call_id)
    if made is None:
        raise CallNotFound(
            "that is no call id of the gateway (a UUID of version 7): take it from the "
            "x-nightschool-call-id header of an answer"
        )
    ends = time.monotonic() + within_seconds
    reader = _Reader(store, max_line_bytes)
    seen: set[str] = set()
    for key in _likely_first(reader, made):
        if key in seen:
            continue
        if len(seen) >= max_objects or time.monotonic() > ends:
            raise CallNotFound(
                f"call {call_id} was not found in {len(seen)} objects of its hour, "
                "which has more of them: give it longer"
            )
        seen.add(key)
        record = reader.find(key, call_id)
        if record is not None:
            return FoundCall(record, key)
    raise CallNotFound(
        f"no call {call_id} in the log of {made:%Y-%m-%d %H}:00 UTC: it is not shipped yet, "
        "was cleared away, or was never logged here"
    )


def _likely_first(reader: _Reader, made: datetime) -> Iterator[str]:
    prefixes = {f"{LOG_PREFIX}dt={t:%Y-%m-%d}/hh={t:%H}/" for t in (made - CLOCK, made + CLOCK)}
    writers: dict[str, list[str]] = defaultdict(list)
    for prefix in sorted(prefixes):
        for item in reader.store.list(prefix):
            writers[item.key.rpartition("-")[0]].append(item.key)
    # In turns: nobody knows whose the call was, and it is near the beginning of its writer's.
    turns = deque(_around(reader, keys, made) for keys in writers.values())
    while turns:
        some = turns.popleft()
        for key in some:
            yield key
            turns.append(some)
            break
    for keys in writers.values():
        yield from keys


def _around(reader: _Reader, keys: list[str], made: datetime) -> Iterator[str]:
    """Of one writer's objects in order: those written from shortly before ``made`` on."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        written = reader.first_written(keys[middle])
        if written is not None and written > made - CLOCK:
            high = middle
        else:
            low = middle + 1
    for key in keys[max(0, low - 1) :]:
        written = reader.first_written(key)
        if written is not None and written > made + LONGEST_CALL:
            return
        yield key


class _Reader:
    def __init__(self, store: ObjectStore, max_line_bytes: int) -> None:
        self.store = store
        self._max_line_bytes = max_line_bytes
        self._first: dict[str, datetime | None] = {}

    def first_written(self, key: str) -> datetime | None:
        """About when the object's first call was written; None when it cannot be told."""
        if key not in self._first:
            self._first[key] = None
            for line in self._lines(key):
                try:
                    record = parse_line(line)
                except RecordError:
                    continue
                spent = timedelta(seconds=getattr(record, "latency_seconds", 0.0))
                self._first[key] = record.time + spent
                break
        return self._first[key]

    def find(self, key: str, call_id: str) -> CallRecord | None:
        wanted = call_id.encode()
        for line in self._lines(key):
            # Parsing a line is what costs, and few hold the id at all (a feedback on it does).
            if wanted not in line.lower():
                continue
            try:
                record = parse_line(line)
            except RecordError:
                continue
            if isinstance(record, CallRecord) and record.id == call_id:
                return record
        return None

    def _lines(self, key: str) -> Iterator[bytes]:
        try:
            stream = self.store.open(key)
        except ObjectMissing:
            return
        with stream:
            for _, content in read_lines(stream, self._max_line_bytes):
                if not isinstance(content, Problem):
                    yield content
