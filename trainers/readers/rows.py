"""From the bytes of one source to rows: JSON lines, a JSON document, or Parquet.

In constant memory: a line, an object of a document, or some rows of a Parquet row group at a time.
The content tells what it is; names and endings are not looked at. Never raises for what the source
holds: what cannot be read is a Problem in its place.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

from infra.calls.codec import Problem, RecordError
from trainers.readers.fields import parse
from trainers.readers.splitting import Piece, lines, values
from trainers.readers.unpacking import PARQUET, PLAIN_BYTES, Damaged, unpacked

MARK = b"\xef\xbb\xbf"
LOOKED_AT = 50
PARQUET_ROWS = 64
MAX_ROW_GROUP_BYTES = 2 << 30
"""Unpacked, as the file's own index says."""


class Row(NamedTuple):
    position: str
    """``line 3``, ``object 3`` of a document, ``row 3`` of a Parquet file; counted from 1."""
    value: Any
    """Parsed JSON, or a Problem."""


def read_rows(stream: BinaryIO, max_row_bytes: int, max_parquet_bytes: int) -> Iterator[Row]:
    """The rows of a source.

    Args:
        stream: read forward, once.
        max_row_bytes: a larger row is a Problem.
        max_parquet_bytes: a larger Parquet file that is not a local file is a Problem: its index is
            at its end, so that it is held whole.

    Raises:
        OSError: the stream itself failed.
    """
    head = stream.read(PLAIN_BYTES)
    if head.startswith(PARQUET):
        yield from _parquet(head, stream, max_row_bytes, max_parquet_bytes)
        return
    try:
        blocks = unpacked(head, stream)
        start = b""
        while len(start) < 4096 and (block := next(blocks, b"")):
            start += block
        start = start.removeprefix(MARK)
        if not start.strip():
            yield Row("byte 0", Problem("the file is empty"))
            return
        whole = chain((start,), blocks)
        kind, pieces = ("line", lines) if _is_lines(start) else ("object", values)
        for piece in pieces(whole, max_row_bytes):
            yield _row(kind, piece)
    except Damaged as damage:
        yield Row(damage.position, Problem(damage.reason, damage.position))


def _is_lines(start: bytes) -> bool:
    """Whether it is one value a line, rather than one document over many lines.

    In an object over many lines no later line that begins an object, unindented, also ends it; among
    lines of values some do, even where the first one is broken. A list is a document, unless its
    bracket is but the rubbish of one line among others.
    """
    body = start.lstrip()
    if body[:1] not in (b"{", b"["):
        return True
    first, newline, rest = body.partition(b"\n")
    others = [line.rstrip() for line in rest.split(b"\n", LOOKED_AT)[:LOOKED_AT]]
    whole = [line[:1] == b"{" and line[-1:] == b"}" for line in others]
    if body[:1] == b"[":
        return first.rstrip()[-1:] not in (b"[", b",", b"]", b"}") and whole[0]
    if not newline or any(whole):
        return True
    try:
        parse(first)
    except RecordError:
        return False
    return True


def _row(kind: str, piece: Piece) -> Row:
    position = f"{kind} {piece.number}"
    if isinstance(piece.content, Problem):
        return Row(position, piece.content)
    try:
        return Row(position, parse(piece.content))
    except RecordError as error:
        return Row(position, Problem(error.reason, error.position))


def _parquet(
    head: bytes, stream: BinaryIO, max_row_bytes: int, max_parquet_bytes: int
) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = stream
    if isinstance(getattr(stream, "raw", None), io.FileIO):
        stream.seek(0)
    else:
        data = head + stream.read(max_parquet_bytes - len(head) + 1)
        if len(data) > max_parquet_bytes:
            yield Row("byte 0", Problem(f"a Parquet file above {max_parquet_bytes} bytes"))
            return
        source = pa.BufferReader(data)
    number = 0
    try:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            meta = file.metadata.row_group(group)
            if meta.total_byte_size > MAX_ROW_GROUP_BYTES:
                reason = f"a row group that unfolds to more than {MAX_ROW_GROUP_BYTES} bytes"
                yield Row(f"row {number + 1}", Problem(reason))
                number += meta.num_rows
                continue
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group]):
                for row in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch, row, number, max_row_bytes)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        yield Row(f"row {number + 1}", Problem("the Parquet file is damaged"))


def _parquet_row(batch: Any, row: int, number: int, max_row_bytes: int) -> Row:
    position = f"row {number}"
    one = batch.slice(row, 1)
    if batch.nbytes > max_row_bytes and one.nbytes > max_row_bytes:
        return Row(position, Problem(f"longer than {max_row_bytes} bytes"))
    try:
        value = {name: _text(item) for name, item in one.to_pylist()[0].items()}
    except (UnicodeDecodeError, ValueError, OverflowError):
        return Row(position, Problem("a value is not valid UTF-8 or out of range"))
    return Row(position, {k: v for k, v in value.items() if v is not None})


def _text(value: Any) -> Any:
    """Columns of bytes hold text: some writers do not mark it as such."""
    return value.decode() if isinstance(value, bytes) else value
