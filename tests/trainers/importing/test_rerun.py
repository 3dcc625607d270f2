"""Quarantine again: what can be read now is taken in, and what cannot says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.settings.learning import Ingest
from infra.settings.model import Settings
from tests.trainers.importing.exported import SETTINGS, flywheel_row, logged, put, run
from tests.trainers.readers.samples import SAMPLES
from tests.trainers.readers.span_samples import document
from tests.trainers.recorded import call, put_log
from trainers.importing.quarantined import quarantines
from trainers.importing.rerun import GONE, rerun
from trainers.ingest.ingest import ingest
from trainers.ingest.reading import call_files, read_columns


def test_a_limit_that_was_raised(world: Any, exports: Path):
    long = flywheel_row(2, "x" * 3000)
    put(exports / "a.jsonl", [flywheel_row(1), long, flywheel_row(3)])
    narrow = Settings(ingest=Ingest(max_line_bytes=2048))
    report = run(world, exports, settings=narrow)
    assert (report.stored, report.quarantined.total()) == (2, 1)
    store, _ = world
    (listed,) = quarantines(store)
    (entry,) = listed.entries
    assert (entry.row, entry.object, entry.reader) == ("line 2", "a.jsonl", "auto")
    assert rerun(store, narrow).left == {"longer than 2048 bytes": 1}
    assert rerun(store, SETTINGS, ["nobody"]).tried == 0
    done = rerun(store, SETTINGS, [entry.id])
    assert (done.tried, done.settled, done.stored) == (1, 1, 1)
    assert len(logged(world)) == 3
    assert rerun(store, SETTINGS).tried == 0


def test_one_bad_span_among_good_ones(world: Any, exports: Path, monkeypatch: Any):
    spans = [row["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for row in SAMPLES["otel"].rows]
    bad = {**spans[1], "startTimeUnixNano": "0", "spanId": "bad"}
    put(exports / "a.jsonl", [document(spans[0], bad, spans[1])])
    report = run(world, exports)
    assert (report.stored, report.quarantined.total()) == (2, 1)
    monkeypatch.setattr("trainers.readers.fields._YEARS", (1970, 2200))
    store, _ = world
    assert rerun(store, SETTINGS).stored == 1
    assert len({record.id for record in logged(world)}) == len(logged(world)) == 3


def test_a_source_that_is_gone_or_another(world: Any, exports: Path):
    put(exports / "a.jsonl", [{"bad": 1}])
    put(exports / "b.jsonl", [{"bad": 2}])
    run(world, exports)
    (exports / "a.jsonl").unlink()
    put(exports / "b.jsonl", [flywheel_row(1)])
    store, _ = world
    report = rerun(store, SETTINGS)
    assert (report.tried, report.settled, report.left) == (2, 0, {GONE: 2})
    assert logged(world) == []


def test_lines_that_ingest_could_not_read(world: Any):
    store, database = world
    put_log(store, [call(1), call(2, user="x" * 3000, tenant="shop")])
    narrow = Settings(ingest=Ingest(max_line_bytes=2048))
    assert ingest(store, database, narrow, holder="night").quarantined == 1
    report = rerun(store, SETTINGS)
    assert (report.settled, report.stored) == (1, 1)
    assert ingest(store, database, SETTINGS, holder="night").calls == 1
    rows = list(read_columns(store, call_files(database, 99), ["tenant"]))
    # They are ours, so they are what they say, unlike a file that somebody else brings.
    assert {(row["id"], row["tenant"]) for row in rows} == {
        (call(1).id, "default"),
        (call(2).id, "shop"),
    }
