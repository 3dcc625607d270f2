"""What a reader is. Every implementation passes ``tests/contracts/test_reader.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infra.calls.codec import Problem, RecordError
from infra.calls.record import LogRecord


@dataclass(frozen=True)
class Place:
    """What a row does not say itself."""

    position: str
    """Where it stands, e.g. ``line 3``; part of the id of a call that has none of its own."""
    tenant: str = "default"


@dataclass(frozen=True)
class Skipped:
    """Nothing is wrong with it, and it is no call of a chat model: a tool's span, an embedding."""

    reason: str


Item = LogRecord | Problem | Skipped


class Reader(Protocol):
    """Pure: the same row at the same place gives the same records with the same ids."""

    name: str
    """What ``nightschool import`` calls the format."""

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        """Whether a row has the marks of this format, and of no other."""
        ...

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        """The records of one row; most have one, a batch of spans has many.

        Raises:
            RecordError: the row cannot be read. Its words hold nothing of the row.
        """
        ...


def read_row(reader: Reader, value: Any, place: Place) -> Iterator[Item]:
    """The records of one row; whatever is wrong with it becomes a Problem in its place."""
    if not isinstance(value, Mapping):
        yield Problem("not a JSON object")
        return
    try:
        yield from reader.read(value, place)
    except RecordError as error:
        yield Problem(error.reason, error.position)
    except RecursionError:
        yield Problem("nested too deep")
