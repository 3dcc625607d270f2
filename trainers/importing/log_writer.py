"""Records to objects of our own log, the same keys and bytes whenever it is done again."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

import zstandard

from infra.calls.codec import COMPRESSION_LEVEL, log_key, stored
from infra.calls.record import LogRecord
from infra.objects.store import ObjectStore

MAX_RECORDS = 20_000
MAX_BYTES = 64 << 20


class LogWriter:
    """Writes ``logs/v1/dt=.../hh=.../<writer>-<sequence>.jsonl.zst``, an object per day and batch.

    Args:
        writer: names what is written by its content, e.g. ``import-<digest>``.
    """

    def __init__(self, store: ObjectStore, writer: str) -> None:
        self._store, self._writer = store, writer
        self._days: defaultdict[str, list[tuple[datetime, bytes]]] = defaultdict(list)
        self._records = self._bytes = self._sequence = 0
        self.keys: list[str] = []

    def add(self, record: LogRecord) -> None:
        _, time, line = stored(record)
        self._days[f"{time.astimezone(UTC):%Y-%m-%d}"].append((time, line))
        self._records += 1
        self._bytes += len(line)
        if self._records >= MAX_RECORDS or self._bytes >= MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        for _, lines in sorted(self._days.items()):
            key = log_key(min(time for time, _ in lines), self._writer, self._sequence)
            compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
            self._store.put(key, compressor.compress(b"".join(line for _, line in lines)))
            self.keys.append(key)
            self._sequence += 1
        self._days.clear()
        self._records = self._bytes = 0
