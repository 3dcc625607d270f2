"""The NVIDIA Data Flywheel's record: ``timestamp, workload_id, client_id, request, response``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.readers.completions import completion
from trainers.readers.fields import first, instant, mapping, text
from trainers.readers.making import (
    Parts,
    call,
    content_id,
    failure,
    number_in,
    own_id,
    request,
    undated,
    usage,
)
from trainers.readers.reader import Item, Place


class Flywheel:
    """Its workload is the task; it has no sessions, so conversations are told by their beginning."""

    name = "flywheel"

    def recognizes(self, value: Mapping[str, Any]) -> bool:
        return {"request", "response"} <= value.keys() and "answered_by" not in value

    def read(self, value: Mapping[str, Any], place: Place) -> Iterator[Item]:
        asked, answered = mapping(value.get("request")), mapping(value.get("response"))
        model = text(first(answered, "model")) or text(asked.get("model"))
        foreign = text(answered.get("id"))
        # A completion's id names the call, whichever file it was copied to.
        identity = own_id(self.name, foreign) if foreign else content_id(self.name, value, place)
        failed = answered.get("error") if not answered.get("choices") else None
        error = None
        if failed is not None:
            said = mapping(failed)
            error = failure(first(said, "code", "type"), said.get("message") or failed)
        moment = first(value, "timestamp", "time")
        client = text(value.get("client_id"))
        yield call(
            Parts(
                identity=identity,
                request={**asked, **request(asked.get("messages"), None, asked)},
                response={} if error else completion(value.get("response")),
                error=error,
                model=model or "unknown",
                time=instant(moment, "timestamp")
                if moment is not None
                else undated(number_in(place.position)),
                session=text(first(mapping(asked.get("metadata")), "session_id", "session")),
                tag=text(value.get("workload_id")),
                usage=usage(answered.get("usage")),
                more={"client_id": client} if client else {},
            ),
            place,
        )
