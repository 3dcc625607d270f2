"""A source's bytes to records: rows, each given to the reader of its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from infra.calls.codec import Problem
from trainers.readers.fields import sequence
from trainers.readers.formats import AUTO, reader_named, reader_of
from trainers.readers.reader import Item, Place, Reader, read_row
from trainers.readers.rows import Row, read_rows

# Answers of list endpoints: the rows are inside.
_PAGES = ("data", "runs", "observations", "records")


class Read(NamedTuple):
    """One thing that a source held."""

    position: str
    item: Item
    reader: str
    """Empty: no format was recognized."""
    part: int = 0
    """Which of the row's records, counted from 0."""


def read_source(
    stream: BinaryIO,
    format_name: str,
    *,
    tenant: str = "default",
    max_row_bytes: int,
    max_parquet_bytes: int,
) -> Iterator[Read]:
    """Everything in a source, in its order; nothing is left out without an item that says so.

    Args:
        format_name: of ``formats.FORMATS``, or ``auto``: each row by its own marks.

    Raises:
        OSError: the stream failed.
        ValueError: there is no such format.
    """
    fixed = None if format_name == AUTO else reader_named(format_name)
    for row in read_rows(stream, max_row_bytes, max_parquet_bytes):
        if isinstance(row.value, Problem):
            yield Read(row.position, row.value, fixed.name if fixed else "")
            continue
        for position, value in _values(row, fixed):
            reader = fixed or reader_of(value)
            if reader is None:
                yield Read(position, Problem("a row of no known format"), "")
                continue
            for part, item in enumerate(read_row(reader, value, Place(position, tenant))):
                yield Read(position, item, reader.name, part)


def _values(row: Row, fixed: Reader | None) -> Iterator[tuple[str, Any]]:
    if isinstance(row.value, list):
        for number, value in enumerate(row.value, start=1):
            yield f"{row.position}.{number}", value
        return
    if isinstance(row.value, Mapping) and not (fixed or _Any).recognizes(row.value):
        for name in _PAGES:
            inside = sequence(row.value.get(name))
            if inside and all(isinstance(value, Mapping) for value in inside):
                for number, value in enumerate(inside, start=1):
                    yield f"{row.position}.{number}", value
                return
    yield row.position, row.value


class _Any:
    @staticmethod
    def recognizes(value: Mapping[str, Any]) -> bool:
        return reader_of(value) is not None
