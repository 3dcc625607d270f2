"""The Arrow schema is the pydantic model's, and nothing is lost on the way through Parquet."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.calls.arrow import (
    CALL_SCHEMA,
    EXTRA,
    FEEDBACK_SCHEMA,
    arrow_schema,
    records_to_table,
    table_to_records,
)
from infra.calls.record import (
    AnsweredBy,
    CallRecord,
    Checks,
    FeedbackRecord,
    OtherAnswer,
    Record,
)
from tests.infra.calls.test_codec import call, json_values


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("model", [CallRecord, FeedbackRecord])
def test_every_field_has_a_column_of_its_kind(model: type[Record]) -> None:
    schema = arrow_schema(model)
    assert schema.names == [*model.model_fields, EXTRA]
    assert schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert schema.field("id").type == pa.string()
    assert schema.field("schema_version").type == pa.int64()
    for name, field in model.model_fields.items():
        assert schema.field(name).nullable == ("None" in str(field.annotation)), name


def test_the_stored_columns_are_these() -> None:
    """Stored files outlive releases: a change here needs a reader for the older form."""
    plain = {field.name: str(field.type) for field in CALL_SCHEMA if not field.metadata}
    assert plain == {
        "type": "string",
        "schema_version": "int64",
        "id": "string",
        "time": "timestamp[us, tz=UTC]",
        "tenant": "string",
        "session": "string",
        "task_tag": "string",
        "task": "string",
        "latency_seconds": "double",
        "confidence": "double",
    }
    nested = {field.name for field in FEEDBACK_SCHEMA if field.metadata}
    assert nested == {"correction", "anonymization", EXTRA}


@hypothesis_settings(max_examples=50)
@given(
    request=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    extra=json_values,
    time=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    confidence=st.none() | st.floats(allow_nan=False),
)
def test_calls_come_back_equal(
    request: dict[str, Any], extra: Any, time: datetime, confidence: float | None
) -> None:
    full = call(
        request=request,
        time=time,
        confidence=confidence,
        task_tag="t",
        answered_by=AnsweredBy(model="m", adapter="a@1", arm="canary", rollout="r"),
        checks=Checks(parsed=False, schema_valid=False, reason="content is not JSON"),
        other_answers=[OtherAnswer(model="m", purpose="shadow", message={"content": "x"})],
        from_the_future=extra,
    )
    records = [full, call()]
    assert table_to_records(through_parquet(records_to_table(records))) == records


def test_feedback_comes_back_equal() -> None:
    records = [
        FeedbackRecord(call_id="c", score=0.25, correction={"content": "right"}),
        FeedbackRecord(call_id="d", label="bad", newer=1),
    ]
    table = through_parquet(records_to_table(records))
    assert table_to_records(table, FeedbackRecord) == records


def test_no_records_are_a_table_without_rows() -> None:
    assert records_to_table([]).schema == CALL_SCHEMA
    assert records_to_table([], FeedbackRecord).schema == FEEDBACK_SCHEMA
    assert table_to_records(through_parquet(records_to_table([]))) == []


def test_columns_of_later_steps_and_of_earlier_releases() -> None:
    records = [call(), call()]
    table = records_to_table(records).append_column("weight", pa.array([1.0, 0.5]))
    assert table_to_records(table) == records
    older = records_to_table(records).drop_columns(["other_answers", EXTRA])
    assert table_to_records(older) == records


def test_prompts_of_10_mb() -> None:
    records = [call(request={"messages": [{"content": "x" * (10 << 20)}]}) for _ in range(3)]
    assert table_to_records(through_parquet(records_to_table(records))) == records
