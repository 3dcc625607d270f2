"""Where records and bad lines go: Parquet files of bounded size, and the quarantine list."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from infra.calls.codec import Problem
from infra.calls.record import CallRecord, FeedbackRecord, LogRecord
from infra.objects.store import ObjectStore
from infra.settings.learning import Ingest
from trainers.ingest.duplicates import exchange, group, weights
from trainers.ingest.features import answer_of, columns, features
from trainers.ingest.partitions import partitions

CALLS_PREFIX = "calls/v1/"
FEEDBACK_PREFIX = "feedback/v1/"
QUARANTINE_PREFIX = "quarantine/v1/"
MAX_BATCH_BYTES = 64 << 20
"""About this much text is held before a file is written, however few rows it is."""
MAX_QUARANTINE_ENTRIES = 10_000


class ParquetFiles:
    """Writes ``calls/v1/<source>-<part>.parquet`` and ``feedback/v1/...`` as rows come in.

    Args:
        source: digest of the log object; the same source gives the same keys and bytes.
    """

    def __init__(self, store: ObjectStore, source_key: str, source: str, settings: Ingest) -> None:
        self._store, self._source_key, self._source = store, source_key, source
        self._settings = settings
        self._calls: list[CallRecord] = []
        self._feedback: list[FeedbackRecord] = []
        self._bytes = 0
        self._call_files: list[dict[str, Any]] = []
        self._feedback_files: list[dict[str, Any]] = []
        self.calls = self.feedback = self.duplicates = 0

    def add(self, record: LogRecord, size: int) -> bool:
        """Take a record of about ``size`` bytes; True when that filled a file and wrote it."""
        if isinstance(record, CallRecord):
            self._calls.append(record)
            self.calls += 1
        else:
            self._feedback.append(record)
            self.feedback += 1
        self._bytes += size
        full = len(self._calls) + len(self._feedback) >= self._settings.rows_per_file
        if full or self._bytes >= MAX_BATCH_BYTES:
            self._flush()
            return True
        return False

    def close(self) -> None:
        self._flush()

    def counts(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "feedback": self.feedback,
            "duplicates": self.duplicates,
            "call_files": self._call_files,
            "feedback_files": self._feedback_files,
        }

    def _flush(self) -> None:
        if self._calls:
            key = f"{CALLS_PREFIX}{self._source}-{len(self._call_files):05d}.parquet"
            self._store.put(key, self._calls_parquet(self._calls))
            self._call_files.append({"key": key, "rows": len(self._calls)})
        if self._feedback:
            key = f"{FEEDBACK_PREFIX}{self._source}-{len(self._feedback_files):05d}.parquet"
            self._store.put(key, _feedback_parquet(self._feedback))
            self._feedback_files.append({"key": key, "rows": len(self._feedback)})
        self._calls, self._feedback, self._bytes = [], [], 0

    def _calls_parquet(self, records: list[CallRecord]) -> bytes:
        import pyarrow as pa

        from infra.calls.arrow import records_to_table

        found = [features(record) for record in records]
        # Copies are told in the order of arrival: the first one said is the one that was repeated.
        leaders = group(
            [
                exchange(record.request, answer_of(record), feature.signature)
                for record, feature in zip(records, found, strict=True)
            ],
            self._settings.near_duplicate_similarity,
        )
        self.duplicates += sum(leader != index for index, leader in enumerate(leaders))
        shares = weights(leaders)
        order, row_groups = partitions(records, found)
        table = records_to_table([records[index] for index in order], CallRecord)
        added: dict[str, list[Any]] = {
            **columns([found[index] for index in order]),
            "duplicate_of": [
                None if leaders[index] == index else records[leaders[index]].id for index in order
            ],
            "weight": [shares[index] for index in order],
            "source": [self._source_key] * len(records),
        }
        for name, values in added.items():
            kind = pa.string() if name == "duplicate_of" else None
            table = table.append_column(name, pa.array(values, type=kind))
        return parquet_bytes(table, row_groups)


class Quarantine:
    """Collects what could not be read: line, reason, position; never the line itself."""

    def __init__(self, store: ObjectStore, source_key: str, source: str) -> None:
        self._store, self._source_key = store, source_key
        last = source_key.rsplit("/", 1)[-1]
        # The key with our prefix and ending must still be one that every store takes.
        name = source_key if len(source_key.encode()) < 900 and len(last.encode()) < 240 else source
        self._key = f"{QUARANTINE_PREFIX}{name}.jsonl"
        self._entries: list[dict[str, Any]] = []
        self.size = 0

    def add(self, line: int, problem: Problem) -> None:
        self.size += 1
        if len(self._entries) < MAX_QUARANTINE_ENTRIES:
            entry = {"line": line, "reason": problem.reason, "position": problem.position}
            self._entries.append(entry)

    def close(self) -> str | None:
        """Write the list, if there is anything on it; its key."""
        if not self.size:
            return None
        entries = [{"object": self._source_key, **entry} for entry in self._entries]
        if self.size > len(entries):
            more = self.size - len(entries)
            entries.append({"object": self._source_key, "reason": f"and {more} more lines"})
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        self._store.put(self._key, text.encode())
        return self._key


def parquet_bytes(table: Any, row_groups: Sequence[int] = ()) -> bytes:
    """A Parquet file, the same bytes for the same table and library.

    Args:
        row_groups: how many rows each has, all of the table's together; none: thousands.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        begin = 0
        for size in row_groups:
            writer.write_table(table.slice(begin, size))
            begin += size
        if not row_groups:
            writer.write_table(table, row_group_size=1000)
    return buffer.getvalue()


def _feedback_parquet(records: list[FeedbackRecord]) -> bytes:
    from infra.calls.arrow import records_to_table

    return parquet_bytes(records_to_table(records, FeedbackRecord))
