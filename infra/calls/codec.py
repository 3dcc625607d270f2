"""Log objects: JSON lines, compressed by zstandard. Writing, and reading whatever is found there.

Reading is streaming and in constant memory, and never raises for what an object holds: a bad line
or a cut-off end becomes a ``Problem`` in its place, and the good lines before it are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO, NamedTuple

import orjson
import zstandard
from pydantic import Discriminator, Tag, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from infra.calls.record import CallRecord, FeedbackRecord, LogRecord

LOG_PREFIX = "logs/v1/"
DEFAULT_MAX_LINE_BYTES = 16 << 20
COMPRESSION_LEVEL = 3
MAX_WINDOW_BYTES = 32 << 20
# A hostile block of 4 bytes unfolds to 128 KiB, so this bounds one step's output to 64 MiB.
_READ_BYTES = 2 << 10
_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_POSITION_CHARACTERS = 120


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used, in words that hold nothing of the line itself."""

    reason: str
    position: str = ""
    """Where: a field path, or a byte offset."""


class Line(NamedTuple):
    number: int
    """Counted from 1."""
    content: bytes | Problem


class RecordError(ValueError):
    """A line is not a log record. Neither text holds anything of the line.

    Attributes:
        reason: what is wrong.
        position: where, as a field path or column; may be empty.
    """

    def __init__(self, reason: str, position: str = "") -> None:
        super().__init__(f"{reason} at {position}" if position else reason)
        self.reason = reason
        self.position = position


class StoredLine(NamedTuple):
    """A record as it is stored, with what its place in the log depends on."""

    id: str
    time: datetime
    line: bytes
    """JSON with its newline."""


def stored(record: LogRecord) -> StoredLine:
    return StoredLine(record.id, record.time, encode_line(record))


def stored_fields(fields: Mapping[str, Any]) -> StoredLine:
    """The same from a call record's fields in their stored form, without the cost of the model.

    Args:
        fields: every field of ``CallRecord``; ``time`` is an aware datetime, the rest is JSON.
    """
    try:
        line = orjson.dumps(fields, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # Lone surrogates, or whole numbers beyond 64 bits.
        line = encode_line(CallRecord.model_validate(fields))
    return StoredLine(fields["id"], fields["time"], line)


def encode_lines(records: Iterable[LogRecord]) -> bytes:
    """The records as one compressed object, ``.jsonl.zst``, with a checksum of its content."""
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
    return compressor.compress(b"".join(encode_line(record) for record in records))


def encode_line(record: LogRecord) -> bytes:
    """One record as a JSON line with its newline. Lone surrogates become U+FFFD."""
    try:
        return record.model_dump_json().encode() + b"\n"
    except PydanticSerializationError:
        # JSON escapes can spell half a character, which UTF-8 cannot.
        repaired = type(record).model_validate(_repair(record.model_dump()))
        return repaired.model_dump_json().encode() + b"\n"


def read_lines(stream: BinaryIO, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of a compressed object, one at a time; blank ones are left out.

    A line above ``max_line_bytes`` is a Problem and the next ones are read on. Data that ends too
    soon or is damaged yields the good lines, then a Problem, then nothing.

    Raises:
        OSError: the stream itself failed (nothing is known about the object: try again).
    """
    splitter = _Splitter(max_line_bytes)
    try:
        for block in _decompressed(stream):
            yield from splitter.feed(block)
    except _Damaged as damage:
        yield Line(splitter.number, Problem(damage.reason, f"compressed byte {damage.offset}"))
        return
    yield from splitter.finish()


def parse_line(line: bytes) -> LogRecord:
    """The record of one line; a line without ``type`` is a call.

    Raises:
        RecordError: not JSON, a field is missing, or a value is out of bounds.
    """
    try:
        return _records.validate_json(line)
    except ValidationError as error:
        raise explained(error) from None


def explained(error: ValidationError) -> RecordError:
    """What is wrong with a record and where, in words that hold nothing of it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return RecordError(_reason(first["type"]), _position(first["loc"]))


def log_key(time: datetime, writer: str, sequence: int) -> str:
    """Where a writer's object lies: ``logs/v1/dt=2026-01-31/hh=07/<writer>-0000000042.jsonl.zst``.

    Args:
        time: aware; the hour is that of UTC.
        writer: letters, digits, ``._-``; unique per gateway process.
        sequence: rises by one per object of this writer.

    Raises:
        ValueError: a naive time, a writer with other characters, a negative sequence.
    """
    if time.tzinfo is None:
        raise ValueError("log keys are in UTC: pass a timezone-aware datetime")
    if not _WRITER.fullmatch(writer):
        raise ValueError("a writer's name has 1 to 100 letters, digits, '.', '_' or '-'")
    if not 0 <= sequence < 10**10:
        raise ValueError("a sequence number lies between 0 and 9999999999")
    utc = time.astimezone(UTC)
    hour = f"dt={utc.date().isoformat()}/hh={utc:%H}"
    return f"{LOG_PREFIX}{hour}/{writer}-{sequence:010d}.jsonl.zst"


class _Damaged(Exception):
    def __init__(self, reason: str, offset: int) -> None:
        self.reason = reason
        self.offset = offset


class _Splitter:
    """Cuts blocks into lines and holds at most one line."""

    def __init__(self, max_line_bytes: int) -> None:
        self.number = 1
        self._limit = max_line_bytes
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False

    def feed(self, block: bytes) -> Iterator[Line]:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            yield from self._end_line(block[start:end])
            start = end + 1
        self._hold(block[start:])

    def finish(self) -> Iterator[Line]:
        yield from self._end_line(b"")

    def _hold(self, part: bytes) -> None:
        self._held += len(part)
        if self._held > self._limit:
            self._skipping = True
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end_line(self, tail: bytes) -> Iterator[Line]:
        self._hold(tail)
        line = b"".join(self._parts)
        if self._skipping:
            yield Line(self.number, Problem(f"the line is longer than {self._limit} bytes"))
        elif line and not line.isspace():
            yield Line(self.number, line)
        self.number += 1
        self._parts, self._held, self._skipping = [], 0, False


def _decompressed(stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of the frames one after another. Raises _Damaged; a cut-off frame is damage too.

    (The library's own stream reader takes a cut-off frame for a complete one.)
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    offset, begun = 0, False
    pending = b""
    while chunk := pending or stream.read(_READ_BYTES):
        pending = b""
        try:
            block = frame.decompress(chunk)
        except zstandard.ZstdError:
            known = begun or offset > 0
            reason = "the compressed data is damaged" if known else "not zstandard-compressed data"
            raise _Damaged(reason, offset) from None
        begun = True
        offset += len(chunk)
        if frame.eof:
            pending = frame.unused_data
            offset -= len(pending)
            frame, begun = decompressor.decompressobj(), False
        if block:
            yield block
    if begun or offset == 0:
        raise _Damaged("the object is cut off" if begun else "the object is empty", offset)


def _kind(value: Any) -> str:
    found = value.get("type", "call") if isinstance(value, dict) else getattr(value, "type", "call")
    return found if isinstance(found, str) else ""


_records: TypeAdapter[LogRecord] = TypeAdapter(
    Annotated[
        Annotated[CallRecord, Tag("call")] | Annotated[FeedbackRecord, Tag("feedback")],
        Discriminator(_kind),
    ]
)

_REASONS = {
    "json_invalid": "not valid JSON",
    "missing": "a required field is missing",
    "model_type": "not a JSON object",
    "model_attributes_type": "not a JSON object",
    "dict_type": "not a JSON object",
    "union_tag_invalid": "neither a call nor a feedback record",
    "timezone_aware": "a time without a time zone",
}


def _reason(kind: str) -> str:
    return _REASONS.get(kind, f"a value is not valid ({kind})")


_NAMES = {
    name
    for adapter in (CallRecord, FeedbackRecord)
    for model in [adapter.model_json_schema()]
    for part in [model, *model.get("$defs", {}).values()]
    for name in part.get("properties", {})
}


def _position(location: tuple[int | str, ...]) -> str:
    # Only names that we declared: a key of the record's own could be anybody's data.
    steps = [str(step) if isinstance(step, int) or step in _NAMES else "*" for step in location]
    if steps[:1] == ["*"]:
        steps = steps[1:]  # the tag of the union
    return ".".join(steps)[:_MAX_POSITION_CHARACTERS]


def _repair(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_repair(key): _repair(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repair(item) for item in value]
    return value
