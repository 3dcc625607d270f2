"""A file in our own format is still somebody else's file: it gives itself no power here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from infra.calls.codec import encode_line
from infra.calls.record import (
    AnsweredBy,
    CallRecord,
    FeedbackRecord,
    LogRecord,
    OtherAnswer,
)
from trainers.readers.formats import OWN_LOG, reader_named, reader_of
from trainers.readers.reader import Place, read_row

NOW = datetime(2026, 5, 1, tzinfo=UTC)
CALL = CallRecord(
    id="0197f0d2-0000-7000-8000-000000000001",
    time=NOW,
    tenant="bank",
    session="s",
    task="pay",
    task_tag="pay",
    request={"messages": [{"role": "user", "content": "hi"}]},
    response={"choices": [{"message": {"role": "assistant", "content": "hello"}}]},
    answered_by=AnsweredBy(
        model="m", adapter="pay@1234abcd", arm="canary", rollout="r1", route_version=3
    ),
    other_answers=[
        OtherAnswer(model="t", purpose="audit", message={"role": "assistant", "content": "yes"}),
        OtherAnswer(model="m", adapter="pay@99", purpose="shadow"),
    ],
)
REPORT = FeedbackRecord(
    id="f1", time=NOW, tenant="bank", call_id=CALL.id, score=0.0, correction={"content": "no"}
)


def read(record: LogRecord, reader: str = "nightschool") -> Any:
    value = json.loads(encode_line(record))
    (found,) = read_row(reader_named(reader), value, Place("line 1", "shop"))
    return found


def test_no_tenant_rollout_or_shadow_of_another_installation_comes_in():
    found = read(CALL)
    assert (found.tenant, found.task, found.task_tag) == ("shop", None, "pay")
    assert found.answered_by == AnsweredBy(model="m", adapter="pay@1234abcd")
    assert [other.purpose for other in found.other_answers] == ["audit"]
    assert (found.request, found.response) == (CALL.request, CALL.response)


def test_feedback_reaches_the_calls_that_came_with_it_and_no_other():
    call, report = read(CALL), read(REPORT)
    assert report.call_id == call.id != CALL.id
    assert (report.tenant, report.score, report.id == REPORT.id) == ("shop", 0.0, False)
    assert read(CALL).id == call.id


def test_lines_of_our_own_log_are_what_they_say():
    assert (read(CALL, OWN_LOG), read(REPORT, OWN_LOG)) == (CALL, REPORT)


def test_a_mark_alone_makes_no_record_of_ours():
    row = {"answered_by": {"model": "m"}, "messages": [{"role": "user", "content": "hi"}]}
    reader = reader_of({**row, "messages": [*row["messages"], {"role": "assistant"}]})  # type: ignore[misc]
    assert reader is not None
    assert reader.name == "openai"
    assert reader_of(json.loads(encode_line(REPORT))).name == "nightschool"  # type: ignore[union-attr]
