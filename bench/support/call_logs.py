"""Log objects with as many calls as wanted, made from the demo's real requests and answers.

Every call has other words: the demo's grammars and task lists are walked with a seed per object. A tenth
of the sessions is said again by another caller, so that there are copies to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from flows.demo.traffic import TrafficCall, TrafficSession, sessions
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord, Usage
from infra.objects.store import ObjectStore

START = datetime(2026, 3, 2, tzinfo=UTC)
AGAIN = 0.1


def write_logs(store: ObjectStore, calls: int, per_object: int) -> int:
    """Write objects of ``per_object`` calls, a second of the log's time apart; bytes written."""
    size = 0
    for number, begin in enumerate(range(0, calls, per_object)):
        records = object_of(number, begin, min(per_object, calls - begin))
        data = encode_lines(records)
        store.put(log_key(records[0].time, "bench", number), data)
        size += len(data)
    return size


def object_of(seed: int, first: int, count: int) -> list[CallRecord]:
    """``count`` calls from the ``first`` on; the seed decides what is said."""
    spoken = _spoken(seed, count)
    records: list[CallRecord] = []
    while len(records) < count:
        session, call = next(spoken)
        number = first + len(records)
        records.append(
            record_of(
                call.request,
                call.answer,
                f"{number:012d}",
                session,
                START + timedelta(seconds=number),
            )
        )
    return records


def record_of(
    request: Mapping[str, Any], answer: Mapping[str, Any], name: str, session: str, time: datetime
) -> CallRecord:
    """The record of an exchange with the teacher; the id is ``call-`` and the name."""
    choice = {"index": 0, "message": answer, "finish_reason": "stop"}
    return CallRecord(
        id=f"call-{name}",
        time=time,
        session=session,
        request={"model": "teacher", **request},
        response={"id": f"chatcmpl-{name}", "object": "chat.completion", "choices": [choice]},
        usage=Usage(prompt_tokens=200, completion_tokens=20),
        answered_by=AnsweredBy(model="teacher"),
    )


def _spoken(seed: int, count: int) -> Iterator[tuple[str, TrafficCall]]:
    random = Random(f"again/{seed}")
    heard: list[TrafficSession] = []
    for session in sessions(seed, count):
        heard.append(session)
        yield from ((session.session_id, call) for call in session.calls)
        if random.random() < AGAIN:
            again = random.choice(heard)
            yield from ((f"{session.session_id}-again", call) for call in again.calls)
