"""Read one row by a named reader."""

from __future__ import annotations

from typing import Any

from infra.calls.codec import Problem
from infra.calls.record import CallRecord
from trainers.readers.formats import reader_named
from trainers.readers.reader import Place, read_row


def read(name: str, row: Any, position: str = "line 1") -> list[Any]:
    return list(read_row(reader_named(name), row, Place(position)))


def one(name: str, row: Any) -> CallRecord:
    (found,) = read(name, row)
    assert isinstance(found, CallRecord), found
    return found


def problem(name: str, row: Any) -> str:
    (found,) = read(name, row)
    assert isinstance(found, Problem), found
    return found.reason
