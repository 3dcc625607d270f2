"""Read what ingest committed. Files that no committed row names do not exist for a reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.calls.record import CallRecord, FeedbackRecord
from infra.database.open import Database
from infra.objects.store import ObjectStore
from trainers.ingest import claims

MAX_FEEDBACK_ROWS = 500_000


@dataclass(frozen=True)
class CallFile:
    key: str
    rows: int
    source: str
    """Key of the log object it was made from."""


def call_files(database: Database, max_rows: int) -> list[CallFile]:
    """Newest files (by the day and hour of their log object) until they hold ``max_rows`` rows."""
    return _files(database, "call_files", max_rows)


def feedback_files(database: Database, max_rows: int = MAX_FEEDBACK_ROWS) -> list[CallFile]:
    return _files(database, "feedback_files", max_rows)


def read_columns(
    store: ObjectStore, files: Sequence[CallFile], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows as dicts of the named columns, a file at a time, each call id once."""
    seen: set[str] = set()
    wanted = list(dict.fromkeys(["id", *names]))
    for file in files:
        for row in _table(store, file.key, wanted).to_pylist():
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row


def read_calls(
    store: ObjectStore, files: Sequence[CallFile], ids: Collection[str]
) -> Iterator[tuple[CallRecord, str]]:
    """(record, key of its log object) of the calls with these ids, each once.

    Only the row groups in which they lie are decoded: those of one task lie together (``partitions``).
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from infra.calls.arrow import table_to_records

    left = set(ids)
    for file in files:
        if not left:
            return
        parquet = pq.ParquetFile(pa.BufferReader(store.get(file.key)))
        for group in range(parquet.num_row_groups):
            found = set(parquet.read_row_group(group, ["id"]).column("id").to_pylist()) & left
            if not found:
                continue
            table = parquet.read_row_group(group)
            table = table.filter(pc.is_in(table.column("id"), value_set=pa.array(sorted(found))))
            for record in table_to_records(table, CallRecord):
                if record.id in left:
                    left.discard(record.id)
                    yield record, file.source


def read_feedback(
    store: ObjectStore, files: Sequence[CallFile], ids: Collection[str]
) -> Mapping[str, list[FeedbackRecord]]:
    """Call id to what was reported for it, in order of time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from infra.calls.arrow import table_to_records

    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, dict[str, FeedbackRecord]] = {}
    for file in files:
        table = _table(store, file.key, None)
        table = table.filter(pc.is_in(table.column("call_id"), value_set=wanted))
        for record in table_to_records(table, FeedbackRecord):
            found.setdefault(record.call_id, {})[record.id] = record
    return {
        call_id: sorted(records.values(), key=lambda record: (record.time, record.id))
        for call_id, records in found.items()
    }


def _files(database: Database, name: str, max_rows: int) -> list[CallFile]:
    files: list[CallFile] = []
    rows = 0
    for key, _, counts in claims.every_committed(database):
        for entry in counts.get(name, []):
            files.append(CallFile(entry["key"], int(entry["rows"]), key))
            rows += int(entry["rows"])
        if rows >= max_rows:
            break
    return files


def _table(store: ObjectStore, key: str, names: Sequence[str] | None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Bytes rather than the store's stream: Parquet is read from its end, and S3 streams go forward.
    return pq.read_table(pa.BufferReader(store.get(key)), columns=list(names) if names else None)
