"""Log records as Arrow tables, with the schema rendered from the pydantic models.

Scalars have columns of their own type; whatever is nested (messages, tools, checks) is a column of
JSON text, since agents' requests have no common shape. Fields that this release does not know are
kept together in the column ``extra``.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import pyarrow as pa
from pydantic_core import from_json, to_json

from infra.calls.record import CallRecord, FeedbackRecord, Record

EXTRA = "extra"
_JSON = {b"content": b"json"}
# Offsets of 64 bits: prompts of megabytes times thousands of rows pass 2 GiB.
_JSON_TYPE = pa.large_string()
_TIME_TYPE = pa.timestamp("us", tz="UTC")
_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: _TIME_TYPE,
}

R = TypeVar("R", bound=Record)


def arrow_schema(model: type[Record]) -> pa.Schema:
    """One column per declared field, in declared order, then ``extra``."""
    fields = [_field(name, info.annotation) for name, info in model.model_fields.items()]
    return pa.schema([*fields, pa.field(EXTRA, _JSON_TYPE, nullable=True, metadata=_JSON)])


def records_to_table(records: Sequence[R], model: type[R] | None = None) -> pa.Table:
    """A row per record.

    Args:
        records: all of one model.
        model: needed only when there may be no record; else CallRecord is assumed for none.
    """
    model = model or cast("type[R]", type(records[0]) if records else CallRecord)
    schema = arrow_schema(model)
    columns = [
        pa.array([_stored(field, record) for record in records], type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table_to_records(table: pa.Table, model: type[R] = CallRecord) -> list[R]:  # type: ignore[assignment]
    """The records again, equal to those that were written.

    Columns that the schema does not have (added by a later step) are left out; columns that the
    table lacks (written by an earlier release) take the model's defaults.

    Raises:
        pydantic.ValidationError: a row breaks the model, so the file is not one of ours.
    """
    schema = arrow_schema(model)
    present = [field for field in schema if field.name in table.column_names]
    rows = table.select([field.name for field in present]).to_pylist()
    return [_record(row, present, model) for row in rows]


def _field(name: str, annotation: Any) -> pa.Field:
    kind, nullable = _unwrap(annotation)
    if kind in _SCALARS:
        return pa.field(name, _SCALARS[kind], nullable=nullable)
    return pa.field(name, _JSON_TYPE, nullable=nullable, metadata=_JSON)


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """The plain type inside Optional, Annotated and Literal, and whether None is allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrap(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        some = [kind for kind in get_args(annotation) if kind is not types.NoneType]
        if len(some) == 1 and len(some) < len(get_args(annotation)):
            return _unwrap(some[0])[0], True
        return annotation, types.NoneType in get_args(annotation)
    if origin is Literal:
        kinds = {type(value) for value in get_args(annotation)}
        return (kinds.pop() if len(kinds) == 1 else annotation), False
    # pydantic's AwareDatetime is datetime to a type checker, its own class at run time.
    return (
        datetime if getattr(annotation, "__name__", "") == "AwareDatetime" else annotation
    ), False


def _stored(field: pa.Field, record: Record) -> Any:
    if field.name == EXTRA:
        return to_json(record.model_extra).decode() if record.model_extra else None
    value = getattr(record, field.name)
    if value is None or not _is_json(field):
        return value
    return to_json(value).decode()


def _record(row: dict[str, Any], fields: Sequence[pa.Field], model: type[R]) -> R:
    values = {
        field.name: from_json(row[field.name])
        if _is_json(field) and row[field.name] is not None
        else row[field.name]
        for field in fields
    }
    extra = values.pop(EXTRA, None) or {}
    return model.model_validate({**extra, **values})


def _is_json(field: pa.Field) -> bool:
    return bool(field.metadata) and field.metadata.get(b"content") == b"json"


CALL_SCHEMA = arrow_schema(CallRecord)
FEEDBACK_SCHEMA = arrow_schema(FeedbackRecord)
