"""Single values: times, counts, durations, names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from infra.calls.codec import RecordError
from tests.trainers.readers.one_row import one
from tests.trainers.readers.samples import SAMPLES
from trainers.readers.fields import count, embedded, instant, seconds


def test_times_in_every_unit():
    wanted = datetime(2026, 3, 2, 9, 30, 15, tzinfo=UTC)
    stamp = int(wanted.timestamp())
    for given in (
        stamp, float(stamp), stamp * 1000, stamp * 10**6, stamp * 10**9, str(stamp * 10**9),
        "2026-03-02T09:30:15Z", "2026-03-02 09:30:15", "2026-03-02T10:30:15+01:00", wanted,
        "2026-03-02 09:30:15.000000 UTC", wanted.replace(tzinfo=None),
    ):  # fmt: skip
        assert instant(given, "t") == wanted, given


@pytest.mark.parametrize(
    "bad",
    [None, True, "", "soon", 0, -5, 10**30, float("nan"), "0001-01-01", "9999-12-31", [], {}],
)
def test_no_time(bad: Any):
    with pytest.raises(RecordError):
        instant(bad, "t")


def test_counts_and_durations():
    assert [count(v) for v in (3, "3", 3.0, -1, None, True, 2**70, float("inf"), "x")] == [
        *(3, 3, 3, 0, 0, 0, 0, 0, 0)
    ]
    assert [seconds(v) for v in (1.5, "1.5", -2, "x", None, float("nan"))] == [
        *(1.5, 1.5, 0.0, None, None, None)
    ]


def test_json_in_text_that_is_nested_too_deep():
    assert embedded("{not json") == "{not json"
    with pytest.raises(RecordError, match="nested deeper"):
        embedded("[" * 200 + "]" * 200)


def test_long_and_strange_sessions():
    row = {**SAMPLES["litellm"].rows[0], "trace_id": "a\0b" + "x" * 1000, "metadata": {}}
    session = one("litellm", row).session
    assert len(session) <= 256
    assert session.startswith("abx")
    other = one("litellm", {**row, "trace_id": "a\0b" + "x" * 1001}).session
    assert other != session
