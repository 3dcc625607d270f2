"""Our own log records: another installation's, or lines of our own log read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from infra.calls.codec import RecordError, parse_line
from infra.calls.record import CallRecord, LogRecord
from trainers.readers.making import own_id
from trainers.readers.reader import Item, Place


class OwnRecords:
    """Calls and feedback as ``logs/v1/`` holds them.

    A file can say anything about itself, so what gives a record power here is not taken from it: the
    tenant is the importer's, no record stands in a rollout of ours, and ids are made anew (the same
    for the same record), so that no feedback reaches a call that this installation answered and no
    call stands in the place of one.

    Args:
        trusted: for lines of our own log, which are read as they are.
    """

    def __init__(self, name: str = "nightschool", *, trusted: bool = False) -> None:
        self.name = name
        self._trusted = trusted

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        if value.get("type") == "feedback":
            return "call_id" in value
        return {"answered_by", "request", "response", "session"} <= value.keys()

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        for name in ("id", "time"):
            # The model would make these up, anew each time.
            if not value.get(name):
                raise RecordError("a required field is missing", name)
        record = parse_line(orjson.dumps(value, default=str))
        yield record if self._trusted else self._disarmed(record, place.tenant)

    def _disarmed(self, record: LogRecord, tenant: str) -> LogRecord:
        changes: dict[str, Any] = {"tenant": tenant, "id": own_id(self.name, record.id)}
        if isinstance(record, CallRecord):
            changes["task"] = None
            changes["answered_by"] = record.answered_by.model_copy(
                update={"arm": None, "rollout": None, "route_version": None}
            )
            changes["other_answers"] = [
                other for other in record.other_answers if other.purpose == "audit"
            ]
        else:
            changes["call_id"] = own_id(self.name, record.call_id)
        return record.model_copy(update=changes)
