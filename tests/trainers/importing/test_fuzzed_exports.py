"""Every format, hurt in every way that files get hurt: bounded, counted, and nothing else lost."""

from __future__ import annotations

import copy
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.calls.codec import Problem
from infra.settings.learning import Ingest
from tests.trainers.importing.exported import SETTINGS, logged, run
from tests.trainers.readers import run_of_agent as agent
from tests.trainers.readers.samples import SAMPLES, Sample
from trainers.ingest.ingest import ingest
from trainers.readers import unpacking
from trainers.readers.reading import read_source

SMALL = SETTINGS.model_copy(update={"ingest": Ingest(max_line_bytes=64 << 10)})
BOMB_BYTES = 3 << 20
DEEP = 20_000


def lines_of(sample: Sample) -> list[bytes]:
    return [json.dumps(row).encode() for row in sample.rows]


def in_the_future(sample: Sample) -> bytes:
    """The rows as a computer writes them whose clock is twenty years ahead."""
    text = b"\n".join(lines_of(sample)).decode()
    year = str(agent.TIME.year)
    moment = str(int(agent.TIME.timestamp()))
    return text.replace(f"{year}-", "2046-").replace(moment[:4], "2400").encode()


def hurt(sample: Sample) -> dict[str, bytes]:
    """File name to content: a kind of damage each, with whole rows around it where that can be."""
    rows = lines_of(sample)
    whole, first = b"\n".join(rows) + b"\n", rows[0]
    huge = copy.deepcopy(sample.rows[0])
    huge["padding"] = "x" * (100 << 10)
    deep = first[:-1] + b', "deep": ' + b"[" * DEEP + b"]" * DEEP + b"}"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jsonl", whole)
    return {
        "truncated.jsonl": whole[: len(whole) - len(rows[-1]) // 2],
        "utf8.jsonl": first.replace(b'"', b'"\xff\xfe', 3) + b"\n" + whole,
        "nul.jsonl": first.replace(b'": ', b'": \x00', 1) + b"\n\x00\n" + whole,
        "deep.jsonl": deep + b"\n" + whole,
        "huge.jsonl": json.dumps(huge).encode() + b"\n" + whole,
        "twice.jsonl": whole + whole,
        "future.jsonl": in_the_future(sample),
        "cut.jsonl.gz": gzip.compress(whole)[:-9],
        "bomb.jsonl.gz": gzip.compress(b'{"a": "' + b"0" * BOMB_BYTES),
        "bomb.jsonl.zst": zstandard.compress(b"[" * BOMB_BYTES),
        "archive.zip": zipped.getvalue(),
        "empty.jsonl": b"",
    }


@pytest.mark.parametrize("name", list(SAMPLES))
def test_what_is_hurt_costs_only_itself(
    world: Any, exports: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unpacking, "MIN_UNPACKED_BYTES", 1 << 20)
    sample = SAMPLES[name]
    damaged = hurt(sample)
    for file, content in damaged.items():
        (exports / file).write_bytes(content)
    good = b"\n".join(lines_of(sample)) + b"\n"
    (exports / "zz-good.jsonl").write_bytes(good)
    report = run(world, exports, sample.name, settings=SMALL)
    assert (report.objects, report.failed, report.lost) == (len(damaged) + 1, 0, 0)
    assert report.stored >= len(sample.rows)
    assert report.quarantined.total() >= 6
    for told in report.quarantined:
        assert agent.ANSWER not in told
    ids = [record.id for record in logged(world)]
    assert len(ids) == len(set(ids)) == report.stored
    wanted = {
        read.item.id  # type: ignore[union-attr]
        for read in read_source(
            io.BytesIO(good), sample.name, max_row_bytes=1 << 20, max_parquet_bytes=1 << 20
        )
    }
    assert wanted <= set(ids)
    store, database = world
    taken = ingest(store, database, SMALL, holder="night")
    assert (taken.calls, taken.quarantined, taken.lost) == (report.stored, 0, 0)


@hypothesis_settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_bytes_changed_in_one_row_leave_the_others(data: st.DataObject):
    sample = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
    rows = lines_of(sample)
    number = data.draw(st.integers(0, len(rows) - 1))
    row = bytearray(rows[number])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, max(0, len(row) - 1)))
        piece = data.draw(
            st.binary(max_size=4).map(lambda b: b.replace(b"\n", b" "))
            | st.sampled_from(
                [b"\x00", b"\xff", b'"', b"}", b"]", b"\\u0000", b"1e999", b"\\ud800"]
            )
        )
        row[place : place + data.draw(st.integers(0, 6))] = piece
    # In its place, since some ids are made from the place in the file.
    without = [*rows[:number], b"{}", *rows[number + 1 :]]

    def read(lines: list[bytes]) -> list[Any]:
        stream = io.BytesIO(b"\n".join(lines) + b"\n")
        found = read_source(stream, sample.name, max_row_bytes=1 << 20, max_parquet_bytes=1 << 20)
        return [item.item for item in found]

    expected = {item.id for item in read(without) if hasattr(item, "id")}
    changed = [*rows[:number], bytes(row), *rows[number + 1 :]]
    found = read(changed)
    assert expected <= {item.id for item in found if hasattr(item, "id")}
    assert all(len(item.reason) < 500 for item in found if isinstance(item, Problem))
