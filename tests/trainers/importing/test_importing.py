"""An import takes each source object in once, anonymized, whatever stops it on the way."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from infra.database.events import list_events
from infra.objects.store import ObjectMissing, ObjectStoreError
from infra.settings.model import Settings
from infra.settings.serving import Storage
from tests.contracts.servers import S3Server
from tests.trainers.importing.exported import (
    SETTINGS,
    flywheel_row,
    ids_of,
    keys,
    logged,
    put,
    run,
)
from tests.trainers.readers import run_of_agent as agent
from tests.trainers.readers.samples import SAMPLES
from tests.trainers.recorded import opened
from trainers.importing import importing
from trainers.importing.quarantined import quarantines
from trainers.importing.rerun import rerun
from trainers.importing.sources import FolderSource
from trainers.ingest.ingest import ingest, totals
from trainers.ingest.reading import call_files, read_columns

MAIL = "ann.lee@example.com"


@pytest.mark.parametrize("name", list(SAMPLES))
def test_every_format_from_file_to_parquet(world: Any, exports: Path, name: str):
    sample = SAMPLES[name]
    put(exports / "export.jsonl", sample.rows)
    report = run(world, exports, sample.name)
    assert (report.objects, report.read, report.stored) == (1, len(sample.rows), len(sample.rows))
    assert (report.failures, report.lost) == (int(sample.failures), 0)
    assert report.formats == {sample.name: len(sample.rows)}
    store, database = world
    taken = ingest(store, database, SETTINGS, holder="night")
    assert (taken.calls, taken.quarantined, taken.lost) == (len(sample.rows), 0, 0)
    rows = list(read_columns(store, call_files(database, 99), ["session", "f_action"]))
    actions = sorted(row["f_action"] for row in rows)
    assert actions == sorted(["call find_part", "none", "text"][: len(rows)]) or actions == [
        *("call find_part", "text"),
    ]
    assert totals(database).objects == taken.objects


def test_again_takes_in_nothing_and_new_files_alone(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1)])
    first = run(world, exports)
    before = keys(world)
    again = run(world, exports)
    assert (again.objects, again.known, again.stored) == (0, 1, 0)
    assert run(world, exports / ".." / exports.name).known == 1
    assert keys(world) == before
    put(exports / "b.jsonl", [flywheel_row(2)])
    third = run(world, exports)
    assert (third.objects, third.known, third.stored) == (1, 1, 1)
    assert len(logged(world)) == first.stored + third.stored


def test_a_copy_and_an_overlapping_export_give_the_sameids_of(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1), flywheel_row(2)])
    put(exports / "b.jsonl", [flywheel_row(2), flywheel_row(3)])
    report = run(world, exports)
    assert (report.stored, report.duplicates) == (3, 1)
    shutil.copy(exports / "a.jsonl", exports / "copy.jsonl")
    run(world, exports)
    store, database = world
    ingest(store, database, SETTINGS, holder="night")
    assert len(list(read_columns(store, call_files(database, 99), []))) == 3


def test_nothing_personal_is_stored_anywhere(world: Any, exports: Path, tmp_path: Path):
    row = flywheel_row(1, f"write to {MAIL}, not json after this:")
    broken = json.dumps(row)[:-9] + MAIL
    (exports / "a.jsonl").write_text(json.dumps(row) + "\n" + broken + "\n")
    report = run(world, exports)
    assert report.personal_data == {"EMAIL": 1}
    assert report.quarantined.total() == 1
    (record,) = logged(world)
    assert record.messages[0]["content"].startswith("write to <EMAIL_1>")
    assert record.anonymization.policy == "replace/1"
    store, _ = world
    for item in store.list():
        assert MAIL.encode() not in store.get(item.key)
    stored = [p for p in tmp_path.rglob("*") if p.is_file() and exports not in p.parents]
    assert [path for path in stored if MAIL.encode() in path.read_bytes()] == []


def test_a_dry_run_counts_the_same_and_writes_nothing(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1), {"unknown": 1}])
    would = run(world, exports, dry_run=True)
    assert keys(world) == {}
    did = run(world, exports)
    assert vars(would) | {"keys": did.keys} == vars(did)


def test_a_kill_at_any_write_leaves_the_missing_part_only(
    tmp_path: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped after each write in turn: afterwards all is as if nothing had happened."""

    class Killed(BaseException):
        pass

    for number in range(3):
        put(exports / f"{number}.jsonl", [flywheel_row(number), {"bad": number}])
    monkeypatch.setattr("trainers.importing.bundle.MAX_MEMBERS", 2)
    (tmp_path / "whole").mkdir()
    whole = opened(tmp_path / "whole")
    run(whole, exports)
    records = logged(whole)
    for stop in range(1, 20):
        folder = tmp_path / f"killed-{stop}"
        folder.mkdir()
        world = opened(folder)
        store, _ = world
        writes = 0

        def counting(real: Any, stop: int = stop) -> Any:
            def write(*arguments: Any) -> Any:
                nonlocal writes
                writes += 1
                if writes == stop:
                    raise Killed
                return real(*arguments)

            return write

        with monkeypatch.context() as patch:
            patch.setattr(store, "put", counting(store.put))
            patch.setattr(store, "delete", counting(store.delete))
            patch.setattr(importing, "commit", counting(importing.commit))
            try:
                run(world, exports)
                finished = True
            except Killed:
                finished = False
        # A file that came meanwhile changes no bundle that was begun.
        put(exports / "later.jsonl", [flywheel_row(9)])
        report = run(world, exports)
        assert report.failed == 0
        assert sorted(record.id for record in logged(world)) == sorted(
            [*(record.id for record in records), *ids_of([flywheel_row(9)])]
        )
        rejected = [entry.object for listed in quarantines(store) for entry in listed.entries]
        assert sorted(rejected) == ["0.jsonl", "1.jsonl", "2.jsonl"]
        (exports / "later.jsonl").unlink()
        if finished:
            assert stop > 8
            return
    raise AssertionError("never ran to its end")


def test_what_cannot_be_had_is_counted_and_stops_nothing_else(
    world: Any, exports: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b", "c"):
        put(exports / f"{name}.jsonl", [flywheel_row(ord(name))])
    real = importing.open_source

    def failing(*arguments: Any) -> Any:
        source = real(*arguments)
        inner = source.open

        def opening(key: str) -> Any:
            if key == "b.jsonl":
                raise ObjectStoreError("no answer")
            return inner(key)

        source.open = opening  # type: ignore[method-assign]
        return source

    with monkeypatch.context() as patch:
        patch.setattr(importing, "open_source", failing)
        report = run(world, exports)
    assert (report.objects, report.failed, report.stored) == (2, 1, 2)
    assert run(world, exports).stored == 1
    assert len(logged(world)) == 3


def test_a_source_that_is_away_is_not_asked_on_and_on(
    world: Any, exports: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(10):
        put(exports / f"{number}.jsonl", [flywheel_row(number)])
    other = exports.parent / "other"
    only_other = opening_only(other)
    asked = []

    def away(self: Any, key: str) -> Any:
        asked.append(key)
        raise ObjectStoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr("trainers.importing.sources.FolderSource.open", away)
        with pytest.raises(ObjectStoreError, match="Run it again when it can"):
            run(world, exports)
        assert len(asked) == importing.MAX_DOWN
        put(other / "a.jsonl", [flywheel_row(99)])
        # What is noted for a source that is away stops no import of another.
        patch.setattr("trainers.importing.sources.FolderSource.open", only_other)
        assert run(world, other).stored == 1
    report = run(world, exports)
    assert report.failed == 0
    assert len(logged(world)) == len({record.id for record in logged(world)}) == 11


def opening_only(folder: Path) -> Any:
    real = FolderSource.open

    def opening(self: Any, key: str) -> Any:
        if self.location != str(folder):
            raise ObjectStoreError("no answer")
        return real(self, key)

    return opening


def test_a_file_whose_name_cannot_be_spelled_is_counted(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1)])
    (exports / os.fsdecode(b"bad\xff.jsonl")).write_text("{}")
    report = run(world, exports)
    assert (report.stored, report.failed) == (1, 1)


def test_a_link_to_nowhere_and_hidden_files_are_left(world: Any, exports: Path):
    put(exports / "deep" / "er" / "a.jsonl", [flywheel_row(1)])
    put(exports / ".hidden.jsonl", [flywheel_row(2)])
    (exports / "link.jsonl").symlink_to(exports / "gone")
    assert run(world, exports).stored == 1
    with pytest.raises(ObjectMissing, match="no file or folder"):
        run(world, exports / "nowhere")
    with pytest.raises(ObjectStoreError, match="begins with ftp"):
        run(world, "ftp://host/file")


def test_formats_mixed_in_a_folder_and_parquet_and_gzip(world: Any, exports: Path):
    put(exports / "a.jsonl", SAMPLES["litellm"].rows)
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in SAMPLES["otel"].rows)
    (exports / "b.jsonl.gz").write_bytes(gzip.compress(rows))
    table = pa.Table.from_pylist(SAMPLES["langsmith"].rows)
    pq.write_table(table, exports / "c.parquet", row_group_size=2)
    (exports / "d.json").write_text(json.dumps(SAMPLES["langfuse"].rows, indent=1))
    report = run(world, exports)
    assert report.formats == dict.fromkeys(("litellm", "otel", "langsmith", "langfuse"), 3)
    assert (report.quarantined.total(), report.lost) == (0, 0)


def test_out_of_a_bucket(world: Any, s3_server: S3Server):
    storage = Storage(
        url="s3://logs",
        endpoint_url=s3_server.endpoint_url,
        region="us-east-1",
        access_key_id=SecretStr("k"),
        secret_access_key=SecretStr("s"),
    )
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
    client.create_bucket(Bucket="foreign")
    for number, row in enumerate(SAMPLES["litellm"].rows):
        body = json.dumps(row, indent=1).encode()
        client.put_object(Bucket="foreign", Key=f"team/2026-03-02/{number}.json", Body=body)
    client.put_object(Bucket="foreign", Key="other/x.json", Body=b"{}")
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(SAMPLES["langsmith"].rows), buffer)
    client.put_object(
        Bucket="foreign", Key="team/runs.parquet", Body=buffer.getvalue().to_pybytes()
    )
    settings = Settings(storage=storage)
    report = run(world, "s3://foreign/team/", settings=settings)
    assert (report.objects, report.stored, report.quarantined.total()) == (4, 6, 0)
    again = run(world, "s3://foreign/team/", settings=settings)
    assert (again.objects, again.known) == (0, 4)


def test_calls_of_the_future_wait_in_quarantine(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1)])
    early = agent.TIME - timedelta(days=1)
    report = run(world, exports, now=early)
    assert report.quarantined == {"a time in the future: is a clock wrong?": 1}
    store, _ = world
    waiting = rerun(store, SETTINGS, now=early)
    assert (waiting.tried, waiting.settled, waiting.stored) == (1, 0, 0)
    done = rerun(store, SETTINGS, now=agent.TIME)
    assert (done.tried, done.settled, done.stored) == (1, 1, 1)
    assert list(quarantines(store)) == []
    assert len(logged(world)) == 1


def test_small_objects_go_together_and_days_apart(world: Any, exports: Path):
    for number in range(30):
        put(exports / f"{number:02}.json", [flywheel_row(number * 86400 // 10)])
    report = run(world, exports)
    assert report.objects == 30
    days = {record.time.date() for record in logged(world)}
    assert len(report.keys) == len(days) == 4
    for key in report.keys:
        assert key.split("dt=")[1][:10] in {str(day) for day in days}


def test_another_format_is_another_import(world: Any, exports: Path):
    put(exports / "a.jsonl", SAMPLES["langfuse"].rows)
    assert run(world, exports, "litellm").quarantined.total() == 3
    assert run(world, exports, "langfuse").stored == 3
    assert run(world, exports, "auto").stored == 3
    assert len({record.id for record in logged(world)}) == 3


def test_a_source_file_that_vanished_after_a_kill_takes_nothing_else_with_it(
    world: Any, exports: Path, monkeypatch: pytest.MonkeyPatch
):
    put(exports / "a.jsonl", [flywheel_row(1)])
    put(exports / "b.jsonl", [flywheel_row(2)])

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(importing, "commit", killed)
        run(world, exports)
    (exports / "b.jsonl").unlink()
    report = run(world, exports)
    assert (report.stored, report.failed) == (1, 1)
    assert [record.id for record in logged(world)] == ids_of([flywheel_row(1)])
    assert run(world, exports).objects == 0


def test_on_each_database(each_database: Any, store: Any, exports: Path):
    both = (store, each_database)
    for number in range(3):
        put(exports / f"{number}.json", [flywheel_row(number)])
    assert run(both, exports).stored == 3
    assert run(both, exports).known == 3
    ingest(store, each_database, SETTINGS, holder="night")
    assert totals(each_database).calls == 3


def test_the_import_is_an_event(world: Any, exports: Path):
    put(exports / "a.jsonl", [flywheel_row(1)])
    run(world, exports)
    run(world, exports)
    _, database = world
    with database.read() as connection:
        (event,) = list_events(connection, what="logs.imported")
    assert "1 records of 1 objects" in event.why
