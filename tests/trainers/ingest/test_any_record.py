"""Records of any shape through anonymizer, log and ingest: each is kept or named, and no secret stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.anonymize.anonymizer import Anonymizer
from infra.calls.codec import encode_line, parse_line
from infra.calls.record import AnsweredBy, CallRecord
from infra.settings.serving import Anonymizer as AnonymizerSettings
from tests.trainers.recorded import SETTINGS, START, call, opened, put_log
from trainers.ingest import claims
from trainers.ingest.ingest import ingest
from trainers.ingest.reading import call_files, read_calls

MAIL, CARD = "ann.lee@example.com", "4111111111111111"
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        [MAIL, f"pay {CARD}", json.dumps({"to": MAIL}), "\u0000", "\ud800", "<EMAIL_1>"]
    ),
)
names = st.sampled_from(
    ["role", "content", "tool_calls", "function", "name", "arguments", "text", "type", MAIL]
) | st.text(max_size=4)
shapes = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.sampled_from(["messages", "tools", "response_format", "model", "choices", "x"]),
    shapes,
    max_size=4,
)


examples = count()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store, database = opened(tmp_path_factory.mktemp("any"))
    yield store, database
    database.close()


def record(number: int, request: Any, response: Any, tag: str | None) -> CallRecord:
    return CallRecord(
        id=f"call-{number:05d}",
        time=START,
        session="s",
        task_tag=tag,
        request=request,
        response=response,
        answered_by=AnsweredBy(model="m"),
        unknown=[request],
    )


@hypothesis_settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(rows=st.lists(st.tuples(bodies, bodies, st.none() | st.text(max_size=9)), max_size=4))
def test_each_record_is_kept_without_secrets(world, rows):
    store, database = world
    first = 10 * next(examples)
    records = [record(first + number, *row) for number, row in enumerate(rows)]
    put_log(store, [call(first + 8), *records, call(first + 9)], first)
    report = ingest(store, database, SETTINGS, holder="night", now=START)
    assert (report.lost, report.lines) == (0, len(rows) + 2)
    assert report.calls + report.quarantined + report.repeated == len(rows) + 2
    around = {call(first + 8).id, call(first + 9).id}
    ids = {*around, *(item.id for item in records)}
    kept = {item.id: item for item, _ in read_calls(store, call_files(database, 10**6), ids)}
    assert around <= set(kept)
    assert len(kept) == report.calls
    for item in kept.values():
        said = encode_line(item).decode()
        assert MAIL not in said and CARD not in said
    ((_, _, counts),) = claims.committed(database, limit=1)
    assert MAIL not in json.dumps(counts)


@hypothesis_settings(max_examples=25, deadline=None)
@given(request=bodies, response=bodies, tag=st.none() | st.text(max_size=9))
def test_the_gateways_way_and_ingests_way_say_the_same(request, response, tag):
    anonymizer = Anonymizer(AnonymizerSettings())
    made = parse_line(encode_line(record(1, request, response, tag)))
    assert isinstance(made, CallRecord)
    one = anonymizer.scope().record(made)
    other = anonymizer.scope().fields(made.model_dump(mode="json"))
    for name in ("request", "response", "task_tag", "session"):
        assert json.loads(encode_line(one))[name] == other[name]
    again = anonymizer.scope().record(one)
    assert again.request == one.request and again.response == one.response
