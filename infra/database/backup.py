"""A copy of the whole database in one file, and the way back into an empty one.

One line of JSON per row, compressed: the same file restores into SQLite and into PostgreSQL, so it is
also how a laptop's database moves to a server. It is one consistent view, taken while others write.
It holds no secrets but hashes of keys; it does hold messages and reasons, so it is for its owner only.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import zstandard
from sqlalchemy import Connection, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from infra.calls.record import utc_now
from infra.database.migrations import runner
from infra.database.open import Database, DatabaseError
from infra.database.tables import metadata
from infra.database.times import UtcDateTime

FORMAT = "nightschool-database-1"
BATCH_ROWS = 500
MAX_LINE_BYTES = 64 << 20
"""A row is smaller; a longer line is no backup of ours."""


class BackupError(DatabaseError):
    """The backup cannot be written, read, or restored there; the message says what to do."""


def backup(database: Database, file: Path) -> dict[str, int]:
    """Write every row to ``file``, which must not exist; rows by table.

    The file appears whole or not at all, readable for its owner only.

    Raises:
        SchemaOutdated, DatabaseUnreachable.
        BackupError: the file is there already, or the folder cannot be written to.
    """
    database.check()
    if file.exists():
        raise BackupError(f"{file} exists: a backup is never overwritten, name another file")
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _owner_only(scratch) as raw:
            writer = zstandard.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False)
            counts = _write(database, writer)
            writer.close()
            raw.flush()
            os.fsync(raw.fileno())
        # A link, unlike a rename, fails when somebody made the file meanwhile.
        os.link(scratch, file)
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return counts


def restore(database: Database, file: Path) -> dict[str, int]:
    """Make the tables where there are none, and fill them, in one transaction; rows by table.

    Raises:
        DatabaseUnreachable.
        BackupError: the database holds rows, or the file is damaged, cut short, no backup of
            ours, or of another release's tables. The database is then as it was.
    """
    lines = _read(file)
    _check_header(next(lines, None), file)
    database.upgrade()
    tables = {table.name: table for table in metadata.sorted_tables}
    counts: dict[str, int] = dict.fromkeys(tables, 0)
    with database.begin() as connection:
        _require_empty(database, connection)
        ended = False
        for name, group in groupby(lines, key=lambda line: line.get("table")):
            if name is None:
                ended = [line.get("end") for line in group] == [counts]
                break
            table = tables.get(name)
            if table is None:
                raise BackupError(f"{file} holds rows of an unknown table {str(name)[:80]!r}")
            try:
                counts[name] += _insert(connection, table, group)
            except (KeyError, TypeError, ValueError, DBAPIError) as error:
                raise BackupError(
                    f"{file}: rows of {name} do not fit its table ({type(error).__name__}): "
                    "nothing was restored"
                ) from error
        if not ended:
            raise BackupError(f"{file} is cut short: nothing was restored, take another backup")
        _continue_numbering(connection)
    return counts


def _write(database: Database, writer: Any) -> dict[str, int]:
    counts = {}
    with database.read() as connection:
        if not database.is_sqlite:
            # The first statement of its transaction; on SQLite every read is one view anyway.
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        head = {"format": FORMAT, "revision": runner.head_revision(), "made": str(utc_now())}
        writer.write(_line(head))
        for table in metadata.sorted_tables:
            rows = connection.execution_options(yield_per=BATCH_ROWS).execute(
                select(table).order_by(*table.primary_key)
            )
            counts[table.name] = 0
            for row in rows.mappings():
                values = {key: _plain(value) for key, value in row.items()}
                writer.write(_line({"table": table.name, "row": values}))
                counts[table.name] += 1
    writer.write(_line({"end": counts}))
    return counts


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open("rb") as raw:
            reader = io.BufferedReader(
                zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=False)
            )
            while line := reader.readline(MAX_LINE_BYTES + 1):
                value = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
                if not isinstance(value, dict):
                    raise ValueError
                yield value
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error.strerror}") from error
    except (zstandard.ZstdError, ValueError) as error:
        raise BackupError(f"{file} is damaged, or no backup of Night School's database") from error


def _check_header(header: Mapping[str, Any] | None, file: Path) -> None:
    if header is None or header.get("format") != FORMAT:
        raise BackupError(f"{file} is damaged, or no backup of Night School's database")
    made, ours = header.get("revision"), runner.head_revision()
    if made != ours:
        raise BackupError(
            f"{file} was made at revision {made} of the tables and this release has {ours}: restore "
            "with the release that made it, then install this one and run nightschool db upgrade"
        )


def _require_empty(database: Database, connection: Connection) -> None:
    for table in metadata.sorted_tables:
        if connection.execute(select(func.count()).select_from(table)).scalar_one():
            raise BackupError(
                f"the database {database} is not empty (there are {table.name}): restore into a new "
                "database, and point [database] url at it"
            )


def _insert(connection: Connection, table: Table, lines: Iterator[dict[str, Any]]) -> int:
    times = {column.name for column in table.columns if isinstance(column.type, UtcDateTime)}
    count = 0
    while batch := list(islice(lines, BATCH_ROWS)):
        rows = [
            {
                key: datetime.fromisoformat(value) if key in times and value is not None else value
                for key, value in line["row"].items()
            }
            for line in batch
        ]
        connection.execute(insert(table), rows)
        count += len(rows)
    return count


def _continue_numbering(connection: Connection) -> None:
    """PostgreSQL counts apart from the rows: new ids must come after the restored ones."""
    if connection.dialect.name != "postgresql":
        return
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None:
            continue
        highest = connection.execute(select(func.max(column))).scalar_one()
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        if highest is not None and connection.execute(select(sequence)).scalar_one() is not None:
            connection.execute(select(func.setval(sequence, highest)))


def _owner_only(file: Path) -> io.BufferedWriter:
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
