"""From bytes to rows: every layout, packed or not, and whatever hostile or broken bytes there are."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zipfile
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.calls.codec import Problem
from trainers.readers import unpacking
from trainers.readers.rows import Row, read_rows
from trainers.readers.splitting import values

LIMIT = 1000
ROWS = [{"a": 1}, {"b": ['x"}', "\\", {"c": "]\n["}]}, {"d": "Ünï"}]


def rows(data: bytes, limit: int = LIMIT) -> list[Row]:
    return list(read_rows(io.BytesIO(data), limit, 1 << 20))


def good(found: list[Row]) -> list[Any]:
    return [row.value for row in found if not isinstance(row.value, Problem)]


def problems(found: list[Row]) -> list[tuple[str, str]]:
    return [(row.position, row.value.reason) for row in found if isinstance(row.value, Problem)]


def jsonl(values: list[Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


LAYOUTS = {
    "lines": jsonl(ROWS),
    "lines without a last newline": jsonl(ROWS).rstrip(),
    "lines of another system, with a mark": b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n", b"\r\n"),
    "blank lines between": jsonl(ROWS).replace(b"\n", b"\n\n"),
    "a list": json.dumps(ROWS).encode(),
    "a list over many lines": json.dumps(ROWS, indent=2).encode(),
    "a list, an object a line": b"[\n" + jsonl(ROWS).replace(b"\n", b",\n").rstrip(b",\n") + b"\n]",
    "a list that begins in its line": b"["
    + jsonl(ROWS).replace(b"\n", b",\n").rstrip(b",\n")
    + b"]",
    "objects over many lines": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_every_layout_packed_or_not(layout: str, pack: Any):
    assert [row.value for row in rows(pack(LAYOUTS[layout]))] == ROWS


def test_positions_are_those_of_the_file():
    found = rows(b'{"a":1}\n\nnot json\n{"b":2}\n')
    assert [row.position for row in found] == ["line 1", "line 3", "line 4"]
    assert problems(found) == [("line 3", "not valid JSON")]
    assert [row.position for row in rows(json.dumps(ROWS).encode())] == [
        *("object 1", "object 2", "object 3")
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"a": "x', "not valid JSON"),
        (b"\0\0\0", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[" * 150 + b"]" * 150, "nested deeper than 100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested deeper than 100 levels"),
        (b'{"a": "' + b"x" * LIMIT + b'"}', f"longer than {LIMIT} bytes"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(line: bytes, reason: str):
    found = rows(b'{"n":1}\n' + line + b'\n{"n":2}\n')
    assert problems(found) == [("line 2", reason)]
    assert good(found) == [{"n": 1}, {"n": 2}]


def test_a_nul_in_a_string_is_no_harm():
    assert good(rows(b'{"a": "x\\u0000y"}\n')) == [{"a": "x\0y"}]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_what_is_cut_off_or_damaged_keeps_the_rows_before(pack: Any):
    import random

    dice = random.Random(1)
    many = [{"n": n, "x": dice.randbytes(40).hex()} for n in range(5000)]
    data = pack(jsonl(many))
    cut = rows(data[: len(data) // 2])
    assert good(cut)[:100] == many[:100]
    assert problems(cut)[-1][1] == "the file is cut off"
    broken = bytearray(data)
    broken[len(data) // 2 : len(data) // 2 + 40] = b"\0" * 40
    assert problems(rows(bytes(broken)))[-1][1] in (
        *("the compressed data is damaged", "not valid JSON", "the file is cut off"),
    )


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_file_that_unfolds_without_end_is_left_in_time_and_space(
    pack: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unpacking, "MIN_UNPACKED_BYTES", 4 << 20)
    bomb = pack(b'{"a":1}\n' + b" " * (64 << 20))
    tracemalloc.start()
    try:
        found = rows(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert good(found) == [{"a": 1}]
    assert problems(found)[-1][1].startswith("it unfolds to more than")
    assert peak < 40 << 20


def test_members_one_after_another_and_padding():
    packed = gzip.compress(jsonl(ROWS[:1])) + gzip.compress(jsonl(ROWS[1:])) + b"\0" * 100
    assert good(rows(packed)) == ROWS
    assert good(
        rows(zstandard.compress(jsonl(ROWS[:1])) + zstandard.compress(jsonl(ROWS[1:])))
    ) == (ROWS)


def test_what_is_no_log_says_so():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jsonl", "{}")
    assert problems(rows(archive.getvalue())) == [
        ("byte 0", "a zip archive: unpack it and import the files")
    ]
    assert problems(rows(b"")) == [("byte 0", "the file is empty")]
    assert problems(rows(b"\n  \n")) == [("byte 0", "the file is empty")]
    assert problems(rows(gzip.compress(b""))) == [("byte 0", "the file is empty")]
    assert problems(rows(b"hello\nworld\n"))


def test_a_list_that_is_cut_off_keeps_what_was_whole():
    text = json.dumps(ROWS).encode()
    for end in (len(text) - 1, len(text) - 5):
        found = rows(text[:end])
        assert good(found)[:2] == ROWS[:2]
        assert problems(found)[-1][1].startswith("the document ends inside")


def test_an_object_of_a_list_that_is_too_large_is_left_out():
    found = rows(json.dumps([{"a": 1}, {"b": "x" * LIMIT}, {"c": 2}]).encode())
    assert good(found) == [{"a": 1}, {"c": 2}]
    assert problems(found) == [("object 2", f"longer than {LIMIT} bytes")]


def test_what_stands_between_objects_is_named():
    found = rows(b'[1, {"a": 1}, "x", {"b": 2}]')
    assert good(found) == [{"a": 1}, {"b": 2}]
    assert [reason for _, reason in problems(found)] == ["text that belongs to no object"] * 2
    assert rows(b"[]") == []


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(
        st.integers(0, 99).map(lambda n: json.dumps({"n": n}).encode())
        | st.binary(min_size=1, max_size=12).filter(
            lambda b: b"\n" not in b and b.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")
        )
        | st.sampled_from([b'{"a": 1', b"{", b"}", b"[", b'["', b'{"', b"\\", b"\xff", b"[[[["]),
        min_size=1,
        max_size=8,
    )
)
def test_good_lines_among_any_others_are_all_read(lines: list[bytes]):
    """Some good line that is not the first tells the layout; then none is lost."""
    lines = [*lines, b'{"last": 1}']
    # What begins a list or a packed file is taken at its word.
    assume(not lines[0].lstrip().startswith((b"[", b"\x1f\x8b", b"\x28\xb5", b"PAR1", b"PK")))
    found = rows(b"\n".join(lines))
    wanted = [json.loads(line) for line in lines if line.startswith(b'{"n"') or b"last" in line]
    assert [value for value in good(found) if isinstance(value, dict)] == wanted
    assert len(found) == len(lines)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\{}[]\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3), max_size=5)


@hypothesis_settings(max_examples=150, deadline=None)
@given(items=objects, size=st.integers(1, 40), indent=st.sampled_from([None, 1]), one=st.booleans())
def test_blocks_of_any_size_give_the_same_objects(
    items: list[Any], size: int, indent: int | None, one: bool
):
    text = (
        json.dumps(items, indent=indent)
        if one
        else "\n".join(json.dumps(item, indent=indent) for item in items)
    ).encode()
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    found = [piece.content for piece in values(blocks, 10**6)]
    read = [json.loads(piece) for piece in found if isinstance(piece, bytes)]
    assert read == items
    assert len(read) == len(found) or not items


@hypothesis_settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x1f\x8b", b"PAR1", b"{", b"[{"]))
def test_any_bytes_at_all_are_answered(data: bytes, head: bytes):
    for row in rows(head + data):
        assert row.position


class TestParquet:
    def table(self) -> pa.Table:
        return pa.table(
            {
                "id": ["a", "b", "c"],
                "when": pa.array(
                    [datetime(2026, 3, 2, tzinfo=UTC)] * 3, type=pa.timestamp("us", tz="UTC")
                ),
                "raw": pa.array([b"text", b"\xff", None], type=pa.binary()),
                "tags": [["x"], [], None],
            }
        )

    def written(self, table: pa.Table, **options: Any) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        return buffer.getvalue()

    def test_rows_of_every_group(self):
        found = rows(self.written(self.table(), row_group_size=2))
        assert [row.position for row in found] == ["row 1", "row 2", "row 3"]
        first, last = found[0].value, found[2].value
        assert (first["id"], first["raw"], first["tags"]) == ("a", "text", ["x"])
        assert first["when"] == datetime(2026, 3, 2, tzinfo=UTC)
        assert set(last) == {"id", "when"}
        assert problems(found) == [("row 2", "a value is not valid UTF-8 or out of range")]

    def test_from_a_file_without_reading_it_whole(self, tmp_path):
        path = tmp_path / "named-anything"
        path.write_bytes(self.written(self.table()))
        with path.open("rb") as stream:
            assert len(good(list(read_rows(stream, LIMIT, 1)))) == 2

    def test_a_larger_one_than_can_be_held(self):
        data = self.written(self.table())
        (only,) = read_rows(io.BytesIO(data), LIMIT, 10)
        assert problems([only]) == [("byte 0", "a Parquet file above 10 bytes")]

    def test_a_long_row_is_left_out(self):
        table = pa.table({"x": ["short", "y" * 5000, "short"]})
        found = rows(self.written(table))
        assert problems(found) == [("row 2", f"longer than {LIMIT} bytes")]
        assert len(good(found)) == 2

    def test_a_damaged_one(self):
        data = bytearray(self.written(self.table()))
        for start in (4, len(data) // 2, len(data) - 20):
            broken = data.copy()
            broken[start : start + 12] = b"\xff" * 12
            assert rows(bytes(broken))
        assert problems(rows(bytes(data[:-6])))[-1][1] == "the Parquet file is damaged"
