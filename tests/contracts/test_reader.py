"""What every reader must do, asked of a sample in each format's published shape."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.cli import logs
from infra.calls.codec import Problem, encode_line, parse_line
from infra.calls.record import CallRecord
from infra.settings.learning import LogSource
from tests.trainers.readers import run_of_agent as agent
from tests.trainers.readers.samples import SAMPLES, Sample
from trainers.readers.formats import FORMATS, READERS, reader_named, reader_of
from trainers.readers.reader import Place, Skipped, read_row
from trainers.readers.reading import Read, read_source


def read(rows: Iterable[Any], name: str = "auto", tenant: str = "default") -> list[Read]:
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return list(
        read_source(
            io.BytesIO(data), name, tenant=tenant, max_row_bytes=1 << 20, max_parquet_bytes=1 << 20
        )
    )


def calls(rows: Iterable[Any], name: str = "auto") -> list[CallRecord]:
    found = [item.item for item in read(rows, name)]
    assert all(isinstance(item, CallRecord) for item in found), found
    return found  # type: ignore[return-value]


@pytest.fixture(params=list(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]


def test_every_format_has_a_sample_and_is_offered():
    assert set(logs.FORMATS) == {"auto", *FORMATS}
    for name in logs.FORMATS:
        LogSource.model_validate({"format": name, "location": "here"})
    assert {sample.name for sample in SAMPLES.values()} == set(FORMATS)


def test_a_tool_call_survives(sample: Sample):
    first = calls(sample.rows, sample.name)[0]
    assert first.answer is not None
    (call,) = first.answer["tool_calls"]
    assert (call["id"], call["type"]) == ("call_a", "function")
    assert call["function"]["name"] == "find_part"
    assert json.loads(call["function"]["arguments"]) == agent.ARGUMENTS
    assert not first.answer["content"]
    assert first.response["choices"][0]["finish_reason"] in ("tool_calls", None)


def test_the_turns_before_survive_with_the_tools_result(sample: Sample):
    second = calls(sample.rows, sample.name)[1]
    assert [message["role"] for message in second.messages] == [
        *("system", "user", "assistant", "tool")
    ]
    system, _, action, result = second.messages
    assert system["content"] == agent.SYSTEM
    assert json.loads(action["tool_calls"][0]["function"]["arguments"]) == agent.ARGUMENTS
    assert result["content"] == agent.RESULT
    assert result["tool_call_id"] == action["tool_calls"][0]["id"] == "call_a"
    assert second.answer is not None
    assert second.answer["content"] == agent.ANSWER
    assert second.response["choices"][0]["finish_reason"] in ("stop", None)


def test_content_of_several_parts_survives(sample: Sample):
    first = calls(sample.rows, sample.name)[0]
    assert first.messages[1]["content"] == agent.USER


def test_tools_and_options_survive(sample: Sample):
    first = calls(sample.rows, sample.name)[0]
    assert first.request["tools"] == agent.TOOLS
    assert first.request["temperature"] == 0.2
    assert first.request["model"] == first.answered_by.model == agent.MODEL


def test_sessions_tags_usage_times(sample: Sample):
    first, second = calls(sample.rows, sample.name)[:2]
    assert first.session == second.session
    if sample.session:
        assert first.session == sample.session
    assert first.task_tag == second.task_tag == sample.tag
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == agent.USAGE
    assert first.latency_seconds == pytest.approx(sample.latency)
    expected = agent.TIME if sample.exact_time else agent.TIME.replace(microsecond=0)
    assert first.time == expected
    assert first.time < second.time


def test_a_call_that_the_provider_refused_is_kept_and_has_no_answer(sample: Sample):
    if not sample.failures:
        pytest.skip("the format cannot say it")
    failed = calls(sample.rows, sample.name)[2]
    assert failed.answer is None
    assert failed.response["error"]
    assert failed.messages[-1]["content"] == agent.RESULT


def test_ids_are_the_same_each_time_and_differ_from_each_other(sample: Sample):
    first = [record.id for record in calls(sample.rows, sample.name)]
    again = [record.id for record in calls(copy.deepcopy(sample.rows), sample.name)]
    assert first == again
    assert len(set(first)) == len(first)


def test_the_marks_tell_the_format(sample: Sample):
    for row in sample.rows:
        assert next(reader.name for reader in READERS if reader.recognizes(row)) == sample.name
    assert {item.reader for item in read(sample.rows, "auto")} == {sample.name}


def test_records_go_through_our_own_log(sample: Sample):
    for record in calls(sample.rows, sample.name):
        assert parse_line(encode_line(record)) == record


def test_the_tenant_is_the_importers(sample: Sample):
    assert {item.item.tenant for item in read(sample.rows, sample.name, "shop")} == {"shop"}  # type: ignore[union-attr]


def test_a_row_cut_to_nothing_is_a_problem(sample: Sample):
    (only,) = read([{}], sample.name)
    assert isinstance(only.item, Problem)
    assert only.position == "line 1"


SECRET = "Zx9-private"
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["[", "{}", '{"messages": 3}', "data: x", "\u0000", SECRET, "1e999", "[[]]"]),
)
rubbish = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "parts", "type", "id", "kwargs", "data", "tool_calls"]
            )
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_to_a_row_gives_a_record_or_a_problem(sample: Sample, data: st.DataObject):
    """Whatever one value becomes, the row is read or says why not, and never what it held."""
    row = copy.deepcopy(data.draw(st.sampled_from(sample.rows)))
    path = data.draw(st.sampled_from(sorted(places(row), key=str)))
    inner: Any = row
    for step in path[:-1]:
        inner = inner[step]
    if data.draw(st.booleans()):
        inner[path[-1]] = data.draw(rubbish)
    else:
        del inner[path[-1]]
    found = list(read_row(reader_named(sample.name), row, Place("line 1")))
    for item in found:
        if isinstance(item, Problem):
            assert SECRET not in item.reason + item.position
        elif not isinstance(item, Skipped):
            assert parse_line(encode_line(item)).id == item.id
            assert list(read_row(reader_named(sample.name), row, Place("line 1"))) == found


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=st.dictionaries(st.text(max_size=8), rubbish, max_size=4))
def test_any_object_at_all_is_answered(sample: Sample, row: dict[str, Any]):
    for item in read_row(reader_named(sample.name), row, Place("line 1")):
        assert isinstance(item, CallRecord | Problem | Skipped) or item.type == "feedback"
    reader_of(row)
