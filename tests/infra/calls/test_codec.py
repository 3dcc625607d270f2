"""Log objects, good and bad. Nothing that is found in one may cost more than itself."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from infra.calls.codec import (
    Line,
    Problem,
    RecordError,
    encode_line,
    encode_lines,
    log_key,
    parse_line,
    read_lines,
)
from infra.calls.record import AnsweredBy, CallRecord, FeedbackRecord

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def call(**values: Any) -> CallRecord:
    return CallRecord.model_validate(
        {
            "session": "s",
            "request": {"messages": [{"role": "user", "content": "hello"}]},
            "response": {"choices": []},
            "answered_by": AnsweredBy(model="teacher"),
            **values,
        }
    )


def lines(data: bytes, max_line_bytes: int = 1 << 20) -> list[Line]:
    return list(read_lines(io.BytesIO(data), max_line_bytes))


def compressed(text: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(text)


class TestRoundTrip:
    def test_calls_and_feedback(self) -> None:
        records = [call(), FeedbackRecord(call_id="c", score=0.5), call(session="other")]
        found = lines(encode_lines(records))
        assert [line.number for line in found] == [1, 2, 3]
        assert [parse_line(line.content) for line in found] == records  # type: ignore[arg-type]

    @given(request=st.dictionaries(st.text(max_size=5), json_values, max_size=4), extra=json_values)
    def test_any_request_and_fields_that_we_do_not_know(
        self, request: dict[str, Any], extra: Any
    ) -> None:
        record = call(request=request, from_the_future=extra)
        (line,) = lines(encode_lines([record]))
        assert isinstance(line.content, bytes)
        again = parse_line(line.content)
        assert again == record
        assert again.model_extra == {"from_the_future": extra}

    def test_half_a_character_becomes_a_replacement(self) -> None:
        record = call(request={"messages": [{"content": json.loads('"a\\ud83db"')}]})
        again = parse_line(encode_line(record))
        assert isinstance(again, CallRecord)
        assert again.messages == [{"content": "a\ufffdb"}]

    def test_a_prompt_of_10_mb(self) -> None:
        record = call(request={"messages": [{"role": "user", "content": "wörd " * 2_000_000}]})
        found = lines(encode_lines([call(), record, call()]), 16 << 20)
        assert [parse_line(line.content) for line in found][1] == record  # type: ignore[arg-type]

    def test_objects_put_one_after_another_are_one(self) -> None:
        data = encode_lines([call()]) + encode_lines([call(), call()])
        assert [line.number for line in lines(data)] == [1, 2, 3]

    def test_no_records_are_no_lines(self) -> None:
        assert lines(encode_lines([])) == []


class TestBadObjects:
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_cut_off_anywhere_it_yields_whole_lines_then_a_problem(self, share: float) -> None:
        generator = random.Random(5)
        texts = [f"{n} {generator.randbytes(2000).hex()}".encode() for n in range(150)]
        data = compressed(b"\n".join(texts))
        *good, last = lines(data[: int(len(data) * share)])
        assert [line.content for line in good] == texts[: len(good)]
        assert isinstance(last.content, Problem)
        assert last.number == len(good) + 1
        if share > 0.6:
            assert len(good) > 10

    @given(place=st.integers(10, 5000), flip=st.integers(1, 255))
    def test_damaged_anywhere_it_does_not_raise(self, place: int, flip: int) -> None:
        data = bytearray(encode_lines([call(session=str(n)) for n in range(50)]) * 3)
        data[place % len(data)] ^= flip
        for line in lines(bytes(data)):
            if isinstance(line.content, bytes):
                try:
                    parse_line(line.content)
                except RecordError:
                    continue
            else:
                assert line.content.reason

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"plain text, not compressed\n", "not zstandard"),
            (encode_lines([call()])[:3], "cut off"),
        ],
    )
    def test_what_is_no_log_says_so(self, data: bytes, reason: str) -> None:
        (line,) = lines(data)
        assert isinstance(line.content, Problem)
        assert reason in line.content.reason

    def test_a_good_object_and_then_rubbish(self) -> None:
        first, second = lines(encode_lines([call()]) + b"rubbish that is not a frame")
        assert isinstance(first.content, bytes)
        assert isinstance(second.content, Problem)

    def test_a_line_too_long_costs_only_itself(self) -> None:
        first, second, third = lines(compressed(b"a\n" + b"x" * 1001 + b"\n" + b"y" * 1000), 1000)
        assert (first.content, third.content) == (b"a", b"y" * 1000)
        assert isinstance(second.content, Problem)
        assert (second.number, third.number) == (2, 3)
        assert "1000" in second.content.reason

    def test_blank_lines_count_and_are_left_out(self) -> None:
        found = lines(compressed(b"a\n\n \r\nb\n"))
        assert found == [Line(1, b"a"), Line(4, b"b")]

    def test_memory_stays_small_whatever_unfolds(self) -> None:
        bomb = compressed(b"x" * (400 << 20))
        assert len(bomb) < 100_000
        tracemalloc.start()
        try:
            (line,) = lines(bomb, 1 << 20)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(line.content, Problem)
        assert peak < 150 << 20

    def test_a_stream_that_fails_is_the_callers_matter(self) -> None:
        class Failing(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                raise OSError("connection lost")

        with pytest.raises(OSError, match="lost"):
            list(read_lines(Failing()))  # type: ignore[arg-type]


class TestBadLines:
    @pytest.mark.parametrize(
        ("change", "reason", "position"),
        [
            ({"session": None}, "not valid", "session"),
            ({"session": ""}, "not valid", "session"),
            ({"time": "2026-03-01T00:00:00"}, "time zone", "time"),
            ({"answered_by": {}}, "missing", "answered_by.model"),
            ({"latency_seconds": -1}, "not valid", "latency_seconds"),
            ({"type": "ann@example.com"}, "neither", ""),
            (
                {"anonymization": {"counts": {"ann@example.com": "x"}}},
                "valid",
                "anonymization.counts.*",
            ),
        ],
    )
    def test_what_is_wrong_and_where_without_the_data(
        self, change: dict[str, Any], reason: str, position: str
    ) -> None:
        record = json.loads(encode_line(call())) | change
        with pytest.raises(RecordError, match=reason) as caught:
            parse_line(json.dumps(record).encode())
        assert caught.value.position == position
        assert "ann@" not in str(caught.value)

    @pytest.mark.parametrize("name", ["session", "request", "response", "answered_by"])
    def test_a_missing_field_is_named(self, name: str) -> None:
        record = json.loads(encode_line(call()))
        del record[name]
        with pytest.raises(RecordError, match="missing") as caught:
            parse_line(json.dumps(record).encode())
        assert caught.value.position == name

    @pytest.mark.parametrize(
        "line", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}x"]
    )
    def test_rubbish(self, line: bytes) -> None:
        with pytest.raises(RecordError):
            parse_line(line)

    @given(st.binary(max_size=60))
    def test_any_bytes(self, line: bytes) -> None:
        with pytest.raises(RecordError) as caught:
            parse_line(line)
        assert caught.value.reason

    def test_a_line_without_type_is_a_call(self) -> None:
        record = json.loads(encode_line(call()))
        del record["type"]
        assert isinstance(parse_line(json.dumps(record).encode()), CallRecord)


class TestLogKey:
    def test_is_by_hour_in_utc(self) -> None:
        time = datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
        assert (
            log_key(time, "gateway-1", 42)
            == "logs/v1/dt=2026-02-28/hh=22/gateway-1-0000000042.jsonl.zst"
        )

    @given(st.lists(st.tuples(st.datetimes(), st.integers(0, 10**10 - 1)), min_size=2, max_size=20))
    def test_sorts_as_time_does(self, moments: list[tuple[datetime, int]]) -> None:
        hours = [
            (time.replace(tzinfo=UTC, minute=0, second=0, microsecond=0), n) for time, n in moments
        ]
        keys = [log_key(time, "w", n) for time, n in sorted(hours)]
        assert keys == sorted(keys)

    @pytest.mark.parametrize("writer", ["", "a/b", "..", "-x", "a b", "x" * 101])
    def test_refuses_a_writer_that_is_no_name(self, writer: str) -> None:
        with pytest.raises(ValueError, match="writer"):
            log_key(datetime(2026, 1, 1, tzinfo=UTC), writer, 0)

    def test_refuses_a_time_without_zone_and_a_negative_number(self) -> None:
        with pytest.raises(ValueError, match="timezone"):
            log_key(datetime(2026, 1, 1), "w", 0)  # noqa: DTZ001
        with pytest.raises(ValueError, match="sequence"):
            log_key(datetime(2026, 1, 1, tzinfo=UTC), "w", -1)
